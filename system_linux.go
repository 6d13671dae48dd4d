package daemon

import (
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendNow is send(2) without waiting: no signal interrupts it, and the scheduler
// need not be told that this thread may be away for a while. With an error in
// place of the number it would not be inlined.
func sendNow(fd int, datagram []byte) unix.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(datagram))), uintptr(len(datagram)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return errno
}

// monotonic reads the clock that MONOTONIC_USEC speaks of.
func monotonic() (usec int64, ok bool) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano() / 1000, err == nil
}

// raise is raise(3): a signal to the calling thread is delivered before the
// call returns, while one to the process may be taken by another thread, and
// later.
func raise(signal unix.Signal) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return unix.Tgkill(pid, unix.Gettid(), signal)
}

// duplicateTo makes descriptor to another name of from.
func duplicateTo(from, to int) error {
	for {
		err := unix.Dup3(from, to, 0)
		if err != unix.EBUSY && err != unix.EINTR { // another thread is opening a file as to: dup(2)
			return err
		}
	}
}

// secure tells whether the program runs with more rights than its caller has
// (AT_SECURE of getauxval(3): setuid, setgid or file capabilities).
func secure() bool {
	const atSecure = 23
	vector, _ := unix.Auxv()
	for _, entry := range vector {
		if entry[0] == atSecure {
			return entry[1] != 0
		}
	}
	return unix.Getuid() != unix.Geteuid() || unix.Getgid() != unix.Getegid()
}

// sigaction is rt_sigaction(2)'s struct, with room for any architecture's.
type sigaction [8]uintptr

// What the kernel may do with a signal instead of calling a handler.
const (
	defaultAction uintptr = 0 // SIG_DFL
	ignoreAction  uintptr = 1 // SIG_IGN
)

// setAction sets what the kernel does with a signal, behind os/signal's back.
func setAction(signal unix.Signal, action uintptr) (old sigaction) {
	changed := sigaction{action}
	if mips { // has the flags first
		changed = sigaction{1: action}
	}
	rtSigaction(signal, &changed, &old)
	return old
}

// isIgnored is what signal.Ignored does not know of all signals.
func isIgnored(signal unix.Signal) bool {
	var action sigaction
	rtSigaction(signal, nil, &action)
	if mips {
		return action[1] == ignoreAction
	}
	return action[0] == ignoreAction
}

func rtSigaction(signal unix.Signal, changed, old *sigaction) {
	sigsetSize := uintptr(8)
	if mips { // has 128 signals
		sigsetSize = 16
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal),
		uintptr(unsafe.Pointer(changed)), uintptr(unsafe.Pointer(old)), sigsetSize, 0, 0)
}

var mips = strings.HasPrefix(runtime.GOARCH, "mips")

// prepareExec removes what outlives this program and would kill the next:
// interval timers, with the signals that are on their way. It also has the
// signals that the caller ignored ignored again, and those alone. undo is for
// an exec that failed.
func prepareExec() (undo func()) {
	timers := []struct {
		timer    unix.ItimerWhich
		signal   unix.Signal
		interval unix.Itimerval
		action   sigaction
	}{
		{timer: unix.ITIMER_REAL, signal: unix.SIGALRM},
		{timer: unix.ITIMER_VIRTUAL, signal: unix.SIGVTALRM},
		{timer: unix.ITIMER_PROF, signal: unix.SIGPROF},
	}
	for i := range timers {
		t := &timers[i]
		t.interval, _ = unix.Setitimer(t.timer, unix.Itimerval{})
		// Discards what is pending. The Go runtime of the next program takes
		// the signal back.
		t.action = setAction(t.signal, ignoreAction)
	}
	var actions [len(keptSignals)]sigaction
	for i, signal := range keptSignals {
		action := defaultAction
		if start.ignored[i] {
			action = ignoreAction
		}
		actions[i] = setAction(signal, action)
	}
	return func() {
		for i, signal := range keptSignals {
			rtSigaction(signal, &actions[i], nil)
		}
		for i := range timers {
			t := &timers[i]
			rtSigaction(t.signal, &t.action, nil)
			_, _ = unix.Setitimer(t.timer, t.interval)
		}
	}
}

// dieOf ends this process by a signal, and returns where it can't.
func dieOf(signal unix.Signal) {
	// No core: rlimits mean nothing to a core_pattern that is a pipe.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	setAction(signal, defaultAction)
	var unblocked unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unblocked, nil)
	_ = raise(signal)
}

// commandName is the name that ps(1) shows of this process.
func commandName() string {
	var name [16]byte // TASK_COMM_LEN
	fd, err := unix.Open("/proc/self/comm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return filepath.Base(start.args[0])
	}
	defer unix.Close(fd)
	n, _ := unix.Read(fd, name[:])
	return strings.TrimSuffix(string(name[:max(n, 0)]), "\n")
}

// setName gives all threads the program's name: what was executed as
// /proc/self/exe is called exe. It does without the files of package os, which
// would start the runtime's poller.
func setName(name string) {
	const tasks = "/proc/self/task"
	directory, err := unix.Open(tasks, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(directory)
	var entries [4096]byte
	n, _ := unix.ReadDirent(directory, entries[:])
	_, _, threads := unix.ParseDirent(entries[:max(n, 0)], -1, nil)
	for _, thread := range threads {
		fd, err := unix.Open(tasks+"/"+thread+"/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, _ = unix.Write(fd, []byte(name))
			unix.Close(fd)
		}
	}
}
