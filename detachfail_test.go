//go:build linux

package daemon_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
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
				l := newLine(t)
				cmd := l.command()
				cmd.Dir = t.TempDir() // for the daemon's core
				cmd.Env = append(cmd.Env, f.variable)
				c := l.pipe(underShell(cmd, `ulimit -c unlimited && exec "$@"`))
				second := l.process().detaches(verb)
				second.do("say opening")
				second.leaves(f.order)
				if got := c.exit(); got != f.exit {
					t.Errorf("the caller sees %s, want %s", got, f.exit)
				}
				said, ok := strings.CutPrefix(c.printed(), "opening\n"+f.said)
				if !ok || !f.goroutines && said != "" || f.goroutines && strings.Count(said, "goroutine 1 ") != 1 {
					t.Errorf("printed %q", c.printed())
				}
				l.mustBeOver()
				l.mustBeSilent()
			})
		}
	}
}

// mayDumpCore skips the test where no core would show that it is not the
// launcher's.
func mayDumpCore(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max != ^uint64(0) && os.Geteuid() != 0 {
		skipUnlessForbidden(t, fmt.Sprintf("no core may be longer than %d bytes", limit.Max))
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
				l := newLine(t)
				c := start(l)
				l.process().detaches(verb).leaves(f.order)
				if got := c.exit(); got != f.exit {
					t.Errorf("the caller sees %s, want %s", got, f.exit)
				}
				if verb == "ready" && !strings.Contains(name, "error") && strings.ReplaceAll(c.printed(), "\r", "") != "no shop\n" {
					t.Errorf("printed %q", c.printed())
				}
				l.mustBeOver()
				l.mustBeSilent()
			})
		}
	}
}

// That it was over before it was ready may be all right where main has called
// Detach (--version), and is not where it would have called Ready.
func TestCallerSeesAnEndWithStatus0BeforeReady(t *testing.T) {
	t.Parallel()
	for verb, want := range map[string]string{"detach": "exit 0", "ready": "exit 1"} {
		l := newLine(t)
		c := l.pipe(l.command())
		second := l.process().detaches(verb)
		second.do("say version 1")
		second.leaves("exit 0")
		if got := c.exit(); got != want {
			t.Errorf("after %s the caller sees %s, want %s", verb, got, want)
		}
		said, ok := strings.CutPrefix(c.printed(), "version 1\n")
		if lines := strings.Count(said, "\n"); !ok || verb == "detach" && said != "" || verb == "ready" && lines != 1 {
			t.Errorf("after %s: printed %q", verb, c.printed())
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
				l := newLine(t)
				c := l.shell(l.command())
				first := l.process()
				second := first.detaches(verb)
				first.mustLive()
				switch {
				case test.key != "":
					c.Type(test.key)
				case test.signal != 0:
					unix.Kill([]int{first.pid, second.pid}[test.whom], test.signal)
				default:
					c.Hangup()
				}
				if got := c.exit(); got != test.exit {
					t.Errorf("the caller sees %s and %s", got, c.printed())
				}
				if test.name == "launcher KILL" { // nobody is there to end the daemon, but its Ready
					second.mustNotFindTheLauncher()
					second.leaves("exit 1")
				}
				second.ends()
				l.mustBeOver()
				l.mustBeSilent()
				if n := strings.Count(c.printed(), "goroutine 1 "); n > 1 {
					t.Errorf("the crash of %d programs is seen: %s", n, c.printed())
				}
			})
		}
	}
}

// mustNotFindTheLauncher checks Ready and Detach in a daemon that has lost its
// launcher, or was never given one.
func (p *live) mustNotFindTheLauncher() {
	p.t.Helper()
	before, standard := p.stat(), p.standard()
	for range 2 {
		p.refuses("ready", "daemon: detach", "launcher")
		p.refuses("detach", "daemon: detach", "launcher")
	}
	if after := p.stat(); after.session != before.session || p.standard() != standard {
		p.t.Errorf("it was %+v, %q, and is %+v, %q", before, standard, after, p.standard())
	}
}

// A launcher that is killed at any moment leaves at most one process, which
// never detaches again.
func TestDaemonWithoutLauncherNeverDetachesAgain(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	orphans := 0
	l.pipe(l.command())
	first := l.process()
	begun := time.Now()
	first.detaches("ready").leaves("exit 1")
	usual := time.Since(begun)
	launchers := rounds(200)
	for round := range launchers {
		cmd := l.command()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c := l.pipe(cmd)
		first := l.process()
		first.leaves([]string{"ready", "detach"}[round%2])
		if round%4 < 2 || !first.awaitChild() {
			time.Sleep(rand.N(usual))
		}
		unix.Kill(first.pid, unix.SIGKILL)
		first.mustBeGone()
		if second := l.processIfAny(first.pid); second != nil {
			orphans++
			second.mustNotFindTheLauncher()
			second.leaves("exit 1")
		}
		if got := c.exit(); got != "SIGKILL" {
			t.Fatalf("the caller sees %s and %s", got, c.printed())
		}
	}
	l.mustBeOver()
	l.mustBeSilent()
	if orphans < launchers/10 {
		t.Errorf("of %d launchers only %d had a daemon", launchers, orphans)
	}
	t.Logf("%d daemons without a launcher", orphans)
}

// awaitChild returns as soon as the process has a child, or false where the
// kernel was built without telling.
func (p *live) awaitChild() (told bool) {
	p.t.Helper()
	waitUntil(p.t, fmt.Sprintf("a child of process %d", p.pid), func() bool {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.pid))
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
func (p *live) mustBeGone() {
	p.t.Helper()
	waitUntil(p.t, fmt.Sprintf("the end of process %d", p.pid), func() bool {
		return unix.Kill(p.pid, 0) == unix.ESRCH
	})
}

// processIfAny returns the next puppet that calls, or nil once the process
// group has no member.
func (l *line) processIfAny(group int) *live {
	l.t.Helper()
	for {
		there := groupHasMember(group)
		select {
		case conn := <-l.calls:
			return l.talk(conn)
		case <-time.After(5 * time.Millisecond):
		}
		if !there {
			return nil
		}
	}
}

func groupHasMember(group int) bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	return slices.ContainsFunc(dirs, func(dir string) bool {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		s, err := readStat(pid)
		return err == nil && s.group == group && s.state != "Z"
	})
}

// realMarkers are those of a detach, and pid the launcher's, which they name.
func realMarkers(t *testing.T) (launcher, daemon, pid string) {
	t.Helper()
	l := newLine(t)
	c := l.pipe(l.command())
	first := l.process()
	second := first.detaches("ready")
	launcher, daemon, pid = first.marker(), second.marker(), strconv.Itoa(first.pid)
	if !strings.Contains(launcher, pid) || !strings.Contains(daemon, pid) {
		t.Fatalf("the markers of %s are %q and %q", pid, launcher, daemon)
	}
	second.do("ready")
	c.exit()
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
		strings.Replace(daemon, pid, "99999999999999999999", 1), strings.ReplaceAll(daemon, "/", " "),
	} {
		l := newLine(t)
		cmd := l.command()
		cmd.Env = append(cmd.Env, "_DAEMON_DETACH="+value)
		c := l.pipe(cmd)
		first := l.process()
		first.mustHaveNoMarker()
		second := first.detaches("ready")
		second.mustHaveNoMarker()
		second.do("ready")
		if got := c.exit(); got != "exit 0" || c.printed() != "" {
			t.Errorf("%.40q: the caller sees %s and %s", value, got, c.printed())
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
	fields := strings.Split(strings.Replace(daemon, pid, strconv.Itoa(os.Getpid()), 1), "/")
	for _, fd := range []string{"-1", "0", "1", "2", "3", "99"} {
		fields[3] = fd
		forged["descriptor "+fd] = strings.Join(fields, "/")
	}
	for name, marker := range forged {
		l := newLine(t)
		file, err := os.Create(filepath.Join(t.TempDir(), "of a stranger"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := l.command()
		cmd.Env, cmd.ExtraFiles = append(cmd.Env, "_DAEMON_DETACH="+marker), []*os.File{file}
		c := l.pipe(cmd)
		p := l.process()
		had := p.fileOf(3)
		p.mustHaveNoMarker()
		p.mustNotFindTheLauncher()
		if has := p.fileOf(3); has != had {
			t.Errorf("%s: descriptor 3 was %s and is %s", name, had, has)
		}
		p.do("say here")
		p.leaves("exit 7")
		if got := c.exit(); got != "exit 7" || c.printed() != "here\n" {
			t.Errorf("%s: the caller sees %s and %q", name, got, c.printed())
		}
		if content, err := os.ReadFile(file.Name()); err != nil || len(content) > 0 {
			t.Errorf("%s: %q was written (%v)", name, content, err)
		}
		l.mustBeOver()
		l.mustBeSilent()
	}
}

func (p *live) mustHaveNoMarker() {
	p.t.Helper()
	for _, question := range []string{"environ", "child-environ"} {
		if environ := p.ask(question); strings.Contains(environ, "_DAEMON") {
			p.t.Errorf("%s: %.1000s", question, environ)
		}
	}
}

// A setuid program takes no orders from its caller's environment, and cannot
// start itself again with the rights that it has.
func TestSetuidProgramDoesNotDetach(t *testing.T) {
	t.Parallel()
	mustBeRoot(t)
	launcher, daemon, pid := realMarkers(t)
	for _, marker := range []string{"", strings.Replace(launcher, pid, "$$", 1), strings.Replace(daemon, pid, "$PPID", 1)} {
		l := newLine(t)
		cmd := l.command()
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
		c := l.pipe(asNobody(underShell(cmd, script)))
		p := l.process()
		if fields := strings.Fields(p.status("Uid")); fields[0] != "65534" || fields[1] != "0" {
			skipUnlessForbidden(t, "no setuid programs on the file system of "+cmd.Path)
		}
		p.mustHaveNoMarker()
		for range 2 {
			p.refuses("ready", "setuid")
			p.refuses("detach", "setuid")
		}
		p.leaves("exit 7")
		if got := c.exit(); got != "exit 7" {
			t.Errorf("%s: the caller sees %s and %s", marker, got, c.printed())
		}
		l.mustBeOver()
		l.mustBeSilent()
	}
}

// What a program has given up it can't get back by starting again, unless it
// has called Detach before it gave it up.
func TestRightsThatAreDropped(t *testing.T) {
	t.Parallel()
	mustBeRoot(t)
	for name, order := range map[string]string{
		"user": "setuid 65534", "group": "setgid 65534", "root directory": "chroot " + t.TempDir(),
	} {
		t.Run(name+"/before Ready", func(t *testing.T) {
			l := newLine(t)
			c := l.pipe(l.command())
			p := l.process()
			p.do(order)
			p.refuses("ready", "have changed", "call daemon.Detach first in main")
			p.refuses("detach", "have changed", "call daemon.Detach first in main")
			p.leaves("exit 7")
			if got := c.exit(); got != "exit 7" {
				t.Errorf("the caller sees %s and %s", got, c.printed())
			}
			l.mustBeOver()
			l.mustBeSilent()
		})
		t.Run(name+"/after Detach", func(t *testing.T) {
			l := newLine(t)
			c := l.pipe(l.command())
			second := l.process().detaches("detach")
			second.do(order)
			second.do("ready")
			second.mustBeDetached()
			if got := c.exit(); got != "exit 0" {
				t.Errorf("the caller sees %s and %s", got, c.printed())
			}
		})
	}
}

// The program may go on, and try again.
func TestProgramThatCannotBeExecutedGoesOnUndamaged(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	cmd := l.command()
	cmd.Path = copyOf(t, cmd.Path)
	file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	c := l.pipe(underShell(cmd, `trap "" INT; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`))
	first := l.process()
	first.do("catch HUP USR1")
	first.ask("files")
	descriptors := first.descriptors()
	first.do("profile")
	ignored, handled := first.status("SigIgn"), first.status("SigCgt")

	if err := os.Chmod(cmd.Path, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		first.refuses("ready", "call daemon.Detach first in main", "execve", "permission denied")
		first.refuses("detach", "call daemon.Detach first in main", "execve", "permission denied")
	}
	first.do("profiled")
	for _, signal := range []unix.Signal{unix.SIGHUP, unix.SIGUSR1} {
		unix.Kill(first.pid, signal)
		if got := first.ask("signal"); got != signal.String() {
			t.Errorf("it gets %s, want %s", got, signal)
		}
	}
	if i, h := first.status("SigIgn"), first.status("SigCgt"); i != ignored || h != handled {
		t.Errorf("it ignores %s and handles %s, and did %s and %s", i, h, ignored, handled)
	}
	// The profile reads files, too, in a goroutine of its own.
	waitUntil(t, "the descriptors "+descriptors, func() bool { return first.descriptors() == descriptors })
	info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", first.pid))
	if !strings.Contains(string(info), "flags:\t02") { // O_CLOEXEC, as Files has set it
		t.Errorf("descriptor 3: %s", info)
	}

	if err := os.Chmod(cmd.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	first.detaches("ready").do("ready")
	if got := c.exit(); got != "exit 0" {
		t.Errorf("the caller sees %s and %s", got, c.printed())
	}
}

func TestLauncherThatFailsNamesTheOperation(t *testing.T) {
	t.Parallel()
	mustFail := func(l *line, c caller, words string) {
		t.Helper()
		if got := c.exit(); got != "exit 1" || !regexp.MustCompile(words).MatchString(c.printed()) {
			t.Errorf("the caller sees %s and %q, want %s", got, c.printed(), words)
		}
		l.mustBeOver()
		l.mustBeSilent()
	}
	l := newLine(t)
	c := l.pipe(l.command())
	first := l.process()
	first.do("limit-files 4 4")
	first.leaves("ready")
	mustFail(l, c, `^daemon: open pipe: .*too many open files\n$`)

	launcher, _, pid := realMarkers(t) // as if the directory had gone meanwhile
	l = newLine(t)
	marker := strings.Replace(launcher, pid, "$$", 1) + "/nowhere"
	c = l.pipe(underShell(l.command(), `_DAEMON_DETACH="`+marker+`" exec "$@"`))
	mustFail(l, c, `^daemon: chdir /nowhere: no such file or directory\n$`)
}

// The word of a daemon that ends at once is not lost.
func TestDaemonThatEndsRightAfterReadyWasReady(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	for range rounds(50) {
		c := l.pipe(l.command())
		l.process().detaches("ready").leaves("ready-exit 3")
		if got := c.exit(); got != "exit 0" {
			t.Fatalf("the caller sees %s and %s", got, c.printed())
		}
	}
}

// A pipe that is closed is no sign that the daemon is gone.
func TestLauncherWaitsForTheDaemonNotForItsPipe(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	c := l.pipe(l.command())
	first := l.process()
	pipes := strings.Count(first.descriptors(), "pipe")
	second := first.detaches("ready")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	second.leaves(fmt.Sprintf("become echo shell; read -r code <'%s'; exit $code", fifo))
	waitUntil(t, "the shell", func() bool { return c.printed() != "" })
	first.mustLive()
	if got := second.descriptors(); strings.Count(got, "pipe") != pipes {
		t.Errorf("the shell has inherited %s", got)
	}
	if err := os.WriteFile(fifo, []byte("5\n"), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.exit(); got != "exit 5" {
		t.Errorf("the caller sees %s and %s", got, c.printed())
	}
}

func TestProgramThatClosesAllDescriptorsHasNotDetached(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"256", "6000"} {
		for _, verb := range []string{"Ready", "Detach"} {
			l := newLine(t)
			path := filepath.Join(t.TempDir(), "of a stranger")
			cmd := l.called(program(t, "closer", verb, path))
			c := l.pipe(underShell(cmd, "ulimit -n "+limit+`; exec "$@"`))
			if got := c.exit(); got != "exit 4" || !strings.Contains(c.printed(), "find launcher descriptor") {
				t.Errorf("%s: the caller sees %s and %q", verb, got, c.printed())
			}
			l.mustBeOver()
			if content, err := os.ReadFile(path); err != nil || len(content) > 0 {
				t.Errorf("%s: the file that took the numbers holds %q (%v)", verb, content, err)
			}
		}
	}
}

func init() {
	programs["closer"] = func() {
		err := error(nil)
		if os.Args[1] == "Detach" {
			err = daemon.Detach()
		}
		if err == nil {
			err = takeAllAndBeReady(os.Args[2])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(4)
		}
	}
}

// takeAllAndBeReady closes all descriptors from 3 up, as old advice has it, and
// opens a file so often that it has every number.
func takeAllAndBeReady(path string) error {
	if err := unix.CloseRange(3, math.MaxInt32, 0); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	for err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	// Time for the runtime to look at its poller, if it has one open: it would
	// throw.
	_ = unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
	if err != unix.EMFILE {
		return err
	}
	return daemon.Ready()
}

func mustBeRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skipUnlessForbidden(t, "needs root")
	}
}

const nobody = 65534

func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}
