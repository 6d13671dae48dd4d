//go:build linux

package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

// In these tests a puppet (see detachpuppet_test.go) detaches, on command, from
// whoever started it. first is the process that was started, and is the
// launcher later; second is the one in which main begins again, the daemon.

// callers start the puppet, each in its way.
var callers = map[string]func(l *line) caller{
	"terminal": func(l *line) caller { return l.shell(l.command()) },
	"pipe":     func(l *line) caller { return l.pipe(l.command()) },
	"session leader": func(l *line) caller { // as after ssh -t
		cmd := l.command()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return l.pipe(cmd)
	},
	"input closed":  func(l *line) caller { return l.pipe(underShell(l.command(), `exec "$@" <&-`)) },
	"output closed": func(l *line) caller { return l.pipe(underShell(l.command(), `exec "$@" >&-`)) },
	"error closed":  func(l *line) caller { return l.pipe(underShell(l.command(), `exec "$@" 2>&-`)) },
	"input, output and error closed": func(l *line) caller {
		return l.pipe(underShell(l.command(), `exec "$@" <&- >&- 2>&-`))
	},
}

func TestCallerGoesOnOnceTheDaemonIsReady(t *testing.T) {
	t.Parallel()
	for name, start := range callers {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				l := newLine(t)
				c := start(l)
				first := l.process()
				second := first.detaches(verb)
				second.do("detach")
				second.do("say starting")
				if before, after := first.stat(), second.stat(); before.session != after.session ||
					before.group != after.group || before.terminal != after.terminal {
					t.Errorf("the launcher is %+v, the daemon %+v", before, after)
				}
				first.mustLive()

				second.do("ready")
				if got := c.exit(); got != "exit 0" {
					t.Errorf("the caller sees %s", got)
				}
				if terminal, ok := c.(*shell); ok {
					terminal.Hangup()
				}
				second.do("say to nobody")
				second.mustBeDetached()
				printed := strings.ReplaceAll(c.printed(), "\r", "")
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
		l := newLine(t)
		c := l.pipe(l.command())
		second := l.process().detaches("ready")
		second.do("close " + numbers)
		second.do("ready")
		second.mustBeDetached()
		if got := c.exit(); got != "exit 0" {
			t.Errorf("%s closed: the caller sees %s", numbers, got)
		}
	}
}

// Success is said last: whoever sees it finds a daemon.
func TestDaemonServesThePortItHasBoundBeforeReady(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	// All of 127/8 is this machine: nobody else has this address.
	address := fmt.Sprintf("127.%d.%d.1:4321", 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff)
	c := l.pipe(l.command())
	first := l.process()
	first.do("listen " + address)
	second := first.detaches("ready")
	second.do("listen " + address)
	second.do("ready")
	c.exit()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if got := strings.TrimSpace(string(answer)); got != strconv.Itoa(second.pid) {
		t.Errorf("%s is served by %s (%v), want the daemon %d", address, got, err, second.pid)
	}
}

func TestStaysWhereSomethingHoldsOnToTheProcess(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wrap   func(*testing.T, *exec.Cmd) *exec.Cmd
		orders []string
	}{
		"PID 1": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return inNamespaces(t, cmd, "--pid", "--fork", "--mount-proc")
		}},
		"under a PID 1": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return inNamespaces(t, underShell(cmd, `"$@"; exit $?`), "--pid", "--fork", "--mount-proc")
		}},
		"under a PID 1, without /proc of its own": {wrap: func(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return inNamespaces(t, underShell(cmd, `"$@"; exit $?`), "--pid", "--fork")
		}},
		"systemd has executed it": {wrap: func(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return underShell(cmd, `SYSTEMD_EXEC_PID=$$ exec "$@"`)
		}},
		"systemd has executed it, and main has cleared the environment": {wrap: func(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
			return underShell(cmd, `SYSTEMD_EXEC_PID=$$ exec "$@"`)
		}, orders: []string{"unsetenv SYSTEMD_EXEC_PID"}},
		"Foreground": {orders: []string{"foreground"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t)
			cmd := l.command()
			if test.wrap != nil {
				cmd = test.wrap(t, cmd)
			}
			c := l.pipe(cmd)
			p := l.process()
			for _, order := range test.orders {
				p.do(order)
			}
			before, standard := p.stat(), p.standard()
			for _, order := range []string{"detach", "ready", "ready", "ready-at-once", "detach"} {
				p.do(order)
			}
			if after := p.stat(); after.session != before.session || after.parent != before.parent || p.standard() != standard {
				t.Errorf("it was %+v %q, and is %+v %q", before, standard, after, p.standard())
			}
			p.do("say here")
			p.leaves("exit 7")
			if got := c.exit(); got != "exit 7" || c.printed() != "here\n" {
				t.Errorf("the caller sees %s and %q", got, c.printed())
			}
		})
	}
}

// As `docker exec` starts a process.
func TestStaysWhereTheParentIsInAnotherPIDNamespace(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.pipe(inNamespaces(t, l.command(), "--pid", "--fork"))
	enter := []string{"nsenter", "--target", strconv.Itoa(l.process().pid), "--pid"}
	if os.Geteuid() != 0 {
		enter = append(enter, "--user", "--preserve-credentials")
	}
	c := l.pipe(wrap(l.command(), enter...))
	p := l.process()
	p.do("detach")
	p.do("ready")
	p.leaves("exit 7")
	if got := c.exit(); got != "exit 7" {
		t.Errorf("the caller sees %s and %s", got, c.printed())
	}
}

func TestDetachesWhereSystemdHasExecutedAnotherProcess(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	cmd := l.command()
	cmd.Env = append(cmd.Env, fmt.Sprintf("SYSTEMD_EXEC_PID=%d", os.Getpid()))
	c := l.pipe(cmd)
	l.process().detaches("ready").do("ready")
	if got := c.exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
}

func TestDetachDoesNothingUnderASupervisor(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"NOTIFY_SOCKET=/nowhere", "UPSTART_JOB=job"} {
		l := newLine(t)
		cmd := l.command()
		cmd.Env = append(cmd.Env, variable)
		c := l.pipe(cmd)
		p := l.process()
		p.do("detach")
		if strings.HasPrefix(variable, "NOTIFY") {
			// Nor does Ready, where it can't tell the supervisor.
			p.refuses("ready", "/nowhere", "no such file")
			p.do("detach")
			// Nor where main has made it impossible: it is there all the same.
			p.do("unsetenv NOTIFY_SOCKET")
			p.refuses("ready", "daemon: detach ", "UnsetEnvironment")
			p.do("detach")
		}
		p.leaves("exit 7")
		if got := c.exit(); got != "exit 7" {
			t.Errorf("%s: the caller sees %s", variable, got)
		}
	}
}

func TestReadyAndDetachAreErrorsInATestRun(t *testing.T) {
	t.Parallel()
	const cure = "set NOTIFY_SOCKET, call daemon.Foreground or use package daemontest"
	l := newLine(t)
	c := l.pipe(l.command("-test.v"))
	p := l.process()
	p.refuses("ready", "go test", cure)
	p.refuses("detach", "go test", cure)
	p.do("setenv UPSTART_JOB=job")
	p.refuses("ready", "go test", cure)
	p.do("detach")
	p.do("setenv UPSTART_JOB=")
	p.do("foreground")
	p.do("ready")
	p.do("detach")
	p.leaves("exit 7")
	if got := c.exit(); got != "exit 7" {
		t.Errorf("the test run has ended by %s", got)
	}
}

// Whatever main changes before it calls Ready, the daemon starts as the first
// process did.
func TestDaemonStartsAsTheFirstProcessDid(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	cmd := l.command("-a", "", "b c", "--", "ü\n")
	cmd.Dir = t.TempDir()
	cmd.Env = append(cmd.Env, "TESTED=as given", "EMPTY=", "LINES=one\ntwo")
	c := l.pipe(underShell(cmd, `umask 027; ulimit -Sn 200; exec "$@"`))
	first := l.process()
	questions := []string{"args", "environ", "cwd", "child-environ", "child-limit"}
	var want []string
	for _, question := range questions {
		want = append(want, first.ask(question))
	}
	for _, order := range []string{"chdir /", "setenv TESTED=changed", "setenv NEW=1", "overwrite-args", "forget-args"} {
		first.do(order)
	}

	second := first.detaches("ready")
	for _, when := range []string{"before", "after"} {
		for i, question := range questions {
			if got := second.ask(question); got != want[i] {
				t.Errorf("%s %s Ready: %s\nthe first process had: %s", question, when, got, want[i])
			}
		}
		if got := second.status("Umask"); got != "0027" {
			t.Errorf("umask %s Ready: %s", when, got)
		}
		second.do("ready")
	}
	c.exit()
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
			l := newLine(t)
			cmd := l.command()
			cmd.Dir = dir
			c := l.pipe(cmd)
			first := l.process()
			for _, order := range test.before {
				first.do(order)
			}
			if err := test.change(dir); err != nil {
				t.Fatal(err)
			}
			if test.errs != nil {
				first.refuses("ready", append(test.errs, dir)...)
				first.refuses("detach", test.errs...)
				first.do("say here")
				return
			}
			second := first.detaches("ready")
			if got := inode(t, fmt.Sprintf("/proc/%d/cwd", second.pid)); got != id {
				t.Errorf("it runs in %v, and was started in %v", got, id)
			}
			second.do("ready")
			c.exit()
		})
	}
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
	l := newLine(t)
	cmd := l.command()
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
	c := l.pipe(cmd)
	first := l.process()
	first.ask("pid") // it is past its start
	had := first.descriptors()
	second := first.detaches("ready")
	second.do("ready")
	c.exit()

	if got := second.descriptors(); got != had {
		t.Errorf("the first process had %s\nthe daemon has %s", had, got)
	}
	for fd, want := range given {
		if got := inode(t, fmt.Sprintf("/proc/%d/fd/%d", second.pid, fd)); got != want {
			t.Errorf("descriptor %d is %v, want %v", fd, got, want)
		}
	}
}

// descriptors are what the process has open from 3 up, sorted.
func (p *live) descriptors() string {
	p.t.Helper()
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
	var open []string
	for _, path := range paths {
		if fd, _ := strconv.Atoi(filepath.Base(path)); fd > 2 {
			target, _ := os.Readlink(path)
			kind, _, _ := strings.Cut(target, ":[") // another socket has another number
			open = append(open, kind)
		}
	}
	slices.Sort(open)
	return strings.Join(open, " ")
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
				l := newLine(t)
				path := copyOf(t, l.command().Path)
				l.mustStartAgain(path, verb, func() {
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
	l := newLine(t)
	versions := []string{copyOf(t, l.command().Path), copyOf(t, l.command().Path)}
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
		l.mustStartAgain(path, "ready", func() {})
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

// mustStartAgain starts the puppet at path, with a change before it detaches.
func (l *line) mustStartAgain(path, verb string, change func()) {
	l.t.Helper()
	cmd := l.command()
	cmd.Path, cmd.Args[0] = path, path
	c := l.pipe(cmd)
	first := l.process()
	want := inode(l.t, fmt.Sprintf("/proc/%d/exe", first.pid))
	change()
	second := first.detaches(verb)
	if got := inode(l.t, fmt.Sprintf("/proc/%d/exe", second.pid)); got != want {
		l.t.Errorf("file %v was started, then %v", want, got)
	}
	second.do("ready")
	if got := c.exit(); got != "exit 0" {
		l.t.Errorf("the caller sees %s and %s", got, c.printed())
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
			l := newLine(t)
			cmd := l.command()
			cmd.Path = copyOf(t, cmd.Path)
			cmd.Args[0] = cmd.Path
			if test.argv0 != "" {
				cmd.Args[0] = test.argv0
			}
			if test.want == "" {
				test.want = filepath.Base(cmd.Path)[:15]
			}
			c := l.pipe(cmd)
			first := l.process()
			if test.order != "" {
				first.do(test.order)
			}
			second := first.detaches("ready")
			first.mustBeNamed(cmd.Args[0], test.want)
			second.mustBeNamed(cmd.Args[0], test.want)
			second.do("ready")
			second.mustBeNamed(cmd.Args[0], test.want)
			c.exit()
		})
	}
}

// mustBeNamed checks what ps shows.
func (p *live) mustBeNamed(argv0, name string) {
	p.t.Helper()
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if got, _, _ := strings.Cut(string(cmdline), "\x00"); got != argv0 {
		p.t.Errorf("process %d: argv[0] is %q, want %q", p.pid, got, argv0)
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", p.pid))
	if len(threads) == 0 {
		p.t.Errorf("process %d has no threads", p.pid)
	}
	for _, thread := range threads {
		if got, err := os.ReadFile(thread); err == nil && string(got) != name+"\n" {
			p.t.Errorf("%s: %q, want %q", thread, got, name)
		}
	}
}

func TestDetachesWithoutProc(t *testing.T) {
	t.Parallel()
	path := copyOf(t, newLine(t).command().Path)
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
				script = fmt.Sprintf(`mount --rbind / '%[1]s' && mount -t tmpfs none '%[1]s/proc' || exit 9; exec chroot '%[1]s' "$@"`, root)
			}
			l := newLine(t)
			cmd := l.command()
			cmd.Path, cmd.Dir = test.argv0, test.directory
			cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
			c := l.pipe(inNamespaces(t, underShell(cmd, script), "--mount"))
			first := l.process()
			first.do("chdir /")
			first.do("setenv PATH=/nowhere")
			second := first.detaches("ready")
			second.do("ready")
			second.mustBeDetached()
			if got := inode(t, fmt.Sprintf("/proc/%d/cwd", second.pid)); got != inode(t, test.directory) {
				t.Errorf("it runs in %v, and was started in %s", got, test.directory)
			}
			if got := c.exit(); got != "exit 0" {
				t.Errorf("the caller sees %s and %s", got, c.printed())
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
		{"those of job control, which main catches", `trap "" TSTP TTIN TTOU; exec "$@"`, "catch TSTP TTIN TTOU", "TSTP TTIN TTOU"},
		{"none, and main ignores some", `exec "$@"`, "ignore HUP INT", ""},
		{"none", `exec "$@"`, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLine(t)
			c := l.pipe(underShell(l.command(), test.script))
			first := l.process()
			before := first.ignored()
			if test.order != "" {
				first.do(test.order)
			}
			second := first.detaches("ready")
			for _, p := range []*live{first, second} {
				if got := p.ignored(); got != test.ignored || got != before {
					t.Errorf("process %d ignores %q, at first %q, want %q", p.pid, got, before, test.ignored)
				}
			}
			for name := range strings.FieldsSeq(test.ignored) {
				for _, p := range []*live{first, second} {
					unix.Kill(p.pid, unix.SignalNum("SIG"+name))
				}
			}
			second.do("ready")
			if got := c.exit(); got != "exit 0" {
				t.Errorf("the caller sees %s", got)
			}
			if got := second.ignored(); got != test.ignored {
				t.Errorf("the daemon ignores %q, want %q", got, test.ignored)
			}
		})
	}
}

// ignored are the signals that a terminal or a user sends and that the process
// ignores.
func (p *live) ignored() string {
	p.t.Helper()
	mask, err := strconv.ParseUint(p.status("SigIgn"), 16, 64)
	if err != nil {
		p.t.Fatal(err)
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
	l := newLine(t)
	c := l.pipe(l.command())
	first := l.process()
	second := first.detaches("ready")
	second.do("catch TERM HUP")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGHUP} {
		unix.Kill(first.pid, signal)
		if got := second.ask("signal"); got != signal.String() {
			t.Errorf("the daemon gets %s, want %s", got, signal)
		}
	}
	second.do("ready")
	if got := c.exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
}

func TestSignalsThatTheCallerIgnoredAreNotPassedOn(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	c := l.pipe(underShell(l.command(), `trap "" HUP; exec "$@"`))
	first := l.process()
	second := first.detaches("ready")
	second.do("catch HUP TERM")
	unix.Kill(first.pid, unix.SIGHUP)
	unix.Kill(first.pid, unix.SIGTERM)
	if got := second.ask("signal"); got != unix.SIGTERM.String() {
		t.Errorf("the daemon gets %s, want %v", got, unix.SIGTERM)
	}
	second.do("ready")
	if got := c.exit(); got != "exit 0" {
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
				l := newLine(t)
				c := start(l)
				second := l.process().detaches("ready")
				second.do(order)
				if strings.HasPrefix(order, "limit-files") {
					second.refuses("ready", "daemon: detach: open /dev/null as descriptor 0")
					second.do("limit-files 1000 1000")
				}
				second.do("ready")
				second.mustBeDetached()
				if got := c.exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.printed())
				}
			})
		}
	}
}

func TestTerminalWorksUntilReady(t *testing.T) {
	t.Parallel()
	t.Run("passphrase", func(t *testing.T) {
		l := newLine(t)
		c := l.shell(l.command())
		second := l.process().detaches("detach")
		c.Type("secret\n")
		if got := second.ask("stdin"); got != "secret\n" {
			t.Errorf("the daemon has read %q", got)
		}
		second.do("ready")
		if got := second.ask("stdin"); got != "EOF" {
			t.Errorf("after Ready: %q", got)
		}
		if got := c.exit(); got != "exit 0" {
			t.Errorf("the caller sees %s", got)
		}
	})
	t.Run("passphrase from a pipe", func(t *testing.T) {
		l := newLine(t)
		cmd := l.command()
		cmd.Stdin = strings.NewReader("secret\n")
		c := l.pipe(cmd)
		second := l.process().detaches("detach")
		if got := second.ask("stdin"); got != "secret\n" {
			t.Errorf("the daemon has read %q", got)
		}
		second.do("ready")
		c.exit()
	})
	for name, key := range map[string]string{"interrupt": "\x03", "quit": "\x1c"} {
		t.Run("caught "+name, func(t *testing.T) {
			l := newLine(t)
			c := l.shell(l.command())
			second := l.process().detaches("ready")
			second.do("catch INT QUIT")
			c.Type(key)
			if got := second.ask("signal"); got != name {
				t.Errorf("the daemon gets %s", got)
			}
			second.do("ready")
			if got := c.exit(); got != "exit 0" {
				t.Errorf("the caller sees %s", got)
			}
		})
	}
	t.Run("Ctrl-Z and fg", func(t *testing.T) {
		l := newLine(t)
		c := l.shell(l.command())
		first := l.process()
		second := first.detaches("ready")
		for range 2 {
			c.Type("\x1a")
			if got := c.Stopped(t.Context()); got != unix.SIGTSTP {
				t.Errorf("stopped by %v", got)
			}
			second.mustStop()
			if err := c.Foreground(); err != nil {
				t.Error(err)
			}
			second.do("say on")
		}
		second.do("ready")
		if got := c.exit(); got != "exit 0" {
			t.Errorf("the caller sees %s", got)
		}
	})
}

func TestCtrlZAndFgInARealShell(t *testing.T) {
	t.Parallel()
	for _, sh := range []string{"sh", "bash"} {
		t.Run(sh, func(t *testing.T) {
			if _, err := exec.LookPath(sh); err != nil {
				skipUnlessForbidden(t, err.Error())
			}
			l := newLine(t)
			cmd := l.command()
			terminal := daemontest.StartShell(t, &exec.Cmd{
				Path: "/bin/" + sh, Args: []string{sh, "-i"}, Env: append(cmd.Env, "TERM=dumb"),
			})
			terminal.Type("'" + cmd.Path + "'\n")
			second := l.process().detaches("ready")
			terminal.Type("\x1a")
			second.mustStop()
			terminal.Type("echo still $((40 + 2))\n")
			terminal.Expect(t.Context(), "still 42")
			terminal.Type("fg\n")
			second.do("ready")
			terminal.Type("echo status $?.\n")
			terminal.Expect(t.Context(), "status 0.")
			second.mustBeDetached()
			terminal.Type("exit\n")
			terminal.Prompt(t.Context())
		})
	}
}

// mustStop waits until the process has stopped.
func (p *live) mustStop() {
	p.t.Helper()
	waitUntil(p.t, fmt.Sprintf("process %d to stop", p.pid), func() bool { return p.stat().state == "T" })
}

func TestVariablesThatNameTheLauncherNameTheDaemon(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		l := newLine(t)
		file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.WriteString("content"); err != nil {
			t.Fatal(err)
		}
		cmd := l.command()
		cmd.ExtraFiles = []*os.File{file}
		c := l.pipe(underShell(cmd, `LISTEN_PID=$$ WATCHDOG_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@"`))
		first := l.process()
		if early { // Files makes it close-on-exec
			if got := first.ask("files"); got != "web=content" {
				t.Errorf("the first process has %q", got)
			}
		}
		second := first.detaches("ready")
		second.mustHaveVariables(fmt.Sprintf("LISTEN_PID=%d", second.pid), fmt.Sprintf("WATCHDOG_PID=%d", second.pid))
		second.do("ready")
		c.exit()
		if got := second.ask("files"); got != "web=content" {
			t.Errorf("Files called early: %v; the daemon has %q", early, got)
		}
	}
}

// The program started again could not have them back.
func TestDescriptorsThatWerePassedAndClosedAreAReasonNotToDetach(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := l.command()
	cmd.ExtraFiles = []*os.File{file}
	c := l.pipe(underShell(cmd, `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@"`))
	p := l.process()
	p.do("close-files")
	for _, order := range []string{"ready", "detach"} {
		p.refuses(order, "call daemon.Detach first in main", "pass on web", os.ErrClosed.Error())
	}
	p.leaves("exit 7")
	if got := c.exit(); got != "exit 7" {
		t.Errorf("the caller sees %s and %s", got, c.printed())
	}
}

func TestVariablesThatNameAnotherProcessStay(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	cmd := l.command()
	cmd.Env = append(cmd.Env, "LISTEN_PID=1", "WATCHDOG_PID=12345678")
	c := l.pipe(cmd)
	second := l.process().detaches("ready")
	second.mustHaveVariables("LISTEN_PID=1", "WATCHDOG_PID=12345678")
	second.do("ready")
	c.exit()
}

func (p *live) mustHaveVariables(assignments ...string) {
	p.t.Helper()
	environ := p.ask("environ")
	for _, assignment := range assignments {
		if !strings.Contains(environ, `"`+assignment+`"`) {
			p.t.Errorf("no %s in %s", assignment, environ)
		}
	}
}

// A CPU profile's timer survives execve, and kills whoever has no handler for
// its signal yet.
func TestDetachesWhileTimersRun(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"profile", "timer"} {
		t.Run(order, func(t *testing.T) {
			l := newLine(t)
			for range rounds(40) {
				c := l.pipe(l.command())
				first := l.process()
				first.do(order)
				second := first.detaches("ready")
				second.do("ready")
				if got := c.exit(); got != "exit 0" {
					t.Fatalf("the caller sees %s and %s", got, c.printed())
				}
				second.leaves("exit 0")
			}
		})
	}
}

func TestFortyDetachAtOnce(t *testing.T) {
	t.Parallel()
	const n = 40
	l := newLine(t)
	var callers []caller
	var first, second []*live
	launchers := map[int]bool{}
	for range n {
		callers = append(callers, l.pipe(l.command()))
	}
	for range n {
		p := l.process()
		first = append(first, p)
		launchers[p.pid] = true
	}
	for _, p := range first {
		p.send("ready")
	}
	for range n {
		p := l.process()
		second = append(second, p)
		if parent := p.stat().parent; !launchers[parent] {
			t.Errorf("%d has parent %d, which is no launcher or has another daemon", p.pid, parent)
		} else {
			delete(launchers, parent)
		}
	}
	for _, p := range second {
		p.send("ready")
	}
	for _, p := range second {
		p.mustHear("ok")
		p.mustBeDetached()
	}
	for _, c := range callers {
		if got := c.exit(); got != "exit 0" {
			t.Errorf("a caller sees %s and %s", got, c.printed())
		}
	}
}

func TestReadyManyTimesAtOnceDetachesOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	c := l.pipe(l.command())
	second := l.process().detaches("ready-at-once")
	second.do("ready-at-once")
	if got := c.exit(); got != "exit 0" {
		t.Errorf("the caller sees %s", got)
	}
	for _, order := range []string{"ready", "ready-at-once", "detach"} {
		second.do(order)
	}
	second.mustBeDetached()
	second.leaves("exit 0")
	l.mustBeOver()
	l.mustBeSilent()
}
