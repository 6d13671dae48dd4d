//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon/daemontest"
)

// upstart shows a job: it stops itself, and upstart continues it.
func (s *section) upstart() {
	s.promise = "It stops itself by SIGSTOP when it is ready"
	job := soon(s, "stopped itself", func(cmd *exec.Cmd) *daemontest.Job { return daemontest.Upstart(s, cmd) })
	p := process{job.PID, job.Signal, job.Wait}
	s.started = time.Now().Add(-job.Ready.After)

	s.at(0, "upstart", "starts pid %d with UPSTART_JOB set", job.PID)
	s.at(job.Ready.After, p.String(), "has stopped itself by %s, state %s: it is ready",
		unix.SignalName(job.Ready.Signal), job.Ready.State)
	s.at(job.Ready.After, "upstart", "sends SIGCONT")
	s.live(p, "upstart")
}

// descriptor shows a command under s6 and its like.
func (s *section) descriptor() {
	s.promise = "It writes a line to the descriptor when it is ready, and closes it"
	command := soon(s, "done so", func(cmd *exec.Cmd) *daemontest.Supervised { return daemontest.NotifyFD(s, cmd) })
	s.started = time.Now().Add(-command.After)
	p := process{command.PID, command.Signal, command.Wait}

	s.at(0, "supervisor", "starts pid %d with NOTIFY_FD set", command.PID)
	s.at(command.After, p.String(), "has written %q and closed the descriptor: it is ready", command.Ready)
	s.live(p, "supervisor")
}

// soon starts the command by start, which waits for as long as
// daemontest.Timeout, or for as long as the timeout of the tour if that is
// shorter. That the time is up, and not that the command was therefore ended, is
// what is wrong then: it has not done what.
func soon[T any](s *section, what string, start func(*exec.Cmd) T) T {
	limit := min(*timeout, daemontest.Timeout)
	late := fmt.Errorf("it has not %s within %v", what, limit)
	ctx, cancel := context.WithCancelCause(s.ctx)
	s.Cleanup(func() { cancel(nil) })
	promise := s.promise
	cmd := s.command(ctx)
	s.promise = promise
	defer time.AfterFunc(limit, func() { cancel(late) }).Stop()
	defer func() {
		if context.Cause(ctx) == late {
			why, _ := recover().(broken)
			_, printed, _ := strings.Cut(string(why), "; it printed ")
			s.Fatalf("%v; it printed %s", late, printed)
		}
	}()
	return start(cmd)
}

// shell shows a command that leaves a daemon behind.
func (s *section) shell() {
	cmd := s.command(s.ctx)
	shell := daemontest.StartShell(s, cmd)
	s.started = time.Now()
	s.at(0, "shell", "starts pid %d on a terminal", shell.PID)

	s.promise = "The prompt comes back"
	ctx, cancel := s.limited()
	defer cancel()
	d := shell.Prompt(ctx)
	back := time.Since(s.started)
	for line := range strings.Lines(d.Output) {
		s.print("", "terminal", "%s", strings.TrimSpace(line))
	}
	s.at(back, process{pid: shell.PID}.String(), "%s: the prompt is back", describe(d.Status))

	s.promise = "The exit status is 0"
	if d.ExitCode() != 0 {
		s.Fatalf("it is %d", d.ExitCode())
	}
	s.promise = "A daemon is left behind"
	if d.PID == 0 {
		s.Fatalf("no process is left")
	}
	p := process{d.PID, d.Signal, d.Wait}
	s.print("", p.String(), "is the daemon left behind")
	s.detached(d.PID)
	s.live(p, "somebody")
}

// detached shows what the daemon has to do with the shell and its terminal.
func (s *section) detached(pid int) {
	daemon := read(pid)
	s.promise = "The daemon has a session of its own"
	if daemon.session != pid {
		s.Fatalf("it is in session %d", daemon.session)
	}
	s.and("session %d, its own", daemon.session)

	s.promise = "The daemon has no terminal"
	if daemon.tty != 0 {
		s.Fatalf("it has device %d:%d", daemon.tty>>8, daemon.tty&0xff)
	}
	s.and("no terminal")

	s.promise = "The daemon's descriptors 0, 1 and 2 have left the terminal"
	for fd := range 3 {
		path := descriptor(pid, fd)
		if strings.HasPrefix(path, "/dev/pts/") || path == "/dev/tty" {
			s.Fatalf("descriptor %d is %s", fd, path)
		}
		s.and("descriptor %d is %s", fd, path)
	}
}
