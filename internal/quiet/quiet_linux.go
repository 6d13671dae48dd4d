// Package quiet has a launcher end by SIGQUIT without its goroutines on the
// terminal and without a core, from the first on.
//
// Go initializes a package once all its imports are. This one has hardly any, so
// that its init comes before that of a package which imports os, time or fmt, and
// may take long. Package daemon, which imports them too, would come too late.
package quiet

import (
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

var wasDumpable bool

// To block SIGQUIT is no use: the Go runtime unblocks it in each thread.
func init() {
	if isLauncher() {
		dumpable, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0)
		wasDumpable = dumpable == 1 // nothing else can be set
		SetDumpable(0)
		SetAction(syscall.SIGQUIT, DefaultAction)
	}
}

// isLauncher reports whether package daemon's marker, PACKAGE:launcher:PID:...,
// is for this process.
func isLauncher() bool {
	rest, marked := syscall.Getenv("_DAEMON_DETACH")
	if !marked {
		return false
	}
	role := ":launcher:" + strconv.Itoa(syscall.Getpid()) + ":"
	for rest != "" && rest[0] != ':' {
		rest = rest[1:]
	}
	return len(rest) >= len(role) && rest[:len(role)] == role
}

// End is for a launcher that catches SIGQUIT from now on.
func End() {
	if wasDumpable {
		SetDumpable(1)
	}
}

// SetDumpable is PR_SET_DUMPABLE of prctl(2). At 0 there is no core: a limit
// means nothing to a core_pattern that is a pipe.
func SetDumpable(value uintptr) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, value, 0)
}

// Action is the struct of rt_sigaction(2), with room for any architecture's.
type Action [8]uintptr

// What the kernel may do with a signal instead of calling a handler.
const (
	DefaultAction uintptr = 0 // SIG_DFL
	IgnoreAction  uintptr = 1 // SIG_IGN
)

// SetAction sets what the kernel does with a signal, behind os/signal's back.
func SetAction(signal syscall.Signal, action uintptr) (old Action) {
	var changed Action
	changed[mips] = action
	sigaction(signal, &changed, &old)
	return old
}

// RestoreAction sets what SetAction has returned.
func RestoreAction(signal syscall.Signal, old Action) { sigaction(signal, &old, nil) }

// IsIgnored also knows of those signals that signal.Ignored does not know of.
func IsIgnored(signal syscall.Signal) bool {
	var action Action
	sigaction(signal, nil, &action)
	return action[mips] == IgnoreAction
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
