//go:build unix

package daemon

import (
	"errors"
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

	"golang.org/x/sys/unix"
)

// Go cannot fork without exec, so a detach takes three processes' worth of
// this one program. The first replaces itself by the launcher, with the same
// pid: the shell goes on waiting for it. The launcher starts the daemon, waits
// for its word, and exits. Each learns from the marker, in init, what it is.

// Detach detaches now what [Ready] would detach later: call it first in main,
// and everything after it happens once, in the daemon. The shell still gets
// its prompt back only when the daemon has called Ready, with exit status 0;
// if the daemon ends before that, the shell sees its exit status, or the
// signal.
//
// Under a supervisor, where Ready would stay in the foreground, and in the
// daemon itself it does nothing and returns nil. The errors are those of
// Ready's detach.
func Detach() error {
	if daemonized {
		return checkLauncher()
	}
	if Detect() != None || start.supervisor != None {
		return nil
	}
	return detach("Detach")
}

// Foreground keeps [Ready] and [Detach] from detaching: call it before them
// for a -f flag, and under a supervisor that leaves no trace in the environment
// (s6, runit, supervisord) give the program that flag. A supervisor that the
// environment names is notified all the same.
func Foreground() { foreground.Store(true) }

var foreground atomic.Bool

// marker is the environment variable that makes a launcher, or a daemon, of
// the process that it names. It is gone before main runs.
const marker = "_DAEMON_DETACH"

func init() {
	value, marked := os.LookupEnv(marker)
	if marked {
		os.Unsetenv(marker)
	}
	start.keep()
	// A setuid program takes no orders from its caller's environment.
	if !marked || secure() {
		return
	}
	switch m, ok := parseMark(value); {
	case !ok:
	case m.role == "launcher" && m.pid == pid:
		launch(m)
	case m.role == "daemon":
		begin(m)
	}
}

// mark is what the marker says.
type mark struct {
	role      string // launcher or daemon
	pid       int    // the launcher's
	verb      string // launcher: Ready or Detach
	pipe      int    // daemon: the descriptor through which it tells the launcher
	name      string // what ps(1) shows
	directory string // launcher: where to start the daemon; empty: here
}

// String makes the variable. A name may hold anything, so its length is there.
func (m mark) String() string {
	return marker + "=" + strings.Join([]string{
		m.role, strconv.Itoa(m.pid), m.verb, strconv.Itoa(m.pipe), strconv.Itoa(len(m.name)), m.name + m.directory,
	}, "/")
}

func parseMark(value string) (m mark, ok bool) {
	fields := strings.SplitN(value, "/", 6)
	if len(fields) < 6 {
		return m, false
	}
	var numbers [3]int
	for i, field := range []string{fields[1], fields[3], fields[4]} {
		n, err := strconv.Atoi(field)
		if err != nil {
			return m, false
		}
		numbers[i] = n
	}
	length, rest := numbers[2], fields[5]
	if length < 0 || length > len(rest) {
		return m, false
	}
	return mark{fields[0], numbers[0], fields[2], numbers[1], rest[:length], rest[length:]}, true
}

// start is how this process was started: the launcher starts the daemon alike.
var start origin

type origin struct {
	path        string // executes this very program
	args, env   []string
	supervisor  Supervisor
	directory   string
	directoryID identity
	credentials credentials
	parent      int
	ignored     [len(keptSignals)]bool
}

// credentials are what a program that has dropped its rights cannot get back.
type credentials struct {
	uid, euid, gid, egid int
	root                 identity
}

// keptSignals are those that a Go program leaves ignored where its caller
// ignored them: the runtime takes all others back (see os/signal).
var keptSignals = [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

func (o *origin) keep() {
	o.args, o.env, o.supervisor = nil, os.Environ(), Detect()
	for _, arg := range os.Args { // which are in the memory where setproctitle(3) writes
		o.args = append(o.args, strings.Clone(arg))
	}
	o.directory, _ = unix.Getwd()
	o.directoryID, _ = identifyPath(".")
	o.credentials = currentCredentials()
	o.path = o.findProgram()
	o.parent = unix.Getppid()
	for i, s := range keptSignals {
		o.ignored[i] = isIgnored(s)
	}
}

// findProgram finds the program's file even where it has been replaced or removed
// since. Without /proc it trusts argv[0].
func (o *origin) findProgram() string {
	const self = "/proc/self/exe"
	if _, err := identifyPath(self); err == nil {
		return self
	}
	path := o.args[0]
	if !strings.Contains(path, "/") {
		path, _ = exec.LookPath(path) // exec.ErrDot comes with a path
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(o.directory, path)
	}
	return path
}

func currentCredentials() credentials {
	root, _ := identifyPath("/")
	return credentials{unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid(), root}
}

const cureTestRun = "set NOTIFY_SOCKET, call daemon.Foreground or use package daemontest"

var (
	errTestRun = errors.New(cureTestRun)
	errSecure  = errors.New("a setuid, setgid or file capability program cannot start itself again: call daemon.Foreground")
	errChanged = errors.New("user, group or root directory have changed: call daemon.Detach first in main")
	errUnset   = errors.New("the program has removed its supervisor's variables: use daemon.UnsetEnvironment for that")
)

// inTest tells whether this is a `go test` run.
func inTest() bool {
	return slices.ContainsFunc(start.args, func(arg string) bool { return strings.HasPrefix(arg, "-test.") })
}

// detaching is held while the first process turns into the launcher.
var detaching sync.Mutex

// detach returns nil where this process is to stay as it is; otherwise it does
// not return, or returns why it could not detach. verb is Ready or Detach.
func detach(verb string) error {
	switch {
	case daemonized, stays():
		return nil
	case inTest():
		return failed("detach", "in a go test run", errTestRun)
	case secure():
		return failed("detach", start.args[0], errSecure)
	case start.supervisor != None: // it is there, and cannot be told
		return failed("detach", start.args[0], errUnset)
	case start.credentials != currentCredentials():
		return failed("detach", start.args[0], errChanged)
	}
	detaching.Lock()
	defer detaching.Unlock()
	return replace(verb)
}

// stays tells whether something holds on to this very process, so that leaving
// would look like its death.
func stays() bool {
	// A parent of 0 is outside of the PID namespace: a container runtime.
	return foreground.Load() || pid == 1 || start.parent <= 1 || executedBySystemd()
}

// executedBySystemd tells so even where main has cleared the environment.
func executedBySystemd() bool {
	own := strconv.Itoa(pid)
	return os.Getenv("SYSTEMD_EXEC_PID") == own || slices.Contains(start.env, "SYSTEMD_EXEC_PID="+own)
}

// replace executes the launcher in place of this program.
func replace(verb string) error {
	directory, err := directoryToRestore()
	if err != nil {
		return err
	}
	m := mark{role: "launcher", pid: pid, verb: verb, name: commandName(), directory: directory}
	if err := keepFilesOnExec(true); err != nil {
		return err
	}
	undo := prepareExec()
	// A child on its way from fork to exec would hold on to our listeners.
	syscall.ForkLock.Lock()
	err = syscall.Exec(start.path, start.args, append(slices.Clip(start.env), m.String()))
	syscall.ForkLock.Unlock()
	undo()
	_ = keepFilesOnExec(false)
	return failed("detach: call daemon.Detach first in main: execve", start.path, err)
}

// directoryToRestore returns the directory at start-up, or nothing where the
// program has not left it.
func directoryToRestore() (string, error) {
	if now, err := identifyPath("."); err == nil && now == start.directoryID {
		return "", nil
	}
	then, err := identifyPath(start.directory)
	if err == nil && then != start.directoryID {
		err = unix.ESTALE
	}
	if err != nil {
		return "", failed("detach: call daemon.Detach first in main: return to", start.directory, err)
	}
	return start.directory, nil
}

// What the launcher reads from the pipe: the daemon's word, or its own that the
// daemon has ended. One reader of one pipe sees which came first.
const (
	wordReady = 'r'
	wordEnded = 'e'
)

// launch is the launcher's whole life: it starts the daemon and ends as the
// daemon says, or as the daemon ends.
func launch(m mark) {
	setName(m.name)
	if m.directory != "" {
		exitOn("chdir", m.directory, unix.Chdir(m.directory))
		start.keep()
	}
	r, w, err := openPipe()
	exitOn("open", "pipe", err)
	signals := make(chan os.Signal, 8)
	catch(signals, unix.SIGTERM, unix.SIGHUP)
	daemon := startDaemon(m.name, w)
	// Not before there is a daemon for the terminal to interrupt.
	catch(signals, unix.SIGINT, unix.SIGQUIT)
	go passOn(signals, daemon)

	ended := make(chan unix.WaitStatus, 1)
	go func() {
		ended <- waitFor(daemon)
		_, _ = unix.Write(w, []byte{wordEnded})
	}()
	if hear(r) == wordReady {
		os.Exit(0)
	}
	endLike(m.verb, <-ended)
}

// hear waits for a word.
func hear(pipe int) byte {
	var word [1]byte
	_, err := unix.Read(pipe, word[:])
	for err == unix.EINTR {
		_, err = unix.Read(pipe, word[:])
	}
	exitOn("read", "pipe", err)
	return word[0]
}

// startDaemon starts the program once more, with another descriptor of the
// pipe's end w that no descriptor of the caller's can be in the way of.
func startDaemon(name string, w int) (child int) {
	pipe, err := duplicate(w, firstTable)
	exitOn("duplicate", "pipe", err)
	defer unix.Close(pipe)
	m := mark{role: "daemon", pid: pid, pipe: pipe, name: name}
	child, err = syscall.ForkExec(start.path, start.args, &syscall.ProcAttr{
		Env:   append(slices.Clip(start.env), m.String()),
		Files: []uintptr{0, 1, 2},
	})
	exitOn("start", start.path, err)
	return child
}

// catch has signals delivered to c, except those that the caller ignored.
func catch(c chan<- os.Signal, signals ...unix.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// passOn passes on what was sent to the launcher alone. The terminal's signals
// are only caught: the daemon, in the same process group, got its own.
func passOn(signals <-chan os.Signal, daemon int) {
	for s := range signals {
		if s == unix.SIGTERM || s == unix.SIGHUP {
			_ = unix.Kill(daemon, s.(unix.Signal))
		}
	}
}

func waitFor(child int) (status unix.WaitStatus) {
	for {
		_, err := unix.Wait4(child, &status, 0, nil)
		if err != unix.EINTR {
			exitOn("wait for", "process "+strconv.Itoa(child), err)
			return status
		}
	}
}

// endLike ends the launcher the way the daemon ended before it was ready.
func endLike(verb string, status unix.WaitStatus) {
	if status.Signaled() {
		dieOf(status.Signal())
		os.Exit(128 + int(status.Signal()))
	}
	code := status.ExitStatus()
	if code == 0 && verb == "Ready" { // after Detach it may have been a --version
		exitOn("detach", start.args[0], errors.New("exited with status 0 before it was ready"))
	}
	os.Exit(code)
}

// exitOn is for a failure of the launcher itself.
func exitOn(operation, object string, err error) {
	if err != nil {
		os.Stderr.WriteString(failed(operation, object, err).Error() + "\n")
		os.Exit(1)
	}
}

// daemonized tells that this process is a launcher's daemon.
var daemonized bool

// self is the daemon's side of the pipe.
var self struct {
	sync.Mutex
	launcher int
	pipe     held
	null     held // /dev/null, which main may lose by a chroot
	told     bool // that this process is ready
}

// begin makes this process the daemon of launcher, before main runs. It does
// without the runtime's poller, which would not survive a main that begins by
// closing all descriptors.
func begin(m mark) {
	daemonized = true
	self.launcher, self.pipe = m.pid, holdPipe(m.pipe)
	null, _ := openNull() // if not now, then by Ready
	self.null = hold(null)
	setName(m.name)
	for _, key := range []string{"LISTEN_PID", "WATCHDOG_PID"} {
		if os.Getenv(key) == strconv.Itoa(m.pid) {
			os.Setenv(key, strconv.Itoa(pid))
		}
	}
}

// tellLauncher detaches a daemon from its terminal and then has the launcher
// exit. In any other process, and a second time, it does nothing.
func tellLauncher() error {
	if !daemonized {
		return nil
	}
	return tellOnce()
}

func tellOnce() error {
	self.Lock()
	defer self.Unlock()
	if self.told {
		return nil
	}
	if err := findLauncher(); err != nil {
		return err
	}
	if err := leaveTerminal(); err != nil {
		return err
	}
	if _, err := unix.Write(self.pipe.fd, []byte{wordReady}); err != nil {
		return failed("detach: tell", "launcher", err)
	}
	self.told = true
	unix.Close(self.pipe.fd)
	return nil
}

// checkLauncher is Detach in the daemon.
func checkLauncher() error {
	self.Lock()
	defer self.Unlock()
	if self.told {
		return nil
	}
	return findLauncher()
}

// findLauncher returns an error where the launcher is gone, or the way to it:
// another process may be the parent now, and another file have the descriptor.
func findLauncher() error {
	if unix.Getppid() != self.launcher {
		return failed("detach: find launcher", "process "+strconv.Itoa(self.launcher), unix.ESRCH)
	}
	if !self.pipe.ours() {
		return failed("detach: find launcher", "descriptor "+strconv.Itoa(self.pipe.fd), unix.EBADF)
	}
	return nil
}

// leaveTerminal makes this process the leader of a session without a terminal
// (setsid(2)) and puts 0, 1 and 2 on /dev/null.
func leaveTerminal() error {
	null := self.null.fd
	if !self.null.ours() {
		var err error
		if null, err = openNull(); err != nil {
			return failed("detach: open", "/dev/null", err)
		}
	}
	defer unix.Close(null)
	if err := newSession(); err != nil {
		return failed("detach: setsid", "process "+strconv.Itoa(pid), err)
	}
	for fd := range 3 {
		if err := duplicateTo(null, fd); err != nil {
			return failed("detach: open /dev/null as", "descriptor "+strconv.Itoa(fd), err)
		}
	}
	return nil
}

// newSession makes this process the leader of a session, unless it is one: main
// has called setsid(2), or a Ready that failed after that.
func newSession() error {
	if session, err := unix.Getsid(0); err == nil && session == pid {
		return nil
	}
	// The leader of a process group cannot have a session: it joins the launcher's.
	if group, err := unix.Getpgid(0); err == nil && group == pid {
		group, _ = unix.Getpgid(self.launcher)
		_ = unix.Setpgid(0, group)
	}
	_, err := unix.Setsid()
	return err
}

// openNull opens /dev/null, and not as 0, 1 or 2.
func openNull() (fd int, err error) {
	low, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(low)
	fd, err = duplicate(low, firstTable)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	return fd, err
}
