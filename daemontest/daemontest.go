//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout is how long a wait of this package lasts if its context has no
// deadline of its own, and how long the functions wait that start a command.
// It is long because it is only ever spent by a test that fails.
const Timeout = 30 * time.Second

// TB is the part of [testing.TB] that this package needs. A *testing.T, B or
// F is one; a program that is no test brings its own. Its Fatalf must not
// return (runtime.Goexit or a panic will do), and it must run what Cleanup was
// given, last in first out, before it ends.
type TB interface {
	Helper()
	Cleanup(func())
	Setenv(key, value string)
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// supervisorVariables are what a supervisor sets for the process that it
// starts: systemd.exec(5), sd_listen_fds(3), sd_watchdog_enabled(3), init(5)
// of upstart.
var supervisorVariables = []string{
	"NOTIFY_SOCKET", "NOTIFY_FD",
	"WATCHDOG_USEC", "WATCHDOG_PID",
	"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES",
	"SYSTEMD_EXEC_PID", "MANAGERPID", "INVOCATION_ID", "JOURNAL_STREAM",
	"UPSTART_JOB", "UPSTART_INSTANCE", "UPSTART_SESSION",
}

// unsupervised returns env without what a supervisor may have left in it.
func unsupervised(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(assignment string) bool {
		key, _, _ := strings.Cut(assignment, "=")
		return slices.Contains(supervisorVariables, key)
	})
}

// errLate is why a context has ended that bounded has made.
var errLate = fmt.Errorf("not within %v", Timeout)

// bounded gives ctx the usual deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, Timeout, errLate)
}

// because is the end of a sentence about what has not happened.
func because(err error) string {
	if err == errLate {
		return fmt.Sprintf(" within %v", Timeout)
	}
	return ": " + err.Error()
}

// maxWords is how much of a program's output a failure quotes, in bytes.
const maxWords = 2000

// lastWords quotes the end of what a program has printed.
func lastWords(printed []byte) string {
	if len(printed) == 0 {
		return "it printed nothing"
	}
	if len(printed) > maxWords {
		return fmt.Sprintf("it printed %d bytes, at last %q", len(printed), printed[len(printed)-maxWords:])
	}
	return fmt.Sprintf("it printed %q", printed)
}

// rounded returns d as people read it.
func rounded(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond)
	case d < time.Second:
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

// describe says what a wait status means.
func describe(status syscall.WaitStatus) string {
	switch {
	case status.Exited():
		return fmt.Sprintf("exited with status %d", status.ExitStatus())
	case status.Signaled() && status.CoreDump():
		return "was killed by " + unix.SignalName(status.Signal()) + " and dumped core"
	case status.Signaled():
		return "was killed by " + unix.SignalName(status.Signal())
	default:
		return "was stopped by " + unix.SignalName(status.StopSignal())
	}
}
