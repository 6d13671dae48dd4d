//go:build unix

package daemon

import (
	"errors"
	"os"
	"path/filepath"
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
	return detach(false)
}

func init() {
	keepStart()
	keepPassed()
	keepNotifyFD()
	var l launcherMark
	var d daemonMark
	switch value := takeMarker(); {
	case value == "":
	case l.parse(value) && l.pid == pid():
		launch(l)
	case d.parse(value) && !startedByDaemonOf(d.launcher):
		begin(d)
	}
}

// atStart is how this process was started. The daemon is started alike.
var atStart struct {
	args, env   []string
	program     string // the path that the kernel executed
	supervisor  Supervisor
	directory   string
	directoryID identity
	root        identity
	standard    [3]identity // of descriptors 0, 1 and 2; zero if closed
	ignored     [len(keptSignals)]bool
}

// keptSignals are those that a Go program leaves ignored if its caller ignored
// them: the runtime takes all others back (see os/signal).
var keptSignals = [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}

func keepStart() {
	s := &atStart
	s.args = make([]string, len(os.Args))
	for i, arg := range os.Args { // which are in the memory where setproctitle(3) writes
		s.args[i] = strings.Clone(arg)
	}
	s.env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, marker+"=") })
	s.supervisor = Detect()
	s.program = executedPath()
	s.directory = workingDirectory()
	s.directoryID, _ = identifyPath(".")
	s.root, _ = identifyPath("/")
	for fd := range s.standard {
		s.standard[fd] = identify(fd)
	}
	for i, sig := range keptSignals {
		s.ignored[i] = isIgnored(sig)
	}
}

const advice = "call daemon.Detach first in main"

var (
	errSecure = errors.New("a setuid, setgid or file capability program cannot start itself again: call daemon.Foreground")
	errRights = errors.New("user, group or root directory have changed: " + advice)
	errUnset  = errors.New("the program has removed its supervisor's variables: use daemon.UnsetEnvironment for that")
	errCopy   = errors.New("another copy of this package has detached the program: call Ready of that one only")
)

// detaching is held while the first process turns into the launcher.
var detaching sync.Mutex

// detach returns nil if this process is to stay as it is; otherwise it does not
// return, or returns why it could not detach.
func detach(byReady bool) error {
	switch {
	case detached.isDaemon:
		return nil
	case atStart.supervisor != None: // it is there, and cannot be told
		return failed("detach", atStart.args[0], errUnset)
	case staysInForeground():
		return nil
	}
	if err := mayDetach(); err != nil {
		return failed("detach", atStart.args[0], err)
	}
	detaching.Lock()
	defer detaching.Unlock()
	return replace(byReady)
}

func mayDetach() error {
	switch {
	case secure():
		return errSecure
	case !sameRights():
		return errRights
	case detachedByCopy():
		return errCopy
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
	buffer := make([]byte, 64<<10)
	stacks := "\n\n" + string(buffer[:runtime.Stack(buffer, true)])
	_, stack, found := strings.Cut(stacks, "\n\ngoroutine 1 ")
	stack, _, _ = strings.Cut(stack, "\n\n")
	_, position, _ := strings.Cut(stack, "\nmain.main()\n\t")
	file, _, _ := strings.Cut(position, ":")
	switch {
	case !found:
		return errors.New("a library does not detach or stop the program that has loaded it: " + cure)
	case filepath.Base(file) == "_testmain.go":
		return errors.New("a test binary does not detach or stop: use package daemontest, or set NOTIFY_SOCKET, or " + cure)
	}
	if executed, loaded := executedFile(), loadedFile(); executed != "" && loaded != "" && executed != loaded {
		return errors.New("the program that runs is " + executed + ", and this is " + loaded + ": start it by itself, or " + cure)
	}
	return nil
}

// replace executes the launcher in place of this program.
func replace(byReady bool) error {
	operation, mark := "detach: ", launcherMark{pid: pid(), replaced: replacedStandard(), name: commandName(pid())}
	if byReady {
		operation, mark.byReady = "detach: "+advice+": ", 1
	}
	var err error
	if mark.directory, err = directoryToRestore(); err != nil {
		return failed(operation+"return to", atStart.directory, err)
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
	blocked, restore := prepareExec()
	mark.blocked = blocked
	var limit unix.Rlimit // which Exec sets back to the caller's
	errLimit := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	err = syscall.Exec(path, atStart.args, append(slices.Clip(atStart.env), mark.format()))
	if errLimit == nil {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	restore()
	takeBack()
	return failed(operation+"execve", atStart.args[0], err)
}

// directoryToRestore returns the directory at start-up, or nothing if the program
// has not left it.
func directoryToRestore() (string, error) {
	if now, err := identifyPath("."); err == nil && now == atStart.directoryID {
		return "", nil
	}
	then, err := identifyPath(atStart.directory)
	if err == nil && then != atStart.directoryID {
		err = unix.ESTALE
	}
	return atStart.directory, err
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

// formatMarker makes the variable: the copy of this package that it is for, a
// role, its numbers, and a text that may hold anything.
func formatMarker(role, text string, numbers ...int) string {
	value := marker + "=" + packagePath() + ":" + role + ":"
	for _, number := range numbers {
		value += strconv.Itoa(number) + ":"
	}
	return value + text
}

// parseMarker reads what follows the package's path. It returns false if the
// marker is for another role, or malformed.
func parseMarker(value, role string, numbers ...*int) (text string, ok bool) {
	text, ok = strings.CutPrefix(value, role+":")
	for _, number := range numbers {
		digits, rest, found := strings.Cut(text, ":")
		n, err := strconv.Atoi(digits)
		*number, text, ok = n, rest, ok && found && err == nil
	}
	return text, ok
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
	if path != packagePath() && (new(launcherMark).parse(value) || new(daemonMark).parse(value)) {
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
// The environment with which the kernel started it shows even what that copy has
// removed.
func detachedByCopy() bool {
	for variable := range strings.SplitSeq(readFile("/proc/self/environ"), "\x00") {
		value, marked := strings.CutPrefix(variable, marker+"=")
		if path, rest, _ := strings.Cut(value, ":"); marked && path != packagePath() && strings.HasPrefix(rest, "daemon:") {
			return true
		}
	}
	return false
}
