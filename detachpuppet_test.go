//go:build linux

package daemon_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

// The puppet of detach_test.go takes its orders as that of systemdunit_test.go
// does, and has no signal handlers of its own.
func init() {
	programs["puppet"] = func() {
		conn, err := net.Dial("unix", os.Getenv(lineAddress))
		if err != nil {
			log.Fatal(err)
		}
		for scanner := bufio.NewScanner(conn); scanner.Scan(); {
			text, _ := strconv.Unquote(scanner.Text())
			fmt.Fprintf(conn, "%q\n", obey(text))
		}
	}

	orders["detach"] = func(string) error { return daemon.Detach() }
	orders["foreground"] = func(string) error { daemon.Foreground(); return nil }
	orders["ready-at-once"] = func(string) error { return readyAtOnce() }
	orders["ready-exit"] = func(code string) error {
		if err := daemon.Ready(); err != nil {
			return err
		}
		return orders["exit"](code)
	}

	orders["chdir"] = os.Chdir
	orders["setenv"] = func(assignment string) error {
		key, value, _ := strings.Cut(assignment, "=")
		return os.Setenv(key, value)
	}
	orders["unsetenv"] = os.Unsetenv
	// As setproctitle(3) does.
	orders["overwrite-args"] = func(string) error {
		for _, arg := range os.Args[1:] {
			bytes := unsafe.Slice(unsafe.StringData(arg), len(arg))
			for i := range bytes {
				bytes[i] = 'x'
			}
		}
		return nil
	}
	orders["forget-args"] = func(string) error {
		os.Args[0] = "forgotten"
		os.Args = nil
		return nil
	}
	orders["name"] = func(name string) error {
		return os.WriteFile("/proc/self/comm", []byte(name), 0)
	}

	orders["say"] = func(text string) error {
		_, err := fmt.Fprintln(os.Stderr, text)
		return err
	}
	orders["panic"] = func(text string) error { panic(text) }
	orders["log.Fatal"] = func(text string) error {
		log.SetFlags(0)
		log.Fatal(text)
		return nil
	}
	// No Go program any more, and no handler: kill -QUIT $$ is an end by QUIT.
	orders["become"] = func(script string) error {
		return syscall.Exec("/bin/sh", []string{"sh", "-c", script}, os.Environ())
	}

	orders["catch"] = func(names string) error {
		for name := range strings.FieldsSeq(names) {
			signal.Notify(caught, unix.SignalNum("SIG"+name))
		}
		return nil
	}
	orders["ignore"] = func(names string) error {
		for name := range strings.FieldsSeq(names) {
			signal.Ignore(unix.SignalNum("SIG" + name))
		}
		return nil
	}
	questions["signal"] = func() string { return (<-caught).String() }

	orders["close"] = func(numbers string) (err error) {
		for number := range strings.FieldsSeq(numbers) {
			fd, convErr := strconv.Atoi(number)
			err = errors.Join(err, convErr, unix.Close(fd))
		}
		return err
	}
	orders["close-files"] = func(string) (err error) {
		for _, file := range daemon.Files() {
			err = errors.Join(err, file.Close())
		}
		return err
	}
	orders["setsid"] = func(string) error {
		_, err := unix.Setsid()
		return err
	}
	orders["setpgid"] = func(string) error { return unix.Setpgid(0, 0) }
	orders["listen"] = func(address string) error {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			go answerPID(listener)
		}
		return err
	}
	orders["limit-files"] = func(limits string) error {
		var limit unix.Rlimit
		if _, err := fmt.Sscan(limits, &limit.Cur, &limit.Max); err != nil {
			return err
		}
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	orders["profile"] = func(string) error { return pprof.StartCPUProfile(&profile) }
	orders["profiled"] = func(string) error { return mustProfile() }
	orders["timer"] = func(string) error {
		soon := unix.Timeval{Usec: 100}
		_, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Interval: soon, Value: soon})
		return err
	}

	orders["chroot"] = func(dir string) error {
		if err := unix.Chroot(dir); err != nil {
			return err
		}
		return os.Chdir("/")
	}
	orders["setuid"] = func(id string) error {
		uid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		return syscall.Setuid(uid)
	}
	orders["setgid"] = func(id string) error {
		gid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		return syscall.Setgid(gid)
	}

	questions["args"] = func() string { return toJSON(os.Args) }
	questions["environ"] = func() string { return toJSON(os.Environ()) }
	questions["cwd"] = func() string {
		dir, err := os.Getwd()
		return dir + fmt.Sprint(err)
	}
	questions["child-environ"] = func() string {
		out, err := exec.Command("env").Output()
		if err != nil {
			return err.Error()
		}
		return toJSON(strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"))
	}
	questions["child-limit"] = func() string {
		out, err := exec.Command("sh", "-c", "ulimit -n").Output()
		return strings.TrimSpace(string(out)) + fmt.Sprint(err)
	}
	questions["stdin"] = func() string {
		text, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return text
	}
}

var (
	caught  = make(chan os.Signal, 8)
	profile samples
)

func toJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

// readyAtOnce calls Ready from many goroutines.
func readyAtOnce() error {
	errs := make(chan error)
	for range 50 {
		go func() { errs <- daemon.Ready() }()
	}
	var all error
	for range 50 {
		all = errors.Join(all, <-errs)
	}
	return all
}

func answerPID(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(conn, os.Getpid())
		conn.Close()
	}
}

// samples is a CPU profile that is thrown away, but for its length.
type samples struct{ n atomic.Int64 }

func (s *samples) Write(p []byte) (int, error) {
	s.n.Add(int64(len(p)))
	return len(p), nil
}

// mustProfile returns an error unless the timer of the profile is running.
func mustProfile() error {
	timer, err := unix.Getitimer(unix.ITIMER_PROF)
	if err != nil || timer.Interval.Usec == 0 {
		return fmt.Errorf("the profile's timer is %+v, %v", timer, err)
	}
	return nil
}

// A line is where the puppets of one test call in. It finds them also where
// they don't: by its address, which is in their environment.
type line struct {
	t        *testing.T
	address  string
	listener net.Listener
	calls    chan net.Conn
	callers  []caller
}

// printed is what the callers have seen.
func (l *line) printed() (all []string) {
	for _, c := range l.callers {
		all = append(all, c.printed())
	}
	return all
}

var lines atomic.Int64

// handleIgnored has the puppets start with all signals at their default, also
// where whoever runs the tests has some ignored (`go test &` in a script): what
// the tests handle, what they start does not.
var handleIgnored = sync.OnceFunc(func() {
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
})

func newLine(t *testing.T) *line {
	t.Helper()
	handleIgnored()
	// An abstract address needs no directory that everyone can reach.
	l := &line{
		t:       t,
		address: fmt.Sprintf("@daemon-test-%d-%d", os.Getpid(), lines.Add(1)),
		calls:   make(chan net.Conn, 1000),
	}
	var err error
	if l.listener, err = net.Listen("unix", l.address); err != nil {
		t.Fatal(err)
	}
	go l.accept()
	t.Cleanup(l.hangUp)
	return l
}

func (l *line) accept() {
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
func (l *line) hangUp() {
	l.listener.Close()
	for conn := range l.calls {
		conn.Close()
	}
	if l.t.Failed() {
		for _, pid := range l.processes() {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	l.mustBeOver()
}

// command is the puppet.
func (l *line) command(args ...string) *exec.Cmd {
	return l.called(program(l.t, "puppet", args...))
}

// called adds the line's address to the command's environment. A program that
// was built with -race is not to take a second to exit.
func (l *line) called(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, lineAddress+"="+l.address, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// wrap has another program run the command, which is added to its arguments.
func wrap(cmd *exec.Cmd, argv ...string) *exec.Cmd {
	wrapped := exec.Command(argv[0], slices.Concat(argv[1:], []string{cmd.Path}, cmd.Args[1:])...)
	wrapped.Env, wrapped.Dir, wrapped.ExtraFiles = cmd.Env, cmd.Dir, cmd.ExtraFiles
	return wrapped
}

// underShell has a shell run a script, where "$@" is the command.
func underShell(cmd *exec.Cmd, script string) *exec.Cmd { return wrap(cmd, "sh", "-c", script, "sh") }

// inNamespaces has unshare(1) run the command, with rights to do so.
func inNamespaces(t *testing.T, cmd *exec.Cmd, flags ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		flags = append([]string{"--user", "--map-root-user"}, flags...)
	}
	if out, err := exec.Command("unshare", append(flags, "true")...).CombinedOutput(); err != nil {
		skipUnlessForbidden(t, fmt.Sprintf("unshare %v: %v: %s", flags, err, out))
	}
	return wrap(cmd, append([]string{"unshare"}, flags...)...)
}

// processes are those that have the line's address in their environment.
func (l *line) processes() (pids []int) {
	l.t.Helper()
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		environ, _ := os.ReadFile(path)
		if strings.Contains("\x00"+string(environ), "\x00"+lineAddress+"="+l.address+"\x00") {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// mustBeOver waits for the end of all puppets.
func (l *line) mustBeOver() {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for pids := l.processes(); len(pids) > 0; pids = l.processes() {
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

// A live puppet, as the test sees it.
type live struct {
	*process
	line *line
	pid  int // as seen from here
}

// process returns the next puppet that has called.
func (l *line) process() *live {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for there := true; there && time.Now().Before(deadline); {
		select {
		case conn := <-l.calls:
			return l.talk(conn)
		case <-time.After(time.Second):
			there = len(l.processes()) > 0 // without any, none will call
		}
	}
	l.t.Fatalf("no process has called; left are %v, and printed was %q", l.processes(), l.printed())
	return nil
}

func (l *line) talk(conn net.Conn) *live {
	return &live{&process{t: l.t, conn: conn, in: bufio.NewReader(conn)}, l, peer(l.t, conn)}
}

// peer is the pid of the process that has connected.
func peer(t *testing.T, conn net.Conn) (pid int) {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if credentials, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				pid = int(credentials.Pid)
			}
		})
	}
	if err != nil || pid == 0 {
		t.Fatalf("pid of the peer: %d, %v", pid, err)
	}
	return pid
}

// mustBeSilent fails the test if another puppet has called. All have ended.
func (l *line) mustBeSilent() {
	l.t.Helper()
	conn, err := net.Dial("unix", l.address) // who called, called before this
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	if pid := l.process().pid; pid != os.Getpid() {
		l.t.Errorf("there was another process, %d", pid)
	}
}

// marker is the variable that made a launcher or a daemon of the process.
func (p *live) marker() string {
	p.t.Helper()
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(environ), "\x00_DAEMON_DETACH=")
	if !ok {
		p.t.Fatalf("no marker in %q", environ)
	}
	value, _, _ := strings.Cut(rest, "\x00")
	return value
}

// mustLive fails the test if the process has ended.
func (p *live) mustLive() {
	p.t.Helper()
	if s := p.stat(); s.state == "Z" {
		p.t.Errorf("process %d has ended", p.pid)
	}
}

// leaves gives an order that the process does not survive.
func (p *live) leaves(order string) {
	p.t.Helper()
	p.send(order)
	if answer, err := p.read(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		p.t.Fatalf("%s: %s, %v", order, answer, err)
	}
}

// detaches has the first process call Ready or Detach, and returns the process
// in which main begins again.
func (p *live) detaches(order string) *live {
	p.t.Helper()
	p.leaves(order)
	return p.line.process()
}

// refuses gives an order that must fail with this text in its error.
func (p *live) refuses(order string, texts ...string) {
	p.t.Helper()
	answer := p.ask(order)
	for _, text := range texts {
		if !strings.Contains(answer, text) {
			p.t.Errorf("%s: %q, want %q in it", order, answer, text)
		}
	}
}

// waitUntil waits for a condition that nobody tells of.
func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A stat is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type stat struct {
	state                            string
	parent, group, session, terminal int
}

func readStat(pid int) (s stat, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		_, rest, _ := strings.Cut(string(text), ") ")
		_, err = fmt.Sscan(rest, &s.state, &s.parent, &s.group, &s.session, &s.terminal)
	}
	return s, err
}

func (p *live) stat() stat {
	p.t.Helper()
	s, err := readStat(p.pid)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// status is a field of /proc/PID/status.
func (p *live) status(key string) string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + key + `:\s*(.*)$`).FindSubmatch(text)
	if match == nil {
		p.t.Fatalf("no %s in %s", key, text)
	}
	return string(match[1])
}

// standard are the files behind descriptors 0 to 2.
func (p *live) standard() (files [3]string) {
	for fd := range files {
		files[fd] = p.fileOf(fd)
	}
	return files
}

// fileOf is the file behind a descriptor; empty: it is closed.
func (p *live) fileOf(fd int) string {
	file, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, fd))
	return file
}

// mustBeDetached fails the test unless the process is a daemon now.
func (p *live) mustBeDetached() {
	p.t.Helper()
	s := p.stat()
	if s.session != p.pid || s.group != p.pid || s.terminal != 0 {
		p.t.Errorf("process %d has session %d, group %d, terminal %d", p.pid, s.session, s.group, s.terminal)
	}
	for fd, file := range p.standard() {
		info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.pid, fd))
		if !strings.HasSuffix(file, "/dev/null") || // it may have another root directory
			!regexp.MustCompile(`flags:\s*0[0-7]*2\n`).Match(info) {
			p.t.Errorf("descriptor %d is %s, %s", fd, file, info)
		}
	}
}

// A caller is whoever started the first process and waits for it.
type caller interface {
	exit() string    // waits for the end: "exit 0", "SIGKILL"
	printed() string // so far, on standard output and error
}

// outcome is how a process has ended.
func outcome(status syscall.WaitStatus) string {
	switch {
	case status.Exited():
		return fmt.Sprintf("exit %d", status.ExitStatus())
	case status.CoreDump():
		return unix.SignalName(status.Signal()) + " with a core"
	}
	return unix.SignalName(status.Signal())
}

// A pipe is a caller that reads what is printed to its end, as sshd does.
type pipe struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  console
	done chan struct{} // the command has ended, and nobody has its output open
}

func (l *line) pipe(cmd *exec.Cmd) *pipe {
	l.t.Helper()
	c := &pipe{t: l.t, cmd: cmd, done: make(chan struct{})}
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

func (c *pipe) printed() string { return c.out.String() }

func (c *pipe) exit() string {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatal("the command, or its output, has no end")
	}
	return outcome(c.cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// A shell is a caller at a terminal.
type shell struct{ *daemontest.Session }

func (l *line) shell(cmd *exec.Cmd) *shell {
	l.t.Helper()
	c := &shell{daemontest.StartShell(l.t, cmd)}
	l.callers = append(l.callers, c)
	return c
}

func (c *shell) printed() string { return c.Output() }

func (c *shell) exit() string { return outcome(c.Prompt(context.Background()).Status) }
