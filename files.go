//go:build unix

package daemon

import (
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Files returns the descriptors that the supervisor passed: those of socket
// activation and those that [StoreFiles] stored before a restart. There are
// LISTEN_FDS of them if LISTEN_PID is this process, and each file's Name is the
// one in LISTEN_FDNAMES, or "unknown" as in sd_listen_fds_with_names(3). Files
// marks them close-on-exec. Use [net.FileListener] or [net.FilePacketConn] on
// a socket.
//
// Each call returns the same files, even after [UnsetEnvironment]; the caller
// owns them and may close them. Files returns nil if none was passed, or if
// LISTEN_PID or LISTEN_FDS is malformed. If the environment promises more than
// were passed, it returns those in front of the first that was not, or that the
// program itself has marked close-on-exec.
func Files() []*os.File {
	passed.Lock()
	defer passed.Unlock()
	if passed.files == nil {
		passed.files = takeFiles()
	}
	return slices.Clone(passed.files)
}

// firstPassed is the number of the first descriptor that a supervisor passes
// (SD_LISTEN_FDS_START of sd_listen_fds(3)).
const firstPassed = 3

// passed are the descriptors that the supervisor passed, from firstPassed up.
var passed struct {
	sync.Mutex
	atStart []passedFD
	known   bool // atStart is all that was passed
	marked  bool // one was close-on-exec at start
	files   []*os.File
}

type passedFD struct {
	checkedFD
	name string
}

// keepPassed runs before main, when the descriptors are there for certain.
func keepPassed() {
	passed.atStart, passed.known = promised(), namesPID(getenv("LISTEN_PID"))
	for _, c := range passed.atStart {
		flags, _ := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0)
		passed.marked = passed.marked || flags&unix.FD_CLOEXEC != 0
	}
}

// takenByInitializer reports whether an initializer of another package has taken the
// descriptors: it has marked them, or removed the variables.
func takenByInitializer() bool {
	return passed.marked || !passed.known && started("LISTEN_FDS") != "" && namesPID(started("LISTEN_PID"))
}

func takeFiles() (files []*os.File) {
	for i, f := range promised() {
		flags, _ := unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
		ours := passed.known // it was not there at start
		if i < len(passed.atStart) {
			ours = passed.atStart[i].id != f.id
		}
		if ours || flags&unix.FD_CLOEXEC != 0 { // no such one is passed
			break
		}
		unix.CloseOnExec(f.fd)
		files = append(files, os.NewFile(uintptr(f.fd), f.name))
	}
	return files
}

// promised returns the descriptors that the environment promises to this process,
// up to the first that is not there.
func promised() (files []passedFD) {
	count, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || count > math.MaxInt32-firstPassed || !namesPID(getenv("LISTEN_PID")) {
		return nil
	}
	var names []string
	if value := getenv("LISTEN_FDNAMES"); value != "" {
		names = strings.Split(value, ":")
	}
	for i := range count {
		f := passedFD{checked(firstPassed + i), "unknown"}
		if f.id == (identity{}) {
			break
		}
		if i < len(names) {
			f.name = names[i]
		}
		files = append(files, f)
	}
	return files
}

// passFilesOn has the program that is executed next inherit what the supervisor
// passed, whoever has marked it close-on-exec. A descriptor that was closed, or
// moved to another number, would be missing there: that is an error.
func passFilesOn() (takeBack func(), missing string) {
	var marked []passedFD
	takeBack = func() {
		for _, c := range marked {
			unix.CloseOnExec(c.fd)
		}
	}
	for _, c := range passed.atStart {
		flags, _ := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0)
		if !c.valid() {
			takeBack()
			return nil, c.name + " (descriptor " + strconv.Itoa(c.fd) + ")"
		}
		if flags&unix.FD_CLOEXEC != 0 {
			_, _ = unix.FcntlInt(uintptr(c.fd), unix.F_SETFD, 0)
			marked = append(marked, c)
		}
	}
	return takeBack, ""
}

// maxRights is how many descriptors one message carries (SCM_MAX_FD of
// unix(7)).
const maxRights = 253

// StoreFiles asks the supervisor to keep files under name (FDSTORE=1 and FDNAME)
// and pass them to the service's next process, where [Files] returns them. The
// unit needs FileDescriptorStoreMax=, and systemd drops a stored descriptor
// once its other end hangs up. The caller keeps its own descriptors and may
// close them afterwards. Files beyond 253 go into further messages.
//
// The name is 1 to 255 printable ASCII characters without ':', or the error
// wraps [syscall.EINVAL]; a closed file is an error that wraps [os.ErrClosed].
// Nothing is sent then, nor without files.
func StoreFiles(name string, files ...*os.File) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	if !validName(name) {
		return failed("store files as", strconv.Quote(name), unix.EINVAL)
	}
	defer runtime.KeepAlive(files)
	rights := make([]int, len(files))
	for i, file := range files {
		fd, err := descriptorOf(file)
		if err != nil {
			return failed("store files as", name, err)
		}
		rights[i] = fd
	}
	for some := range slices.Chunk(rights, maxRights) {
		v := verb{own: []Field{{key: "FDSTORE", text: "1"}}, rights: some, patience: brief}
		if err := send(address, &v, []Field{Set("FDNAME", name)}); err != nil {
			return err
		}
	}
	return nil
}

// RemoveFiles asks the supervisor to close the files that it keeps under name
// (FDSTOREREMOVE=1 and FDNAME). The error wraps [syscall.EINVAL] for a name that
// [StoreFiles] would not take.
func RemoveFiles(name string) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	if !validName(name) {
		return failed("remove files", strconv.Quote(name), unix.EINVAL)
	}
	return send(address, &removal, []Field{Set("FDNAME", name)})
}

var removal = verb{own: []Field{{key: "FDSTOREREMOVE", text: "1"}}, patience: brief}

// validName tells whether systemd takes name as FDNAME.
func validName(name string) bool {
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' || c == ':' {
			return false
		}
	}
	return 1 <= len(name) && len(name) <= 255
}

// descriptorOf returns the file's descriptor and leaves its mode alone, which
// File.Fd does not promise.
func descriptorOf(file *os.File) (fd int, err error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	if err := conn.Control(func(number uintptr) { fd = int(number) }); err != nil {
		return -1, os.ErrClosed // for which Control has an error of its own
	}
	return fd, nil
}
