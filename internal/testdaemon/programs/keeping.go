//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds orders about what a detach is to leave alone.
func init() {
	// "log 1 2 PATH" puts the file in the place of these descriptors.
	orders["log"] = func(argument string) error {
		words := strings.Fields(argument)
		fd, err := unix.Open(words[len(words)-1], unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		for _, number := range words[:len(words)-1] {
			err = errors.Join(err, unix.Dup3(fd, int(number[0]-'0'), 0))
		}
		return errors.Join(err, unix.Close(fd))
	}
	orders["lock"] = func(path string) error {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	orders["limit-stack"] = func(size string) error {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_STACK, &limit); err != nil {
			return err
		}
		if _, err := fmt.Sscan(size, &limit.Cur); err != nil {
			return err
		}
		return unix.Setrlimit(unix.RLIMIT_STACK, &limit)
	}
	questions["limit"] = func() string {
		var limit unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		return fmt.Sprint(limit, err)
	}
	questions["child-blocked"] = func() string {
		out, err := exec.Command("grep", "SigBlk", "/proc/self/status").Output()
		return strings.TrimSpace(string(out)) + fmt.Sprint(err)
	}
}

// init adds orders that take the passed descriptors as other packages do.
func init() {
	// A listener has a duplicate, and the passed one is closed.
	orders["take-listener"] = func(string) error {
		unix.CloseOnExec(3)
		file := os.NewFile(3, "taken")
		listener, err := net.FileListener(file)
		if err != nil {
			return err
		}
		go answerPID(listener)
		return file.Close()
	}
	// The passed ones are only marked.
	orders["take-files"] = func(string) error {
		unix.CloseOnExec(3)
		taken = append(taken, os.NewFile(3, "taken"))
		return nil
	}
	orders["serve-passed"] = func(string) error {
		listener, err := net.FileListener(daemon.Files()[0])
		if err == nil {
			go answerPID(listener)
		}
		return err
	}
}

var taken []*os.File

// init adds a program that blocks the signals of its first argument and becomes
// a puppet.
func init() {
	programs["blocker"] = func() {
		runtime.LockOSThread()
		var mask unix.Sigset_t
		for name := range strings.FieldsSeq(os.Args[1]) {
			mask.Val[0] |= 1 << (unix.SignalNum("SIG"+name) - 1)
		}
		try(unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil))
		try(os.Setenv(agreed.Program, "puppet"))
		try(syscall.Exec("/proc/self/exe", []string{"puppet"}, os.Environ()))
	}
}
