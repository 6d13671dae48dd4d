//go:build unix

package daemon

import (
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// notifyFD is the descriptor on which s6, dinit, finit or OpenRC wait for a line.
var notifyFD struct {
	sync.Mutex
	passed checkedFD // what NOTIFY_FD stood for when the process began
	told   bool
}

// recordNotifyFD runs before main, which may open files of its own by that number.
func recordNotifyFD() {
	if number, err := strconv.ParseInt(getenv("NOTIFY_FD"), 10, 32); err == nil {
		notifyFD.passed = inherit(int(number))
	}
}

// writeReady writes the line and closes the descriptor that NOTIFY_FD names,
// once in a process's life.
func writeReady(value string) error {
	notifyFD.Lock()
	defer notifyFD.Unlock()
	if notifyFD.told {
		return nil
	}
	fd := notifyFD.passed.fd
	if number, err := strconv.ParseInt(value, 10, 32); err != nil || number < 0 {
		return opError("parse NOTIFY_FD", strconv.Quote(value), unix.EINVAL)
	} else if int(number) != fd || !notifyFD.passed.valid() {
		return opError("write to NOTIFY_FD", value+" (no pipe or socket that was open for writing at start)", unix.EBADF)
	}
	null := -1
	if fd <= 2 { // first, so that nothing can fail after the line
		var err error
		if null, err = openNull(); err != nil {
			return opError("open /dev/null in place of NOTIFY_FD", value, err)
		}
		defer unix.Close(null)
	}
	// One write: finit reads once. A pipe that is full has no supervisor at its end.
	if err := writeNow(fd, "READY=1\n"); err != nil {
		return opError("write to NOTIFY_FD", value, err)
	}
	notifyFD.told = true
	// A child that inherits it and calls Ready would write to a file of its own.
	unsetenv("NOTIFY_FD")
	if fd > 2 {
		unix.Close(fd)
	} else if err := duplicateTo(null, fd); err != nil {
		return opError("open /dev/null in place of NOTIFY_FD", value, err)
	}
	return nil
}

// writeNow writes text in one piece, without waiting for room.
func writeNow(fd int, text string) error {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	err := uninterrupted(func() error {
		_, err := unix.Poll(fds[:], 0)
		return err
	})
	if err == nil && fds[0].Revents == 0 {
		return unix.EAGAIN
	}
	return write(fd, text)
}
