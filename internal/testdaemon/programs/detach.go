//go:build linux

package main

import (
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"syscall"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

// init adds the orders to detach.
func init() {
	orders["detach"] = func(string) error { return daemon.Detach() }
	orders["ready"] = func(string) error { return daemon.Ready() }
	orders["foreground"] = func(string) error { daemon.Foreground(); return nil }
	orders["ready-at-once"] = func(string) error { return readyAtOnce() }
	orders["ready-exit"] = func(code string) error {
		if err := daemon.Ready(); err != nil {
			return err
		}
		return orders["exit"](code)
	}
}

// readyAtOnce calls Ready from many goroutines.
func readyAtOnce() error {
	errs := make(chan error)
	for range 50 {
		go func() { errs <- daemon.Ready() }()
	}
	var all error
	for range 50 {
		all = errors.Join(all, <-errs)
	}
	return all
}

// init adds orders to say something, and to end.
func init() {
	orders["say"] = func(text string) error {
		_, err := fmt.Fprintln(os.Stderr, text)
		return err
	}
	orders["panic"] = func(text string) error { panic(text) }
	orders["log.Fatal"] = func(text string) error {
		log.SetFlags(0)
		log.Fatal(text)
		return nil
	}
	// No Go program any more, and no handler: kill -QUIT $$ is an end by QUIT.
	orders["become"] = func(script string) error {
		return syscall.Exec("/bin/sh", []string{"sh", "-c", script}, os.Environ())
	}
}

// init adds a program that loses all its descriptors before it is ready.
func init() {
	programs["closer"] = func() {
		err := error(nil)
		if os.Args[1] == "Detach" {
			err = daemon.Detach()
		}
		if err == nil {
			err = takeAllAndBeReady(os.Args[2])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(4)
		}
	}
}

// takeAllAndBeReady closes all descriptors from 3 up, as old advice has it, and
// opens a file so often that it has every number.
func takeAllAndBeReady(path string) error {
	if err := unix.CloseRange(3, math.MaxInt32, 0); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	for err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	// Time for the runtime to look at its poller, if it has one open: it would
	// throw.
	_ = unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
	if err != unix.EMFILE {
		return err
	}
	return daemon.Ready()
}
