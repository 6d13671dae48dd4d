package daemon

import (
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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
	return unix.Tgkill(pid(), unix.Gettid(), signal)
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

// workingDirectory does without the page that unix.Getwd takes from a stack that
// is still small.
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

// openPipe is os.Pipe without the runtime's poller, which throws if there is no
// descriptor left for it.
func openPipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	return movePipeHigh(fds[0], fds[1])
}

// duplicateFrom duplicates fd, as close-on-exec, to the next free number.
func duplicateFrom(fd, lowest int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
}

// readFile returns what is in a file of proc(5), as far as it can be read. It
// does without the runtime's poller, too.
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

// lastVariable returns the last variable of the environment with which the kernel
// started this process, even if it has been removed since. Only the path that the
// kernel executed (AT_EXECFN) follows it in memory, whether there is a /proc or
// not.
func lastVariable() string {
	path := auxiliary(31)
	if path == 0 {
		return ""
	}
	end := unsafe.Add(*(*unsafe.Pointer)(unsafe.Pointer(&path)), -1) // the NUL between them
	length := 0
	for *(*byte)(unsafe.Add(end, -length-1)) != 0 {
		length++
	}
	return strings.Clone(unsafe.String((*byte)(unsafe.Add(end, -length)), length))
}

// program returns a path that executes this very program, even if its file has
// been replaced or removed since.
func program() (path string, err error) {
	const exe = "/proc/self/exe"
	if _, err := identifyPath(exe); err == nil {
		return exe, nil
	}
	path = executedPath()
	if !filepath.IsAbs(path) {
		path = filepath.Join(atStart.directory, path)
	}
	id, err := identifyPath(path)
	if err == nil && id != atStart.program {
		err = unix.ESTALE // replaced by another
	}
	return path, err
}

// executedPath returns the path that the kernel executed (AT_EXECFN), whatever
// argv[0] says.
func executedPath() string {
	name := auxiliary(31)
	if name == 0 {
		return ""
	}
	return strings.Clone(unix.BytePtrToString(*(**byte)(unsafe.Pointer(&name))))
}

// programFiles returns the file that the kernel executed, which for `ld.so
// ./program` is the dynamic loader, and for a plugin's code the program that has
// loaded it; and the file from which this code was loaded.
func programFiles() (executed, loaded string) {
	executed, _ = os.Readlink("/proc/self/exe")
	executed = strings.ReplaceAll(executed, "\n", `\012`) // as in proc_pid_maps(5)
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
	if strings.HasPrefix(loaded, "/memfd:") { // a program that unpacks itself, by upx
		return executed, executed
	}
	return executed, loaded
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
	var changed sigaction
	changed[mips] = action
	rtSigaction(signal, &changed, &old)
	return old
}

// isIgnored also knows of those signals that signal.Ignored does not know of.
func isIgnored(s unix.Signal) bool {
	if s == unix.SIGHUP || s == unix.SIGINT {
		return signal.Ignored(s) // which takes no system call
	}
	var action sigaction
	rtSigaction(s, nil, &action)
	return action[mips] == ignoreAction
}

func rtSigaction(signal unix.Signal, changed, old *sigaction) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal),
		uintptr(unsafe.Pointer(changed)), uintptr(unsafe.Pointer(old)), uintptr(8+8*mips), 0, 0)
}

// mips is 1 on mips, whose struct has the flags first, and which has 128 signals
// in place of 64.
var mips = strings.Count(runtime.GOARCH, "mips")

// prepareExec removes what outlives this program and would kill the next:
// interval timers, with the signals that are on their way. It has the signals
// that the caller ignored ignored again. restore is for an exec that failed.
func prepareExec() (restore func()) {
	var timers [3]unix.Itimerval // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
	for which := range timers {
		timers[which], _ = unix.Setitimer(unix.ItimerWhich(which), unix.Itimerval{})
	}
	actions := map[unix.Signal]sigaction{}
	for _, signal := range []unix.Signal{unix.SIGALRM, unix.SIGVTALRM, unix.SIGPROF} {
		// Discards what is pending. The Go runtime of the next program takes
		// the signal back.
		actions[signal] = setAction(signal, ignoreAction)
	}
	for _, signal := range []unix.Signal{unix.SIGQUIT, unix.SIGTERM} {
		// A handler that runs in another thread would end in the execve, and its
		// signal be lost.
		actions[signal] = setAction(signal, defaultAction)
	}
	for i, signal := range keptSignals {
		action := defaultAction
		if atStart.ignored[i] {
			action = ignoreAction
		}
		actions[signal] = setAction(signal, action)
	}
	return func() {
		for signal, action := range actions {
			rtSigaction(signal, &action, nil)
		}
		for which, interval := range timers {
			_, _ = unix.Setitimer(unix.ItimerWhich(which), interval)
		}
	}
}

// quitSilently has SIGQUIT end this process without its goroutines and without a
// core as long as it is not caught. To block it is no use: the Go runtime
// unblocks it in each thread.
func quitSilently() (undo func()) {
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	handler := setAction(unix.SIGQUIT, defaultAction)
	return func() {
		rtSigaction(unix.SIGQUIT, &handler, nil)
		if dumpable == 1 { // nothing else can be set
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
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

// commandName is the name that ps(1) shows of a process of this program.
func commandName(process int) string {
	if name := readFile("/proc/" + strconv.Itoa(process) + "/comm"); name != "" {
		return strings.TrimSuffix(name, "\n")
	}
	return filepath.Base(atStart.args[0])
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
