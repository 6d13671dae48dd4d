//go:build unix

package daemon

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// stopped is whether upstart has been told. It answers one SIGSTOP in a job's
// life; a second would be for ever.
var stopped struct {
	sync.Mutex
	done bool
}

var errTestJob = errors.New("unset UPSTART_JOB, and " + cureTestRun)

// stopOnce tells upstart's `expect stop` that the process is ready: it stops,
// and goes on when init continues it.
func stopOnce() error {
	stopped.Lock()
	defer stopped.Unlock()
	switch {
	case stopped.done:
		return nil
	case inTest():
		return failed("raise SIGSTOP", "in a go test run", errTestJob)
	case pid == 1: // the kernel discards it: see kill(2)
		return failed("raise SIGSTOP", "as PID 1 of a namespace", unix.EPERM)
	}
	if err := raise(unix.SIGSTOP); err != nil {
		return failed("raise", "SIGSTOP", err)
	}
	stopped.done = true
	// A child that inherits it and calls Ready would stop for ever.
	unsetenv("UPSTART_JOB")
	return nil
}
