//go:build unix

package daemon

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Go cannot fork without exec, so a detach executes this program three times. The
// first process replaces itself by the launcher and keeps its pid: the shell goes on
// waiting for it. The launcher starts the daemon, waits for its word, and exits.
// Launcher and daemon learn from the marker, in init, what they are.

// Detach detaches now what [Ready] would detach later: call it first in main, and
// everything after it happens once, in the daemon. The shell still gets its prompt back
// only when the daemon has called Ready, with exit status 0; if the daemon ends before
// that, the shell sees its exit status, or the signal.
//
// Detach does nothing and returns nil under a supervisor, if Ready would stay in the
// foreground, and in the daemon itself. The errors are those of Ready's detach.
func Detach() error {
	if detached.isDaemon {
		detached.Lock()
		defer detached.Unlock()
		return findLauncher()
	}
	if Detect() != None || startedSupervised() {
		return nil
	}
	return detach(explicit)
}

func init() {
	recordStart()
	recordPassed()
	recordNotifyFD()
	switch m := takeMarker().(type) {
	case launcherMark:
		if m.pid == pid() {
			launch(m)
		}
	case daemonMark:
		if !startedByDaemon(m.launcher) {
			becomeDaemon(m)
		}
	}
}

// atStart is how this process was started. The daemon is started alike.
var atStart struct {
	args, env     []string
	executedPID   string // see executedPID
	directory     string
	directoryID   identity
	path          string // that the kernel executed
	program, root identity
	standard      [3]identity // of descriptors 0, 1 and 2; zero if closed
	ignored       []unix.Signal
}

func recordStart() {
	s := &atStart
	for _, arg := range os.Args { // cloned, for setproctitle(3) overwrites their memory
		s.args = append(s.args, strings.Clone(arg))
	}
	if len(s.args) == 0 { // musl passes none to a library
		s.args = []string{"?"}
	}
	s.env = slices.DeleteFunc(firstEnvironment(), func(v string) bool { return strings.HasPrefix(v, marker+"=") })
	s.executedPID = variableAtStart("SYSTEMD_EXEC_PID")
	s.directory = workingDirectory()
	s.directoryID, _ = identifyPath(".")
	s.path = executedPath()
	s.program, _ = identifyPath(s.path)
	s.root, _ = identifyPath("/")
	for fd := range s.standard {
		s.standard[fd] = identify(fd)
	}
	s.ignored = ignoredSignals()
}

// startedSupervised is Detect for the environment with which this process was started.
func startedSupervised() bool {
	return variableAtStart("UPSTART_JOB")+variableAtStart("NOTIFY_SOCKET")+variableAtStart("NOTIFY_FD") != ""
}

// variableAtStart returns a variable with which this process was started.
func variableAtStart(key string) string {
	for _, v := range atStart.env {
		if value, ok := strings.CutPrefix(v, key+"="); ok {
			return value
		}
	}
	return ""
}

const advice = "call daemon.Detach first in main"

// detach returns nil if this process is to stay as it is; otherwise it does not
// return, or returns why it could not detach. how is implicit for Ready.
func detach(how int) error {
	refuse := func(why string) error { return opError("detach", atStart.args[0], errors.New(why)) }
	switch {
	case detached.isDaemon:
		return nil
	case startedSupervised(): // it is there, and cannot be told
		return refuse("the program has removed its supervisor's variables: use daemon.UnsetEnvironment for that")
	case startedAgain(): // before staysInForeground, whose answer changes when the launcher ends
		return refuse("another copy of this package has detached the program: call Ready of that one only;" +
			" or an initializer has removed " + marker + " from the environment")
	case staysInForeground():
		return nil
	case takenByInitializer(): // in the daemon it would find that LISTEN_PID names the launcher
		return refuse("an initializer has taken what the supervisor passed (LISTEN_FDS), or nobody has passed it:" +
			" take it in main, or call daemon.Foreground")
	case pid() == 1: // and Background
		return refuse("PID 1 cannot leave, for everything would end with it: do not call daemon.Background")
	case secure():
		return refuse("a setuid, setgid or file capability program cannot start itself again: call daemon.Foreground")
	case !sameRights():
		return refuse("user, group or root directory have changed: " + advice)
	case asked.Load() != background && parentHidden():
		return refuse("the parent process cannot be seen (hidepid of proc(5)): call daemon.Foreground or daemon.Background")
	}
	if err := checkProgram("call daemon.Foreground"); err != nil {
		return opError("detach", atStart.args[0], err)
	}
	return replace(how)
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
	// An initializer's stack does not show a test: the name that go test -c gives, or a flag does.
	isTestFlag := func(arg string) bool { return strings.HasPrefix(arg, "-test.") }
	stack, isCaller := mainStack()
	begun := strings.Contains(stack, "\nmain.main()\n")
	isTest := strings.Contains(stack, "\t_testmain.go:") || strings.Contains(stack, "\ntesting.(*M).Run(")
	executed, loaded := programFiles()
	switch {
	case !begun && !(isCaller && onMainThread()): // neither main nor a program's initializer calls
		return errors.New("a library does not detach or stop the program that has loaded it: " + cure)
	case isTest, !begun && (strings.HasSuffix(atStart.path, ".test") || slices.ContainsFunc(atStart.args, isTestFlag)):
		return errors.New("a test binary does not detach or stop: use package daemontest, or " + cure)
	case executed != "" && loaded != "" && executed != loaded:
		return errors.New("the program that runs is " + executed + ", and this is " + loaded +
			": start it by itself, or " + cure)
	}
	return nil
}

// mainStack returns the stack of the main goroutine, and whether that is the caller. Only
// the stack shows that main is a test binary's. In a C program's library
// (-buildmode=c-shared, c-archive) that goroutine runs the initializers in a thread of
// its own, and ends without calling main.
func mainStack() (stack string, isCaller bool) {
	buffer := make([]byte, 256<<10)
	stacks := string(buffer[:runtime.Stack(buffer, false)])
	if isCaller = strings.HasPrefix(stacks, "goroutine 1 "); !isCaller {
		stacks = string(buffer[:runtime.Stack(buffer, true)]) // which stops the world
	}
	_, stack, _ = strings.Cut("\n\n"+stacks, "\n\ngoroutine 1 ")
	stack, _, _ = strings.Cut(stack, "\n\n")
	return stack, isCaller
}

// replace executes the launcher in place of this program. If it fails, its deferred
// calls undo what it has done.
func replace(how int) error {
	operation := "detach: "
	if how == implicit {
		operation += advice + ": "
	}
	// A child on its way from fork to exec would hold on to our listeners, or
	// inherit what is passed on.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	takeBack, missing := passFilesOn()
	if missing != "" {
		return opError(operation+"pass on", missing, os.ErrClosed)
	}
	defer takeBack()
	goBack, err := returnToStart()
	if err != nil {
		return opError(operation+"return to", cmp.Or(atStart.directory, "the directory at start-up"), err)
	}
	defer goBack()
	path, err := program()
	if err != nil {
		return opError(operation+"find", path, err)
	}
	defer prepareExec()()
	name := cmp.Or(nameOfProcess("self"), filepath.Base(atStart.path)) // as the kernel names it
	replaced := replacedStandard()
	fd, unmute := muteStderr()
	defer unmute()
	m := launcherMark{pid: pid(), stderr: fd, how: how, replaced: replaced, name: name}
	return opError(operation+"execve", atStart.args[0], execute(path, m))
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
	here, err := unix.Open(".", pathOnly|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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

// program returns a path that executes this very program from the directory at
// start-up, even if its file has been replaced or removed since.
func program() (path string, err error) {
	if _, err := identifyPath(selfPath); err == nil {
		return selfPath, nil
	}
	id, err := identifyPath(atStart.path)
	if err == nil && id != atStart.program {
		err = unix.ESTALE // replaced by another
	}
	return atStart.path, err
}

// fileLimit holds, after an execve that failed, the program's RLIMIT_NOFILE and its
// caller's: Go raises the limit at its start. syscall.Exec lowers it again, and forgets
// the caller's even if it fails.
var fileLimit struct{ own, callers unix.Rlimit }

// execute is syscall.Exec, but leaves RLIMIT_NOFILE as it was if it fails, and lowers it
// the next time as well, unless main has changed it since.
func execute(path string, m launcherMark) error {
	var own unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &own)
	if own == fileLimit.own {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &fileLimit.callers)
	}
	err := syscall.Exec(path, atStart.args, append(slices.Clip(atStart.env), m.String()))
	fileLimit.own = own
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &fileLimit.callers)
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &own)
	return err
}
