//go:build unix

package daemon

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// identity tells one file from another, whatever its name or number.
type identity struct{ device, inode uint64 }

// identify returns the identity of what descriptor fd stands for.
func identify(fd int) (identity, error) {
	var stat unix.Stat_t
	err := unix.Fstat(fd, &stat)
	return identity{uint64(stat.Dev), uint64(stat.Ino)}, err
}

// identifyPath returns the identity of the file or directory at path.
func identifyPath(path string) (identity, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	return identity{uint64(stat.Dev), uint64(stat.Ino)}, err
}

// held is a descriptor that this package keeps open. A program may close it all
// the same, and open another file by the same number.
type held struct {
	fd int
	id identity
}

func hold(fd int) held {
	id, err := identify(fd)
	if err != nil {
		return held{fd: -1}
	}
	return held{fd, id}
}

// holdPipe holds the pipe that a marker names. A forged one may name anything,
// and is to harm nothing.
func holdPipe(fd int) held {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || fd <= 2 || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return held{fd: -1}
	}
	unix.CloseOnExec(fd)
	return hold(fd)
}

// ours tells whether the descriptor still stands for what it did.
func (h held) ours() bool {
	id, err := identify(h.fd)
	return err == nil && id == h.id
}

// moveHigh moves fd to a number that a program seldom reaches by itself, never
// to 0, 1 or 2, and makes it close-on-exec. A program that closes all
// descriptors from 3 up then makes this package see EBADF, and not the file that
// the program opens next.
func moveHigh(fd int) (int, error) {
	// Not the highest: the kernel's table of descriptors grows with the number.
	moved, err := duplicate(fd, 4000)
	switch {
	case err == nil:
		unix.Close(fd)
	case fd > 2: // it is the last descriptor that there was
		moved = fd
	default:
		unix.Close(fd)
		return -1, err
	}
	unix.CloseOnExec(moved)
	return moved, nil
}

// openPipe is os.Pipe without the runtime's poller, which throws where there is no
// descriptor left for it.
func openPipe() (r, w int, err error) {
	syscall.ForkLock.RLock() // nothing inherits it before it is close-on-exec
	defer syscall.ForkLock.RUnlock()
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		return -1, -1, err
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds[0], fds[1], nil
}

// firstTable is a number that the kernel's first table of 64 descriptors holds.
// To grow the table of a process that has threads takes it milliseconds.
const firstTable = 48

// duplicate duplicates fd to the next free number from lowest up, or from as
// high as there is room, but not to 0, 1 or 2.
func duplicate(fd, lowest int) (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		lowest = int(min(uint64(lowest), max(uint64(limit.Cur), 19)-16))
	}
	fd2, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, lowest)
	if err != nil { // no room up there
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3)
	}
	return fd2, nil
}
