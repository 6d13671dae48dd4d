//go:build linux

package detaching_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// The initializers of packages whose path sorts first, and which do not import
// this package, run before it knows what the process is: in the launcher and in
// the daemon, too.

// earlySources add such a package to the program. It imports no more than this
// package does, or it would be initialized later.
var earlySources = map[string]string{
	"early.go": `package main

import _ "an.example/program/early"
`,
	"early/early.go": `package early

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unsafe"
)

func init() {
	isLauncher := strings.Contains(os.Getenv("_DAEMON_DETACH"), ":launcher:")
	isDaemon := strings.Contains(os.Getenv("_DAEMON_DETACH"), ":daemon:")
	switch os.Getenv("EARLY") {
	case "start a helper":
		if os.Args[0] != "helper" {
			_, err := syscall.ForkExec("/proc/self/exe", []string{"helper"}, &syscall.ProcAttr{Env: os.Environ()})
			if err != nil {
				panic(err)
			}
		}
	case "ignore SIGCHLD":
		signal.Ignore(syscall.SIGCHLD)
	case "ignore SIGCHLD as C does":
		ignore := [8]uintptr{1} // SIG_IGN
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGCHLD), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
	case "unset the supervisor":
		os.Unsetenv(os.Getenv("VARIABLE"))
	case "take what is passed":
		syscall.CloseOnExec(3)
	case "take what is passed, and unset":
		syscall.CloseOnExec(3)
		os.Unsetenv("LISTEN_PID")
	case "hold the launcher up":
		if isLauncher {
			fifo, err := syscall.Open(os.Getenv("FIFO"), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				panic(err)
			}
			syscall.Read(fifo, make([]byte, 1)) // until the test closes it
			syscall.Close(fifo)
		}
	case "lose the launcher's marker":
		if isLauncher {
			os.Unsetenv("_DAEMON_DETACH")
		}
	case "lose the daemon's marker":
		if isDaemon {
			os.Unsetenv("_DAEMON_DETACH")
		}
	case "fail in the launcher":
		if isLauncher {
			panic("no early shop")
		}
	}
}
`,
}

// earlyProgram builds the program and returns what makes commands of it.
func earlyProgram(t *testing.T) func(l *testdaemon.Line, env ...string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	mustRun(t, testdaemon.GoCommand(t, module(t, earlySources), "build", "-mod=mod", "-o", path))
	return func(l *testdaemon.Line, env ...string) *exec.Cmd {
		cmd := exec.Command(path)
		cmd.Env = append(testdaemon.BareEnvironment(), env...)
		return l.Called(cmd)
	}
}

func TestHelperOfAnEarlierInitializerIsNoDaemon(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	for _, verb := range []string{"ready", "detach"} {
		t.Run(verb, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Pipe(command(l, "EARLY=start a helper"))
			both := func() (program, helper *testdaemon.Puppet) {
				for range 2 {
					if p := l.Process(); isHelper(t, p) {
						helper = p
					} else {
						program = p
					}
				}
				if program == nil || helper == nil {
					t.Fatal("one of the program and its helper has called twice")
				}
				return program, helper
			}
			mustDetach := func(helper *testdaemon.Puppet) {
				parent := helper.Stat().Parent
				again := helper.Detaches("ready")
				if got := again.Stat().Parent; !isHelper(t, again) || got != helper.PID {
					t.Errorf("the helper %d of %d is started again by %d", helper.PID, parent, got)
				}
				again.Do("ready")
				again.MustBeDetached()
			}
			first, helper := both()
			mustDetach(helper)
			first.Leaves(verb)
			helpers := map[int]*testdaemon.Puppet{} // by their parent
			var second *testdaemon.Puppet
			for range 3 {
				if p := l.Process(); isHelper(t, p) {
					helpers[p.Stat().Parent] = p
				} else {
					second = p
				}
			}
			if second == nil || helpers[first.PID] == nil || helpers[second.PID] == nil {
				t.Fatalf("the launcher is %d, the daemon %v, the helpers by parent are %v", first.PID, second, helpers)
			}
			mustDetach(helpers[first.PID])
			mustDetach(helpers[second.PID])
			first.MustLive()
			second.Do("detach")
			second.Do("ready")
			second.MustBeDetached()
			if got := c.Exit(); got != "exit 0" || c.Printed() != "" {
				t.Errorf("the caller sees %s and %s", got, c.Printed())
			}
		})
	}
}

// One that drops all variables that it does not know, for instance. There must be no
// launcher after launcher, nor daemon after daemon.
func TestInitializerThatRemovesTheMarker(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	for _, early := range []string{"lose the launcher's marker", "lose the daemon's marker"} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(early+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				c := l.Pipe(command(l, "EARLY="+early))
				l.Process().Leaves(verb)
				p := l.Process()
				for _, again := range []string{"ready", "detach"} {
					p.Refuses(again, "an initializer has removed _DAEMON_DETACH")
				}
				p.Leaves("123")
				if got := c.Exit(); got != "exit 3" || c.Printed() != "" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

func TestInitializerThatTakesWhatMainIsToHave(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	refuses := func(t *testing.T, script, words string, env ...string) {
		t.Helper()
		l := testdaemon.NewLine(t)
		cmd := testdaemon.UnderShell(command(l, env...), script)
		cmd.ExtraFiles = []*os.File{testdaemon.Memory(t, "passed")}
		c := l.Pipe(cmd)
		p := l.Process()
		p.Refuses("ready", words)
		p.Leaves("123")
		if got := c.Exit(); got != "exit 3" {
			t.Errorf("the caller sees %s and %s", got, c.Printed())
		}
	}
	for _, variable := range []string{"NOTIFY_SOCKET", "NOTIFY_FD", "UPSTART_JOB"} {
		t.Run(variable, func(t *testing.T) {
			refuses(t, `exec "$@"`, "removed its supervisor's variables", "EARLY=unset the supervisor",
				"VARIABLE="+variable, variable+"=3")
		})
	}
	for _, early := range []string{"take what is passed", "take what is passed, and unset"} {
		t.Run(early, func(t *testing.T) {
			refuses(t, `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "an initializer has taken what the supervisor passed",
				"EARLY="+early)
		})
	}
}

func isHelper(t *testing.T, p *testdaemon.Puppet) bool {
	t.Helper()
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	return string(cmdline) == "helper\x00"
}

func TestExitStatusIsSeenWhoeverIgnoresSIGCHLD(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	for name, test := range map[string]struct{ script, early string }{
		"caller":              {`trap "" CHLD; exec "$@"`, ""},
		"earlier initializer": {`exec "$@"`, "ignore SIGCHLD"},
		"both":                {`trap "" CHLD; exec "$@"`, "ignore SIGCHLD"},
		"C library":           {`exec "$@"`, "ignore SIGCHLD as C does"},
	} {
		t.Run(name, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			mustDetachAndFail(t, func() *exec.Cmd {
				return testdaemon.UnderShell(command(l, "EARLY="+test.early), test.script)
			}, "exit 3", "SIGTERM")
		})
	}
}

// deadlySignals end a program, and are sent to a launcher or, by a key, to all
// that the terminal's foreground has.
var deadlySignals = []struct {
	name, key string
	signal    unix.Signal
	exits     string // by the signal, or after the goroutines of one process
}{
	{"Ctrl-C", "\x03", 0, "SIGINT"},
	{`Ctrl-\`, "\x1c", 0, "SIGQUIT, exit 2"},
	{"TERM", "", unix.SIGTERM, "SIGTERM"},
	{"HUP", "", unix.SIGHUP, "SIGHUP"},
}

// The launcher is no program of the user's, and ends without a trace.
func TestSignalThatComesBeforeTheLauncherCanCatchItEndsTheDetach(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	for _, test := range deadlySignals {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				fifo := filepath.Join(t.TempDir(), "fifo")
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
				l := testdaemon.NewLine(t)
				c := l.Shell(command(l, "EARLY=hold the launcher up", "FIFO="+fifo))
				first := l.Process()
				first.Leaves(verb)
				release := holdUp(t, fifo)
				if test.key != "" {
					c.Type(test.key)
				} else {
					unix.Kill(first.PID, test.signal)
				}
				// A Go program does not let these wait, until its runtime has begun.
				testdaemon.WaitUntil(t, "the signal", func() bool { return !isSpared(first.PID) })
				release()
				bySignal, _, _ := strings.Cut(test.exits, ",")
				mustEndOf(t, c, bySignal)
				if printed := c.Printed(); strings.Contains(printed, "SIG") || strings.Contains(printed, "goroutine") {
					t.Errorf("the launcher shows itself: %s", printed)
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

// mustEndOf checks how a detach ended that a signal has hit.
func mustEndOf(t *testing.T, c testdaemon.Caller, exits string) {
	t.Helper()
	got, printed := c.Exit(), c.Printed()
	if !strings.Contains(exits, got) {
		t.Fatalf("the caller sees %s, want %s, and %s", got, exits, printed)
	}
	if strings.Contains(printed, "launch(") || strings.Count(printed, "goroutine 1 ") > 1 {
		t.Fatalf("the launcher shows itself: %s", printed)
	}
}

func TestPanicOfAnEarlierInitializerInTheLauncherIsSeen(t *testing.T) {
	t.Parallel()
	command := earlyProgram(t)
	for _, verb := range []string{"ready", "detach"} {
		t.Run(verb, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Shell(command(l, "EARLY=fail in the launcher"))
			l.Process().Leaves(verb)
			if got, printed := c.Exit(), c.Printed(); got != "exit 2" || strings.Count(printed, "panic: no early shop") != 1 {
				t.Errorf("the caller sees %s and %s", got, printed)
			}
			l.MustBeOver()
			l.MustBeSilent()
		})
	}
}

func TestSignalAtAnyInstantEndsTheDetach(t *testing.T) {
	t.Parallel()
	for _, test := range deadlySignals {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				start := func() (first *testdaemon.Puppet, c *testdaemon.Shell) {
					c = l.Shell(l.Command())
					return l.Process(), c
				}
				first, c := start()
				begun := time.Now()
				first.Detaches(verb).Leaves("exit 5")
				usual := time.Since(begun)
				c.Exit()
				for range testdaemon.Rounds(30) {
					first, c := start()
					first.Send(verb)
					time.Sleep(rand.N(usual))
					if test.key != "" {
						c.Type(test.key)
					} else {
						unix.Kill(first.PID, test.signal)
					}
					mustEndOf(t, c, test.exits)
					l.MustBeOver()
					for second := l.ProcessIfAny(first.PID); second != nil; {
						second = l.ProcessIfAny(first.PID)
					}
				}
			})
		}
	}
}

// A Go program shows its goroutines from the start of its runtime on, before any
// initializer.
func TestNoInstantShowsTheLauncher(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		t.Run(verb, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			usual := time.Duration(0)
			for range testdaemon.Rounds(50) {
				c := l.Shell(l.Command())
				first := l.Process()
				begun := time.Now()
				first.Send(verb)
				if usual > 0 {
					time.Sleep(rand.N(usual))
					unix.Kill(first.PID, unix.SIGQUIT)
				}
				for second := l.ProcessIfAny(first.PID); second != nil; second = l.ProcessIfAny(first.PID) {
					usual = max(usual, time.Since(begun))
					second.Leaves("exit 2") // as the first process does, if it was hit
				}
				mustEndOf(t, c, "SIGQUIT, exit 2")
				if printed := c.Printed(); strings.Contains(printed, "runtime.main()") &&
					!strings.Contains(printed, "main.main()") {
					t.Fatalf("the launcher shows itself: %s", printed)
				}
				l.MustBeOver()
			}
		})
	}
}

// holdUp returns once somebody reads the fifo, and waits to be released.
func holdUp(t *testing.T, fifo string) (release func()) {
	t.Helper()
	var fd int
	testdaemon.WaitUntil(t, "a reader of "+fifo, func() (there bool) {
		var err error
		fd, err = unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err == nil
	})
	return func() { unix.Close(fd) }
}

// isSpared reports whether the process lives and no signal waits for it.
func isSpared(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && strings.Contains(string(status), "\nShdPnd:\t0000000000000000\n") &&
		!strings.Contains(string(status), "\nState:\tZ")
}
