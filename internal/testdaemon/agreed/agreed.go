//go:build linux

// Package agreed holds what the test programs and their tests must agree on.
package agreed

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

// Variables in the environment of a program.
const (
	Program   = "DAEMON_TEST_PROGRAM" // which of the programs it is
	Line      = "DAEMON_TEST_LINE"    // the address that a puppet calls
	ChaosMark = "DAEMON_TEST_CHAOS"   // the round of the chaos test
)

// Verbs are all functions that notify, but Barrier.
var Verbs = []Verb{
	{"Ready", func() error { return daemon.Ready() }, "READY=1\nSTATUS=ready\n" + MainPID(os.Getpid())},
	{"Reloading", func() error { return daemon.Reloading(daemon.Set("MONOTONIC_USEC", "1")) },
		"RELOADING=1\nMONOTONIC_USEC=1\n"},
	{"Stopping", func() error { return daemon.Stopping() }, "STOPPING=1\n"},
	{"Fail", func() error { return daemon.Fail(syscall.ENOSPC) }, "STATUS=no space left on device\nERRNO=28\n"},
	{"Notify", func() error { return daemon.Notify(daemon.Status("42 users")) }, "STATUS=42 users\n"},
	{"Heartbeat", daemon.Heartbeat, "WATCHDOG=1\n"},
	{"StoreFiles", func() error { return daemon.StoreFiles("a", os.Stdin) }, "FDSTORE=1\nFDNAME=a\n"},
	{"RemoveFiles", func() error { return daemon.RemoveFiles("a") }, "FDSTOREREMOVE=1\nFDNAME=a\n"},
}

// A Verb is a call, and the datagram that it sends.
type Verb struct {
	Name string
	Call func() error
	Want string
}

// MainPID is the line that Ready adds.
func MainPID(pid int) string { return fmt.Sprintf("MAINPID=%d\n", pid) }

// SupervisorVariables are what UnsetEnvironment removes.
var SupervisorVariables = []string{
	"NOTIFY_SOCKET", "NOTIFY_FD", "UPSTART_JOB", "WATCHDOG_USEC", "WATCHDOG_PID",
	"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES",
}

// UnsetRounds is how often a program notifies while it unsets its environment.
const UnsetRounds = 5000

// Goroutines notify at the same time, Each of them so often.
const Goroutines, Each = 64, 1000

// IthOf returns the fields of a goroutine's ith notification.
func IthOf(goroutine, i int) (status, fill string) {
	return fmt.Sprintf("%d %d", goroutine, i), strings.Repeat(string(rune('a'+goroutine%26)), goroutine*30)
}

// TakeBarrier waits for a barrier and returns its descriptor.
func TakeBarrier(socket int) (fd int, err error) {
	var data, control [5000]byte
	n, size, _, _, err := unix.Recvmsg(socket, data[:], control[:], unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, size, _, _, err = unix.Recvmsg(socket, data[:], control[:], unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%q has %d control messages (%w)", data[:n], len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if string(data[:n]) != "BARRIER=1\n" || err != nil || len(fds) != 1 {
		return -1, errors.Join(fmt.Errorf("%q has %d descriptors", data[:n], len(fds)), err)
	}
	return fds[0], nil
}

// Clock can be compared between processes.
func Clock() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano()
}

// A Memory is shared by a program and its test, which looks into it while the
// program is stopped.
type Memory struct {
	Called, Returned atomic.Uint32    // calls of Ready
	Spun             [4]atomic.Uint32 // turns of spinning goroutines
}

// MapMemory maps a file of at least a page.
func MapMemory(fd int) (*Memory, error) {
	page, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return (*Memory)(unsafe.Pointer(unsafe.SliceData(page))), err
}
