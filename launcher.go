//go:build unix

package daemon

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the launcher reads from the pipe: words of the daemon, and its own that
// the daemon has ended. One reader of one pipe sees which came first.
const (
	wordReady = "r"
	wordGroup = "g" // the daemon needs a process group that it can join: see newSession
	wordEnded = "e"
)

// launch is the launcher's whole life: it starts the daemon and ends as the
// daemon says, or as the daemon ends.
func launch(m launcherMark) {
	r, w, err := openPipe()
	exitOn("open pipe to", err)
	signals := make(chan os.Signal, 16)
	catchAnyway(signals, unix.SIGCHLD) // if an initializer ignores it, the daemon's exit status is lost
	catch(signals, unix.SIGTERM, unix.SIGHUP)
	child := startDaemon(m, w)
	// Before there was a daemon Ctrl-C ended the launcher. From now on the daemon gets
	// its own.
	catch(signals, unix.SIGINT)
	catchAnyway(signals, unix.SIGQUIT)
	setName(m.name)
	go passOn(signals, child)

	var status unix.WaitStatus
	ended := make(chan error, 1)
	go func() {
		ended <- uninterrupted(func() error {
			_, err := unix.Wait4(child, &status, 0, nil)
			return err
		})
		_ = write(w, wordEnded)
	}()
	for {
		switch hear(r) {
		case wordReady:
			os.Exit(0)
		case wordGroup:
			_ = unix.Setpgid(0, 0)
		case wordEnded:
			exitOn("wait for", <-ended)
			endLike(m.how, status)
		}
	}
}

// catch has signals delivered to c, but not SIGHUP or SIGINT if the caller ignored it.
// signal.Ignored knows of no others.
func catch(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// catchAnyway also has a signal delivered whose handler was removed behind os/signal's
// back, by package quiet or by C: after Ignore, Notify installs it again.
func catchAnyway(c chan<- os.Signal, s os.Signal) {
	signal.Ignore(s)
	signal.Notify(c, s)
}

// startDaemon starts the program once more, with the end w of the pipe.
func startDaemon(m launcherMark, w int) (child int) {
	path, err := program()
	exitOn("find", err)
	_, _ = unix.FcntlInt(uintptr(w), unix.F_SETFD, 0)
	mark := daemonMark{launcher: pid(), fd: w, replaced: m.replaced, name: m.name}
	child, err = syscall.ForkExec(path, atStart.args, &syscall.ProcAttr{
		Env:   append(atStart.env, mark.String()),
		Files: []uintptr{0, 1, 2},
	})
	exitOn("start", err)
	return child
}

// passOn passes on what was sent to the launcher alone. The terminal's signals
// are only caught: the daemon, in the same process group, got its own.
func passOn(signals <-chan os.Signal, child int) {
	for s := range signals {
		if s == unix.SIGTERM || s == unix.SIGHUP {
			_ = unix.Kill(child, s.(unix.Signal))
		}
	}
}

func hear(r int) string {
	word := make([]byte, 1)
	err := uninterrupted(func() error {
		_, err := unix.Read(r, word)
		return err
	})
	exitOn("read pipe from", err)
	return string(word)
}

// endLike ends the launcher the way the daemon ended before it was ready.
func endLike(how int, status unix.WaitStatus) {
	if status.Signaled() {
		dieOf(status.Signal())
		os.Exit(128 + int(status.Signal()))
	}
	code := status.ExitStatus()
	if code == 0 && how == implicit { // after Detach it may have been a --version
		exitOn("detach", errors.New("exited with status 0 before it was ready"))
	}
	os.Exit(code)
}

// exitOn ends the launcher if it fails itself. The line names the program, for it may
// be one of many on a console.
func exitOn(operation string, err error) {
	if err != nil {
		os.Stderr.WriteString(opError(operation, atStart.args[0], err).Error() + "\n")
		os.Exit(1)
	}
}

// marker is the environment variable that makes a launcher, or a daemon, of the
// process that it names: COPY:ROLE:NUMBER:…:NAME. It is gone before main runs. A copy of
// this package must understand another version's marker, to see that it is not its own:
// a new version may add numbers, but take none away.
const marker = "_DAEMON_DETACH"

// launcherMark makes a launcher of the process that executes the program.
type launcherMark struct {
	pid      int // of that process
	stderr   int // see muteStderr
	how      int // the daemon comes about: by Ready, or by an explicit Detach
	replaced int // see replacedStandard
	name     string
}

const (
	implicit = iota
	explicit
)

func (m launcherMark) String() string {
	return formatMark("launcher", m.name, m.pid, m.stderr, m.how, m.replaced)
}

// formatMark makes the variable for this copy of the package. The name, which is
// what ps(1) shows of the program, may hold anything.
func formatMark(role, name string, numbers ...int) string {
	m := marker + "=" + packagePath() + ":" + role
	for _, n := range numbers {
		m += ":" + strconv.Itoa(n)
	}
	return m + ":" + name
}

// parseMark returns a launcherMark, a daemonMark or, if the value is malformed, nil;
// and the copy of the package that it is for.
func parseMark(value string) (owner string, mark any) {
	var l launcherMark
	var d daemonMark
	owner, rest, _ := strings.Cut(value, ":")
	switch {
	case scanMark(rest, "launcher", &l.name, &l.pid, &l.stderr, &l.how, &l.replaced):
		return owner, l
	case scanMark(rest, "daemon", &d.name, &d.launcher, &d.fd, &d.replaced):
		return owner, d
	}
	return owner, nil
}

func scanMark(text, role string, name *string, numbers ...*int) (ok bool) {
	*name, ok = strings.CutPrefix(text, role+":")
	for _, n := range numbers {
		field, rest, _ := strings.Cut(*name, ":")
		number, err := strconv.Atoi(field)
		*n, *name, ok = number, rest, ok && err == nil
	}
	return ok
}

// takeMarker removes the marker from the environment and returns what it says to
// this copy of the package. What is for another copy stays for that one's init. A
// setuid program takes no orders from its caller's environment.
func takeMarker() (mark any) {
	value, marked := os.LookupEnv(marker)
	owner, mark := parseMark(value)
	if !marked || mark != nil && owner != packagePath() {
		return nil
	}
	os.Unsetenv(marker)
	if secure() {
		return nil
	}
	return mark
}

// startedAgain reports whether this process is a launcher or a daemon, and this copy
// of the package has not been told: it is another copy's, or an initializer has
// removed the marker. The kernel still has it, behind all other variables.
func startedAgain() bool {
	value, marked := strings.CutPrefix(lastVariable(), marker+"=")
	owner, mark := parseMark(value)
	if !marked || secure() {
		return false
	}
	switch m := mark.(type) {
	case launcherMark:
		return m.pid == pid()
	case daemonMark:
		return owner != packagePath() || m.launcher == unix.Getppid()
	}
	return false
}

// packagePath tells one copy of this package in a program from another, such as
// a fork of it or its next major version.
func packagePath() string {
	pc, _, _, _ := runtime.Caller(0)
	return strings.TrimSuffix(runtime.FuncForPC(pc).Name(), ".packagePath")
}
