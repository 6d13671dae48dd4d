//go:build unix && !linux

package daemon

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// What follows is how other Unixes do, as far as they can, what
// system_linux.go does.

func sendNow(fd int, datagram []byte) unix.Errno {
	for {
		errno, _ := unix.Send(fd, datagram, unix.MSG_NOSIGNAL).(unix.Errno)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// monotonic: only systemd asks for it.
func monotonic() (usec int64, ok bool) { return 0, false }

// raise may return before the signal is delivered: only upstart, on Linux,
// asks for more.
func raise(signal unix.Signal) error { return unix.Kill(pid, signal) }

func duplicateTo(from, to int) error { return unix.Dup2(from, to) }

func secure() bool {
	return unix.Getuid() != unix.Geteuid() || unix.Getgid() != unix.Getegid()
}

func prepareExec() (undo func()) { return func() {} }

// dieOf returns: the launcher exits with 128+n.
func dieOf(unix.Signal) {}

func isIgnored(s unix.Signal) bool { return signal.Ignored(s) }

// The program is executed by its own name.

func commandName() string { return "" }

func setName(string) {}
