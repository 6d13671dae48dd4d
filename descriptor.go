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
