//go:build linux

package daemontest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkAsShell starts the command as a shell does: its child takes the terminal
// before it becomes the command. It takes a program to do that between fork
// and exec. Go's own way, SysProcAttr.Foreground, works only with SIGTTOU
// ignored, which the command would inherit.
func (f *family) forkAsShell(files []uintptr) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if f.task.Attr.Credential != nil {
		self = "/proc/self/exe" // another user may not reach it by its path
	}
	failure, childFailure, err := os.Pipe()
	if err != nil {
		return err
	}
	defer failure.Close()
	args := append([]string{childName, strconv.Itoa(len(files)), f.task.Path}, f.task.Args...)
	err = f.fork(self, args, append(files, terminalFD, childFailure.Fd()))
	childFailure.Close()
	if err != nil {
		return err
	}
	if text, _ := io.ReadAll(failure); len(text) > 0 {
		return errors.New(string(text))
	}
	f.ignoreKeys()
	return nil
}

// runChild is the main function of a shell's child until it becomes the
// command. Its arguments are the number of the command's descriptors, which
// those of the terminal and of forkAsShell's pipe follow, the command's path
// and its argv. What it returns is the exit status of a command that can't be
// executed, as in sh(1).
func runChild() int {
	terminal, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return 127
	}
	failure := os.NewFile(uintptr(terminal+1), "pipe")
	unix.CloseOnExec(terminal)
	unix.CloseOnExec(terminal + 1)

	// The kernel sends SIGTTOU to who takes the terminal from the background,
	// unless that is blocked. This is the main thread, the one that executes.
	var mask unix.Sigset_t
	mask.Val[0] = 1 << (unix.SIGTTOU - 1)
	unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil)
	unix.IoctlSetPointerInt(terminal, unix.TIOCSPGRP, os.Getpid())
	unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, nil)

	err = syscall.Exec(os.Args[2], os.Args[3:], os.Environ())
	fmt.Fprintf(failure, "fork/exec %s: %v", os.Args[2], err)
	return 127
}

// ignoreKeys makes the shell ignore what is typed for its jobs, and what it
// would get for taking the terminal back. The command must run before that: it
// would inherit it.
func (f *family) ignoreKeys() {
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	go func() {
		for range hangup {
			f.hangup()
		}
	}()
}

// hangup passes the loss of the terminal on to the job, as bash(1) does.
func (f *family) hangup() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.gone {
		unix.Kill(-f.command, unix.SIGHUP)
		unix.Kill(-f.command, unix.SIGCONT)
	}
}

// resume is a shell's fg.
func (f *family) resume() syscall.Errno {
	if f.gone {
		return unix.ESRCH
	}
	f.foreground(f.command)
	errno, _ := unix.Kill(-f.command, unix.SIGCONT).(syscall.Errno)
	return errno
}

// foreground gives the terminal to a process group.
func (f *family) foreground(group int) {
	unix.IoctlSetPointerInt(terminalFD, unix.TIOCSPGRP, group)
}

// prompt shows that the command has returned. The prompt comes after all that
// the command has written to the terminal.
func (f *family) prompt() {
	if f.task.Role == asShell {
		f.foreground(os.Getpid())
		unix.Write(terminalFD, f.task.Prompt)
	}
}
