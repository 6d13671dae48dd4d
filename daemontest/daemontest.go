//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout is how long a wait of this package lasts where its context has no
// deadline of its own, and how long Upstart and Shell wait for the command.
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
	"NOTIFY_SOCKET",
	"WATCHDOG_USEC", "WATCHDOG_PID",
	"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES",
	"SYSTEMD_EXEC_PID", "MANAGERPID", "INVOCATION_ID", "JOURNAL_STREAM",
	"UPSTART_JOB", "UPSTART_INSTANCE", "UPSTART_SESSION",
}

// unsupervised is the environment in which cmd would run, without what a
// supervisor may have left in it.
func unsupervised(cmd *exec.Cmd) []string {
	return slices.DeleteFunc(cmd.Environ(), func(assignment string) bool {
		key, _, _ := strings.Cut(assignment, "=")
		return slices.Contains(supervisorVariables, key)
	})
}

// bounded gives ctx the usual deadline if it has none, and for a failure what
// that was: record.wait returns the cause.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, Timeout, fmt.Errorf("not within %v", Timeout))
}

// rounded is a time for people to read.
func rounded(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

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
