//go:build unix

package daemon

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Go cannot fork without exec, so a detach takes three processes' worth of this
// one program. The first replaces itself by the launcher, with the same pid: the
// shell goes on waiting for it. The launcher starts the daemon, waits for its
// word, and exits. Each learns from the marker, in init, what it is.

// Detach detaches now what [Ready] would detach later: call it first in main,
// and everything after it happens once, in the daemon. The shell still gets
// its prompt back only when the daemon has called Ready, with exit status 0;
// if the daemon ends before that, the shell sees its exit status, or the
// signal.
//
// Detach does nothing and returns nil under a supervisor, if Ready would stay in
// the foreground, and in the daemon itself. The errors are those of Ready's
// detach.
func Detach() error {
	if detached.isDaemon {
		return checkLauncher()
	}
	if Detect() != None || atStart.supervisor != None {
		return nil
	}
	return detach(explicit)
}

func init() {
	keepStart()
	keepPassed()
	keepNotifyFD()
	value := takeMarker()
	if l, ok := parseLauncherMark(value); ok && l.pid == pid() {
		setName(l.name) // for which an ordinary user must be dumpable
		launch(l, quitSilently())
	}
	if d, ok := parseDaemonMark(value); ok && !startedByDaemonOf(d.launcher) {
		begin(d)
	}
}

// atStart is how this process was started. The daemon is started alike.
var atStart struct {
	args, env   []string
	supervisor  Supervisor
	executedPID string // see executedPID
	directory   string
	directoryID identity
	program     identity // of the file that the kernel executed
	root        identity
	standard    [3]identity // of descriptors 0, 1 and 2; zero if closed
	ignored     [len(keptSignals)]bool
}

// keptSignals are those that a Go program leaves ignored if its caller ignored
// them: the runtime takes all others back (see os/signal).
var keptSignals = [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

func keepStart() {
	s := &atStart
	for _, arg := range os.Args { // which are in the memory where setproctitle(3) writes
		s.args = append(s.args, strings.Clone(arg))
	}
	if len(s.args) == 0 { // a library in a program of musl's
		s.args = []string{"?"}
	}
	s.env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, marker+"=") })
	s.supervisor = Detect()
	s.executedPID = os.Getenv("SYSTEMD_EXEC_PID")
	s.directory = workingDirectory()
	s.directoryID, _ = identifyPath(".")
	s.program, _ = identifyPath(executedPath())
	s.root, _ = identifyPath("/")
	for fd := range s.standard {
		s.standard[fd] = identify(fd)
	}
	for i, sig := range keptSignals {
		s.ignored[i] = isIgnored(sig)
	}
}

const advice = "call daemon.Detach first in main"

// detaching is held while the first process turns into the launcher.
var detaching sync.Mutex

// detach returns nil if this process is to stay as it is; otherwise it does not
// return, or returns why it could not detach. how is implicit for Ready.
func detach(how int) error {
	switch {
	case detached.isDaemon:
		return nil
	case atStart.supervisor != None: // it is there, and cannot be told
		return failed("detach", atStart.args[0], errors.New("the program has removed its supervisor's variables: use daemon.UnsetEnvironment for that"))
	case detachedByCopy(): // the same answer before and after its launcher has gone
		return failed("detach", atStart.args[0], errors.New("another copy of this package has detached the program: call Ready of that one only"))
	case staysInForeground():
		return nil
	}
	if err := mayDetach(); err != nil {
		return failed("detach", atStart.args[0], err)
	}
	detaching.Lock()
	defer detaching.Unlock()
	return replace(how)
}

func mayDetach() error {
	switch {
	case pid() == 1: // and Background
		return errors.New("PID 1 cannot leave, for everything would end with it: do not call daemon.Background")
	case secure():
		return errors.New("a setuid, setgid or file capability program cannot start itself again: call daemon.Foreground")
	case !sameRights():
		return errors.New("user, group or root directory have changed: " + advice)
	case ground.Load() != back && parentHidden():
		return errors.New("the parent process cannot be seen (hidepid of proc(5)): call daemon.Foreground or daemon.Background")
	}
	return checkProgram("call daemon.Foreground")
}

// sameRights reports whether the program still has what it would need to
// initialize once more.
func sameRights() bool {
	root, _ := identifyPath("/")
	now := [4]int{unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid()}
	return root == atStart.root && now == idsAtStart()
}

// checkProgram returns an error that ends in cure if this process is not the
// program that imports this package, and so must not be started again or stopped:
// a test binary, or a program that has loaded a Go library.
func checkProgram(cure string) error {
	// The main goroutine's stack tells what no public name does: a test binary's
	// main is generated, and a C program's library (-buildmode=c-shared,
	// c-archive) has no main goroutine.
	buffer := make([]byte, 256<<10)
	stacks := "\n\n" + string(buffer[:runtime.Stack(buffer, true)])
	_, stack, found := strings.Cut(stacks, "\n\ngoroutine 1 ")
	stack, _, _ = strings.Cut(stack, "\n\n")
	_, main, begun := strings.Cut(stack, "\nmain.main()\n\t")
	file, _, _ := strings.Cut(main, "\n")
	isTestFlag := func(arg string) bool { return strings.HasPrefix(arg, "-test.") }
	switch {
	case !found:
		return errors.New("a library does not detach or stop the program that has loaded it: " + cure)
	case strings.Contains(file, "_testmain.go:"), !begun && slices.ContainsFunc(atStart.args, isTestFlag):
		return errors.New("a test binary does not detach or stop: use package daemontest, or set NOTIFY_SOCKET, or " + cure)
	}
	if executed, loaded := programFiles(); executed != "" && loaded != "" && executed != loaded {
		return errors.New("the program that runs is " + executed + ", and this is " + loaded + ": start it by itself, or " + cure)
	}
	return nil
}

// replace executes the launcher in place of this program.
func replace(how int) error {
	operation := "detach: "
	if how == implicit {
		operation = "detach: " + advice + ": "
	}
	path, err := program()
	if err != nil {
		return failed(operation+"find", path, err)
	}
	// A child on its way from fork to exec would hold on to our listeners, or
	// inherit what is passed on.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	takeBack, missing := passFilesOn()
	if missing != "" {
		return failed(operation+"pass on", missing, os.ErrClosed)
	}
	goBack, err := returnToStart()
	if err != nil {
		takeBack()
		return failed(operation+"return to", atStart.directory, err)
	}
	restore := prepareExec()
	m := launcherMark{pid(), how, replacedStandard(), commandName(pid())}
	restoreLimit := lowerFileLimit()
	err = syscall.Exec(path, atStart.args, append(slices.Clip(atStart.env), m.String()))
	restoreLimit()
	restore()
	goBack()
	takeBack()
	return failed(operation+"execve", atStart.args[0], err)
}

// fileLimit is how many descriptors the program may have, and its caller's limit,
// which syscall.Exec sets once, and then forgets even if it fails.
var fileLimit struct{ own, callers unix.Rlimit }

// lowerFileLimit sets the caller's limit again if an Exec that failed has
// forgotten it. restore is for the next that fails.
func lowerFileLimit() (restore func()) {
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) != nil {
		return func() {}
	}
	if own == fileLimit.own {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &fileLimit.callers)
	}
	return func() {
		fileLimit.own = own
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &fileLimit.callers)
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &own)
	}
}

// returnToStart changes to the directory at start-up, unless the program has not
// left it.
func returnToStart() (goBack func(), err error) {
	// A directory that may not be searched (`cd /root; runuser -u USER d`) has no
	// identity, but a path.
	now, err := identifyPath(".")
	if now == atStart.directoryID && (err == nil || workingDirectory() == atStart.directory) {
		return func() {}, nil
	}
	here, err := unix.Open(".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	goBack = func() {
		_ = unix.Fchdir(here)
		unix.Close(here)
	}
	err = unix.Chdir(atStart.directory)
	if there, _ := identifyPath("."); err == nil && there != atStart.directoryID {
		err = unix.ESTALE
	}
	if err != nil {
		goBack()
	}
	return goBack, err
}

// replacedStandard returns those of 0, 1 and 2, as bits, that main has replaced.
// The launcher and the daemon find them replaced when they start.
func replacedStandard() (bits int) {
	for fd, then := range atStart.standard {
		if now := identify(fd); now != (identity{}) && now != then {
			bits |= 1 << fd
		}
	}
	return bits
}

// marker is the environment variable that makes a launcher, or a daemon, of the
// process that it names. It is gone before main runs.
const marker = "_DAEMON_DETACH"

// formatMark makes the variable: the copy of this package that it is for, a role,
// and what that needs. The name may hold anything.
func formatMark(role, name string, numbers ...int) string {
	m := marker + "=" + packagePath() + ":" + role
	for _, n := range numbers {
		m += ":" + strconv.Itoa(n)
	}
	return m + ":" + name
}

// parseMark reads what follows the package's path. ok is false if the marker is
// for another role, or malformed.
func parseMark(value, role string, numbers ...*int) (name string, ok bool) {
	rest, ok := strings.CutPrefix(value, role+":")
	for _, n := range numbers {
		field, after, _ := strings.Cut(rest, ":")
		number, err := strconv.Atoi(field)
		*n, rest, ok = number, after, ok && err == nil
	}
	return rest, ok
}

// takeMarker removes the marker from the environment and returns what it says to
// this copy of the package. What is for another copy stays for that one's init. A
// setuid program takes no orders from its caller's environment.
func takeMarker() string {
	value, marked := os.LookupEnv(marker)
	if !marked {
		return ""
	}
	path, value, _ := strings.Cut(value, ":")
	_, isLauncher := parseLauncherMark(value)
	_, isDaemon := parseDaemonMark(value)
	if path != packagePath() && (isLauncher || isDaemon) {
		return ""
	}
	os.Unsetenv(marker)
	if secure() || path != packagePath() {
		return ""
	}
	return value
}

// packagePath tells one copy of this package in a program from another, such as
// a fork of it or its next major version.
func packagePath() string {
	pc, _, _, _ := runtime.Caller(0)
	return strings.TrimSuffix(runtime.FuncForPC(pc).Name(), ".packagePath")
}

// detachedByCopy reports whether another copy has made a daemon of this process.
// The launcher has put the marker behind all other variables.
func detachedByCopy() bool {
	value, marked := strings.CutPrefix(lastVariable(), marker+"=")
	path, rest, _ := strings.Cut(value, ":")
	return marked && path != packagePath() && strings.HasPrefix(rest, "daemon:")
}
