//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An Option is a line of a service's unit file, or of its socket's. See
// [WatchdogSec], [NotifyAccessAll] and [Pass].
type Option struct {
	set func(*service) error
}

// WatchdogSec gives the service a watchdog: WATCHDOG_USEC and WATCHDOG_PID are
// set. If beats do not come, nothing happens until the test asks for it, by
// [Unit.MissedBeat]: a busy machine makes no test fail.
func WatchdogSec(timeout time.Duration) Option {
	return Option{func(s *service) error {
		if timeout < time.Microsecond {
			return fmt.Errorf("WatchdogSec(%v): shorter than a microsecond", timeout)
		}
		s.watchdog = timeout
		return nil
	}}
}

// NotifyAccessAll lets every process of the service speak, not only its main
// process: NotifyAccess=all in systemd.service(5).
func NotifyAccessAll() Option {
	return Option{func(s *service) error {
		s.anyone = true
		return nil
	}}
}

// Pass passes files to the service, as a socket unit does: LISTEN_FDS,
// LISTEN_PID and LISTEN_FDNAMES are set, and name is FileDescriptorName=. The
// files of several Pass options follow one another, in order. The service gets
// duplicates, also when it is started again: the test may close its own.
func Pass(name string, files ...*os.File) Option {
	return Option{func(s *service) error {
		if name == "" || !validName(name) {
			return fmt.Errorf("Pass(%q): the name must be 1 to 255 printable ASCII characters without ':',"+
				" see FileDescriptorName= in systemd.socket(5)", name)
		}
		for i, file := range files {
			if file == nil {
				return fmt.Errorf("Pass(%q): file %d is nil", name, i)
			}
			f, err := storeAs(name, file, false)
			if err != nil {
				return fmt.Errorf("Pass(%q): %w", name, err)
			}
			s.passed = append(s.passed, f)
		}
		return nil
	}}
}

// A Unit is a command that runs as a service of systemd, from one start to its
// end.
type Unit struct {
	// PID is the process that was started: the main process, until it names
	// another (MAINPID).
	PID int

	// Ready is the notification by which it said that it is ready. It is the
	// zero value after StartService.
	Ready Notification

	// Systemd is the notify socket. Its Next and Wait fail as soon as the
	// service has ended and all that it said has been returned.
	Systemd *Supervisor

	service *service
	start   int // the number of starts before this one
	first   int // the number of notifications before this start
}

// Service starts cmd as systemd starts a service of Type=notify, and returns
// once it has said READY=1. The command finds what it would find there: a
// session of its own, a notify socket of its own, SYSTEMD_EXEC_PID and
// INVOCATION_ID, what the options ask for, and nothing that another supervisor
// may have left in the environment. It does not change the test's environment,
// so it works in parallel tests.
//
// It fails the test with what happened instead: the command can't be started,
// the process ended before it was ready, or Timeout passed. The failure says
// what the service has said and printed.
//
// Like systemd it hears the main process alone (see [NotifyAccessAll]), follows
// MAINPID if that names a process of the service, stores files (FDSTORE, as if
// FileDescriptorStoreMax= were large enough), and kills what is left when the
// main process has ended.
//
// cmd is not started itself but describes the service: its fields mean what
// they mean to [os/exec], StdoutPipe works, and so does the context of
// [exec.CommandContext], whose end ends the service; but cmd.Process stays nil.
// ExtraFiles and SysProcAttr.Chroot are errors. A reader of the service's output
// sees the end of file when the test ends, not when the service does.
//
// A service that runs when the test ends is ended: by SIGTERM, five seconds
// later by SIGKILL.
func Service(t TB, cmd *exec.Cmd, options ...Option) *Unit {
	t.Helper()
	u := StartService(t, cmd, options...)
	if u == nil {
		return nil
	}
	u.waitReady(context.Background())
	return u
}

// StartService does what Service does, but returns when the command has been
// started: for a test that has something to do before the service is ready, or
// expects that it never is.
func StartService(t TB, cmd *exec.Cmd, options ...Option) *Unit {
	t.Helper()
	s := &service{t: t, path: cmd.Path, env: unsupervised(cmd.Environ()), token: "\x00" + rand.Text() + "\x00",
		started: make(chan struct{})}
	t.Cleanup(s.close)
	pid, err := s.startFirst(cmd, options)
	if err != nil {
		t.Fatalf("daemontest: service: %v", err)
		return nil
	}
	return &Unit{PID: pid, Systemd: s.systemd, service: s}
}

// A service is what systemd knows of one.
type service struct {
	t        TB
	path     string
	env      []string // without what systemd adds
	systemd  *Supervisor
	parent   *parent
	socket   int // to the parent, by which files go; 0: none
	printed  transcript
	journal  *os.File // through which it is printed there; nil: nothing is
	token    string   // ends what a start has printed; begins a message of this process to itself
	watchdog time.Duration
	anyone   bool // may speak
	passed   []stored
	copying  sync.Mutex
	copied   sync.WaitGroup // the goroutine that copies the journal
	exits    record[report]
	ends     record[report] // of starts, in order

	// These change with a start.
	mu      sync.Mutex
	started chan struct{} // closed when there is a main process, or never will be
	starts  int           // before this one
	pid     int           // started
	main    int           // 0: not started yet
	over    bool
	began   time.Time // the start
	beat    time.Time // the last, or the start
	timeout time.Duration
	stored  []stored
}

// startFirst starts the service for the first time.
func (s *service) startFirst(cmd *exec.Cmd, options []Option) (pid int, err error) {
	for _, option := range options {
		if err := option.set(s); err != nil {
			return 0, err
		}
	}
	if len(cmd.ExtraFiles) > 0 {
		return 0, errors.New("cmd.ExtraFiles is set: systemd passes files by LISTEN_FDS, see Pass")
	}
	if s.systemd, err = newSupervisor(s.t, s); err != nil {
		return 0, fmt.Errorf("notify socket: %w", err)
	}
	theirs, err := s.openSocket()
	if err != nil {
		return 0, err
	}
	defer theirs.Close()
	if err = sendFiles(s.socket, s.passed); err != nil {
		return 0, err
	}
	s.timeout = s.watchdog
	do := task{
		Role:  asSystemd,
		Env:   s.variables(s.passed),
		Attr:  syscall.SysProcAttr{Setsid: true},
		Files: len(s.passed),
	}
	c := *cmd
	if c.Stdout == nil || c.Stderr == nil {
		printed, err := s.openJournal()
		if err != nil {
			return 0, err
		}
		defer printed.Close()
		if c.Stderr == nil {
			c.Stderr = printed
			do.Prompt, do.PromptFD = []byte(s.token), 2
		}
		if c.Stdout == nil {
			c.Stdout = printed
			do.Prompt, do.PromptFD = []byte(s.token), 1
		}
	}
	s.parent = newParent(s.t, s.reported)
	return s.parent.run(&c, do, theirs)
}

// openJournal opens the pipe by which the service's output comes, and returns the
// service's end.
func (s *service) openJournal() (printed *os.File, err error) {
	s.journal, printed, err = os.Pipe()
	if err != nil {
		return nil, err
	}
	conn, err := s.journal.SyscallConn()
	if err != nil {
		printed.Close()
		return nil, err
	}
	s.copied.Go(func() {
		var err error
		for ended := false; err == nil && !ended; { // an error: the test has closed it
			err = conn.Read(func(fd uintptr) (done bool) {
				ended, done = s.copy(fd)
				return done
			})
		}
	})
	return printed, nil
}

// copy copies what is in the pipe, at most what a pipe holds. done is false if it is
// empty, for now.
func (s *service) copy(fd uintptr) (ended, done bool) {
	s.copying.Lock() // until it is in the transcript
	defer s.copying.Unlock()
	const pipeSize = 1 << 20 // pipe-max-size of proc(5)
	text := make([]byte, 64<<10)
	for size := 0; size < pipeSize; {
		n, err := unix.Read(int(fd), text)
		switch {
		case n > 0:
			s.printed.Write(text[:n])
			size += n
		case err == unix.EAGAIN:
			return false, false
		case err != unix.EINTR:
			return true, true
		}
	}
	return false, true
}

// openSocket opens the socket to the parent and returns the parent's end.
func (s *service) openSocket() (theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	limit := unix.NsecToTimeval(Timeout.Nanoseconds())
	unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	s.socket = pair[0]
	return os.NewFile(uintptr(pair[1]), "socket"), nil
}

// variables are what systemd adds to the environment: systemd.exec(5).
func (s *service) variables(files []stored) []string {
	id := make([]byte, 16)
	rand.Read(id)
	env := []string{
		"NOTIFY_SOCKET=" + s.systemd.address,
		"SYSTEMD_EXEC_PID=" + ownPID,
		"INVOCATION_ID=" + hex.EncodeToString(id),
	}
	if s.watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(s.watchdog.Microseconds(), 10), "WATCHDOG_PID="+ownPID)
	}
	if len(files) > 0 {
		var names []string
		for _, f := range files {
			names = append(names, f.name)
		}
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_PID="+ownPID,
			"LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return env
}

// close closes what systemd has for the service.
func (s *service) close() {
	if s.journal != nil {
		s.output()
		s.journal.Close()
		s.copied.Wait()
	}
	for _, f := range append(s.passed, s.stored...) {
		unix.Close(f.fd)
	}
	if s.socket != 0 {
		unix.Close(s.socket)
	}
}

// reported takes notice of the parent's reports.
func (s *service) reported(r *report) {
	switch {
	case r != nil && r.Event == hasStarted:
		s.hasStarted(r.PID, r.At)
	case r == nil:
		s.hasStarted(0, 0)
		s.printed.end(errEnded)
	case r.Event == hasNotStarted:
		s.hasStarted(0, 0)
	case r.Event == hasEnded:
		s.hasExited(*r)
	}
}

// hasExited sends the notify socket a message about the end of a process. What
// the process has said is in the socket, and is read before that.
func (s *service) hasExited(r report) {
	number := len(s.exits.all())
	s.exits.add(r)
	for {
		s.mu.Lock()
		restarting := s.main == 0
		s.mu.Unlock()
		// While it restarts nobody reads the socket, which others may keep full: the
		// report of the start would wait behind this one for ever.
		if restarting || say(s.systemd.address, s.token+strconv.Itoa(number), time.Millisecond) != unix.EAGAIN {
			return
		}
	}
}

// hasStarted says what the main process is, and when by monotonic it has been
// started; or, by 0, that there is none.
func (s *service) hasStarted(pid int, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pid != 0 {
		now := time.Now()
		s.pid, s.main, s.over, s.beat = pid, pid, false, now
		s.began = now.Add(-time.Duration(monotonic() - at))
	}
	select {
	case <-s.started:
	default:
		close(s.started)
	}
}

// say sends a datagram, and files with it. The error is EAGAIN if there has been no room
// for it in all that time. It waits in the kernel alone.
func say(address, text string, patience time.Duration, files ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	err = unix.EINTR
	for err == unix.EINTR {
		err = unix.Sendmsg(fd, []byte(text), unix.UnixRights(files...), &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL)
	}
	return err
}

// heard does what systemd does with a notification, and reports whether it is
// one.
func (s *service) heard(n *Notification) bool {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	<-started // or it may come from a process that is not known yet

	s.mu.Lock()
	defer s.mu.Unlock()
	if text, ok := strings.CutPrefix(string(n.Raw), s.token); ok && n.PID == os.Getpid() {
		number, _ := strconv.Atoi(text)
		s.hasEnded(s.exits.all()[number])
		return false
	}
	if n.Err == nil && !s.anyone && n.PID != s.main {
		n.drop(fmt.Errorf("ignored by systemd: pid %d is not the main process, which is %d,"+
			" and NotifyAccess=all is not set", n.PID, s.main))
	}
	s.obey(n)
	return true
}

// obey does what a notification asks for.
func (s *service) obey(n *Notification) {
	if text, ok := n.Get("MAINPID"); ok {
		s.follow(text)
	}
	for _, assignment := range n.Assignments {
		switch assignment {
		case "READY=1", "WATCHDOG=1":
			s.beat = n.Received
		case "WATCHDOG=trigger":
			s.beat = time.Time{}
		case "FDSTORE=1":
			s.store(n)
		case "FDSTOREREMOVE=1":
			name, _ := n.Get("FDNAME")
			s.remove(func(f stored) bool { return f.name == name })
		}
	}
	if text, ok := n.Get("WATCHDOG_USEC"); ok {
		if usec, err := strconv.ParseInt(text, 10, 64); err == nil && usec > 0 {
			s.timeout, s.beat = time.Duration(usec)*time.Microsecond, n.Received
		}
	}
}

// follow makes another process the main one.
func (s *service) follow(text string) {
	pid, err := strconv.Atoi(text)
	switch {
	case err == nil && pid == s.main:
	case err == nil && isBelow(pid, s.parent.cmd.Process.Pid):
		s.main = pid
	default:
		s.t.Logf("daemontest: service %s: MAINPID=%s is no process of it: systemd ignores that", s.path, text)
	}
}

// hasEnded takes notice of a process's end: if it is the main process's, the
// service has ended.
func (s *service) hasEnded(last report) {
	if last.PID != s.main || s.over {
		return
	}
	s.over = true
	s.systemd.arrived.end(errors.New("the process " + last.ending()))
	s.ends.add(last)
	s.parent.tell(order{Do: toKill})
}

// ending says how a process has ended, and what it has left behind.
func (r report) ending() string {
	text := fmt.Sprintf("%s after %v", describe(r.Status), rounded(r.After))
	if len(r.Left) > 0 {
		text += fmt.Sprintf(", and left process %d behind: what is supervised stays in the foreground", r.Left[0])
	}
	return text
}

// fail ends the service and fails the test. What was received comes last: it may
// be long.
func (s *service) fail(what, received string) {
	s.t.Helper()
	s.mu.Lock()
	now := Process{PID: s.main, parent: s.parent}
	over := s.over
	s.mu.Unlock()
	if !over {
		what += now.lastHistory()
	}
	if s.parent.cancelled.Load() {
		what += ", the command's context having ended"
	}
	s.parent.end() // before printed is complete
	if s.journal != nil {
		what += "; " + lastWords(s.output())
	}
	if received != "" {
		what += "; " + received
	}
	s.t.Fatalf("daemontest: service %s: %s", s.path, what)
}

// waitReady waits until the service is ready.
func (u *Unit) waitReady(ctx context.Context) {
	u.service.t.Helper()
	u.Systemd.skip(u.first) // an earlier start may have said READY=1 again, after a reload
	u.Ready = u.Systemd.Wait(ctx, "READY=1")
}

// MainPID returns the pid of the main process: the one that was started, or the
// one that it has named since. When the service has ended it is the last one's.
func (u *Unit) MainPID() int {
	if last, ok := u.ended(); ok {
		return last.PID
	}
	u.service.mu.Lock()
	defer u.service.mu.Unlock()
	return u.service.main
}

// ended returns the end of the service, if it has ended.
func (u *Unit) ended() (last report, ok bool) {
	all := u.service.ends.all()
	if u.start < len(all) {
		return all[u.start], true
	}
	return report{}, false
}

// Processes returns the pids of all processes of the service.
func (u *Unit) Processes() []int { return u.service.parent.processes() }

// Output returns what the service has printed so far, in all its starts, apart
// from what goes to a Stdout or Stderr of cmd. After Wait and Stop it is all
// that was printed until the main process ended.
func (u *Unit) Output() string { return string(u.service.output()) }

func (s *service) output() []byte {
	if s.journal != nil { // it may have been printed just now
		if conn, err := s.journal.SyscallConn(); err == nil {
			conn.Control(func(fd uintptr) { s.copy(fd) }) // an error: the test has ended
		}
	}
	return bytes.ReplaceAll(s.printed.all(), []byte(s.token), nil)
}

// Signal sends sig to the main process, as systemctl kill does. The error is
// ESRCH if the service has ended.
func (u *Unit) Signal(sig syscall.Signal) error {
	if _, ok := u.ended(); ok {
		return syscall.ESRCH
	}
	return u.service.parent.ask(order{Do: toSignal, PID: u.MainPID(), Signal: sig})
}

// Wait waits until the service has ended, and returns how its main process did.
// It fails the test if ctx ends earlier, or if Timeout passes and ctx has no
// deadline.
func (u *Unit) Wait(ctx context.Context) syscall.WaitStatus {
	u.service.t.Helper()
	last, err := u.wait(ctx)
	if err != nil {
		u.service.fail("has not ended"+because(err), u.Systemd.received())
	}
	return last.Status
}

func (u *Unit) wait(ctx context.Context) (last report, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = u.service.ends.wait(ctx, func(all []report) bool {
		if u.start < len(all) {
			last = all[u.start]
		}
		return u.start < len(all)
	})
	if err == nil && u.service.journal != nil {
		err = u.service.printed.wait(ctx, func(text []byte) bool {
			return bytes.Count(text, []byte(u.service.token)) > u.start
		})
	}
	if err == errEnded { // the test has ended it
		u.service.parent.end()
		err = nil
	}
	return last, err
}

// Reload sends SIGHUP and waits for the reload to begin and to end, as systemd
// does for a service of Type=notify-reload: for RELOADING=1 with a
// MONOTONIC_USEC that is not older than the signal, and then for READY=1. It
// returns the latter notification, whose STATUS may tell of a reload that
// failed. It fails the test if one of them does not come.
func (u *Unit) Reload(ctx context.Context) Notification {
	u.service.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	sent := monotonic() / 1000
	if err := u.Signal(unix.SIGHUP); err != nil {
		u.service.fail(fmt.Sprintf("reload: SIGHUP: %v", err), u.Systemd.received())
		return Notification{}
	}
	u.Systemd.find(ctx, "RELOADING=1 with MONOTONIC_USEC after SIGHUP", func(n Notification) bool {
		text, _ := n.Get("MONOTONIC_USEC")
		usec, err := strconv.ParseInt(text, 10, 64)
		return slices.Contains(n.Assignments, "RELOADING=1") && err == nil && usec >= sent
	})
	return u.Systemd.find(ctx, "READY=1 after RELOADING=1", func(n Notification) bool {
		return slices.Contains(n.Assignments, "READY=1")
	})
}

// Stopped is how a service has ended that was told to.
type Stopped struct {
	// Status is how the main process ended.
	Status syscall.WaitStatus

	// Stopping is the first notification with STOPPING=1. It is nil if the
	// service has sent none.
	Stopping *Notification

	// After is the time from SIGTERM to the end.
	After time.Duration
}

// Stop stops the service as systemctl stop does: by a SIGTERM to all its
// processes. It returns when the main process has ended. Stored files are
// dropped. It fails the test if the service has ended before, if ctx ends before
// it does, or if Timeout passes and ctx has no deadline.
func (u *Unit) Stop(ctx context.Context) Stopped {
	u.service.t.Helper()
	stopped := u.stop(ctx)
	s := u.service
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(func(stored) bool { return true })
	return stopped
}

func (u *Unit) stop(ctx context.Context) Stopped {
	u.service.t.Helper()
	if last, ok := u.ended(); ok {
		u.service.fail("nothing to stop: the process "+last.ending(), u.Systemd.received())
		return Stopped{}
	}
	sent := time.Now()
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGCONT} {
		u.service.parent.ask(order{Do: toSignalAll, PID: u.MainPID(), Signal: sig}) // an error: it has just ended
	}
	last, err := u.wait(ctx)
	if err != nil {
		u.service.fail("has not ended on SIGTERM"+because(err), u.Systemd.received())
		return Stopped{}
	}
	return Stopped{Status: last.Status, Stopping: u.stopping(), After: time.Since(sent)}
}

// stopping returns the STOPPING=1 of this start.
func (u *Unit) stopping() *Notification {
	all := u.Systemd.arrived.all()[u.first:]
	i := slices.IndexFunc(all, func(n Notification) bool { return slices.Contains(n.Assignments, "STOPPING=1") })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// Restart stops the service, unless it has ended already, starts it again, with
// the files that it has stored, and returns the new start once that has said
// READY=1. The socket, the streams and the files that were passed are those of
// before. To test Restart=on-failure, call Signal with SIGKILL and Wait first.
//
// It fails the test as Service and Stop do. Only the last start of a service can
// be restarted.
func (u *Unit) Restart(ctx context.Context) *Unit {
	u.service.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	s := u.service
	if _, ok := u.ended(); !ok {
		u.stop(ctx)
	}
	again, err := s.startAgain(ctx, u.start)
	if err != nil {
		s.fail("has not been restarted"+because(err), "")
		return nil
	}
	again.waitReady(ctx)
	return again
}

func (s *service) startAgain(ctx context.Context, start int) (*Unit, error) {
	s.mu.Lock()
	if start != s.starts {
		s.mu.Unlock()
		return nil, errors.New("that has been done already")
	}
	s.remove(hungUp)
	files := slices.Concat(s.passed, s.stored)
	s.started, s.main, s.timeout = make(chan struct{}), 0, s.watchdog
	s.starts++
	old, first := s.pid, len(s.systemd.arrived.all())
	s.mu.Unlock()

	s.systemd.arrived.end(nil)
	if err := sendFiles(s.socket, files); err != nil {
		return nil, err
	}
	env := append(slices.Clone(s.env), s.variables(files)...)
	pid, err := s.parent.startAgain(ctx, order{PID: old, Env: env, Files: len(files)})
	if err != nil {
		return nil, err
	}
	return &Unit{PID: pid, Systemd: s.systemd, service: s, start: start + 1, first: first}, nil
}

// MissedBeat waits until the service has sent no WATCHDOG=1 for as long as
// WatchdogSec says, then kills the main process by SIGABRT, as systemd does, and
// returns how it ended: a Go program prints its goroutines and exits with status
// 2. It fails the test if beats go on until ctx ends, or until Timeout has
// passed and ctx has no deadline, and if the service ends by itself.
func (u *Unit) MissedBeat(ctx context.Context) syscall.WaitStatus {
	u.service.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	for {
		left, err := u.beatDue()
		if err == nil && left > 0 {
			err = u.pause(ctx, left)
		}
		switch {
		case err != nil:
			u.service.fail("no beat missed"+because(err), u.Systemd.received())
			return 0
		case left <= 0:
			u.Signal(unix.SIGABRT)
			return u.Wait(ctx)
		}
	}
}

// beatDue returns how long the service has until the next beat.
func (u *Unit) beatDue() (time.Duration, error) {
	s := u.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timeout == 0 {
		return 0, errors.New("the service has no watchdog, see WatchdogSec")
	}
	if last, ok := u.ended(); ok {
		return 0, errors.New("the process " + last.ending())
	}
	return time.Until(s.beat.Add(s.timeout)), nil
}

// pause waits for the next beat, or for the service's end.
func (u *Unit) pause(ctx context.Context, d time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	u.service.ends.wait(limited, func(all []report) bool { return u.start < len(all) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
