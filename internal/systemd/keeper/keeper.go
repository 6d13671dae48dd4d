//go:build linux

// Package keeper boots a systemd for the tests of package systemd, in two
// processes of the test programs:
//
//	the keeper    makes the cgroup, starts PID 1, and ends and removes both when
//	              its standard input ends: however the tests end
//	PID 1         builds its root tree and becomes systemd; dies with the keeper
//
// All mounts and all other processes live in the namespaces and end with PID 1.
// A keeper that is killed leaves the cgroup, with nothing in it that runs, and
// the next one removes it.
package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// RootVariable names the root tree to boot; default: /
	RootVariable = "DAEMON_TEST_ROOT"
	// Target is what is active when systemd is ready for tests.
	Target = "daemon-test.target"
	// Inside, the test programs and a directory that every service can see.
	InsideBinary = "/usr/local/bin/daemon.test"
	InsideDir    = "/run/daemon-test"
)

// RootTree returns the one to boot.
func RootTree() string {
	if root := os.Getenv(RootVariable); root != "" {
		return root
	}
	return "/"
}

// SystemdBinary returns systemd's path inside the root tree.
func SystemdBinary(root string) (string, error) {
	for _, path := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if info, err := os.Stat(filepath.Join(root, path)); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no systemd in %s", root)
}

// Cgroup2 returns where the unified hierarchy is mounted: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified on a hybrid machine.
func Cgroup2() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("no cgroup2 mounted")
}

// Keep is the keeper. It prints systemd's pid, or what it can't do.
func Keep() {
	runtime.LockOSThread() // PID 1 dies with the thread that started it
	ended := make(chan os.Signal, 8)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // a test that is gone no longer reads
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended <- unix.SIGHUP
	}()

	mount, err := Cgroup2()
	if err != nil {
		cant("boot systemd", err)
	}
	RemoveStaleCgroups(mount)
	cgroup := filepath.Join(mount, CgroupName(os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		cant("make a cgroup", err)
	}
	pid1, err := startPID1(cgroup)
	if err != nil {
		removeCgroup(cgroup)
		cant("boot systemd", err)
	}

	gone := make(chan struct{})
	go func() {
		pid1.Wait() // for every process of its namespace, too
		close(gone)
	}()
	fmt.Println(pid1.Process.Pid)
	select {
	case <-ended:
	case <-gone:
	}
	pid1.Process.Kill()
	<-gone
	if err := removeCgroup(cgroup); err != nil {
		fmt.Fprintln(os.Stderr, "systemd-keeper:", err)
		os.Exit(1)
	}
}

func cant(what string, err error) {
	fmt.Printf("can't %s: %v\n", what, err)
	os.Exit(0)
}

// CgroupName names a keeper's cgroup after its pid and the time it started,
// so that a later process with that pid is not taken for it.
func CgroupName(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if fields[0] == "Z" { // dead, and whoever adopted it has not waited for it
		return ""
	}
	return fmt.Sprintf("daemon-test.%d.%s", pid, fields[19]) // starttime, proc(5)
}

// RemoveStaleCgroups removes what keepers left that were killed.
func RemoveStaleCgroups(mount string) {
	dirs, _ := filepath.Glob(filepath.Join(mount, "daemon-test.*.*"))
	for _, dir := range dirs {
		var pid int
		fmt.Sscanf(filepath.Base(dir), "daemon-test.%d.", &pid)
		events, _ := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if CgroupName(pid) != filepath.Base(dir) && bytes.Contains(events, []byte("populated 0")) {
			removeCgroup(dir)
		}
	}
}

// removeCgroup removes a cgroup and those below it. The kernel takes a moment
// to count the processes out.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := removeDirectories(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
}

func removeDirectories(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			removeDirectories(filepath.Join(dir, entry.Name()))
		}
	}
	return unix.Rmdir(dir)
}
