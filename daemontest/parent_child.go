//go:build linux

package daemontest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownPID is the value of a variable in pidVariables that the child replaces by
// its process id.
const ownPID = "$$"

// pidVariables hold the process id of the process that they are meant for.
var pidVariables = []string{"LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID"}

// fork starts the command. The process is the test binary first, as a child
// that does between fork and exec what Go can't, and then executes the command
// under the same pid.
func (f *family) fork(files []uintptr) error {
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
	all := append(slices.Clone(files), childFailure.Fd())
	if f.task.Role == asShell {
		all = append(all, terminalFD)
	}
	pid, err := syscall.ForkExec(self, childArgs(f.task, len(files)), &syscall.ProcAttr{
		Dir: f.task.Dir, Env: unsupervised(os.Environ()), Files: all, Sys: &f.task.Attr,
	})
	childFailure.Close()
	if err != nil {
		return fmt.Errorf("fork/exec %s in directory %q: %w", f.task.Path, f.task.Dir, err)
	}
	// The time of the exec, and why it failed. Without a time the child ended
	// before that, as a process that one sees end.
	text, _ := io.ReadAll(failure)
	at, why, _ := strings.Cut(string(text), "\n")
	if why != "" {
		return errors.New(why)
	}
	executed, _ := strconv.ParseInt(at, 10, 64)
	f.hasStarted(pid, time.Now().Add(-time.Duration(monotonic()-executed)))
	return nil
}

// monotonic reads a clock that all processes share.
func monotonic() (nsec int64) {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano()
}

// childArgs are the arguments of a child: the role, the number of the command's
// descriptors and of its arguments, its path, its arguments, its environment.
// The environment is not the child's own: what is in it may have a meaning for
// this program, too.
func childArgs(do task, files int) []string {
	args := []string{childName, strconv.Itoa(int(do.Role)), strconv.Itoa(files), strconv.Itoa(len(do.Args)), do.Path}
	return append(append(args, do.Args...), do.Env...)
}

// runChild is the main function of a child until it becomes the command. It
// returns only if the command can't be executed, with sh(1)'s exit status for
// that.
func runChild() int {
	role, _ := strconv.Atoi(os.Args[1])
	files, _ := strconv.Atoi(os.Args[2])
	count, err := strconv.Atoi(os.Args[3])
	if err != nil || len(os.Args) < 5+count {
		return 127
	}
	path, args, env := os.Args[4], os.Args[5:5+count], os.Args[5+count:]
	unix.CloseOnExec(files)
	if role == int(asShell) {
		unix.CloseOnExec(files + 1)
		takeTerminal(files + 1)
	}
	for i, assignment := range env {
		if key, value, _ := strings.Cut(assignment, "="); value == ownPID && slices.Contains(pidVariables, key) {
			env[i] = key + "=" + strconv.Itoa(os.Getpid())
		}
	}
	resetSignals()
	failure := os.NewFile(uintptr(files), "pipe")
	fmt.Fprintln(failure, monotonic())
	err = syscall.Exec(path, args, env)
	fmt.Fprintf(failure, "fork/exec %s: %v", path, err)
	return 127
}

// resetSignals has no signal blocked and none ignored, as after a login,
// whatever this process has inherited. Handlers end with the exec by
// themselves. The calling thread is the one that executes.
func resetSignals() {
	signals, setSize := 64, uintptr(8)
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		signals, setSize = 128, 16
	}
	// The zero value is the default action, SIG_DFL, wherever the architecture
	// has it in struct sigaction.
	var action [8]uintptr
	for sig := 1; sig <= signals; sig++ {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, setSize, 0, 0)
	}
	unix.PthreadSigmask(unix.SIG_SETMASK, new(unix.Sigset_t), nil)
}

// takeTerminal makes the process group of this process the foreground one of the
// terminal. SysProcAttr.Foreground does so only if SIGTTOU is ignored, which the
// command would inherit. The kernel sends SIGTTOU to a background process that
// takes the terminal, unless the signal is blocked.
func takeTerminal(terminal int) {
	const bit = uint(unix.SIGTTOU - 1)
	var mask unix.Sigset_t // an array of words
	word := uint(8 * unsafe.Sizeof(mask.Val[0]))
	mask.Val[bit/word] = 1 << (bit % word)
	unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil)
	unix.IoctlSetPointerInt(terminal, unix.TIOCSPGRP, os.Getpid())
	unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, nil)
}
