//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Job is a command that runs as an upstart job. Its PID is that of the main
// process, the one that was started; Signal and Wait are about it too.
type Job struct {
	Process

	// Ready is the stop by which the job said that it is ready.
	Ready Stop
}

// A Stop is that of a job's main process.
type Stop struct {
	// Signal is what stopped it.
	Signal syscall.Signal

	// After is the time from the start of the process until init saw it stop.
	After time.Duration

	// State is what /proc/PID/stat said then: "T" is stopped.
	State string

	// Answered reports whether init then sent SIGCONT. It does so once, and
	// only for a SIGSTOP; a process that stops otherwise stays stopped until
	// someone else continues it.
	Answered bool
}

// Upstart starts cmd as upstart starts a job with `expect stop` and no other
// process: in a session of its own, with UPSTART_JOB and UPSTART_INSTANCE in
// its environment and without what other supervisors leave there. It returns
// once the started process has been stopped by SIGSTOP and continued, which
// for upstart is when the job has started.
//
// It fails the test with what happened instead: the command can't be started,
// the process ended or was stopped by another signal, or nothing happened
// for the length of Timeout. A second stop is no failure, but nobody continues
// the process after it, as init would not. Stops returns it, and the test's log
// names it at the end.
//
// cmd is not started itself but describes the job: its fields mean what they
// mean to [os/exec], StdoutPipe works, and so does the context of
// [exec.CommandContext], whose end ends the job; but cmd.Process stays nil.
// SysProcAttr may name another user or, with Setpgid, ask for no session of its
// own, but not for a Chroot. Init keeps the job's descriptors for Respawn: a
// reader of the job's output sees the end of file when the job has ended, and not
// when it closes its output.
//
// A job that runs when the test ends is ended, with all that came of it: by
// SIGTERM and SIGCONT, five seconds later by SIGKILL. What a main process
// leaves behind when it ends is killed at once.
func Upstart(t TB, cmd *exec.Cmd) *Job {
	t.Helper()
	ctx, cancel := bounded(context.Background())
	defer cancel()
	return upstart(ctx, t, cmd)
}

func upstart(ctx context.Context, t TB, cmd *exec.Cmd) *Job {
	t.Helper()
	j := new(Job)
	j.parent = newParent(t, nil)
	c := *cmd
	j.parent.capture(&c)
	var err error
	if j.PID, err = j.parent.run(&c, jobTask(cmd), nil); err != nil {
		t.Fatalf("daemontest: upstart job: %v", err)
		return nil
	}
	return j.started(ctx)
}

// Respawn kills the main process by SIGKILL, as a crash would, and has init
// start the job again from the same description, as the respawn stanza of
// init(5) does, once all that the old process has left behind has been killed
// too. It returns the job of the new process when that has been stopped by
// SIGSTOP and continued: init answers once for each process. The new process
// has the streams of the old: one buffer holds what both have written.
//
// It fails the test as Upstart does, and if the job has ended before, and if
// ctx ends earlier, or Timeout passes and ctx has no deadline.
func (j *Job) Respawn(ctx context.Context) *Job {
	j.parent.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	pid, err := j.parent.startAgain(ctx, order{PID: j.PID})
	if err != nil {
		return j.fail(fmt.Sprintf("has not been respawned%s%s", because(err), j.lastHistory()))
	}
	again := &Job{Process: Process{PID: pid, parent: j.parent}}
	return again.started(ctx)
}

// started returns j when it has been stopped and continued.
func (j *Job) started(ctx context.Context) *Job {
	j.parent.t.Helper()
	j.parent.t.Cleanup(j.logUnanswered)
	first, err := j.parent.find(ctx, func(r report) bool {
		return r.PID == j.PID && (r.Event == hasStopped || r.Event == hasEnded)
	})
	if err != nil || !first.Answered {
		return j.fail(j.instead(first, err))
	}
	j.Ready = stop(first)
	return j
}

// fail ends the job and fails the test.
func (j *Job) fail(what string) *Job {
	j.parent.t.Helper()
	if j.parent.cancelled.Load() {
		what += ", its context having ended"
	}
	j.parent.end() // before printed is complete
	j.parent.t.Fatalf("daemontest: upstart job %s %s%s", j.parent.path, what, j.parent.words())
	return nil
}

// jobTask is what is special about a job: init(5), and job_process_spawn in
// upstart's init/job_process.c.
func jobTask(cmd *exec.Cmd) task {
	return task{
		Role: asInit,
		Env:  []string{"UPSTART_JOB=" + filepath.Base(cmd.Path), "UPSTART_INSTANCE="},
		Attr: syscall.SysProcAttr{Setsid: true},
	}
}

// instead says what a job did that has not stopped itself.
func (j *Job) instead(first report, err error) (what string) {
	switch {
	case err != nil:
		what = fmt.Sprintf("has not stopped itself%s%s%s", because(err), j.another(), j.lastHistory())
	case first.Event == hasStopped:
		what = fmt.Sprintf("%s after %v: `expect stop` is about SIGSTOP", describe(first.Status), rounded(first.After))
	default:
		what = fmt.Sprintf("%s after %v and had not stopped itself", describe(first.Status), rounded(first.After))
	}
	if len(first.Left) > 0 {
		what += fmt.Sprintf(", and left process %d behind: `expect stop` is about the process that was started",
			first.Left[0])
	}
	return what
}

// another says which process has stopped in the place of the main one.
func (j *Job) another() string {
	for _, pid := range descendants(j.PID) {
		if p, err := readProcess(pid); err == nil && p.state == "T" {
			return fmt.Sprintf(", but process %d below it has: `expect stop` is about the process that was started", pid)
		}
	}
	return ""
}

// Stops returns all the stops of the main process so far, in order; the one in
// Ready is among them. Signals that stop it again before it has been continued
// are one stop.
func (j *Job) Stops() []Stop {
	var stops []Stop
	for _, r := range j.parent.reports.all() {
		if r.Event == hasStopped && r.PID == j.PID {
			stops = append(stops, stop(r))
		}
	}
	return stops
}

// Wait does what Process.Wait does. When it returns, all that the job has written
// to a writer in cmd has arrived there, unless the job has been respawned.
func (j *Job) Wait(ctx context.Context) syscall.WaitStatus {
	j.parent.t.Helper()
	last := j.Process.wait(ctx)
	if !last.Again {
		j.parent.end() // it does so by itself once its job has ended
	}
	return last.Status
}

// logUnanswered ends the job and logs the stops that init has left alone.
func (j *Job) logUnanswered() {
	j.parent.t.Helper()
	j.parent.end()
	for _, s := range j.Stops() {
		if !s.Answered {
			j.parent.t.Logf("daemontest: upstart job (pid %d) was stopped by %s after %v, which init never answers",
				j.PID, unix.SignalName(s.Signal), rounded(s.After))
		}
	}
}

func stop(r report) Stop {
	return Stop{Signal: r.Status.StopSignal(), After: r.After, State: r.State, Answered: r.Answered}
}
