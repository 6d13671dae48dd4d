//go:build linux

package daemontest

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// ignoreKeys makes the shell ignore what is typed for its jobs, and what it
// would get for taking the terminal back.
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
