// Package quiet keeps a launcher that SIGQUIT (Ctrl-\) ends from showing its
// goroutines on the terminal, or leaving a core, at any instant of its life.
//
// The Go runtime shows them from its own start on, and unblocks SIGQUIT in each
// thread. So package daemon puts /dev/null in the place of descriptor 2 before it
// executes the launcher, and init puts the caller's back, once SIGQUIT has its
// default action. Go initializes a package once all its imports are. This one has
// hardly any, so that init comes before all packages that import os, time or fmt:
// their panics are seen. In package daemon it would come too late.
package quiet

import (
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

// Environment is that with which this process was started. Initializers of other
// packages may have changed it when package daemon looks.
var Environment = syscall.Environ()

var wasDumpable bool

func init() {
	stderr, ok := parseMarker()
	if !ok {
		return
	}
	wasDumpable = IsDumpable()
	SetDumpable(0)
	SetAction(syscall.SIGQUIT, DefaultAction)
	if stderr > 2 && wasDumpable { // not in a setuid program, whose caller has set the marker
		// If another thread is in the handler already, it stops this one here, while 2
		// still is /dev/null.
		_ = syscall.Nanosleep(&syscall.Timespec{Nsec: 1}, nil)
		_ = syscall.Dup3(stderr, 2, 0)
		_ = syscall.Close(stderr)
	}
	wasDumpable = wasDumpable || stderr > 2 // stderr came, so it was: another copy of quiet has cleared it
}

// parseMarker returns another descriptor of the caller's 2. ok is false if package
// daemon's marker, COPY:launcher:PID:DESCRIPTOR:..., is not for this process.
func parseMarker() (stderr int, ok bool) {
	value, marked := syscall.Getenv("_DAEMON_DETACH")
	if !marked {
		return -1, false
	}
	_, value = cut(value)
	role, value := cut(value)
	pid, value := cut(value)
	number, _ := cut(value)
	stderr, err := strconv.Atoi(number)
	return stderr, err == nil && role == "launcher" && pid == strconv.Itoa(syscall.Getpid())
}

// cut is strings.Cut at a colon: package strings imports too much.
func cut(text string) (field, rest string) {
	for i := range len(text) {
		if text[i] == ':' {
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

// End lets the launcher leave a core again, for it catches SIGQUIT by itself now.
func End() {
	if wasDumpable {
		SetDumpable(1)
	}
}

// IsDumpable reports whether this process may leave a core, see SetDumpable. One
// with more rights than its caller may not.
func IsDumpable() bool {
	dumpable, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0)
	return dumpable == 1 // 2 cannot be set
}

// SetDumpable is PR_SET_DUMPABLE of prctl(2). At 0 there is no core: a limit
// means nothing to a core_pattern that is a pipe.
func SetDumpable(value uintptr) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, value, 0)
}

// Action is the struct of rt_sigaction(2), with room for any architecture's.
type Action [8]uintptr

// What the kernel may do with a signal instead of calling a handler.
var (
	DefaultAction Action                                          // SIG_DFL
	IgnoreAction  = func() (a Action) { a[mips] = 1; return a }() // SIG_IGN
)

// SetAction sets what the kernel does with a signal, behind os/signal's back.
func SetAction(signal syscall.Signal, action Action) (old Action) {
	sigaction(signal, &action, &old)
	return old
}

// IsIgnored also knows of those signals that signal.Ignored does not know of.
func IsIgnored(signal syscall.Signal) bool {
	var action Action
	sigaction(signal, nil, &action)
	return action[mips] == IgnoreAction[mips]
}

func sigaction(signal syscall.Signal, changed, old *Action) {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(signal),
		uintptr(unsafe.Pointer(changed)), uintptr(unsafe.Pointer(old)), uintptr(8+8*mips), 0, 0)
}

// mips is 1 on mips, whose struct has the flags first, and which has 128 signals
// in place of 64.
var mips = func() int {
	switch runtime.GOARCH {
	case "mips", "mipsle", "mips64", "mips64le":
		return 1
	}
	return 0
}()
