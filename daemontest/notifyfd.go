//go:build linux

package daemontest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine is how many bytes finit reads of the line.
const maxLine = 31

// A Supervised is a command that runs under NOTIFY_FD. Its PID is that of the
// process that was started; Signal and Wait are about it too.
type Supervised struct {
	Process

	// Ready is what it wrote when it was ready: "READY=1\n", or another line.
	Ready string

	// After is the time from its start until it had written that and closed
	// the descriptor.
	After time.Duration

	fd      int
	pipe    *os.File
	write   *os.File   // its other end
	line    transcript // what has come through the pipe
	began   time.Time
	started int // the pid, as the parent reports it
}

// NotifyFD starts cmd as s6, dinit, finit or OpenRC (notify=fd:N) does, with a
// pipe whose descriptor the variable NOTIFY_FD names, and returns once it has
// written a line there and closed the descriptor. The command has a session of
// its own, and nothing that another supervisor may have left in its
// environment.
//
// It fails the test if one of these supervisors would not take the service for
// ready, or not at once: the command can't be started, the process ends, the
// descriptor is closed and no line has come, what was written does not end with
// a newline or has more than 31 bytes, the descriptor stays open, or nothing
// happens for the length of Timeout.
//
// cmd is not started itself but describes the command: its fields mean what they
// mean to [os/exec], StdoutPipe works, and so does the context of
// [exec.CommandContext], whose end ends the command; but cmd.Process stays nil.
// SysProcAttr.Chroot is an error. The descriptor is 3, or the one after the
// last of ExtraFiles.
//
// What runs when the test ends is ended: by SIGTERM, five seconds later by
// SIGKILL.
func NotifyFD(t TB, cmd *exec.Cmd) *Supervised {
	t.Helper()
	ctx, cancel := bounded(context.Background())
	defer cancel()
	return notifyFD(ctx, t, cmd)
}

func notifyFD(ctx context.Context, t TB, cmd *exec.Cmd) *Supervised {
	t.Helper()
	s := &Supervised{fd: 3 + len(cmd.ExtraFiles)}
	s.parent = newParent(t, s.reported)
	if err := s.start(t, cmd); err != nil {
		t.Fatalf("daemontest: command under NOTIFY_FD: %v", err)
		return nil
	}
	err := s.line.wait(ctx, func([]byte) bool { return false })
	s.After = time.Since(s.began)
	s.Ready = string(s.line.all())
	if err == errOpen {
		_, _ = s.Process.end(ctx) // the report is on its way
	}
	if wrong := s.wrong(err); wrong != "" {
		return s.fail(wrong)
	}
	return s
}

// start starts the command with a pipe.
func (s *Supervised) start(t TB, cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.write = w
	defer w.Close() // if it has not been started
	c := *cmd
	s.parent.capture(&c)
	c.ExtraFiles = append(slices.Clone(cmd.ExtraFiles), w)
	do := task{
		Role: asDescriptor,
		Env:  []string{"NOTIFY_FD=" + strconv.Itoa(s.fd)},
		Attr: syscall.SysProcAttr{Setsid: true},
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		r.Close()
		<-read
	})
	s.pipe, s.began = r, time.Now()
	go func() {
		defer close(read)
		s.line.end(s.read())
	}()
	s.PID, err = s.parent.run(&c, do, nil)
	return err
}

// errOpen says that the descriptor is still open, in another process.
var errOpen = errors.New("the process has ended")

// read reads the pipe until that is closed, or the process has ended.
func (s *Supervised) read() error {
	_, err := io.Copy(&s.line, s.pipe)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return errEnded
	}
	conn, err := s.pipe.SyscallConn()
	if err != nil {
		return errOpen
	}
	text := make([]byte, maxWords)
	// A process that the test starts beside this one has the other end, too, until it
	// executes its program.
	for end := time.Now().Add(time.Second); ; {
		n := 0
		controlErr := conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), text) })
		switch {
		case controlErr == nil && n > 0:
			s.line.Write(text[:n])
		case controlErr == nil && err == nil:
			return errEnded
		case controlErr != nil || time.Now().After(end):
			return errOpen
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

// reported ends a read when the process has ended: another may have the
// descriptor.
func (s *Supervised) reported(r *report) {
	switch {
	case r == nil:
	case r.Event == hasStarted:
		s.started = r.PID
		s.write.Close() // it is the command's alone now
	case r.Event == hasEnded && r.PID == s.started:
		s.pipe.SetReadDeadline(time.Now())
	}
}

// wrong says what is wrong with the line, or with how the wait for it has ended.
func (s *Supervised) wrong(err error) string {
	switch {
	case s.Ready == "" && (err == errEnded || err == errOpen):
		return s.instead()
	case s.Ready == "":
		return fmt.Sprintf("has written nothing to descriptor %d%s%s", s.fd, because(err), s.lastHistory())
	case !strings.HasSuffix(s.Ready, "\n"):
		return fmt.Sprintf("has written %q to descriptor %d, which does not end with a newline", s.Ready, s.fd)
	case len(s.Ready) > maxLine:
		return fmt.Sprintf("has written %q to descriptor %d, of which finit reads %d bytes", s.Ready, s.fd, maxLine)
	case err != errEnded:
		return fmt.Sprintf("has written %q and not closed descriptor %d%s%s", s.Ready, s.fd, because(err), s.lastHistory())
	case s.parent.cancelled.Load(): // that has closed it
		return fmt.Sprintf("has written %q and not closed descriptor %d", s.Ready, s.fd)
	}
	return ""
}

// instead says what the command did that has written nothing. That it has ended
// is reported a little later than that its descriptor is closed.
func (s *Supervised) instead() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if last, err := s.Process.end(ctx); err == nil {
		return last.ending() + fmt.Sprintf(", and had written nothing to descriptor %d", s.fd)
	}
	return fmt.Sprintf("has closed descriptor %d, and written nothing to it", s.fd)
}

// fail ends the command and fails the test.
func (s *Supervised) fail(what string) *Supervised {
	s.parent.t.Helper()
	if s.parent.cancelled.Load() {
		what += ", its context having ended"
	}
	s.parent.end() // before printed is complete
	s.parent.t.Fatalf("daemontest: command %s under NOTIFY_FD %s%s", s.parent.path, what, s.parent.words())
	return nil
}
