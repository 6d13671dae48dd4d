package daemon

import (
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/seed-10280e03/daemon/internal/quiet"
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

// raise is raise(3): a signal to the calling thread is delivered before the call
// returns, while one to the process may be taken by another thread, and later.
func raise(signal unix.Signal) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return unix.Tgkill(pid(), unix.Gettid(), signal)
}

// onMainThread reports whether this is the thread by which the process began. Go
// runs a program's initializers there.
func onMainThread() bool { return unix.Gettid() == pid() }

// duplicateTo makes descriptor to another name of from.
func duplicateTo(from, to int) error {
	for {
		err := unix.Dup3(from, to, 0)
		if err != unix.EBUSY && err != unix.EINTR { // another thread is opening a file as to: dup(2)
			return err
		}
	}
}

// isSameFile reports whether two descriptors come from one open(2), see kcmp(2), or the
// kernel cannot tell.
func isSameFile(fd, fd2 int) bool {
	const file = 0 // KCMP_FILE
	different, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid()), uintptr(pid()), file, uintptr(fd), uintptr(fd2), 0)
	return errno != 0 || different == 0
}

// workingDirectory avoids the page that unix.Getwd takes on the stack, which would
// have to grow for it: a fifth of what an import costs.
func workingDirectory() string {
	var path [256]byte
	n, err := unix.Getcwd(path[:])
	if err != nil {
		directory, _ := unix.Getwd()
		return directory
	}
	return unix.ByteSliceToString(path[:n])
}

// openSocket opens a datagram socket that no child inherits, even one that a C
// library starts, which knows nothing of syscall.ForkLock.
func openSocket() (fd int, err error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

func pipe(fds []int) error { return unix.Pipe2(fds, unix.O_CLOEXEC) }

// duplicateFrom duplicates fd, as close-on-exec, to the next free number.
func duplicateFrom(fd, lowest int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
}

// readFile returns what is in a file of proc(5), as far as it can be read. It does
// without the runtime's poller, which throws if there is no descriptor left for it,
// and without package os, whose files make a program larger.
func readFile(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var text []byte
	for {
		text = slices.Grow(text, 4096)
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if n > 0 {
			text = text[:len(text)+n]
		} else if err != unix.EINTR {
			return string(text)
		}
	}
}

// auxiliary returns a value of the auxiliary vector, see getauxval(3).
func auxiliary(key uintptr) (value uintptr) {
	vector, _ := unix.Auxv()
	for _, entry := range vector {
		if entry[0] == key {
			value = entry[1]
		}
	}
	return value
}

// secure reports whether the program runs with more rights than its caller has
// (AT_SECURE: setuid, setgid or file capabilities).
func secure() bool { return auxiliary(23) != 0 }

// idsAtStart returns the user and group ids with which the program was executed
// (AT_UID, AT_EUID, AT_GID and AT_EGID).
func idsAtStart() (ids [4]int) {
	for i := range ids {
		ids[i] = int(auxiliary(uintptr(11 + i)))
	}
	return ids
}

// pathOnly opens a directory that may be entered, but not read.
const pathOnly = unix.O_PATH

// firstEnvironment returns the environment with which this process was started.
func firstEnvironment() []string { return quiet.Environment }

// selfPath executes this program also if its file has been replaced or removed.
const selfPath = "/proc/self/exe"

// execfn points to the path that the kernel executed (AT_EXECFN).
func execfn() unsafe.Pointer {
	address := auxiliary(31)
	return *(*unsafe.Pointer)(unsafe.Pointer(&address))
}

// executedPath returns that path, whatever argv[0] says.
func executedPath() string { return unix.BytePtrToString((*byte)(execfn())) }

// lastVariable returns the last variable of the environment with which the kernel
// started this process. It stands in memory before the path, also if it has been
// removed since, and whether there is a /proc or not.
func lastVariable() string {
	path := execfn()
	if path == nil {
		return ""
	}
	begin := -1 // the NUL between them
	for *(*byte)(unsafe.Add(path, begin-1)) != 0 {
		begin--
	}
	return unix.BytePtrToString((*byte)(unsafe.Add(path, begin)))
}

// programFiles returns the file that the kernel executed, which for `ld.so
// ./program` is the dynamic loader, and for a plugin's code the program that has
// loaded it; and the file from which this code was loaded.
func programFiles() (executed, loaded string) {
	executed, _ = os.Readlink(selfPath)
	pc, _, _, _ := runtime.Caller(0)
	for line := range strings.Lines(readFile("/proc/self/maps")) {
		addresses, rest, _ := strings.Cut(line, " ")
		low, high, _ := strings.Cut(addresses, "-")
		begin, _ := strconv.ParseUint(low, 16, 64)
		end, _ := strconv.ParseUint(high, 16, 64)
		if path := strings.Index(rest, "/"); begin <= uint64(pc) && uint64(pc) < end && path >= 0 {
			loaded = strings.TrimSuffix(rest[path:], "\n")
		}
	}
	if now, _ := os.Readlink(selfPath); now != executed {
		return programFiles() // it has been renamed or removed between the two
	}
	executed = strings.ReplaceAll(executed, "\n", `\012`) // as in proc_pid_maps(5)
	if strings.HasPrefix(loaded, "/memfd:") {
		loaded = executed // a program that unpacks itself, by upx
	}
	return executed, loaded
}

// keptSignals are those that a Go program leaves ignored if its caller ignored
// them: the runtime takes all others back (see os/signal).
var keptSignals = [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

// ignoredSignals returns those that the caller ignored. The first two, of which
// os/signal knows, take no system call.
func ignoredSignals() (ignored []unix.Signal) {
	for i, s := range keptSignals {
		if i < 2 && signal.Ignored(s) || i >= 2 && quiet.IsIgnored(s) {
			ignored = append(ignored, s)
		}
	}
	return ignored
}

// prepareExec removes what outlives this program and would kill the next:
// interval timers, with the signals that are on their way. It has the signals
// that the caller ignored ignored again. restore is for an exec that failed.
func prepareExec() (restore func()) {
	var timers [3]unix.Itimerval // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
	actions := map[unix.Signal]quiet.Action{
		// Discards what is pending; the next program's runtime takes the signal back.
		unix.SIGALRM: quiet.IgnoreAction, unix.SIGVTALRM: quiet.IgnoreAction, unix.SIGPROF: quiet.IgnoreAction,
		// A handler in another thread would end in the execve, and its signal be lost.
		unix.SIGQUIT: quiet.DefaultAction, unix.SIGTERM: quiet.DefaultAction,
	}
	for _, signal := range keptSignals {
		actions[signal] = quiet.DefaultAction
	}
	for _, signal := range atStart.ignored {
		actions[signal] = quiet.IgnoreAction
	}
	swap := func() { // with what was there before
		for signal, action := range actions {
			actions[signal] = quiet.SetAction(signal, action)
		}
		for which, timer := range timers {
			timers[which], _ = unix.Setitimer(unix.ItimerWhich(which), timer)
		}
	}
	swap()
	return swap
}

// muteStderr has the runtime of the launcher say nothing. It returns another
// descriptor of 2, from which package quiet takes that back, or -1. restore is for an
// exec that failed.
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
	low, err := duplicateFrom(2, 3)
	if err != nil {
		return -1, func() {}
	}
	moved, _ = moveHigh(low)
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
func dieOf(signal unix.Signal) {
	quiet.SetDumpable(0)
	quiet.SetAction(signal, quiet.DefaultAction)
	var unblocked unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unblocked, nil)
	_ = raise(signal)
}

// setName gives all threads the program's name: what was executed as
// /proc/self/exe is called exe. A thread that begins meanwhile may still be. The main
// thread calls it, and is named even if /proc is read-only: ps(1) shows its name.
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
