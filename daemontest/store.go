//go:build linux

package daemontest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A stored is a descriptor that systemd has for a service.
type stored struct {
	name string
	fd   int
	poll bool // it is dropped when it is hung up
}

// storeAs duplicates a file's descriptor.
func storeAs(name string, file *os.File, poll bool) (stored, error) {
	conn, err := file.SyscallConn() // not by Fd, which makes it block
	if err != nil {
		return stored{}, err
	}
	var fd int
	var dupErr error
	err = conn.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 3) })
	if err == nil {
		err = os.NewSyscallError("fcntl", dupErr)
	}
	return stored{name, fd, poll}, err
}

// store is service_add_fd_store of systemd's src/core/service.c: what is there
// already is not stored again.
func (s *service) store(n *Notification) {
	name, ok := n.Get("FDNAME")
	if !ok || !validName(name) {
		name = "stored"
	}
	for _, file := range n.Files {
		f, err := storeAs(name, file, !slices.Contains(n.Assignments, "FDPOLL=0"))
		if err != nil {
			continue
		}
		if slices.ContainsFunc(s.stored, func(old stored) bool { return sameFile(old.fd, f.fd) }) {
			unix.Close(f.fd)
			continue
		}
		s.stored = append(s.stored, f)
	}
}

// remove drops the stored files for which drop returns true.
func (s *service) remove(drop func(stored) bool) {
	s.stored = slices.DeleteFunc(s.stored, func(f stored) bool {
		if !drop(f) {
			return false
		}
		unix.Close(f.fd)
		return true
	})
}

// hungUp reports whether systemd would have dropped f.
func hungUp(f stored) bool {
	events := []unix.PollFd{{Fd: int32(f.fd)}}
	n, _ := unix.Poll(events, 0)
	return f.poll && n > 0 && events[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// sameFile reports whether two descriptors are of one open file (kcmp(2)).
func sameFile(a, b int) bool {
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno == 0 {
		return order == 0
	}
	var first, second unix.Stat_t
	return unix.Fstat(a, &first) == nil && unix.Fstat(b, &second) == nil &&
		first.Dev == second.Dev && first.Ino == second.Ino
}

// validName is fdname_is_valid of systemd's src/basic/fd-util.c.
func validName(name string) bool {
	return len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r >= 127 || r == ':'
	})
}

// sendFiles sends descriptors to the parent process, as many as there can be in each
// message: it reads them only once it has an order for them.
func sendFiles(socket int, files []stored) error {
	for some := range slices.Chunk(files, maxFiles) {
		var fds []int
		for _, f := range some {
			fds = append(fds, f.fd)
		}
		err := syscall.EINTR
		for err == syscall.EINTR {
			err, _ = unix.Sendmsg(socket, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL).(syscall.Errno)
		}
		if err != 0 {
			return fmt.Errorf("pass %s and what follows: %w", some[0].name, err)
		}
	}
	return nil
}

// receiveFiles receives descriptors, in the parent process.
func receiveFiles(count int) (files []uintptr) {
	control := make([]byte, unix.CmsgSpace(4*maxFiles))
	for len(files) < count {
		_, size, _, _, err := unix.Recvmsg(filesFD, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		messages, _ := unix.ParseSocketControlMessage(control[:max(size, 0)])
		if err != nil || len(messages) == 0 {
			return files // the test has ended
		}
		fds, _ := unix.ParseUnixRights(&messages[0])
		for _, fd := range fds {
			files = append(files, uintptr(fd))
		}
	}
	return files
}

func closeFDs(fds []uintptr) {
	for _, fd := range fds {
		unix.Close(int(fd))
	}
}
