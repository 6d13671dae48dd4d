//go:build linux

package testdaemon

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Alone waits until no other test that calls it is under way, in whatever test
// process of this module. For those that keep the whole machine busy, or have
// deadlines that suffer from it.
func Alone(t testing.TB) {
	t.Helper()
	release, err := lock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
}

// AloneUntilExit is Alone for the rest of the test process.
func AloneUntilExit(t testing.TB) {
	t.Helper()
	if err := lockUntilExit(); err != nil {
		t.Fatal(err)
	}
}

var lockUntilExit = sync.OnceValue(func() error {
	release, err := lock()
	if err == nil {
		AtExit(release)
	}
	return err
})

// lock takes a lock on the module's directory, which ends with the process too.
func lock() (release func(), err error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	return func() { dir.Close() }, os.NewSyscallError("flock "+root, err)
}

// Root returns the module's directory, above that of the running test.
func Root() (dir string, err error) {
	dir, err = os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	return dir, err
}
