//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// Orders about who is there, and about the descriptor that it waits on.
func init() {
	programs["ending"] = ending
	if os.Getenv(agreed.Program) == "ending" {
		runtime.LockOSThread() // main runs in the first thread
	}
	orders["background"] = func(string) error { daemon.Background(); return nil }
	orders["unset"] = func(string) error { daemon.UnsetEnvironment(); return nil }
	orders["reload"] = func(string) error { return daemon.Reloading() }
	orders["pid-file"] = func(path string) error {
		return os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644)
	}
	orders["mount"] = func(path string) error { return unix.Mount("none", path, "tmpfs", 0, "") }
	orders["open"] = open
	orders["move"] = move
	questions["parent"] = func() string { return strconv.Itoa(os.Getppid()) }
	questions["session"] = func() string {
		session, _ := unix.Getsid(0)
		return strconv.Itoa(session)
	}
	questions["detect"] = func() string { return daemon.Detect().String() }
	questions["child-files"] = childFiles
}

// ending starts a command and ends its first thread. The rest of it ends after
// the test has said go on. Meanwhile it is what a process is for an instant when it
// ends: there is a name, but no command line.
func ending() {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	try(cmd.Start())
	go func() {
		awaitLine()
		time.Sleep(100 * time.Millisecond) // for the command to find it so
		os.Exit(0)
	}()
	unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// open opens a file, "number path", as the descriptor of that number.
func open(argument string) error {
	number, path, _ := strings.Cut(argument, " ")
	to, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	from, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return moveTo(from, to)
}

// move gives a descriptor, "from to", another number.
func move(argument string) error {
	var from, to int
	if _, err := fmt.Sscan(argument, &from, &to); err != nil {
		return err
	}
	return moveTo(from, to)
}

func moveTo(from, to int) error {
	if from == to {
		return nil
	}
	if err := unix.Dup3(from, to, 0); err != nil {
		return err
	}
	return unix.Close(from)
}

// childFiles tells what files a child process has inherited. One that the shell
// has open for a moment, to read the directory, may be gone.
func childFiles() string {
	out, err := exec.Command("sh", "-c", "readlink /proc/$$/fd/*; true").Output()
	if err != nil {
		return err.Error()
	}
	return string(out)
}
