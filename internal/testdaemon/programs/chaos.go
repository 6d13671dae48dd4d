//go:build linux

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds the daemon of the chaos test, which tells how far it is.
func init() {
	programs["chaos"] = chaosDaemon
	if _, ok := os.LookupEnv(agreed.ChaosMark); ok {
		chaosSay("begun") // package daemon's init is over
	}
}

// chaosDaemon calls Ready after a while, and before that Detach or not.
func chaosDaemon() {
	chaosSay("main")
	if os.Args[1] == "Detach" {
		chaosMust(daemon.Detach())
	}
	delay, err := time.ParseDuration(os.Args[2])
	chaosMust(err)
	time.Sleep(delay)
	chaosSay("calling")
	chaosMust(daemon.Ready())
	chaosSay("ready")
	// Until it is killed, or the test is, which has the pipe's other end.
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll([]unix.PollFd{{Fd: 3}}, -1)
	}
}

func chaosMust(err error) {
	if err != nil {
		chaosSay("failed")
		os.Exit(3)
	}
}

// chaosSay tells the test how far this process is, through a pipe that every
// process of a round has from its caller.
func chaosSay(stage string) {
	_, _ = unix.Write(3, fmt.Appendln(nil, stage, os.Getpid(), agreed.Clock()))
}
