package daemon

import (
	"os"
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

// isSameFile reports whether two descriptors come from one open(2), see kcmp(2). If the
// kernel cannot tell, it is true.
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

// duplicateFrom duplicates fd, as close-on-exec, to the first free number from lowest on.
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
