//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Detached is what a shell is left with when a command has returned. Its PID
// is the daemon's: of the processes that the command has left behind, the one
// that leads a session, or else the oldest; 0 if it has left none. Signal and
// Wait are about it too.
type Detached struct {
	Process

	// Status is how the process that was started has ended.
	Status syscall.WaitStatus

	// Output is what was written to the terminal until then, by whichever
	// process, and what was typed, which the terminal echoes.
	Output string
}

// ExitCode returns what the shell shows in $?: the exit status, or 128 and the
// signal's number for a command that was killed.
func (d *Detached) ExitCode() int {
	if d.Status.Signaled() {
		return 128 + int(d.Status.Signal())
	}
	return d.Status.ExitStatus()
}

// Processes returns the pids of all that is left of the command now: the daemon,
// its children, and whoever else has been left behind.
func (d *Detached) Processes() []int { return d.parent.processes() }

// Shell runs cmd in the foreground of a shell, on a terminal of its own, and
// returns when the prompt is back: when the started process has ended, however
// it did. The command finds what it would find after a login: a session that
// the shell leads, a process group of its own, a terminal of 80 columns and 24
// rows on its standard streams, and no supervisor in its environment.
//
// It fails the test with what was printed if the command can't be started or
// does not return within Timeout.
//
// cmd is not started itself but describes the command. A standard stream that
// is an *os.File takes the place of the terminal, as with a shell's < and >;
// other readers and writers are an error. The other fields mean what they mean
// to [os/exec], and so does the context of [exec.CommandContext], whose end ends
// the command and its daemon; but cmd.Process stays nil, and SysProcAttr cannot
// ask for a Chroot.
//
// When the test ends, the terminal is closed and what is left of the command
// is ended: by SIGTERM, five seconds later by SIGKILL. Until then, the shell
// adopts and waits for what the command leaves behind, as init does elsewhere.
func Shell(t TB, cmd *exec.Cmd) *Detached {
	t.Helper()
	s := StartShell(t, cmd)
	if s == nil {
		return nil
	}
	return s.Prompt(context.Background())
}

// A Session is a command that runs in a shell. Its PID is that of the process
// that was started; Signal and Wait are about it too.
type Session struct {
	Process
	terminal *os.File // its keyboard and screen
	screen   transcript
	copied   chan struct{} // closed when screen has all there will be
	prompt   []byte        // what the shell writes when the command has returned
	stops    int           // how many Stopped has seen; guarded by the lock of the reports
	expected int           // how much of screen Expect has seen; guarded by its lock
}

// StartShell does what Shell does, but returns when the command has been started:
// for a test that has something to do before the prompt is back. With a -f flag
// a daemon returns only when it ends, and Ready does nothing. To know when it is
// ready have it print a line after signal.Notify, and Expect that line.
func StartShell(t TB, cmd *exec.Cmd) *Session {
	t.Helper()
	s := &Session{
		copied: make(chan struct{}),
		prompt: []byte("\x00" + rand.Text() + "\x00"),
	}
	if err := s.start(t, cmd); err != nil {
		t.Fatalf("daemontest: shell: %v", err)
		return nil
	}
	return s
}

// start opens the terminal and starts the command on it.
func (s *Session) start(t TB, cmd *exec.Cmd) error {
	terminal, line, err := openTerminal()
	if err != nil {
		return err
	}
	defer line.Close()
	s.terminal = terminal
	go func() {
		defer close(s.copied)
		defer s.screen.end(errEnded)
		io.Copy(&s.screen, terminal) // an error: the last process has closed its end, or the test this one
	}()
	c, err := onTerminal(cmd, line)
	if err == nil {
		s.parent = newParent(t, nil)
		s.PID, err = s.parent.run(c, s.task(), line)
	}
	if err != nil {
		s.close()
		return err
	}
	t.Cleanup(s.close) // before the processes are ended: none is to wait for it
	return nil
}

// task is what is special about a shell's command. The prompt comes after all
// that the command has written to the terminal.
func (s *Session) task() task {
	return task{
		Role:   asShell,
		Attr:   syscall.SysProcAttr{Setpgid: true},
		Prompt: s.prompt, PromptFD: terminalFD,
	}
}

// close closes the terminal.
func (s *Session) close() {
	s.terminal.Close()
	<-s.copied
}

// openTerminal opens a pseudo-terminal, pty(7): the end with the keyboard and
// the screen, and the end that is a terminal to a process.
func openTerminal() (terminal, line *os.File, err error) {
	terminal, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var number uint32
	// Not by Fd, after which Close would not end a Read.
	conn, err := terminal.SyscallConn()
	if err == nil {
		var setErr error
		err = conn.Control(func(fd uintptr) { number, setErr = setTerminal(int(fd)) })
		err = errors.Join(err, setErr)
	}
	if err == nil {
		line, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		terminal.Close()
		return nil, nil, err
	}
	return terminal, line, nil
}

// setTerminal unlocks and sets up a terminal, and returns its number.
func setTerminal(fd int) (number uint32, err error) {
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		modes.Oflag &^= unix.OPOST // show a newline as it was written
		modes.Lflag |= unix.NOFLSH // lose nothing that is on its way when Ctrl-C is typed, the prompt least of all
		err = unix.IoctlSetTermios(fd, unix.TCSETS, modes)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		number, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	}
	return number, os.NewSyscallError("ioctl /dev/ptmx", err)
}

// onTerminal is cmd with its standard streams on the terminal, apart from
// those that are files.
func onTerminal(cmd *exec.Cmd, line *os.File) (*exec.Cmd, error) {
	c := *cmd
	if c.Stdin == nil {
		c.Stdin = line
	}
	if c.Stdout == nil {
		c.Stdout = line
	}
	if c.Stderr == nil {
		c.Stderr = line
	}
	for _, stream := range []any{c.Stdin, c.Stdout, c.Stderr} {
		if _, ok := stream.(*os.File); !ok {
			return nil, fmt.Errorf("a standard stream is a %T: it must be nil, for the terminal, or an *os.File", stream)
		}
	}
	return &c, nil
}

// Type types text on the terminal. "\n" is the return key, "\x03" Ctrl-C,
// "\x1a" Ctrl-Z and "\x1c" Ctrl-\, as long as the command has not changed what
// they do. It does not wait until the command has read it, unless there is more than
// the terminal holds (4095 bytes). It fails the test if the command has not made room
// after Timeout, or if there is no terminal any more.
func (s *Session) Type(text string) {
	s.parent.t.Helper()
	s.terminal.SetWriteDeadline(time.Now().Add(Timeout))
	if _, err := s.terminal.WriteString(text); err != nil {
		s.parent.t.Fatalf("daemontest: typing: %v", err)
	}
}

// Output returns what is on the terminal now: what has been written to it and what
// was typed, which the terminal echoes.
func (s *Session) Output() string {
	return string(bytes.Replace(s.screen.all(), s.prompt, nil, 1))
}

// Expect waits until text is on the terminal, after what the Expect before it
// has waited for. It fails the test with what is there if the command returns
// without it, if ctx ends, or if Timeout passes and ctx has no deadline.
func (s *Session) Expect(ctx context.Context, text string) {
	s.parent.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	found := false
	err := s.screen.wait(ctx, func(screen []byte) bool {
		at := bytes.Index(screen[s.expected:], []byte(text))
		if found = at >= 0; found {
			s.expected += at + len(text)
		}
		return found || bytes.Contains(screen, s.prompt)
	})
	switch {
	case err != nil:
		s.parent.t.Fatalf("daemontest: %s has not printed %q%s%s; %s", s.parent.path, text, because(err), s.history(),
			lastWords([]byte(s.Output())))
	case !found:
		s.parent.t.Fatalf("daemontest: %s has returned and not printed %q; %s", s.parent.path, text,
			lastWords([]byte(s.Output())))
	}
}

// Stopped waits until the command has been stopped, as by Ctrl-Z, once for
// each time that it is, and returns the signal. The shell has the terminal
// then, until Foreground. It fails the test if the command ends instead, if
// ctx ends, or if Timeout passes and ctx has no deadline.
func (s *Session) Stopped(ctx context.Context) syscall.Signal {
	s.parent.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	var last report
	err := s.parent.reports.wait(ctx, func(all []report) bool {
		stops := 0
		for _, last = range all {
			if last.Event == hasStopped {
				stops++
			}
			if stops > s.stops {
				s.stops = stops
				return true
			}
			if last.Event == hasEnded && last.PID == s.PID {
				return true
			}
		}
		return false
	})
	switch {
	case err != nil:
		s.parent.t.Fatalf("daemontest: %s has not been stopped%s%s; %s", s.parent.path, because(err), s.history(),
			lastWords([]byte(s.Output())))
	case last.Event == hasEnded:
		s.parent.t.Fatalf("daemontest: %s %s and was not stopped; %s", s.parent.path, describe(last.Status),
			lastWords([]byte(s.Output())))
	}
	return last.Status.StopSignal()
}

// Foreground does what the shell's fg does: it gives the command the terminal
// and continues it. The error is ESRCH if the command has ended.
func (s *Session) Foreground() error { return s.parent.ask(order{Do: toContinue}) }

// Hangup closes the terminal, as when its window is closed or its line is
// lost: the shell and, through it, the command get a SIGHUP. Nothing is
// printed or typed after that.
func (s *Session) Hangup() { s.close() }

// Processes returns the pids of all that there is of the command now: the process
// that was started, unless it has ended, its children, and who has been left
// behind.
func (s *Session) Processes() []int { return s.parent.processes() }

// Prompt waits until the command has returned. It fails the test with what
// was printed, and ends what is left of the command, if ctx ends earlier, or
// if Timeout passes and ctx has no deadline.
func (s *Session) Prompt(ctx context.Context) *Detached {
	s.parent.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	last, err := s.Process.end(ctx)
	if err == nil {
		err = s.shown(ctx)
	}
	if err != nil {
		history := s.lastHistory()
		s.close()
		s.parent.end()
		s.parent.t.Fatalf("daemontest: %s has not returned%s: it has not called Ready, or stays in the foreground%s; %s",
			s.parent.path, because(err), history, lastWords([]byte(s.Output())))
		return nil
	}
	output, _, _ := bytes.Cut(s.screen.all(), s.prompt)
	d := &Detached{Process: Process{parent: s.parent}, Status: last.Status, Output: string(output)}
	if len(last.Left) > 0 {
		d.PID = last.Left[0]
	}
	return d
}

// shown waits until all that the command has written to the terminal is in
// screen: with the prompt after it, or, after Hangup, without.
func (s *Session) shown(ctx context.Context) error {
	err := s.screen.wait(ctx, func(screen []byte) bool { return bytes.Contains(screen, s.prompt) })
	if err == errEnded {
		return nil
	}
	return err
}
