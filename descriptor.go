//go:build unix

package daemon

import "golang.org/x/sys/unix"

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

// ours tells whether the descriptor still stands for what it did.
func (h held) ours() bool {
	id, err := identify(h.fd)
	return err == nil && id == h.id
}

// moveHigh moves fd out of the way of programs that close all descriptors from
// 3 up, and makes it close-on-exec: on a high number such a program makes this
// package see EBADF, and not the file that the program opens next.
func moveHigh(fd int) (int, error) {
	high, err := duplicateHigh(fd)
	switch {
	case err == nil:
		unix.Close(fd)
	case fd > 2: // it is the last descriptor that there was
		high = fd
	default:
		unix.Close(fd)
		return -1, err
	}
	unix.CloseOnExec(high)
	return high, nil
}

// duplicateHigh duplicates fd to a number that a program seldom reaches by
// itself, and never to 0, 1 or 2. It is not the highest there is: the kernel's
// table of descriptors grows with the number.
func duplicateHigh(fd int) (int, error) {
	const high = 4000
	lowest := high
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < high+16 {
		lowest = max(int(limit.Cur)-16, 3)
	}
	duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, lowest)
	if err != nil { // no room up there
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3)
	}
	return duplicate, nil
}
