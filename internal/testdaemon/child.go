//go:build linux

package testdaemon

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
)

// A Child is a program that runs, and that is spoken to in lines. It is killed at
// the end of the test, or if it takes too long: every wait for it ends.
type Child struct {
	T   testing.TB
	Cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// Start starts a program with a notify socket.
func Start(t testing.TB, name, address string, args ...string) *Child {
	t.Helper()
	cmd := Program(t, name, args...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+address)
	return StartCommand(t, cmd)
}

// StartCommand starts a command as it is.
func StartCommand(t testing.TB, cmd *exec.Cmd) *Child {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(5*daemontest.Timeout, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &Child{t, cmd, in, bufio.NewReader(out)}
}

// PID returns the process's id.
func (c *Child) PID() int { return c.Cmd.Process.Pid }

// Line returns the next line of the child's output.
func (c *Child) Line() string {
	c.T.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.T.Fatalf("%q, and then %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// Says checks the next line.
func (c *Child) Says(want string) {
	c.T.Helper()
	if got := c.Line(); got != want {
		c.T.Fatalf("the child says %.300q, want %.300q", got, want)
	}
}

// GoOn lets the child's awaitLine return.
func (c *Child) GoOn() {
	c.T.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		c.T.Fatal(err)
	}
}

// Exits waits for the child's end. It must have said no more.
func (c *Child) Exits(code int) {
	c.T.Helper()
	rest, _ := io.ReadAll(c.out)
	c.Cmd.Wait()
	if got := c.Cmd.ProcessState; got.ExitCode() != code || len(rest) > 0 {
		c.T.Fatalf("%v, want exit status %d; said %q", got, code, rest)
	}
}
