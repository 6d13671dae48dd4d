//go:build unix

package daemon

import (
	"sync"

	"golang.org/x/sys/unix"
)

// stopped records that upstart has been told. It answers one SIGSTOP in a job's life:
// a second one would stop the process for ever.
var stopped struct {
	sync.Mutex
	done bool
}

// stopOnce tells upstart's `expect stop` that the process is ready: it stops,
// and goes on when init continues it.
func stopOnce() error {
	stopped.Lock()
	defer stopped.Unlock()
	if stopped.done {
		return nil
	}
	if pid() == 1 { // see kill(2)
		return opError("raise", "SIGSTOP as PID 1 of a namespace", unix.EPERM)
	}
	err := checkProgram("unset UPSTART_JOB")
	if err == nil {
		err = raise(unix.SIGSTOP)
	}
	if err != nil {
		return opError("raise", "SIGSTOP", err)
	}
	stopped.done = true
	// A child that inherits it and calls Ready would stop for ever.
	unsetenv("UPSTART_JOB")
	return nil
}
