//go:build linux

package testdaemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// A Line is where the puppets of one test call in. It also finds those that do
// not call, by its address, which is in their environment.
type Line struct {
	t        testing.TB
	Address  string
	listener net.Listener
	calls    chan net.Conn
	callers  []Caller
}

var lines atomic.Int64

// handleIgnored makes the puppets start with the default action of all signals,
// even if whoever runs the tests ignores some (`go test &` in a script): a signal
// that the tests handle is not ignored by what they start.
var handleIgnored = sync.OnceFunc(func() {
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
})

// NewLine makes one for the time of the test, which fails if a puppet is left.
func NewLine(t testing.TB) *Line {
	t.Helper()
	handleIgnored()
	// An abstract address needs no directory that everyone can reach.
	l := &Line{
		t:       t,
		Address: fmt.Sprintf("@daemon-test-%d-%d", os.Getpid(), lines.Add(1)),
		calls:   make(chan net.Conn, 1000),
	}
	var err error
	if l.listener, err = net.Listen("unix", l.Address); err != nil {
		t.Fatal(err)
	}
	go l.accept()
	t.Cleanup(l.hangUp)
	return l
}

func (l *Line) accept() {
	defer close(l.calls)
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.t.Cleanup(func() { conn.Close() })
		l.calls <- conn
	}
}

// hangUp is the end of the test, and of its puppets.
func (l *Line) hangUp() {
	l.listener.Close()
	for conn := range l.calls {
		conn.Close()
	}
	if l.t.Failed() {
		for _, pid := range l.Processes() {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	l.MustBeOver()
}

// Command returns the command that starts a puppet.
func (l *Line) Command(args ...string) *exec.Cmd {
	return l.Called(Program(l.t, "puppet", args...))
}

// Called adds the line's address to the command's environment. A program that
// was built with -race is not to take a second to exit.
func (l *Line) Called(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, agreed.Line+"="+l.Address, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// Processes returns those that have the line's address in their environment.
func (l *Line) Processes() (pids []int) {
	l.t.Helper()
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		environ, _ := os.ReadFile(path)
		if strings.Contains("\x00"+string(environ), "\x00"+agreed.Line+"="+l.Address+"\x00") {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// Printed returns what the callers have seen.
func (l *Line) Printed() (all []string) {
	for _, c := range l.callers {
		all = append(all, c.Printed())
	}
	return all
}

// MustBeOver waits for the end of all puppets.
func (l *Line) MustBeOver() {
	l.t.Helper()
	deadline := time.Now().Add(Patience)
	for pids := l.Processes(); len(pids) > 0; pids = l.Processes() {
		if time.Now().After(deadline) {
			for _, pid := range pids {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				l.t.Errorf("process %d is left: %q", pid, name)
				unix.Kill(pid, unix.SIGKILL)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Process returns the next puppet that has called.
func (l *Line) Process() *Puppet {
	l.t.Helper()
	deadline := time.After(Patience)
	for {
		select {
		case conn := <-l.calls:
			if p := l.talk(conn); p.PID != os.Getpid() {
				return p
			}
		case <-time.After(time.Second):
		case <-deadline:
			l.t.Fatalf("no process has called; left are %v, and printed was %q", l.Processes(), l.Printed())
		}
		if len(l.Processes()) > 0 {
			continue
		}
		if p := l.lastCaller(); p != nil {
			return p
		}
		l.t.Fatalf("no process has called, and none is left; printed was %q", l.Printed())
	}
}

// lastCaller returns the puppet that has called and not been asked for, if there
// is one. This process calls, too: whoever is no longer there called before that.
func (l *Line) lastCaller() *Puppet {
	l.t.Helper()
	conn, err := net.Dial("unix", l.Address)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	select {
	case conn := <-l.calls:
		if p := l.talk(conn); p.PID != os.Getpid() {
			return p
		}
	case <-time.After(Patience):
		l.t.Fatal("nobody answers the line")
	}
	return nil
}

func (l *Line) talk(conn net.Conn) *Puppet {
	return &Puppet{NewProcess(l.t, conn), peer(l.t, conn), l}
}

// ProcessIfAny returns the next puppet that calls, or nil once the process
// group has no member.
func (l *Line) ProcessIfAny(group int) *Puppet {
	l.t.Helper()
	for groupHasMember(group) {
		select {
		case conn := <-l.calls:
			return l.talk(conn)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return l.lastCaller()
}

func groupHasMember(group int) bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	return slices.ContainsFunc(dirs, func(dir string) bool {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		s, err := ReadStat(pid)
		return err == nil && s.Group == group && s.State != "Z"
	})
}

// MustBeSilent fails the test if another puppet has called.
func (l *Line) MustBeSilent() {
	l.t.Helper()
	if p := l.lastCaller(); p != nil {
		l.t.Errorf("there was another process, %d", p.PID)
	}
}

// A Caller is whoever started the first process and waits for it.
type Caller interface {
	Exit() string    // waits for the end: "exit 0", "SIGKILL"
	Printed() string // so far, on standard output and error
}

// outcome tells how a process has ended.
func outcome(status syscall.WaitStatus) string {
	switch {
	case status.Exited():
		return fmt.Sprintf("exit %d", status.ExitStatus())
	case status.CoreDump():
		return unix.SignalName(status.Signal()) + " with a core"
	}
	return unix.SignalName(status.Signal())
}

// A Pipe is a caller that reads what is printed to its end, as sshd does.
type Pipe struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  Console
	done chan struct{} // the command has ended, and nobody has its output open
}

// Pipe starts a command whose output is a pipe.
func (l *Line) Pipe(cmd *exec.Cmd) *Pipe {
	l.t.Helper()
	c := &Pipe{t: l.t, cmd: cmd, done: make(chan struct{})}
	l.callers = append(l.callers, c)
	// os/exec makes the pipe, and its Wait returns at the end of file.
	cmd.Stdout, cmd.Stderr = &c.out, &c.out
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		cmd.Wait()
	}()
	return c
}

func (c *Pipe) Printed() string { return c.out.String() }

func (c *Pipe) Exit() string {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(Patience):
		c.t.Fatal("the command, or its output, has no end")
	}
	return outcome(c.cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// A Shell is a caller at a terminal.
type Shell struct{ *daemontest.Session }

// Shell starts a command from a shell.
func (l *Line) Shell(cmd *exec.Cmd) *Shell {
	l.t.Helper()
	c := &Shell{daemontest.StartShell(l.t, cmd)}
	l.callers = append(l.callers, c)
	return c
}

func (c *Shell) Printed() string { return c.Output() }

func (c *Shell) Exit() string { return outcome(c.Prompt(context.Background()).Status) }

// A Console keeps the end of what was written to it.
type Console struct {
	mu   sync.Mutex
	text []byte
}

func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if most := 16 << 10; len(c.text) > 2*most {
		c.text = append(c.text[:0], c.text[len(c.text)-most:]...)
	}
	return len(p), nil
}

func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(string(c.text), "\r\n", "\n")
}
