//go:build linux

// Package examples_test builds the examples and runs them as their users will.
package examples_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// bin is where the examples' binaries are.
var bin string

func TestMain(m *testing.M) {
	if daemon, ok := brokenDaemons[os.Getenv(brokenDaemon)]; ok {
		daemon()
		return
	}
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "examples"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "./httpd", "./worker", "./tour")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
			return 1
		}
		return testdaemon.Run(m)
	}())
}

// patience is how long anything may take that should happen at all. Other
// work may have the processors meanwhile.
const patience = 60 * time.Second

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// skip skips a test for want of a tool, or fails it if none may be skipped.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("DAEMON_TEST_NO_SKIP") != "" {
		t.Fatalf("%s (and DAEMON_TEST_NO_SKIP is set)", reason)
	}
	t.Skip(reason)
}

// noticeSources has go test keep no result of examples that have changed since:
// it knows which directories a test reads, and not what go build has read.
func noticeSources() {
	for _, dir := range []string{"..", "httpd", "worker", "tour"} {
		os.ReadDir(dir)
	}
}

// command is that of an example.
func command(example string, args ...string) *exec.Cmd {
	noticeSources()
	return exec.Command(filepath.Join(bin, example), args...)
}

// A process is an example that the test itself has started, in the
// environment of the test.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr strings.Builder
	ended  chan error
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, ended: make(chan error, 1)}
	cmd.Stderr = &p.stderr
	cmd.WaitDelay = patience // for whoever it leaves behind with its standard error
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.ended <- cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		for range p.ended {
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// exit waits for the process to end by itself, with this exit status.
func (p *process) exit(status int) {
	p.t.Helper()
	select {
	case err := <-p.ended:
		if code := p.cmd.ProcessState.ExitCode(); code != status {
			var failed *exec.ExitError
			if err != nil && !errors.As(err, &failed) {
				p.t.Fatal(err)
			}
			p.t.Fatalf("%v, want exit status %d; it printed %q", p.cmd.ProcessState, status, p.stderr.String())
		}
	case <-time.After(patience):
		p.t.Fatalf("%v has not ended", p.cmd)
	}
}

// A mistake in the command line is found before anybody is told that all is well.
func TestMistakesInTheCommandLine(t *testing.T) {
	for _, test := range []struct{ command, mistake string }{
		{"httpd -f -addr " + anyPort + " 9090", "unexpected argument: 9090"},
		{"worker -dir . x", "unexpected argument: x"},
		{"worker -dir . -every 0s", "-every 0s: "},
		{"worker -dir . -every -1s", "-every -1s: "},
	} {
		t.Run(test.command, func(t *testing.T) {
			words := strings.Fields(test.command)
			cmd := command(words[0], words[1:]...)
			cmd.Dir = t.TempDir()
			d := daemontest.Shell(t, cmd)
			if d.ExitCode() != 2 || !strings.HasPrefix(d.Output, test.mistake) || !strings.Contains(d.Output, "Usage") {
				t.Errorf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
			}
		})
	}
}

// rotate does what logrotate does: the daemon goes on in a new file.
func rotate(t *testing.T, log string, d *daemontest.Detached) {
	t.Helper()
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "standard error is a new log", func() bool {
		file, err := os.Stat(log)
		if err != nil {
			return false
		}
		stderr, err := os.Stat(fmt.Sprintf("/proc/%d/fd/2", d.PID))
		return err == nil && os.SameFile(file, stderr)
	})
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
