//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon/daemontest"
)

// upstart shows a job: it stops itself, and upstart continues it.
func (s *section) upstart() {
	job := s.job()
	p := process{job.PID, job.Signal, job.Wait}
	s.started = time.Now().Add(-job.Ready.After)

	s.at(0, "upstart", "starts pid %d with UPSTART_JOB set", job.PID)
	s.at(job.Ready.After, p.String(), "has stopped itself by %s, state %s: it is ready",
		unix.SignalName(job.Ready.Signal), job.Ready.State)
	s.at(job.Ready.After, "upstart", "sends SIGCONT")
	s.live(p, "upstart")
}

// job starts a job. That its time is up, and not that it was therefore ended,
// is what is wrong with one that does not get ready.
func (s *section) job() *daemontest.Job {
	limit := min(*timeout, daemontest.Timeout)
	late := fmt.Errorf("it has not stopped itself within %v", limit)
	ctx, cancel := context.WithCancelCause(s.ctx)
	s.Cleanup(func() { cancel(nil) })
	cmd := s.command(ctx)
	s.promise = "It stops itself by SIGSTOP when it is ready"
	defer time.AfterFunc(limit, func() { cancel(late) }).Stop()
	defer func() {
		if context.Cause(ctx) == late {
			what, _ := recover().(broken)
			_, printed, _ := strings.Cut(string(what), "; it printed ")
			s.Fatalf("%v; it printed %s", late, printed)
		}
	}()
	return daemontest.Upstart(s, cmd)
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
