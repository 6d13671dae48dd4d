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

// raise may return before the signal is delivered: only upstart, on Linux, asks for more.
func raise(signal unix.Signal) error { return unix.Kill(pid(), signal) }

func duplicateTo(from, to int) error { return unix.Dup2(from, to) }

// duplicateFrom: on AIX, F_DUPFD_CLOEXEC is F_DUPFD.
func duplicateFrom(fd, lowest int) (int, error) {
	duplicate, err := unix.FcntlInt(uintptr(fd), syscall.F_DUPFD_CLOEXEC, lowest)
	if err == nil {
		unix.CloseOnExec(duplicate)
	}
	return duplicate, err
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

func secure() bool {
	return unix.Getuid() != unix.Geteuid() || unix.Getgid() != unix.Getegid()
}

var startIDs = [4]int{unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid()}

func idsAtStart() [4]int { return startIDs }

// firstEnvironment may have been changed by other packages' initializers.
func firstEnvironment() []string { return os.Environ() }

func executedPath() string {
	path := os.Args[0]
	if !strings.Contains(path, "/") {
		path, _ = exec.LookPath(path) // exec.ErrDot comes with a path
	}
	return path
}

func workingDirectory() string {
	directory, _ := unix.Getwd()
	return directory
}

const pathOnly = unix.O_RDONLY

// selfPath: nothing stands for this very program.
const selfPath = ""

// Nobody tells, and there is no /proc to read: the answers are those of most programs.

func readFile(string) string                  { return "" }
func onMainThread() bool                      { return true }
func isSameFile(fd, fd2 int) bool             { return true }
func ignoredSignals() []unix.Signal           { return nil }
func lastVariable() string                    { return "" }
func programFiles() (executed, loaded string) { return "", "" }

// Only Linux needs these, or can do them. Without dieOf the launcher exits with 128+n.

func monotonic() (usec int64, ok bool)        { return 0, false } // for systemd
func prepareExec() (restore func())           { return func() {} }
func muteStderr() (moved int, restore func()) { return -1, func() {} }
func outliveLauncher()                        {}
func dieOf(unix.Signal)                       {}
func setName(string)                          {}
