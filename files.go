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

// recordPassed runs before main, when the descriptors are there for certain.
func recordPassed() {
	passed.atStart, passed.known = promised(), namesPID(getenv("LISTEN_PID"))
	passed.marked = slices.ContainsFunc(passed.atStart, passedFD.closesOnExec)
}

func (f passedFD) closesOnExec() bool {
	flags, _ := unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
	return flags&unix.FD_CLOEXEC != 0
}

// takenByInitializer reports whether an initializer of another package has taken the
// descriptors: it has marked them, or removed the variables.
func takenByInitializer() bool {
	return passed.marked || !passed.known && variableAtStart("LISTEN_FDS") != "" && namesPID(variableAtStart("LISTEN_PID"))
}

func takeFiles() (files []*os.File) {
	for i, f := range promised() {
		isNew := passed.known && (i >= len(passed.atStart) || passed.atStart[i].id != f.id)
		if isNew || f.closesOnExec() { // the program itself has opened or marked it
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
	for _, f := range passed.atStart {
		if !f.valid() {
			return nil, f.name + " (descriptor " + strconv.Itoa(f.fd) + ")"
		}
		if f.closesOnExec() {
			marked = append(marked, f)
		}
	}
	for _, f := range marked {
		_, _ = unix.FcntlInt(uintptr(f.fd), unix.F_SETFD, 0)
	}
	return func() {
		for _, f := range marked {
			unix.CloseOnExec(f.fd)
		}
	}, ""
}

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
		return opError("store files as", strconv.Quote(name), unix.EINVAL)
	}
	defer runtime.KeepAlive(files)
	rights := make([]int, len(files))
	for i, file := range files {
		conn, err := file.SyscallConn() // File.Fd may change the file's mode
		if err == nil && conn.Control(func(fd uintptr) { rights[i] = int(fd) }) != nil {
			err = os.ErrClosed // for which Control has an error of its own
		}
		if err != nil {
			return opError("store files as", name, err)
		}
	}
	for some := range slices.Chunk(rights, 253) { // SCM_MAX_FD of unix(7)
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
	if Detect() == Systemd && !validName(name) {
		return opError("remove files", strconv.Quote(name), unix.EINVAL)
	}
	return notify(&removal, []Field{Set("FDNAME", name)})
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
