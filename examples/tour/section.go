//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A section is one start of the daemon. It is a daemontest.TB: what would be a
// failed test is a broken promise here.
type section struct {
	ctx      context.Context
	path     string // of the program, if it is not to be found by its name
	args     []string
	promise  string // the one that is looked at
	started  time.Time
	cleanups []func()
}

// A broken is what Fatalf panics with.
type broken string

func (s *section) Helper()          {}
func (s *section) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *section) Logf(format string, args ...any) { note(fmt.Sprintf(format, args...)) }

func (s *section) Fatalf(format string, args ...any) { panic(broken(fmt.Sprintf(format, args...))) }

func (s *section) Setenv(key, value string) {
	old, ok := os.LookupEnv(key)
	os.Setenv(key, value)
	s.Cleanup(func() {
		if os.Unsetenv(key); ok {
			os.Setenv(key, old)
		}
	})
}

// run shows the section, cleans up, and reports whether all promises were kept.
func (s *section) run(show func(*section)) bool {
	kept := s.try(func() { show(s) })
	for _, f := range slices.Backward(s.cleanups) {
		kept = s.try(f) && kept
	}
	return kept
}

func (s *section) try(f func()) (kept bool) {
	defer func() {
		if kept {
			return
		}
		what, ok := recover().(broken)
		switch {
		case !ok:
			panic(what)
		case s.ctx.Err() != nil:
			fmt.Println("  Interrupted.")
		default:
			fmt.Printf("   BROKEN  %s.\n", s.promise)
			note(string(what))
		}
	}()
	f()
	return true
}

// note prints what is to be said of a broken promise.
func note(text string) {
	text = strings.TrimPrefix(text, "daemontest: ")
	for line := range strings.Lines(text) {
		fmt.Printf("           %s\n", strings.TrimSpace(line))
	}
}

// command is the daemon's, to be started once.
func (s *section) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.args[0], s.args[1:]...)
	if s.path != "" {
		cmd.Path, cmd.Err = s.path, nil
	}
	s.promise = "The command can be started"
	return cmd
}

// limited returns a context for one wait.
func (s *section) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(s.ctx, *timeout, fmt.Errorf("not within %v", *timeout))
}

// at prints a line: when, who, what.
func (s *section) at(after time.Duration, who, format string, args ...any) {
	s.print(fmt.Sprintf("%d ms", after.Milliseconds()), who, format, args...)
}

// now prints a line about what happens now.
func (s *section) now(who, format string, args ...any) {
	s.at(time.Since(s.started), who, format, args...)
}

// and prints a line that goes on with the one before it.
func (s *section) and(format string, args ...any) { s.print("", "", format, args...) }

func (s *section) print(when, who, format string, args ...any) {
	fmt.Printf("%9s  %-11s %s\n", when, who, fmt.Sprintf(format, args...))
}

// A process is the daemon, as each way to start it knows it.
type process struct {
	pid    int
	signal func(syscall.Signal) error
	wait   func(context.Context) syscall.WaitStatus // fails if ctx ends first
}

func (p process) String() string { return fmt.Sprintf("pid %d", p.pid) }

// live shows what holds for every daemon once it is ready: that it goes on
// running, until boss sends SIGTERM.
func (s *section) live(p process, boss string) {
	s.promise = "It goes on running"
	time.Sleep(250 * time.Millisecond) // what goes wrong goes wrong at once
	switch state := read(p.pid).state; state {
	case "", "Z":
		s.Fatalf("it %s", describe(p.wait(s.ctx)))
	case "T":
		s.Fatalf("it has stopped again (state T), and nobody will continue it")
	default:
		s.now(p.String(), "runs on, state %s", state)
	}

	s.promise = "It ends on SIGTERM"
	s.now(boss, "sends SIGTERM")
	if err := p.signal(unix.SIGTERM); err != nil {
		s.Fatalf("%v", err)
	}
	s.ends(p.pid)
	s.now(p.String(), "%s", describe(p.wait(s.ctx)))
}

// ends waits until the process has ended.
func (s *section) ends(pid int) {
	ctx, cancel := s.limited()
	defer cancel()
	for {
		state := read(pid).state
		if state == "" || state == "Z" {
			return
		}
		select {
		case <-ctx.Done():
			s.Fatalf("it has not ended within %v, state %s", *timeout, state)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "was killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exited with status %d", status.ExitStatus())
}
