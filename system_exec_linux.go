package daemon

import (
	"os/signal"
	"syscall"
	"unsafe"

	"github.com/seed-10280e03/daemon/internal/quiet"
	"golang.org/x/sys/unix"
)

// What follows is what an execve leaves to the next program, and how a program that
// was executed again keeps its name and its way to end.

// ignorableSignals are those that a Go program leaves ignored if its caller ignored
// them: the runtime takes all others back (see os/signal).
var ignorableSignals = [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

// ignoredSignals returns those that the caller ignored. The first two, of which
// os/signal knows, take no system call.
func ignoredSignals() (ignored []unix.Signal) {
	for i, s := range ignorableSignals {
		if i < 2 && signal.Ignored(s) || i >= 2 && quiet.IsIgnored(s) {
			ignored = append(ignored, s)
		}
	}
	return ignored
}

// prepareExec removes what outlives this program and would kill the next:
// interval timers, with the signals that are on their way. It ignores again what the
// caller ignored. restore is for an exec that failed.
func prepareExec() (restore func()) {
	var timers [3]unix.Itimerval // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
	actions := map[unix.Signal]quiet.Action{
		// Discards what is pending; the next program's runtime takes the signal back.
		unix.SIGALRM: quiet.IgnoreAction, unix.SIGVTALRM: quiet.IgnoreAction, unix.SIGPROF: quiet.IgnoreAction,
		// A handler in another thread would end in the execve, and its signal be lost.
		unix.SIGQUIT: quiet.DefaultAction, unix.SIGTERM: quiet.DefaultAction,
	}
	for _, s := range ignorableSignals {
		actions[s] = quiet.DefaultAction
	}
	for _, s := range atStart.ignored {
		actions[s] = quiet.IgnoreAction
	}
	swap := func() { // with what was there before
		for s, action := range actions {
			actions[s] = quiet.SetAction(s, action)
		}
		for which, timer := range timers {
			timers[which], _ = unix.Setitimer(unix.ItimerWhich(which), timer)
		}
	}
	swap()
	return swap
}

// muteStderr silences the runtime of the launcher. It returns another descriptor of 2,
// which package quiet makes 2 again, or -1. restore is for an exec that failed.
func muteStderr() (moved int, restore func()) {
	flags, err := unix.FcntlInt(2, unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 || !quiet.IsDumpable() {
		return -1, func() {}
	}
	null, err := openNull()
	if err != nil {
		return -1, func() {}
	}
	defer unix.Close(null)
	if moved, err = moveHigh(duplicateFrom(2, 3)); err != nil {
		return -1, func() {}
	}
	_ = duplicateTo(null, 2)
	_, _ = unix.FcntlInt(uintptr(moved), unix.F_SETFD, 0)
	return moved, func() {
		_ = duplicateTo(moved, 2)
		unix.Close(moved)
	}
}

// outliveLauncher takes back PR_SET_PDEATHSIG of prctl(2), by which the daemon would
// end with the launcher. Not in other threads: syscall.AllThreadsSyscall would wait
// for ever for one that a dead file system holds.
func outliveLauncher() { _ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) }

// dieOf ends this process by a signal and without a core. It returns if it can't.
func dieOf(s unix.Signal) {
	quiet.SetDumpable(0)
	quiet.SetAction(s, quiet.DefaultAction)
	var unblocked unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unblocked, nil)
	_ = raise(s)
}

// setName gives all threads the program's name: what was executed as
// /proc/self/exe is called exe. A thread that begins meanwhile may still be called so.
// The main thread calls setName, and is named even if /proc is read-only: ps(1) shows
// its name.
func setName(name string) {
	quiet.End() // a launcher that is not dumpable may not write what is in /proc/self
	if text, err := unix.BytePtrFromString(name); err == nil {
		_, _, _ = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(text)), 0)
	}
	const tasks = "/proc/self/task"
	directory, err := unix.Open(tasks, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(directory)
	for named := 0; ; {
		var entries [4096]byte
		_, _ = unix.Seek(directory, 0, 0)
		n, _ := unix.ReadDirent(directory, entries[:])
		_, _, threads := unix.ParseDirent(entries[:max(n, 0)], -1, nil)
		if len(threads) <= named {
			return
		}
		for _, thread := range threads {
			fd, err := unix.Open(tasks+"/"+thread+"/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				_ = write(fd, name)
				unix.Close(fd)
			}
		}
		named = len(threads)
	}
}
