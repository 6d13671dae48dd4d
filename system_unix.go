//go:build unix && !linux

package daemon

import (
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What follows is how other Unixes do, as far as they can, what system_linux.go and
// system_exec_linux.go do.

func sendNow(fd int, datagram []byte) unix.Errno {
	err := uninterrupted(func() error { return unix.Send(fd, datagram, unix.MSG_NOSIGNAL) })
	errno, _ := err.(unix.Errno)
	return errno
}

// monotonic: only systemd asks for it.
func monotonic() (usec int64, ok bool) { return 0, false }

// raise may return before the signal is delivered: only upstart, on Linux,
// asks for more.
func raise(signal unix.Signal) error { return unix.Kill(pid(), signal) }

// onMainThread: nobody tells.
func onMainThread() bool { return true }

func duplicateTo(from, to int) error { return unix.Dup2(from, to) }

// isSameFile: nobody tells.
func isSameFile(fd, fd2 int) bool { return true }

func secure() bool {
	return unix.Getuid() != unix.Geteuid() || unix.Getgid() != unix.Getegid()
}

func prepareExec() (restore func()) { return func() {} }

func muteStderr() (moved int, restore func()) { return -1, func() {} }

func ignoredSignals() []unix.Signal { return nil }

func outliveLauncher() {}

// dieOf returns: the launcher exits with 128+n.
func dieOf(unix.Signal) {}

func workingDirectory() string {
	directory, _ := unix.Getwd()
	return directory
}

func openSocket() (fd int, err error) {
	syscall.ForkLock.RLock() // nothing inherits it before it is close-on-exec
	defer syscall.ForkLock.RUnlock()
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0); err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	return fd, unix.SetNonblock(fd, true)
}

func pipe(fds []int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	err := syscall.Pipe(fds)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return err
}

// duplicateFrom: on AIX, F_DUPFD_CLOEXEC is F_DUPFD.
func duplicateFrom(fd, lowest int) (int, error) {
	duplicate, err := unix.FcntlInt(uintptr(fd), syscall.F_DUPFD_CLOEXEC, lowest)
	if err == nil {
		unix.CloseOnExec(duplicate)
	}
	return duplicate, err
}

// readFile returns nothing: what is read is Linux's /proc.
func readFile(string) string { return "" }

var startIDs = [4]int{unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid()}

func idsAtStart() [4]int { return startIDs }

const pathOnly = unix.O_RDONLY

// firstEnvironment may have been changed by other packages' initializers.
func firstEnvironment() []string { return os.Environ() }

// selfPath: there is none.
const selfPath = ""

func executedPath() string {
	path := os.Args[0]
	if !strings.Contains(path, "/") {
		path, _ = exec.LookPath(path) // exec.ErrDot comes with a path
	}
	return path
}

// lastVariable is unknown: what another copy has removed is gone.
func lastVariable() string { return "" }

// programFiles: nobody tells.
func programFiles() (executed, loaded string) { return "", "" }

// setName: the program is executed by its own name.
func setName(string) {}
