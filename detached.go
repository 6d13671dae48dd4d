//go:build unix

package daemon

import (
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// daemonMark makes a daemon of the child that the launcher starts.
type daemonMark struct {
	launcher int // its pid
	fd       int // the pipe through which to tell the launcher
	replaced int // see replacedStandard
	name     string
}

func (m daemonMark) String() string {
	return formatMark("daemon", m.name, m.launcher, m.fd, m.replaced)
}

// startedByDaemon reports whether this process has only inherited the marker: an
// initializer of another package in the daemon has started it. A daemon that has
// lost its launcher has no launcher among its ancestors.
func startedByDaemon(launcher int) bool {
	parent := strconv.Itoa(unix.Getppid())
	for ancestor := parent; ancestor != "" && ancestor != "1"; ancestor = parentOf(ancestor) {
		if ancestor == strconv.Itoa(launcher) {
			return ancestor != parent
		}
	}
	return false
}

// detached is the daemon's side of a detach.
var detached struct {
	isDaemon bool // this process is a launcher's daemon
	daemonMark

	sync.Mutex
	pipe    checkedFD
	null    checkedFD    // /dev/null, which main may lose by a chroot
	callers [3]checkedFD // other descriptors of 1 and 2, if they are regular files: see isCallers
	told    bool         // that this process is ready
}

// becomeDaemon makes this process the launcher's daemon, before main runs. It does
// without the runtime's poller, which would not survive a main that begins by
// closing all descriptors.
func becomeDaemon(m daemonMark) {
	d := &detached
	d.isDaemon, d.daemonMark = true, m
	if unix.Getppid() != m.launcher {
		return // the launcher is gone, as findLauncher will say; m.fd may stand for any file
	}
	if m.fd > 2 {
		d.pipe = inherit(m.fd)
	}
	null, _ := openNull() // if not now, then by Ready
	d.null = checked(null)
	d.callers = [3]checkedFD{1: duplicateFile(1), 2: duplicateFile(2)}
	setName(m.name)
	own := strconv.Itoa(m.launcher)
	if os.Getenv("LISTEN_PID") == own {
		os.Setenv("LISTEN_PID", strconv.Itoa(pid()))
		os.Unsetenv("LISTEN_PIDFDID")
		recordPassed()
	}
	if os.Getenv("WATCHDOG_PID") == own {
		os.Setenv("WATCHDOG_PID", strconv.Itoa(pid()))
	}
}

// duplicateFile duplicates a descriptor that stands for a regular file: main may open
// that file once more, as its own log. Not 0: what is read is no log, and a lock that main
// has on it (F_SETLK of fcntl(2)) would end when the duplicate is closed.
func duplicateFile(fd int) checkedFD {
	if !isKind(fd, unix.S_IFREG) {
		return checkedFD{}
	}
	duplicate, _ := moveHigh(duplicateFrom(fd, 3))
	return checked(duplicate)
}

// tellLauncher detaches a daemon from its terminal and then has the launcher
// exit. In any other process, and a second time, it does nothing.
func tellLauncher() error {
	d := &detached
	if !d.isDaemon {
		return nil
	}
	d.Lock()
	defer d.Unlock()
	if err := findLauncher(); err != nil || d.told {
		return err
	}
	if err := leaveTerminal(); err != nil {
		return err
	}
	outliveLauncher()
	if err := write(d.pipe.fd, wordReady); err != nil {
		return opError("detach: tell", "launcher", err)
	}
	d.told = true
	unix.Close(d.pipe.fd)
	return nil
}

// findLauncher returns an error if a launcher that waits for the daemon's word is
// gone, or the way to it: another process may be the parent now, and another file
// have the descriptor.
func findLauncher() error {
	d := &detached
	switch {
	case d.told:
		return nil
	case unix.Getppid() != d.launcher:
		return opError("detach: find launcher", "process "+strconv.Itoa(d.launcher), unix.ESRCH)
	case !d.pipe.valid():
		return opError("detach: find launcher", "descriptor "+strconv.Itoa(d.pipe.fd), unix.EBADF)
	}
	return nil
}

// leaveTerminal makes this process the leader of a session without a terminal
// (setsid(2)) and puts /dev/null in the place of those of 0, 1 and 2 that main
// has not replaced.
func leaveTerminal() error {
	null := detached.null.fd
	if !detached.null.valid() {
		var err error
		if null, err = openNull(); err != nil {
			return opError("detach: open", "/dev/null", err)
		}
	}
	defer unix.Close(null)
	if err := newSession(); err != nil {
		return opError("detach: setsid", "process "+strconv.Itoa(pid()), err)
	}
	replaced := replacedStandard()
	for fd := range atStart.standard {
		if replaced&(1<<fd) != 0 {
			continue
		}
		if err := duplicateTo(null, fd); err != nil {
			return opError("detach: open /dev/null as", "descriptor "+strconv.Itoa(fd), err)
		}
	}
	for _, c := range detached.callers {
		if c.valid() {
			unix.Close(c.fd)
		}
	}
	detached.callers = [3]checkedFD{}
	return nil
}

// newSession makes this process the leader of a session, unless it is one: main
// has called setsid(2), or a Ready that failed after that.
func newSession() error {
	_, err := unix.Setsid()
	if session, _ := unix.Getsid(0); err == nil || session == pid() {
		return nil
	}
	// The leader of a process group cannot call setsid. It joins the launcher's group,
	// once the launcher leads one: a group of a parent PID namespace has no number here.
	if err := write(detached.pipe.fd, wordGroup); err != nil {
		return err
	}
	waitBriefly(func() bool { return unix.Setpgid(0, detached.launcher) == nil })
	_, err = unix.Setsid()
	return err
}

// replacedStandard returns those of 0, 1 and 2, as bits, that main has replaced, by a
// log file perhaps. The launcher and the daemon find them replaced when they start.
func replacedStandard() (bits int) {
	for fd := range atStart.standard {
		if now := identify(fd); now != (identity{}) && !isCallers(fd, now) {
			bits |= 1 << fd
		}
	}
	return bits
}

// isCallers reports whether a standard descriptor stands for what the caller gave as
// one of the three: main may have made 2 another name of 1, which is the caller's pipe.
func isCallers(fd int, now identity) bool {
	for i, then := range atStart.standard {
		if now != then || detached.replaced&(1<<i) != 0 {
			continue
		}
		// Of 0 there is no duplicate to compare with: a regular file on 1 or 2 is main's
		// log, unless the caller gave it as 1 or 2, too.
		if i == 0 && fd != 0 && isKind(fd, unix.S_IFREG) {
			continue
		}
		callers := detached.callers[i]
		if !callers.valid() || isSameFile(fd, callers.fd) { // or else main itself has opened the shell's log
			return true
		}
	}
	return false
}
