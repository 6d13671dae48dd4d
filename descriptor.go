//go:build unix

package daemon

import (
	"cmp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// identity tells one file from another, whatever its name or number.
type identity struct{ device, inode uint64 }

// identify returns the identity of what descriptor fd stands for, or zero.
func identify(fd int) identity {
	var stat unix.Stat_t
	_ = unix.Fstat(fd, &stat)
	return identityOf(&stat)
}

// identifyPath returns the identity of the file or directory at path, or zero.
func identifyPath(path string) (identity, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	return identityOf(&stat), err
}

func identityOf(stat *unix.Stat_t) identity {
	return identity{uint64(stat.Dev), uint64(stat.Ino)}
}

// checkedFD is a descriptor that this package uses only after it has checked that the
// number still stands for the same file. A program may close all its descriptors, and
// open others that get the same numbers. The zero value is never valid.
type checkedFD struct {
	fd int
	id identity
}

func checked(fd int) checkedFD { return checkedFD{fd, identify(fd)} }

// inherit returns a pipe or a socket, open for writing, that the environment
// names by its number, and marks it close-on-exec. A number that is wrong, or
// forged, may stand for any file: that file is left alone, and not valid.
func inherit(fd int) checkedFD {
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if flags&unix.O_ACCMODE == unix.O_RDONLY || !isKind(fd, unix.S_IFIFO, unix.S_IFSOCK) {
		return checkedFD{fd: fd}
	}
	unix.CloseOnExec(fd)
	return checked(fd)
}

// isKind reports whether a descriptor stands for a file of one of these kinds (S_IFMT
// of inode(7)).
func isKind(fd int, kinds ...uint32) bool {
	var stat unix.Stat_t
	err := unix.Fstat(fd, &stat)
	return err == nil && slices.Contains(kinds, uint32(stat.Mode)&unix.S_IFMT)
}

func (c checkedFD) valid() bool {
	return c.id != identity{} && c.id == identify(c.fd)
}

// moveHigh moves fd to the highest free number of the kernel's first table, which has
// room for 64 descriptors, or else to any but 0, 1 and 2. To grow the table of a process
// that has threads takes the kernel milliseconds. A program that closes all descriptors
// from 3 up opens its next files at low numbers, so this package then sees EBADF, and
// not one of those files. err is that of the call that opened fd.
func moveHigh(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	for number := 63; number > max(fd, 2); number-- {
		if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err == nil {
			continue // in use
		}
		// This fails above RLIMIT_NOFILE, or if fd is the last descriptor that there was.
		if moved, err := duplicateFrom(fd, number); err == nil {
			unix.Close(fd)
			return moved, nil
		}
	}
	if fd > 2 {
		return fd, nil
	}
	moved, err := duplicateFrom(fd, 3)
	unix.Close(fd)
	return moved, err
}

// openPipe is os.Pipe without the runtime's poller.
func openPipe() (r, w int, err error) {
	var low [2]int
	if err := pipe(low[:]); err != nil {
		return -1, -1, err
	}
	r, err = moveHigh(low[0], nil)
	w, err2 := moveHigh(low[1], nil)
	if err = cmp.Or(err, err2); err != nil {
		unix.Close(r)
		unix.Close(w)
	}
	return r, w, err
}

// openNull opens /dev/null, and not as 0, 1 or 2. A shell's `>/dev/null` leaves a file
// of that name in a root directory that has none: as in daemon(3) that is an error.
func openNull() (fd int, err error) {
	fd, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil && !isKind(fd, unix.S_IFCHR) {
		unix.Close(fd)
		err = unix.ENODEV
	}
	return moveHigh(fd, err)
}

// uninterrupted repeats a system call that a signal has interrupted.
func uninterrupted(call func() error) error {
	err := call()
	for err == unix.EINTR {
		err = call()
	}
	return err
}

// waitBriefly waits for a condition of which no system call tells.
func waitBriefly(condition func() bool) {
	for begin := time.Now(); !condition() && time.Since(begin) < brief; {
		time.Sleep(time.Millisecond)
	}
}

func write(fd int, text string) error {
	return uninterrupted(func() error {
		_, err := unix.Write(fd, []byte(text))
		return err
	})
}
