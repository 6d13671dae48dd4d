//go:build unix

package daemon

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the launcher reads from the pipe: words of the daemon, and its own that
// the daemon has ended. One reader of one pipe sees which came first.
const (
	wordReady = "r"
	wordGroup = "g" // the daemon needs a process group that it can join
	wordEnded = "e"
)

// launch is the launcher's whole life: it starts the daemon and ends as the
// daemon says, or as the daemon ends.
func launch(m mark) {
	r, w, err := openPipe()
	exitOn("open", "pipe", err)
	if signal.Ignored(unix.SIGCHLD) { // which would take the daemon's exit status away
		signal.Notify(make(chan os.Signal, 1), unix.SIGCHLD)
	}
	signals := make(chan os.Signal, 16)
	catch(signals, unix.SIGTERM, unix.SIGHUP)
	child := startDaemon(m, w)
	// What the terminal sent before this was for the launcher alone, and ended it.
	catch(signals, unix.SIGINT)
	signal.Ignore(unix.SIGQUIT) // or Notify would not know that package quiet has taken its handler away
	signal.Notify(signals, unix.SIGQUIT)
	endQuiet()
	setName(m.name) // for which an ordinary user must be dumpable
	go passOn(signals, child)

	ended := make(chan unix.WaitStatus, 1)
	go func() {
		ended <- waitFor(child)
		_ = write(w, wordEnded)
	}()
	for {
		switch hear(r) {
		case wordReady:
			os.Exit(0)
		case wordGroup:
			_ = unix.Setpgid(0, 0)
		case wordEnded:
			endLike(m.how, <-ended)
		}
	}
}

// catch has signals delivered to c, except those that the caller ignored.
func catch(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// startDaemon starts the program once more. The daemon inherits the end w of the
// pipe, whose number is above the caller's own.
func startDaemon(m mark, w int) (child int) {
	path, err := program()
	exitOn("find", path, err)
	_, err = unix.FcntlInt(uintptr(w), unix.F_SETFD, 0)
	exitOn("pass on", "pipe", err)
	m.role, m.fd = daemonRole, w
	child, err = syscall.ForkExec(path, atStart.args, &syscall.ProcAttr{
		Env:   append(atStart.env, m.String()),
		Files: []uintptr{0, 1, 2},
	})
	exitOn("start", atStart.args[0], err)
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

func waitFor(child int) (status unix.WaitStatus) {
	err := uninterrupted(func() error {
		_, err := unix.Wait4(child, &status, 0, nil)
		return err
	})
	exitOn("wait for", "process "+strconv.Itoa(child), err)
	return status
}

func hear(pipe int) string {
	word := make([]byte, 1)
	err := uninterrupted(func() error {
		_, err := unix.Read(pipe, word)
		return err
	})
	exitOn("read", "pipe", err)
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
		exitOn("detach", atStart.args[0], errors.New("exited with status 0 before it was ready"))
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
