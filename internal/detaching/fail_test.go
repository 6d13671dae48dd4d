//go:build linux

package detaching_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// What becomes of a detach that does not succeed, and whom it tells.

func TestCallerSeesHowInitializationFailed(t *testing.T) {
	t.Parallel()
	mayDumpCore(t)
	type failure struct {
		order, exit, said string
		goroutines        bool   // a Go program's crash, seen once
		variable          string // in the environment
	}
	failures := []failure{
		{order: "exit 3", exit: "exit 3"},
		{order: "exit 255", exit: "exit 255"},
		{order: "log.Fatal no shop", exit: "exit 1", said: "no shop\n"},
		{order: "panic no shop", exit: "exit 2", said: "panic: no shop\n", goroutines: true},
		{order: "panic no lock", exit: "SIGABRT", said: "panic: no lock\n", goroutines: true, variable: "GOTRACEBACK=crash"},
		{order: "become echo no shop >&2; exit 9", exit: "exit 9", said: "no shop\n"},
	}
	for _, name := range []string{"QUIT", "ABRT", "SEGV", "TERM", "KILL", "HUP", "INT", "USR1", "BUS", "TRAP"} {
		failures = append(failures, failure{order: "become kill -" + name + " $$", exit: "SIG" + name})
	}
	for _, verb := range []string{"ready", "detach"} {
		for _, f := range failures {
			t.Run(verb+"/"+f.order, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				cmd := l.Command()
				cmd.Dir = t.TempDir() // for the daemon's core
				cmd.Env = append(cmd.Env, f.variable)
				c := l.Pipe(testdaemon.UnderShell(cmd, `ulimit -c unlimited && exec "$@"`))
				second := l.Process().Detaches(verb)
				second.Do("say opening")
				second.Leaves(f.order)
				if got := c.Exit(); got != f.exit {
					t.Errorf("the caller sees %s, want %s", got, f.exit)
				}
				said, ok := strings.CutPrefix(c.Printed(), "opening\n"+f.said)
				if !ok || !f.goroutines && said != "" || f.goroutines && strings.Count(said, "goroutine 1 ") != 1 {
					t.Errorf("printed %q", c.Printed())
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

// mayDumpCore skips the test if no core would show that it is not the launcher's.
func mayDumpCore(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max != ^uint64(0) && os.Geteuid() != 0 {
		testdaemon.SkipUnlessForbidden(t, fmt.Sprintf("no core may be longer than %d bytes", limit.Max))
	}
}

func TestEachCallerSeesAFailure(t *testing.T) {
	t.Parallel()
	for name, start := range callers {
		for verb, f := range map[string]struct{ order, exit string }{
			"ready":  {"log.Fatal no shop", "exit 1"},
			"detach": {"become kill -TERM $$", "SIGTERM"},
		} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				c := start(l)
				l.Process().Detaches(verb).Leaves(f.order)
				if got := c.Exit(); got != f.exit {
					t.Errorf("the caller sees %s, want %s", got, f.exit)
				}
				if verb == "ready" && !strings.Contains(name, "error") &&
					strings.ReplaceAll(c.Printed(), "\r", "") != "no shop\n" {
					t.Errorf("printed %q", c.Printed())
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

// A program that ends before it is ready may be all right if main has called Detach
// (--version), and is not if main was to call Ready alone.
func TestCallerSeesAnEndWithStatus0BeforeReady(t *testing.T) {
	t.Parallel()
	for verb, want := range map[string]string{"detach": "exit 0", "ready": "exit 1"} {
		l := testdaemon.NewLine(t)
		c := l.Pipe(l.Command())
		second := l.Process().Detaches(verb)
		second.Do("say version 1")
		second.Leaves("exit 0")
		if got := c.Exit(); got != want {
			t.Errorf("after %s the caller sees %s, want %s", verb, got, want)
		}
		said, ok := strings.CutPrefix(c.Printed(), "version 1\n")
		if lines := strings.Count(said, "\n"); !ok || verb == "detach" && said != "" || verb == "ready" && lines != 1 {
			t.Errorf("after %s: printed %q", verb, c.Printed())
		}
	}
}

func TestNothingIsLeftOfADetachThatIsKilled(t *testing.T) {
	t.Parallel()
	const launcher, daemon = 0, 1
	for _, test := range []struct {
		name   string
		whom   int
		signal unix.Signal
		key    string // typed, in place of a signal
		exit   string
	}{
		{name: "launcher TERM", whom: launcher, signal: unix.SIGTERM, exit: "SIGTERM"},
		{name: "launcher HUP", whom: launcher, signal: unix.SIGHUP, exit: "SIGHUP"},
		{name: "launcher KILL", whom: launcher, signal: unix.SIGKILL, exit: "SIGKILL"},
		{name: "daemon TERM", whom: daemon, signal: unix.SIGTERM, exit: "SIGTERM"},
		{name: "daemon HUP", whom: daemon, signal: unix.SIGHUP, exit: "SIGHUP"},
		{name: "daemon INT", whom: daemon, signal: unix.SIGINT, exit: "SIGINT"},
		{name: "daemon KILL", whom: daemon, signal: unix.SIGKILL, exit: "SIGKILL"},
		{name: "Ctrl-C", key: "\x03", exit: "SIGINT"},
		{name: `Ctrl-\`, key: "\x1c", exit: "exit 2"}, // and goroutines, by the daemon
		{name: "hang-up", exit: "SIGHUP"},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				c := l.Shell(l.Command())
				first := l.Process()
				second := first.Detaches(verb)
				first.MustLive()
				waitForName(t, first) // the launcher has caught by then what the terminal sends
				switch {
				case test.key != "":
					c.Type(test.key)
				case test.signal != 0:
					unix.Kill([]int{first.PID, second.PID}[test.whom], test.signal)
				default:
					c.Hangup()
				}
				if got := c.Exit(); got != test.exit {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				if test.name == "launcher KILL" { // nobody is there to end the daemon, but its Ready
					mustNotFindTheLauncher(t, second)
					second.Leaves("exit 1")
				}
				second.Ends()
				l.MustBeOver()
				l.MustBeSilent()
				if n := strings.Count(c.Printed(), "goroutine 1 "); n > 1 {
					t.Errorf("the crash of %d programs is seen: %s", n, c.Printed())
				}
			})
		}
	}
}

// mustNotFindTheLauncher checks Ready and Detach in a daemon that has lost its
// launcher, or was never given one.
func mustNotFindTheLauncher(t *testing.T, p *testdaemon.Puppet) {
	t.Helper()
	before, standard := p.Stat(), p.Standard()
	for range 2 {
		p.Refuses("ready", "daemon: detach", "launcher")
		p.Refuses("detach", "daemon: detach", "launcher")
	}
	if after := p.Stat(); after.Session != before.Session || p.Standard() != standard {
		t.Errorf("it was %+v, %q, and is %+v, %q", before, standard, after, p.Standard())
	}
}

// A launcher that is killed at any moment leaves at most one process, which
// never detaches again.
func TestDaemonWithoutLauncherNeverDetachesAgain(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	orphans := 0
	l.Pipe(l.Command())
	first := l.Process()
	begun := time.Now()
	first.Detaches("ready").Leaves("exit 1")
	usual := time.Since(begun)
	launchers := testdaemon.Rounds(200)
	for round := range launchers {
		cmd := l.Command()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c := l.Pipe(cmd)
		first := l.Process()
		first.Leaves([]string{"ready", "detach"}[round%2])
		if round%4 < 2 || !awaitChild(t, first) {
			time.Sleep(rand.N(usual))
		}
		unix.Kill(first.PID, unix.SIGKILL)
		mustBeGone(t, first)
		if second := l.ProcessIfAny(first.PID); second != nil {
			orphans++
			mustNotFindTheLauncher(t, second)
			second.Leaves("exit 1")
		}
		if got := c.Exit(); got != "SIGKILL" {
			t.Fatalf("the caller sees %s and %s", got, c.Printed())
		}
	}
	l.MustBeOver()
	l.MustBeSilent()
	if orphans < launchers/10 {
		t.Errorf("of %d launchers only %d had a daemon", launchers, orphans)
	}
	t.Logf("%d daemons without a launcher", orphans)
}

// awaitChild returns as soon as the process has a child, or false if the kernel was
// built without telling.
func awaitChild(t *testing.T, p *testdaemon.Puppet) (told bool) {
	t.Helper()
	testdaemon.WaitUntil(t, fmt.Sprintf("a child of process %d", p.PID), func() bool {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID))
		told = len(lists) > 0
		return !told || slices.ContainsFunc(lists, func(list string) bool {
			children, _ := os.ReadFile(list)
			return len(children) > 0
		})
	})
	return told
}

// mustBeGone waits until the process has ended and been waited for. Until then
// one of its threads may live on, and be the parent of its child.
func mustBeGone(t *testing.T, p *testdaemon.Puppet) {
	t.Helper()
	testdaemon.WaitUntil(t, fmt.Sprintf("the end of process %d", p.PID), func() bool {
		return unix.Kill(p.PID, 0) == unix.ESRCH
	})
}

// realMarkers are those of a detach, and pid the launcher's, which they name.
func realMarkers(t *testing.T) (launcher, daemon, pid string) {
	t.Helper()
	l := testdaemon.NewLine(t)
	c := l.Pipe(l.Command())
	first := l.Process()
	second := first.Detaches("ready")
	launcher, daemon, pid = first.Marker(), second.Marker(), strconv.Itoa(first.PID)
	if !strings.Contains(launcher, pid) || !strings.Contains(daemon, pid) {
		t.Fatalf("the markers of %s are %q and %q", pid, launcher, daemon)
	}
	second.Do("ready")
	c.Exit()
	return launcher, daemon, pid
}

func TestForgedMarkerIsIgnored(t *testing.T) {
	t.Parallel()
	launcher, daemon, pid := realMarkers(t)
	for _, value := range []string{
		"", "x", "////////////", strings.Repeat("launcher/", 10_000),
		launcher, // of another process
		strings.Replace(launcher, pid, "x", 1), launcher[:len(launcher)/2],
		strings.Replace(daemon, pid, "x", 1), daemon[:len(daemon)/2],
		strings.Replace(daemon, pid, "99999999999999999999", 1), strings.ReplaceAll(daemon, ":", " "),
	} {
		l := testdaemon.NewLine(t)
		cmd := l.Command()
		cmd.Env = append(cmd.Env, "_DAEMON_DETACH="+value)
		c := l.Pipe(cmd)
		first := l.Process()
		mustHaveNoMarker(t, first)
		second := first.Detaches("ready")
		mustHaveNoMarker(t, second)
		second.Do("ready")
		if got := c.Exit(); got != "exit 0" || c.Printed() != "" {
			t.Errorf("%.40q: the caller sees %s and %s", value, got, c.Printed())
		}
	}
}

func TestForgedMarkerMakesNoDaemon(t *testing.T) {
	t.Parallel()
	_, daemon, pid := realMarkers(t)
	forged := map[string]string{} // what is wrong with it
	for _, launcher := range []string{pid, "1", "0", "-1", "99999999", strconv.Itoa(os.Getpid())} {
		forged["launcher "+launcher] = strings.Replace(daemon, pid, launcher, 1)
	}
	// The parent is right, and the descriptor a stranger's.
	fields := strings.Split(strings.Replace(daemon, pid, strconv.Itoa(os.Getpid()), 1), ":")
	for _, fd := range []string{"-1", "0", "1", "2", "3", "99"} {
		fields[3] = fd
		forged["descriptor "+fd] = strings.Join(fields, ":")
	}
	for name, marker := range forged {
		l := testdaemon.NewLine(t)
		file, err := os.Create(filepath.Join(t.TempDir(), "of a stranger"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := l.Command()
		cmd.Env, cmd.ExtraFiles = append(cmd.Env, "_DAEMON_DETACH="+marker), []*os.File{file}
		c := l.Pipe(cmd)
		p := l.Process()
		had := p.FileOf(3)
		mustHaveNoMarker(t, p)
		mustNotFindTheLauncher(t, p)
		if has := p.FileOf(3); has != had {
			t.Errorf("%s: descriptor 3 was %s and is %s", name, had, has)
		}
		p.Do("say here")
		p.Leaves("exit 7")
		if got := c.Exit(); got != "exit 7" || c.Printed() != "here\n" {
			t.Errorf("%s: the caller sees %s and %q", name, got, c.Printed())
		}
		if content, err := os.ReadFile(file.Name()); err != nil || len(content) > 0 {
			t.Errorf("%s: %q was written (%v)", name, content, err)
		}
		l.MustBeOver()
		l.MustBeSilent()
	}
}

func mustHaveNoMarker(t *testing.T, p *testdaemon.Puppet) {
	t.Helper()
	for _, question := range []string{"environ", "child-environ"} {
		if environ := p.Ask(question); strings.Contains(environ, "_DAEMON") {
			t.Errorf("%s: %.1000s", question, environ)
		}
	}
}

// A setuid program takes no orders from its caller's environment, and cannot
// start itself again with the rights that it has.
func TestSetuidProgramDoesNotDetach(t *testing.T) {
	t.Parallel()
	testdaemon.MustBeRoot(t)
	launcher, daemon, pid := realMarkers(t)
	for _, marker := range []string{"", strings.Replace(launcher, pid, "$$", 1), strings.Replace(daemon, pid, "$PPID", 1)} {
		l := testdaemon.NewLine(t)
		cmd := l.Command()
		cmd.Path = copyOf(t, cmd.Path)
		// A directory of the testing package is root's alone.
		if err := os.Chmod(filepath.Join(filepath.Dir(cmd.Path), "../.."), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(cmd.Path, 0o755|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
		script := `exec "$@"`
		if marker != "" {
			script = `export _DAEMON_DETACH="` + marker + `"; ` + script
		}
		c := l.Pipe(testdaemon.AsNobody(t, testdaemon.UnderShell(cmd, script)))
		p := l.Process()
		if fields := strings.Fields(p.Status("Uid")); fields[0] != "65534" || fields[1] != "0" {
			testdaemon.SkipUnlessForbidden(t, "no setuid programs on the file system of "+cmd.Path)
		}
		mustHaveNoMarker(t, p)
		for range 2 {
			p.Refuses("ready", "setuid")
			p.Refuses("detach", "setuid")
		}
		p.Leaves("exit 7")
		if got := c.Exit(); got != "exit 7" {
			t.Errorf("%s: the caller sees %s and %s", marker, got, c.Printed())
		}
		l.MustBeOver()
		l.MustBeSilent()
	}
}

// What a program has given up it can't get back by starting again, unless it
// has called Detach before it gave it up.
func TestRightsThatAreDropped(t *testing.T) {
	t.Parallel()
	testdaemon.MustBeRoot(t)
	for name, order := range map[string]string{
		"user": "setuid 65534", "group": "setgid 65534", "root directory": "chroot " + t.TempDir(),
	} {
		t.Run(name+"/before Ready", func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Pipe(l.Command())
			p := l.Process()
			p.Do(order)
			p.Refuses("ready", "have changed", "call daemon.Detach first in main")
			p.Refuses("detach", "have changed", "call daemon.Detach first in main")
			p.Leaves("exit 7")
			if got := c.Exit(); got != "exit 7" {
				t.Errorf("the caller sees %s and %s", got, c.Printed())
			}
			l.MustBeOver()
			l.MustBeSilent()
		})
		t.Run(name+"/after Detach", func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Pipe(l.Command())
			second := l.Process().Detaches("detach")
			second.Do(order)
			second.Do("ready")
			second.MustBeDetached()
			if got := c.Exit(); got != "exit 0" {
				t.Errorf("the caller sees %s and %s", got, c.Printed())
			}
		})
	}
}

// What the daemon says would fill that file.
func TestFileInPlaceOfDevNullIsAReasonNotToDetach(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		t.Run(verb, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "null")
			l := testdaemon.NewLine(t)
			c := l.Pipe(testdaemon.InNamespaces(t, testdaemon.UnderShell(l.Command(),
				`: >'`+file+`' && mount --bind '`+file+`' /dev/null || exit 9; exec "$@"`), "--mount"))
			p := l.Process().Detaches(verb)
			p.Refuses("ready", "daemon: detach: open /dev/null: no such device")
			if session := p.Stat().Session; session == p.PID {
				t.Error("it has left its session")
			}
			p.Do("say here")
			p.Leaves("exit 7")
			if got := c.Exit(); got != "exit 7" || c.Printed() != "here\n" {
				t.Errorf("the caller sees %s and %q", got, c.Printed())
			}
			if content, err := os.ReadFile(file); err != nil || len(content) > 0 {
				t.Errorf("the file holds %q (%v)", content, err)
			}
			l.MustBeOver()
		})
	}
}

// The program may go on, and try again.
func TestProgramThatCannotBeExecutedGoesOnUndamaged(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command()
	cmd.Path = copyOf(t, cmd.Path)
	file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	c := l.Pipe(testdaemon.UnderShell(cmd, `trap "" INT; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`))
	first := l.Process()
	first.Do("catch HUP USR1")
	first.Ask("files")
	descriptors := first.Descriptors()
	first.Do("profile")
	ignored, handled := first.Status("SigIgn"), first.Status("SigCgt")

	if err := os.Chmod(cmd.Path, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		first.Refuses("ready", "call daemon.Detach first in main", "execve", "permission denied")
		first.Refuses("detach", "execve", "permission denied")
	}
	first.Do("profiled")
	for _, signal := range []unix.Signal{unix.SIGHUP, unix.SIGUSR1} {
		unix.Kill(first.PID, signal)
		if got := first.Ask("signal"); got != signal.String() {
			t.Errorf("it gets %s, want %s", got, signal)
		}
	}
	if i, h := first.Status("SigIgn"), first.Status("SigCgt"); i != ignored || h != handled {
		t.Errorf("it ignores %s and handles %s, and did %s and %s", i, h, ignored, handled)
	}
	// The profile reads files, too, in a goroutine of its own.
	testdaemon.WaitUntil(t, "the descriptors "+descriptors, func() bool { return first.Descriptors() == descriptors })
	info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", first.PID))
	if !strings.Contains(string(info), "flags:\t02") { // O_CLOEXEC, as Files has set it
		t.Errorf("descriptor 3: %s", info)
	}

	if err := os.Chmod(cmd.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	first.Detaches("ready").Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

func TestLauncherThatFailsNamesTheOperationAndTheProgram(t *testing.T) {
	t.Parallel()
	mustFail := func(l *testdaemon.Line, c testdaemon.Caller, words string) {
		t.Helper()
		if got := c.Exit(); got != "exit 1" || !regexp.MustCompile(words).MatchString(c.Printed()) {
			t.Errorf("the caller sees %s and %q, want %s", got, c.Printed(), words)
		}
		l.MustBeOver()
		l.MustBeSilent()
	}
	l := testdaemon.NewLine(t)
	c := l.Pipe(l.Command())
	first := l.Process()
	first.Do("limit-files 4 4")
	first.Leaves("ready")
	mustFail(l, c, `^daemon: open pipe to .*programs: too many open files\n$`)

	l = testdaemon.NewLine(t)
	c = l.Pipe(l.Command())
	first = l.Process()
	first.Do("limit-files 8 8")
	first.Leaves("ready")
	mustFail(l, c, `^daemon: (open pipe to|start) .*programs: too many open files\n$`)
}

// The word of a daemon that ends at once is not lost.
func TestDaemonThatEndsRightAfterReadyWasReady(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	for range testdaemon.Rounds(50) {
		c := l.Pipe(l.Command())
		l.Process().Detaches("ready").Leaves("ready-exit 3")
		if got := c.Exit(); got != "exit 0" {
			t.Fatalf("the caller sees %s and %s", got, c.Printed())
		}
	}
}

// A pipe that is closed is no sign that the daemon is gone.
func TestLauncherWaitsForTheDaemonNotForItsPipe(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	c := l.Pipe(l.Command())
	first := l.Process()
	pipes := strings.Count(first.Descriptors(), "pipe")
	second := first.Detaches("ready")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	second.Leaves(fmt.Sprintf("become echo shell; read -r code <'%s'; exit $code", fifo))
	testdaemon.WaitUntil(t, "the shell", func() bool { return c.Printed() != "" })
	first.MustLive()
	if got := second.Descriptors(); strings.Count(got, "pipe") != pipes {
		t.Errorf("the shell has inherited %s", got)
	}
	if err := os.WriteFile(fifo, []byte("5\n"), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.Exit(); got != "exit 5" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

func TestProgramThatClosesAllDescriptorsHasNotDetached(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"256", "6000"} {
		for _, verb := range []string{"Ready", "Detach"} {
			l := testdaemon.NewLine(t)
			path := filepath.Join(t.TempDir(), "of a stranger")
			cmd := l.Called(testdaemon.Program(t, "closer", verb, path))
			c := l.Pipe(testdaemon.UnderShell(cmd, "ulimit -n "+limit+`; exec "$@"`))
			if got := c.Exit(); got != "exit 4" || !strings.Contains(c.Printed(), "find launcher descriptor") {
				t.Errorf("%s: the caller sees %s and %q", verb, got, c.Printed())
			}
			l.MustBeOver()
			if content, err := os.ReadFile(path); err != nil || len(content) > 0 {
				t.Errorf("%s: the file that took the numbers holds %q (%v)", verb, content, err)
			}
		}
	}
}
