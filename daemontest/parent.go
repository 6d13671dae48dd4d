//go:build linux

package daemontest

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// grace is how long processes have to end after a SIGTERM, before they get a
// SIGKILL.
var grace = 5 * time.Second

// A parent is a process of its own that starts a command as init or a shell
// does, adopts what the command leaves behind, reports what becomes of them
// and lets none of them outlive the test. This is the test's end of it;
// parent_process.go is what runs there.
type parent struct {
	t         TB
	path      string      // of the test's command
	printed   *transcript // by the command; nil: the test has its output
	cmd       *exec.Cmd   // the parent process
	orders    *os.File    // once it is closed, the parent ends everything
	send      *gob.Encoder
	reports   record[report]
	heard     func(*report)
	told      atomic.Int64 // orders
	cancelled atomic.Bool  // the context of the test's command has ended
	once      sync.Once
}

// A task is what a parent is asked to do: the first thing that it reads.
type task struct {
	Role  role
	Path  string
	Args  []string
	Env   []string
	Dir   string
	Attr  syscall.SysProcAttr
	Files int // how many descriptors the command gets beside the standard three
	Grace time.Duration

	// What is written, to which descriptor, when the command has ended: by a
	// shell, and by systemd after toKill.
	Prompt   []byte
	PromptFD int
}

// A role is whom the parent stands in for.
type role int

const (
	asInit role = iota
	asShell
	asSystemd
	asDescriptor
)

// An order is what a parent is asked for later.
type order struct {
	Number int // 1, 2 and so on
	Do     action
	PID    int            // toSignal: a process below the parent; toSignalAll: the main one; toStart: the command's
	Signal syscall.Signal // toSignal, toSignalAll
	Env    []string       // toStart, asSystemd
	Files  int            // toStart, asSystemd: how many have been sent
}

// An action is what is to be done.
type action int

const (
	toSignal    action = iota
	toSignalAll        // every process below the parent
	toKill             // every process below the parent; what they leave behind, too
	toStart            // the command again, after toKill
	toContinue         // the command, in the foreground of the terminal
)

// A report is what a parent says.
type report struct {
	Event event

	Order int           // hasObeyed: the order's number
	Errno syscall.Errno // hasObeyed: why it could not

	PID      int
	Status   syscall.WaitStatus // hasStopped, hasEnded
	After    time.Duration      // since the command was started
	State    string             // hasStopped: as in /proc/PID/stat
	Answered bool               // hasStopped: it has been continued
	Left     []int              // hasEnded, of the command: the children it left, the daemon first
	Again    bool               // hasEnded, of the command: it is to be started again

	Old int    // hasStarted, hasNotStarted: the command's pid before, 0 at first
	At  int64  // hasStarted: when, in nanoseconds of CLOCK_MONOTONIC
	Err string // hasNotStarted, hasFailed
}

// An event is what a report is about.
type event int

const (
	hasStarted    event = iota // the command
	hasNotStarted              // the command
	hasStopped                 // a child of the parent
	hasEnded                   // a child of the parent
	hasObeyed                  // the parent, an order
	hasFailed                  // the parent, to end all processes
)

// newParent returns a parent that has not been started. If heard is not nil, it
// is called with each report, one after the other, and with nil when there will
// be no more.
func newParent(t TB, heard func(*report)) *parent {
	return &parent{t: t, heard: heard}
}

// capture takes the output that nobody takes, for a failure.
func (p *parent) capture(cmd *exec.Cmd) {
	for _, stream := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
		if *stream != nil {
			continue
		}
		if p.printed == nil {
			p.printed = new(transcript)
		}
		*stream = p.printed
	}
}

// words quotes what the command has printed, for a failure.
func (p *parent) words() string {
	if p.printed == nil {
		return ""
	}
	return "; " + lastWords(p.printed.all())
}

// run has the parent start cmd in the role that do names, and returns when it
// runs, with its pid. The environment is that of cmd, without supervisor and
// with what do adds to it. A shell's third file is its terminal, systemd's a
// socket. Everything is ended when the test ends.
func (p *parent) run(cmd *exec.Cmd, do task, third *os.File) (pid int, err error) {
	p.path = cmd.Path
	os.ReadDir(".") // go test keeps no old result when a file there changes, such as the program's
	if attr := cmd.SysProcAttr; attr != nil {
		if attr.Chroot != "" {
			return 0, errors.New("SysProcAttr.Chroot is set, and the test binary may not be there")
		}
		session, group := do.Attr.Setsid && !attr.Setpgid, do.Attr.Setpgid && !attr.Setsid
		do.Attr = *attr
		do.Attr.Setsid = do.Attr.Setsid || session
		do.Attr.Setpgid = do.Attr.Setpgid || group
	}
	if err := p.start(cmd, do.Role, third); err != nil {
		return 0, err
	}
	p.t.Cleanup(p.end)
	do.Path, do.Args, do.Dir = cmd.Path, cmd.Args, cmd.Dir
	if len(do.Args) == 0 {
		do.Args = []string{cmd.Path}
	}
	do.Env = append(unsupervised(cmd.Environ()), do.Env...)
	do.Files, do.Grace = do.Files+len(cmd.ExtraFiles), grace
	p.send.Encode(do) // if this fails there is no report
	first, err := p.find(context.Background(), func(report) bool { return true })
	switch {
	case err == errEnded:
		err = errors.New("the parent process has ended at once")
	case err != nil:
		err = fmt.Errorf("%s has not been executed%s", cmd.Path, because(err))
	case first.Event == hasNotStarted:
		err = errors.New(first.Err)
	default:
		return first.PID, nil
	}
	p.end()
	return 0, err
}

// start starts the parent process.
func (p *parent) start(cmd *exec.Cmd, as role, third *os.File) error {
	ordersIn, orders, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ordersIn.Close()
	reports, reportsOut, err := os.Pipe()
	if err != nil {
		orders.Close()
		return err
	}
	defer reportsOut.Close()
	p.orders, p.send = orders, gob.NewEncoder(orders)
	files := []*os.File{ordersFD - 3: ordersIn, reportsFD - 3: reportsOut}
	if third != nil {
		files = append(files, third)
	}
	if err = p.command(cmd, files); err == nil {
		if as == asShell {
			p.cmd.SysProcAttr.Setctty, p.cmd.SysProcAttr.Ctty = true, terminalFD
		}
		err = p.cmd.Start()
	}
	if err != nil {
		closeAll([]*os.File{orders, reports})
		return err
	}
	go p.listen(reports)
	return nil
}

// command sets p.cmd. It is a copy of the test's command, with its standard
// streams and its context, so that these mean what they mean to os/exec; the
// command inherits the descriptors from the parent process.
func (p *parent) command(cmd *exec.Cmd, files []*os.File) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := *cmd
	c.Path, c.Args, c.Env, c.Dir = self, []string{parentName}, nil, ""
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.ExtraFiles = append(files, cmd.ExtraFiles...)
	if c.Cancel != nil {
		c.Cancel = func() error {
			p.cancelled.Store(true)
			return p.orders.Close()
		}
	}
	// Until then the parent has ended, with all that has the streams open.
	c.WaitDelay = max(c.WaitDelay, Timeout)
	p.cmd = &c
	return nil
}

// listen takes the reports of the parent process until it has ended.
func (p *parent) listen(reports *os.File) {
	defer reports.Close()
	defer p.reports.end(errEnded)
	if p.heard != nil {
		defer p.heard(nil)
	}
	decoder := gob.NewDecoder(reports)
	for {
		var r report
		if decoder.Decode(&r) != nil {
			return
		}
		if p.heard != nil {
			p.heard(&r)
		}
		p.reports.add(r)
	}
}

// find waits for the first report that match is true of, for as long as Timeout
// if ctx has no deadline.
func (p *parent) find(ctx context.Context, match func(report) bool) (found report, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = p.reports.wait(ctx, func(all []report) bool {
		i := slices.IndexFunc(all, match)
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	})
	return found, err
}

// tell gives an order, and returns its number. The error is ESRCH if the parent
// has ended, which it does last.
func (p *parent) tell(o order) (number int, err error) {
	o.Number = int(p.told.Add(1))
	if err := p.send.Encode(o); err != nil {
		return 0, syscall.ESRCH
	}
	return o.Number, nil
}

// ask gives an order and returns when it has been carried out. The error is
// ESRCH if the process that it is about has ended.
func (p *parent) ask(o order) error {
	number, err := p.tell(o)
	if err != nil {
		return err
	}
	done, err := p.find(context.Background(), func(r report) bool {
		return r.Event == hasObeyed && r.Order == number
	})
	switch {
	case err == errEnded:
		return syscall.ESRCH
	case err != nil:
		return fmt.Errorf("the parent process has not answered%s", because(err))
	case done.Errno != 0:
		return done.Errno
	}
	return nil
}

// startAgain has the command started once more, in the place of the process
// that is or was there before, and returns its new pid.
func (p *parent) startAgain(ctx context.Context, o order) (pid int, err error) {
	o.Do = toStart
	if err = p.ask(o); err != nil {
		return 0, err
	}
	started, err := p.find(ctx, func(r report) bool {
		return r.Old == o.PID && (r.Event == hasStarted || r.Event == hasNotStarted)
	})
	if err == nil && started.Event == hasNotStarted {
		err = errors.New(started.Err)
	}
	return started.PID, err
}

// processes are the pids of all that there are below the parent.
func (p *parent) processes() []int {
	if p.reports.hasEnded() {
		return nil
	}
	return descendants(p.cmd.Process.Pid)
}

// end ends every process below the parent, and the parent. It returns when
// they are gone and all that they have written to a writer of the test's has
// arrived there. It fails the test if one of them cannot be ended.
func (p *parent) end() {
	p.t.Helper()
	p.once.Do(func() {
		p.t.Helper()
		p.orders.Close()
		// A parent that still starts the command may wait for a file system.
		stuck := time.AfterFunc(grace+2*Timeout, func() { p.cmd.Process.Kill() })
		waited := make(chan struct{})
		go func() {
			p.cmd.Wait() // how the parent ended; how the command did is in the reports
			close(waited)
		}()
		select {
		case <-waited:
		case <-time.After(grace + 3*Timeout):
			p.t.Fatalf("daemontest: %s has ended, and a Stdin, Stdout or Stderr of the test's command still blocks", p.path)
		}
		stuck.Stop()
		failed, err := p.find(context.Background(), func(r report) bool { return r.Event == hasFailed })
		if err == nil {
			p.t.Fatalf("daemontest: %s", failed.Err)
		}
	})
}

// A Process is a process that a test has started here, or that such a process
// has left behind.
type Process struct {
	// PID is its process id. It is 0 if there is no such process.
	PID int

	parent *parent
}

// Signal sends sig to the process, as kill(2) does. The error is ESRCH if
// the process has ended or there is none.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.PID == 0 {
		return syscall.ESRCH
	}
	return p.parent.ask(order{Do: toSignal, PID: p.PID, Signal: sig})
}

// Wait waits until the process has ended, and says how. It fails the test if
// there is no such process, and if ctx ends earlier, or Timeout passes and
// ctx has no deadline, with what the process has done until then.
func (p *Process) Wait(ctx context.Context) syscall.WaitStatus {
	p.parent.t.Helper()
	return p.wait(ctx).Status
}

// wait is Wait, and returns all that has been reported of the end.
func (p *Process) wait(ctx context.Context) report {
	p.parent.t.Helper()
	last, err := p.end(ctx)
	switch {
	case p.PID == 0:
		p.parent.t.Fatalf("daemontest: %s has left no process behind, so there is none to wait for", p.parent.path)
	case err != nil:
		p.parent.t.Fatalf("daemontest: process %d of %s has not ended%s%s%s", p.PID, p.parent.path, because(err),
			p.history(), p.parent.words())
	}
	return last
}

// end waits for the report of the process's end.
func (p *Process) end(ctx context.Context) (report, error) {
	if p.PID == 0 {
		return report{}, errors.New("there is no such process")
	}
	return p.parent.find(ctx, func(r report) bool { return r.Event == hasEnded && r.PID == p.PID })
}

// history is what the process did until now, for messages.
func (p *Process) history() string {
	text := p.past()
	if now, err := readProcess(p.PID); err == nil {
		text += "; it is in state " + now.state
	}
	return text
}

// lastHistory is history for a failure that ends the process. What that makes it
// print is in the message, too.
func (p *Process) lastHistory() string {
	text := p.past()
	if now, err := readProcess(p.PID); err == nil {
		text += "; it was in state " + now.state + " when the test ended it"
	}
	return text
}

func (p *Process) past() (text string) {
	for _, r := range p.parent.reports.all() {
		if r.PID != p.PID || r.Event != hasStopped && r.Event != hasEnded {
			continue
		}
		text += fmt.Sprintf("; it %s after %v", describe(r.Status), rounded(r.After))
		if r.Answered {
			text += " and was continued"
		}
	}
	return text
}
