//go:build linux

package detaching_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// In these tests a puppet (see detachpuppet_test.go) detaches, on command, from
// whoever started it. first is the process that was started, and is the
// launcher later; second is the one in which main begins again, the daemon.

// callers start the puppet, each in its way.
var callers = map[string]func(l *testdaemon.Line) testdaemon.Caller{
	"terminal": func(l *testdaemon.Line) testdaemon.Caller { return l.Shell(l.Command()) },
	"pipe":     func(l *testdaemon.Line) testdaemon.Caller { return l.Pipe(l.Command()) },
	"session leader": func(l *testdaemon.Line) testdaemon.Caller { // as after ssh -t
		cmd := l.Command()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return l.Pipe(cmd)
	},
	"input closed": func(l *testdaemon.Line) testdaemon.Caller {
		return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" <&-`))
	},
	"output closed": func(l *testdaemon.Line) testdaemon.Caller {
		return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" >&-`))
	},
	"error closed": func(l *testdaemon.Line) testdaemon.Caller {
		return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" 2>&-`))
	},
	"input, output and error closed": func(l *testdaemon.Line) testdaemon.Caller {
		return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" <&- >&- 2>&-`))
	},
}

func TestCallerGoesOnOnceTheDaemonIsReady(t *testing.T) {
	t.Parallel()
	for name, start := range callers {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				c := start(l)
				first := l.Process()
				second := first.Detaches(verb)
				second.Do("detach")
				second.Do("say starting")
				if before, after := first.Stat(), second.Stat(); before.Session != after.Session ||
					before.Group != after.Group || before.Terminal != after.Terminal {
					t.Errorf("the launcher is %+v, the daemon %+v", before, after)
				}
				first.MustLive()

				second.Do("ready")
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s", got)
				}
				if terminal, ok := c.(*testdaemon.Shell); ok {
					terminal.Hangup()
				}
				second.Do("say to nobody")
				second.MustBeDetached()
				printed := strings.ReplaceAll(c.Printed(), "\r", "")
				if want := "starting\n"; printed != want && !strings.Contains(name, "error") {
					t.Errorf("printed %q, want %q", printed, want)
				}
			})
		}
	}
}

func TestDaemonThatHasClosedItsStandardFilesGetsThemAtReady(t *testing.T) {
	t.Parallel()
	for _, numbers := range []string{"0", "1 2", "0 1 2"} {
		l := testdaemon.NewLine(t)
		c := l.Pipe(l.Command())
		second := l.Process().Detaches("ready")
		second.Do("close " + numbers)
		second.Do("ready")
		second.MustBeDetached()
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("%s closed: the caller sees %s", numbers, got)
		}
	}
}

// Success is said last: whoever sees it finds a daemon.
func TestDaemonServesThePortItHasBoundBeforeReady(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	// All of 127/8 is this machine: nobody else has this address.
	address := fmt.Sprintf("127.%d.%d.1:4321", 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff)
	c := l.Pipe(l.Command())
	first := l.Process()
	first.Do("listen " + address)
	second := first.Detaches("ready")
	second.Do("listen " + address)
	second.Do("ready")
	c.Exit()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if got := strings.TrimSpace(string(answer)); got != strconv.Itoa(second.PID) {
		t.Errorf("%s is served by %s (%v), want the daemon %d", address, got, err, second.PID)
	}
}

func TestStaysIfSomethingHoldsOnToTheProcess(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wrap   func(*testing.T, *exec.Cmd) *exec.Cmd
		orders []string
	}{
		"PID 1": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return testdaemon.InNamespaces(t, cmd, "--pid", "--fork", "--mount-proc")
		}},
		"under a PID 1": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return testdaemon.InNamespaces(t, testdaemon.UnderShell(cmd, `"$@"; exit $?`), "--pid", "--fork", "--mount-proc")
		}},
		"under a PID 1, without /proc of its own": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return testdaemon.InNamespaces(t, testdaemon.UnderShell(cmd, `"$@"; exit $?`), "--pid", "--fork")
		}},
		"systemd has executed it": {wrap: func(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return testdaemon.UnderShell(cmd, `SYSTEMD_EXEC_PID=$$ exec "$@"`)
		}},
		"systemd has executed it, and main has cleared the environment": {wrap: func(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return testdaemon.UnderShell(cmd, `SYSTEMD_EXEC_PID=$$ exec "$@"`)
		}, orders: []string{"unsetenv SYSTEMD_EXEC_PID"}},
		"Foreground": {orders: []string{"foreground"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			if test.wrap != nil {
				cmd = test.wrap(t, cmd)
			}
			c := l.Pipe(cmd)
			p := l.Process()
			for _, order := range test.orders {
				p.Do(order)
			}
			before, standard := p.Stat(), p.Standard()
			for _, order := range []string{"detach", "ready", "ready", "ready-at-once", "detach"} {
				p.Do(order)
			}
			if after := p.Stat(); after.Session != before.Session || after.Parent != before.Parent ||
				p.Standard() != standard {
				t.Errorf("it was %+v %q, and is %+v %q", before, standard, after, p.Standard())
			}
			p.Do("say here")
			p.Leaves("exit 7")
			if got := c.Exit(); got != "exit 7" || c.Printed() != "here\n" {
				t.Errorf("the caller sees %s and %q", got, c.Printed())
			}
		})
	}
}

// As `docker exec` starts a process.
func TestStaysIfTheParentIsInAnotherPIDNamespace(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	l.Pipe(testdaemon.InNamespaces(t, l.Command(), "--pid", "--fork"))
	enter := []string{"nsenter", "--target", strconv.Itoa(l.Process().PID), "--pid"}
	if os.Geteuid() != 0 {
		enter = append(enter, "--user", "--preserve-credentials")
	}
	c := l.Pipe(testdaemon.Wrap(l.Command(), enter...))
	p := l.Process()
	p.Do("detach")
	p.Do("ready")
	p.Leaves("exit 7")
	if got := c.Exit(); got != "exit 7" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

func TestDetachesIfSystemdHasExecutedAnotherProcess(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command()
	cmd.Env = append(cmd.Env, fmt.Sprintf("SYSTEMD_EXEC_PID=%d", os.Getpid()))
	c := l.Pipe(cmd)
	l.Process().Detaches("ready").Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
}

func TestDetachDoesNothingUnderASupervisor(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"NOTIFY_SOCKET=/nowhere", "UPSTART_JOB=job"} {
		l := testdaemon.NewLine(t)
		cmd := l.Command()
		cmd.Env = append(cmd.Env, variable)
		c := l.Pipe(cmd)
		p := l.Process()
		p.Do("detach")
		if strings.HasPrefix(variable, "NOTIFY") {
			// Nor does Ready if it can't tell the supervisor.
			p.Refuses("ready", "/nowhere", "no such file")
			p.Do("detach")
			// Nor if main has removed the variable: the supervisor is there all the same.
			p.Do("unsetenv NOTIFY_SOCKET")
			p.Refuses("ready", "daemon: detach ", "UnsetEnvironment")
			p.Do("detach")
		}
		p.Leaves("exit 7")
		if got := c.Exit(); got != "exit 7" {
			t.Errorf("%s: the caller sees %s", variable, got)
		}
	}
}

// This test binary once more says what Ready and Detach return in it.
func TestReadyAndDetachAreErrorsInATestRun(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []struct {
		caller string
		args   []string
	}{
		{"TestMain", []string{"-test.v"}}, {"TestMain", nil}, // by go test, and by hand
		{"initializer", []string{"-test.v"}}, {"initializer", nil},
	} {
		args := append([]string{how.caller}, how.args...)
		l := testdaemon.NewLine(t)
		cmd := exec.Command(exe, how.args...)
		cmd.Env = append(testdaemon.BareEnvironment(), tellVariable+"="+how.caller)
		c := l.Pipe(l.Called(cmd))
		if got := c.Exit(); got != "exit 7" {
			t.Errorf("%q: the test binary has ended by %s", args, got)
		}
		said := strings.Split(strings.TrimSuffix(c.Printed(), "\n"), "\n")
		const foreground, unset = "call daemon.Foreground", "unset UPSTART_JOB"
		for i, cure := range []string{foreground, foreground, unset, "", "", ""} { // empty: no error
			if i >= len(said) || (said[i] == "<nil>") != (cure == "") || cure != "" &&
				(!strings.Contains(said[i], "a test binary does not") || !strings.Contains(said[i], cure)) {
				t.Errorf("%q: line %d: want %q: %q", args, i, cure, said)
			}
		}
		l.MustBeOver()
	}
}

const tellVariable = "DAEMON_TEST_TELL"

func init() {
	if os.Getenv(tellVariable) == "initializer" {
		tellOfTestBinary()
	}
}

func tellOfTestBinary() {
	fmt.Println(daemon.Ready())
	fmt.Println(daemon.Detach())
	os.Setenv("UPSTART_JOB", "job")
	fmt.Println(daemon.Ready())
	fmt.Println(daemon.Detach())
	os.Setenv("UPSTART_JOB", "")
	daemon.Foreground()
	fmt.Println(daemon.Ready())
	fmt.Println(daemon.Detach())
	os.Exit(7)
}

// Whatever main changes before it calls Ready, the daemon starts as the first
// process did.
func TestDaemonStartsAsTheFirstProcessDid(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command("-a", "", "b c", "--", "ü\n")
	cmd.Dir = t.TempDir()
	cmd.Env = append(cmd.Env, "TESTED=as given", "EMPTY=", "LINES=one\ntwo")
	c := l.Pipe(testdaemon.UnderShell(cmd, `umask 027; ulimit -Sn 200; exec "$@"`))
	first := l.Process()
	questions := []string{"args", "environ", "cwd", "child-environ", "child-limit"}
	var want []string
	for _, question := range questions {
		want = append(want, first.Ask(question))
	}
	for _, order := range []string{"chdir /", "setenv TESTED=changed", "setenv NEW=1", "overwrite-args", "forget-args"} {
		first.Do(order)
	}

	second := first.Detaches("ready")
	for _, when := range []string{"before", "after"} {
		for i, question := range questions {
			if got := second.Ask(question); got != want[i] {
				t.Errorf("%s %s Ready: %s\nthe first process had: %s", question, when, got, want[i])
			}
		}
		if got := second.Status("Umask"); got != "0027" {
			t.Errorf("umask %s Ready: %s", when, got)
		}
		second.Do("ready")
	}
	c.Exit()
}

func TestStartDirectoryThatIsGone(t *testing.T) {
	t.Parallel()
	const cure = "call daemon.Detach first in main"
	remove := func(dir string) error { return os.Remove(dir) }
	for _, test := range []struct {
		name   string
		before []string
		change func(dir string) error
		errs   []string // of Ready; none: it detaches
	}{
		{"removed, and the program still there", nil, remove, nil},
		{"renamed, and the program still there", nil, func(dir string) error { return os.Rename(dir, dir+"2") }, nil},
		{"moved, a link left", []string{"chdir /"}, func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir))
		}, nil},
		{"removed", []string{"chdir /"}, remove, []string{cure, "no such file"}},
		{"replaced", []string{"chdir /"}, func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"2"), os.Mkdir(dir, 0o755))
		}, []string{cure, "stale"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "start")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			id := inode(t, dir)
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.Dir = dir
			c := l.Pipe(cmd)
			first := l.Process()
			for _, order := range test.before {
				first.Do(order)
			}
			if err := test.change(dir); err != nil {
				t.Fatal(err)
			}
			if test.errs != nil {
				first.Refuses("ready", append(test.errs, dir)...)
				first.Refuses("detach", test.errs[1:]...) // which it has done already
				first.Do("say here")
				return
			}
			second := first.Detaches("ready")
			if got := inode(t, fmt.Sprintf("/proc/%d/cwd", second.PID)); got != id {
				t.Errorf("it runs in %v, and was started in %v", got, id)
			}
			second.Do("ready")
			c.Exit()
		})
	}
}

// A directory that had been removed before the start has no name to return to.
func TestStartDirectoryThatHasNoName(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "start")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := testdaemon.NewLine(t)
	l.Pipe(testdaemon.UnderShell(l.Command(), `cd '`+dir+`' && rmdir '`+dir+`' && exec "$@"`))
	first := l.Process()
	first.Do("chdir /")
	first.Refuses("ready", "return to the directory at start-up: no such file")
}

// inode is the identity of a file.
func inode(t *testing.T, path string) [2]uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(path, err)
	}
	return [2]uint64{uint64(stat.Dev), uint64(stat.Ino)}
}

func TestDescriptorsOfTheCallerStayAndNoneOfOursIsLeft(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command()
	given := map[int][2]uint64{}
	cmd.ExtraFiles = make([]*os.File, 4100)
	for _, fd := range []int{3, 4, 47, 48, 49, 50, 4000, 4001} { // where ours would be, too
		file, err := os.Create(filepath.Join(t.TempDir(), "given"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd.ExtraFiles[fd-3] = file
		given[fd] = inode(t, file.Name())
	}
	cmd.ExtraFiles = cmd.ExtraFiles[:4002-3]
	c := l.Pipe(cmd)
	first := l.Process()
	first.Ask("pid") // it is past its start
	had := first.Descriptors()
	second := first.Detaches("ready")
	second.Do("ready")
	c.Exit()

	if got := second.Descriptors(); got != had {
		t.Errorf("the first process had %s\nthe daemon has %s", had, got)
	}
	for fd, want := range given {
		if got := inode(t, fmt.Sprintf("/proc/%d/fd/%d", second.PID, fd)); got != want {
			t.Errorf("descriptor %d is %v, want %v", fd, got, want)
		}
	}
}

// The file that was started is the one that is started again.
func TestVeryFileIsStartedAgain(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(path string) error{
		"deleted": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Symlink("/bin/false", path+".new"), os.Rename(path+".new", path))
		},
		"moved": func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+"2") },
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				path := copyOf(t, l.Command().Path)
				mustStartAgain(t, l, path, verb, func() {
					if err := change(path); err != nil {
						t.Fatal(err)
					}
				})
			})
		}
	}
}

// As above, with the file replaced all the time: also between the first process
// and the launcher, and between that and the daemon.
func TestVeryFileIsStartedAgainWhileAnUpdateReplacesIt(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	versions := []string{copyOf(t, l.Command().Path), copyOf(t, l.Command().Path)}
	path := filepath.Join(t.TempDir(), "program")
	update := func(version string) error {
		return errors.Join(os.Link(version, path+".new"), os.Rename(path+".new", path))
	}
	if err := update(versions[0]); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for i := 1; err == nil; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				err = update(versions[i%2])
			}
		}
		stopped <- err
	}()
	for range 20 {
		mustStartAgain(t, l, path, "ready", func() {})
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

// mustStartAgain starts the puppet at path, with a change before it detaches.
func mustStartAgain(t *testing.T, l *testdaemon.Line, path, verb string, change func()) {
	t.Helper()
	cmd := l.Command()
	cmd.Path, cmd.Args[0] = path, path
	c := l.Pipe(cmd)
	first := l.Process()
	want := inode(t, fmt.Sprintf("/proc/%d/exe", first.PID))
	change()
	second := first.Detaches(verb)
	if got := inode(t, fmt.Sprintf("/proc/%d/exe", second.PID)); got != want {
		t.Errorf("file %v was started, then %v", want, got)
	}
	second.Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

// copyOf returns the path of a copy of a program. It is not written here: a
// process forked meanwhile would have it open, and it could not be executed.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "program-of-a-test")
	if out, err := exec.Command("cp", path, target).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return target
}

func TestAllThreadsKeepTheProgramsName(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ argv0, order, want string }{
		"file":             {},
		"argv[0]":          {argv0: "my name"},
		"its own":          {order: "name my name", want: "my name"},
		"with a slash":     {order: "name web/1", want: "web/1"},
		"no file to spare": {order: "limit-files 4 100"},
	} {
		t.Run(name, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.Path = copyOf(t, cmd.Path)
			cmd.Args[0] = cmd.Path
			if test.argv0 != "" {
				cmd.Args[0] = test.argv0
			}
			if test.want == "" {
				test.want = filepath.Base(cmd.Path)[:15]
			}
			c := l.Pipe(cmd)
			first := l.Process()
			if test.order != "" {
				first.Do(test.order)
			}
			second := first.Detaches("ready")
			mustBeNamed(t, second, cmd.Args[0], test.want)
			waitForName(t, first)
			mustBeNamed(t, first, cmd.Args[0], test.want)
			second.Do("ready")
			mustBeNamed(t, second, cmd.Args[0], test.want)
			c.Exit()
		})
	}
}

// As in some containers, or by a profile of AppArmor; and as in a chroot.
func TestProgramKeepsItsNameIfProcCannotBeWritten(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]string{
		"read-only": `mount -o remount,bind,ro /proc`,
		"absent":    `mount -t tmpfs none /proc`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.Path = copyOf(t, cmd.Path)
			script := mount + ` || exit 9; exec bash -c 'exec -a other "$@"' bash "$@"`
			c := l.Pipe(testdaemon.InNamespaces(t, testdaemon.UnderShell(cmd, script), "--mount"))
			first := l.Process()
			second := first.Detaches("ready")
			for _, p := range []*testdaemon.Puppet{second, first} {
				comm := fmt.Sprintf("/proc/%d/comm", p.PID)
				want := filepath.Base(cmd.Path)[:15] + "\n"
				testdaemon.WaitUntil(t, "the name "+want,
					func() bool { name, _ := os.ReadFile(comm); return string(name) == want })
			}
			second.Do("ready")
			c.Exit()
		})
	}
}

// mustBeNamed checks what ps shows.
func mustBeNamed(t *testing.T, p *testdaemon.Puppet, argv0, name string) {
	t.Helper()
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	if got, _, _ := strings.Cut(string(cmdline), "\x00"); got != argv0 {
		t.Errorf("process %d: argv[0] is %q, want %q", p.PID, got, argv0)
	}
	if got := namesOf(p); got == "" || strings.ReplaceAll(got, name+"\n", "") != "" {
		t.Errorf("process %d: its threads are %q, want %q", p.PID, got, name)
	}
}

// waitForName waits until the launcher has the program's name.
func waitForName(t *testing.T, launcher *testdaemon.Puppet) {
	t.Helper()
	testdaemon.WaitUntil(t, "the launcher's name", func() bool { return !strings.Contains(namesOf(launcher), "exe\n") })
}

// namesOf returns a line for each thread.
func namesOf(p *testdaemon.Puppet) (names string) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", p.PID))
	for _, thread := range threads {
		name, _ := os.ReadFile(thread)
		names += string(name)
	}
	return names
}

// proc_pid_maps(5) writes the newline as \012.
func TestProgramWithANewlineInItsPathDetaches(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command()
	path := copyOf(t, cmd.Path)
	cmd.Path = path + "\nof two lines"
	if err := os.Rename(path, cmd.Path); err != nil {
		t.Fatal(err)
	}
	c := l.Pipe(cmd)
	l.Process().Detaches("ready").Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

func TestDetachesWithoutProc(t *testing.T) {
	t.Parallel()
	path := copyOf(t, testdaemon.NewLine(t).Command().Path)
	for _, test := range []struct{ name, argv0, directory string }{
		{"absolute", path, t.TempDir()},
		{"relative", "./" + filepath.Base(path), filepath.Dir(path)},
		{"in PATH", filepath.Base(path), t.TempDir()},
		{"absolute, in a chroot", path, "/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			script := `mount -t tmpfs none /proc || exit 9; exec "$@"`
			if test.directory == "/" {
				root := t.TempDir()
				script = fmt.Sprintf(`mount --rbind / '%[1]s' && mount -t tmpfs none '%[1]s/proc' || exit 9
			exec chroot '%[1]s' "$@"`, root)
			}
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.Path, cmd.Dir = test.argv0, test.directory
			cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
			c := l.Pipe(testdaemon.InNamespaces(t, testdaemon.UnderShell(cmd, script), "--mount"))
			first := l.Process()
			first.Do("chdir /")
			first.Do("setenv PATH=/nowhere")
			second := first.Detaches("ready")
			second.Do("ready")
			second.MustBeDetached()
			if got := inode(t, fmt.Sprintf("/proc/%d/cwd", second.PID)); got != inode(t, test.directory) {
				t.Errorf("it runs in %v, and was started in %s", got, test.directory)
			}
			if got := c.Exit(); got != "exit 0" {
				t.Errorf("the caller sees %s and %s", got, c.Printed())
			}
		})
	}
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, script, order, ignored string }{
		{"nohup", `exec nohup "$@"`, "", "HUP"},
		{"HUP and INT", `trap "" HUP INT; exec "$@"`, "", "HUP INT"},
		{"HUP and INT, which main catches", `trap "" HUP INT; exec "$@"`, "catch HUP INT TERM", "HUP INT"},
		{"INT, and main ignores others", `trap "" INT; exec "$@"`, "ignore HUP TERM QUIT USR1", "INT"},
		{"those of job control", `trap "" TSTP TTIN TTOU; exec "$@"`, "", "TSTP TTIN TTOU"},
		{"those of job control, which main catches", `trap "" TSTP TTIN TTOU; exec "$@"`, "catch TSTP TTIN TTOU",
			"TSTP TTIN TTOU"},
		{"none, and main ignores some", `exec "$@"`, "ignore HUP INT", ""},
		{"none", `exec "$@"`, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Pipe(testdaemon.UnderShell(l.Command(), test.script))
			first := l.Process()
			before := ignored(t, first)
			if test.order != "" {
				first.Do(test.order)
			}
			second := first.Detaches("ready")
			for _, p := range []*testdaemon.Puppet{first, second} { // the launcher SIGQUIT, too, for an instant
				testdaemon.WaitUntil(t,
					fmt.Sprintf("%q to be ignored by %d as at first (%q)", test.ignored, p.PID, before), func() bool {
						got := ignored(t, p)
						return got == test.ignored && got == before
					})
			}
			for name := range strings.FieldsSeq(test.ignored) {
				for _, p := range []*testdaemon.Puppet{first, second} {
					unix.Kill(p.PID, unix.SignalNum("SIG"+name))
				}
			}
			second.Do("ready")
			if got := c.Exit(); got != "exit 0" {
				t.Errorf("the caller sees %s", got)
			}
			if got := ignored(t, second); got != test.ignored {
				t.Errorf("the daemon ignores %q, want %q", got, test.ignored)
			}
		})
	}
}

// ignored are the signals that a terminal or a user sends and that the process
// ignores.
func ignored(t *testing.T, p *testdaemon.Puppet) string {
	t.Helper()
	mask, err := strconv.ParseUint(p.Status("SigIgn"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range []string{"HUP", "INT", "QUIT", "TERM", "USR1", "TSTP", "TTIN", "TTOU"} {
		if mask>>(unix.SignalNum("SIG"+name)-1)&1 == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func TestSignalsToTheLauncherArePassedOn(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	c := l.Pipe(l.Command())
	first := l.Process()
	second := first.Detaches("ready")
	second.Do("catch TERM HUP")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGHUP} {
		unix.Kill(first.PID, signal)
		if got := second.Ask("signal"); got != signal.String() {
			t.Errorf("the daemon gets %s, want %s", got, signal)
		}
	}
	second.Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
}

func TestSignalsThatTheCallerIgnoredAreNotPassedOn(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	c := l.Pipe(testdaemon.UnderShell(l.Command(), `trap "" HUP; exec "$@"`))
	first := l.Process()
	second := first.Detaches("ready")
	second.Do("catch HUP TERM")
	unix.Kill(first.PID, unix.SIGHUP)
	unix.Kill(first.PID, unix.SIGTERM)
	if got := second.Ask("signal"); got != unix.SIGTERM.String() {
		t.Errorf("the daemon gets %s, want %v", got, unix.SIGTERM)
	}
	second.Do("ready")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
}

// What other ways to daemonize begin with does not stand in Ready's way, nor
// does a Ready that has failed half-way.
func TestDaemonThatLeadsASessionOrAGroupAlreadyGetsReady(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"setsid", "setpgid", "limit-files 0 1000"} {
		for name, start := range callers {
			t.Run(order+"/"+name, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				c := start(l)
				second := l.Process().Detaches("ready")
				second.Do(order)
				if strings.HasPrefix(order, "limit-files") {
					second.Refuses("ready", "daemon: detach: open /dev/null as descriptor 0")
					second.Do("limit-files 1000 1000")
				}
				second.Do("ready")
				second.MustBeDetached()
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

func TestTerminalWorksUntilReady(t *testing.T) {
	t.Parallel()
	t.Run("passphrase", func(t *testing.T) {
		l := testdaemon.NewLine(t)
		c := l.Shell(l.Command())
		second := l.Process().Detaches("detach")
		c.Type("secret\n")
		if got := second.Ask("stdin"); got != "secret\n" {
			t.Errorf("the daemon has read %q", got)
		}
		second.Do("ready")
		if got := second.Ask("stdin"); got != "EOF" {
			t.Errorf("after Ready: %q", got)
		}
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("the caller sees %s", got)
		}
	})
	t.Run("passphrase from a pipe", func(t *testing.T) {
		l := testdaemon.NewLine(t)
		cmd := l.Command()
		cmd.Stdin = strings.NewReader("secret\n")
		c := l.Pipe(cmd)
		second := l.Process().Detaches("detach")
		if got := second.Ask("stdin"); got != "secret\n" {
			t.Errorf("the daemon has read %q", got)
		}
		second.Do("ready")
		c.Exit()
	})
	for name, key := range map[string]string{"interrupt": "\x03", "quit": "\x1c"} {
		t.Run("caught "+name, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			c := l.Shell(l.Command())
			second := l.Process().Detaches("ready")
			second.Do("catch INT QUIT")
			c.Type(key)
			if got := second.Ask("signal"); got != name {
				t.Errorf("the daemon gets %s", got)
			}
			second.Do("ready")
			if got := c.Exit(); got != "exit 0" {
				t.Errorf("the caller sees %s", got)
			}
		})
	}
	t.Run("Ctrl-Z and fg", func(t *testing.T) {
		l := testdaemon.NewLine(t)
		c := l.Shell(l.Command())
		first := l.Process()
		second := first.Detaches("ready")
		for range 2 {
			c.Type("\x1a")
			if got := c.Stopped(t.Context()); got != unix.SIGTSTP {
				t.Errorf("stopped by %v", got)
			}
			mustStop(t, second)
			if err := c.Foreground(); err != nil {
				t.Error(err)
			}
			second.Do("say on")
		}
		second.Do("ready")
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("the caller sees %s", got)
		}
	})
}

func TestCtrlZAndFgInARealShell(t *testing.T) {
	t.Parallel()
	for _, sh := range []string{"sh", "bash"} {
		t.Run(sh, func(t *testing.T) {
			if _, err := exec.LookPath(sh); err != nil {
				testdaemon.SkipUnlessForbidden(t, err.Error())
			}
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			terminal := daemontest.StartShell(t, &exec.Cmd{
				Path: "/bin/" + sh, Args: []string{sh, "-i"}, Env: append(cmd.Env, "TERM=dumb"),
			})
			terminal.Type("'" + cmd.Path + "'\n")
			second := l.Process().Detaches("ready")
			terminal.Type("\x1a")
			mustStop(t, second)
			terminal.Type("echo still $((40 + 2))\n")
			terminal.Expect(t.Context(), "still 42")
			terminal.Type("fg\n")
			second.Do("ready")
			terminal.Type("echo status $?.\n")
			terminal.Expect(t.Context(), "status 0.")
			second.MustBeDetached()
			terminal.Type("exit\n")
			terminal.Prompt(t.Context())
		})
	}
}

// mustStop waits until the process has stopped.
func mustStop(t *testing.T, p *testdaemon.Puppet) {
	t.Helper()
	testdaemon.WaitUntil(t, fmt.Sprintf("process %d to stop", p.PID), func() bool { return p.Stat().State == "T" })
}

func TestVariablesThatNameTheLauncherNameTheDaemon(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		l := testdaemon.NewLine(t)
		file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString("content"); err != nil {
			t.Fatal(err)
		}
		cmd := l.Command()
		cmd.ExtraFiles = []*os.File{file}
		c := l.Pipe(testdaemon.UnderShell(cmd,
			`LISTEN_PID=$$ LISTEN_PIDFDID=1 WATCHDOG_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@"`))
		first := l.Process()
		if early { // Files makes it close-on-exec
			if got := first.Ask("files"); got != "web=content" {
				t.Errorf("the first process has %q", got)
			}
		}
		second := first.Detaches("ready")
		mustHaveVariables(t, second, fmt.Sprintf("LISTEN_PID=%d", second.PID), fmt.Sprintf("WATCHDOG_PID=%d", second.PID))
		if environ := second.Ask("environ"); strings.Contains(environ, "LISTEN_PIDFDID") {
			t.Errorf("LISTEN_PIDFDID, which names the launcher, is in %s", environ)
		}
		second.Do("ready")
		c.Exit()
		if got := second.Ask("files"); got != "web=content" {
			t.Errorf("Files called early: %v; the daemon has %q", early, got)
		}
	}
}

// The program started again could not have them back.
func TestDescriptorsThatWerePassedAndClosedAreAReasonNotToDetach(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := l.Command()
	cmd.ExtraFiles = []*os.File{file}
	c := l.Pipe(testdaemon.UnderShell(cmd, `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@"`))
	p := l.Process()
	p.Do("close-files")
	p.Refuses("ready", "call daemon.Detach first in main", "pass on web", os.ErrClosed.Error())
	p.Refuses("detach", "daemon: detach: pass on web", os.ErrClosed.Error())
	p.Leaves("exit 7")
	if got := c.Exit(); got != "exit 7" {
		t.Errorf("the caller sees %s and %s", got, c.Printed())
	}
}

func TestVariablesThatNameAnotherProcessStay(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	cmd := l.Command()
	cmd.Env = append(cmd.Env, "LISTEN_PID=1", "WATCHDOG_PID=12345678")
	c := l.Pipe(cmd)
	second := l.Process().Detaches("ready")
	mustHaveVariables(t, second, "LISTEN_PID=1", "WATCHDOG_PID=12345678")
	second.Do("ready")
	c.Exit()
}

func mustHaveVariables(t *testing.T, p *testdaemon.Puppet, assignments ...string) {
	t.Helper()
	environ := p.Ask("environ")
	for _, assignment := range assignments {
		if !strings.Contains(environ, `"`+assignment+`"`) {
			t.Errorf("no %s in %s", assignment, environ)
		}
	}
}

// A CPU profile's timer survives execve, and kills whoever has no handler for
// its signal yet.
func TestDetachesWhileTimersRun(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"profile", "timer"} {
		t.Run(order, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			for range testdaemon.Rounds(40) {
				c := l.Pipe(l.Command())
				first := l.Process()
				first.Do(order)
				second := first.Detaches("ready")
				second.Do("ready")
				if got := c.Exit(); got != "exit 0" {
					t.Fatalf("the caller sees %s and %s", got, c.Printed())
				}
				second.Leaves("exit 0")
			}
		})
	}
}

func TestFortyDetachAtOnce(t *testing.T) {
	t.Parallel()
	const n = 40
	l := testdaemon.NewLine(t)
	var callers []testdaemon.Caller
	var first, second []*testdaemon.Puppet
	launchers := map[int]bool{}
	for range n {
		callers = append(callers, l.Pipe(l.Command()))
	}
	for range n {
		p := l.Process()
		first = append(first, p)
		launchers[p.PID] = true
	}
	for _, p := range first {
		p.Send("ready")
	}
	for range n {
		p := l.Process()
		second = append(second, p)
		if parent := p.Stat().Parent; !launchers[parent] {
			t.Errorf("%d has parent %d, which is no launcher or has another daemon", p.PID, parent)
		} else {
			delete(launchers, parent)
		}
	}
	for _, p := range second {
		p.Send("ready")
	}
	for _, p := range second {
		p.MustHear("ok")
		p.MustBeDetached()
	}
	for _, c := range callers {
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("a caller sees %s and %s", got, c.Printed())
		}
	}
}

func TestReadyManyTimesAtOnceDetachesOnce(t *testing.T) {
	t.Parallel()
	l := testdaemon.NewLine(t)
	c := l.Pipe(l.Command())
	second := l.Process().Detaches("ready-at-once")
	second.Do("ready-at-once")
	if got := c.Exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
	for _, order := range []string{"ready", "ready-at-once", "detach"} {
		second.Do(order)
	}
	second.MustBeDetached()
	second.Leaves("exit 0")
	l.MustBeOver()
	l.MustBeSilent()
}
