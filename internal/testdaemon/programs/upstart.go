//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds programs that stop themselves.
func init() {
	programs["upstart-stop"] = upstartStop
	programs["upstart-pid1"] = upstartAsPID1
	programs["upstart-job"] = upstartJob
	programs["upstart-verbs"] = upstartVerbs
}

// spin keeps goroutines busy, and returns when all of them are.
func spin(m *agreed.Memory, goroutines int) {
	for i := range goroutines {
		go func() {
			for {
				m.Spun[i].Add(1)
			}
		}()
	}
	for i := range goroutines {
		for m.Spun[i].Load() == 0 {
			runtime.Gosched()
		}
	}
}

// countReady calls Ready. Nothing must come between it and the count of its return.
func countReady(m *agreed.Memory) {
	m.Called.Add(1)
	err := daemon.Ready()
	m.Returned.Add(1)
	try(err)
}

// upstartStop calls Ready, on several goroutines while others spin, and then
// twice more, at last with UPSTART_JOB set again.
func upstartStop() {
	m, err := agreed.MapMemory(3)
	try(err)
	spinners, _ := strconv.Atoi(os.Args[1])
	callers, _ := strconv.Atoi(os.Args[2])
	spin(m, spinners)
	daemon.Foreground() // is about detaching: it must not keep this from stopping
	var others sync.WaitGroup
	for range callers - 1 {
		others.Go(func() { countReady(m) })
	}
	countReady(m)
	others.Wait()
	countReady(m)
	try(os.Setenv("UPSTART_JOB", "again"))
	countReady(m)
}

// upstartAsPID1 succeeds if Ready says why it cannot stop the process.
func upstartAsPID1() {
	err := daemon.Ready()
	if os.Getpid() != 1 || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "SIGSTOP") {
		try(fmt.Errorf("pid %d: %v", os.Getpid(), err))
	}
}

// upstartJob calls Ready while goroutines spin, and says what has become of
// its environment. Then it is over, or calls Ready again, or serves.
func upstartJob() {
	spinners, _ := strconv.Atoi(os.Args[1])
	spin(new(agreed.Memory), spinners)
	before := daemon.Detect()
	try(daemon.Ready())
	own, _ := os.LookupEnv("UPSTART_JOB")
	inherited, err := exec.Command("/bin/sh", "-c", `printf %s "${UPSTART_JOB-none}"`).Output()
	try(err)
	fmt.Printf("%d: %v, %v, own %q, inherited %q\n", os.Getpid(), before, daemon.Detect(), own, inherited)
	switch os.Args[2] {
	case "again":
		try(daemon.Ready())
	case "serve":
		select {}
	}
}

// upstartVerbs says all there is to say.
func upstartVerbs() {
	for range 2 {
		for _, err := range []error{
			daemon.Notify(daemon.Status("working")),
			daemon.Reloading(),
			daemon.Ready(daemon.Status("ready"), daemon.MainPID(1)),
			daemon.Stopping(),
			daemon.Fail(unix.EIO),
			daemon.Heartbeat(),
			daemon.Barrier(context.Background()),
			daemon.StoreFiles("name", os.Stdin),
			daemon.RemoveFiles("name"),
			daemon.Detach(),
		} {
			try(err)
		}
	}
}
