//go:build linux

package detaching_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// What main has made before it detaches stays, and so does what it has if the
// detach fails.

func TestLogThatMainHasPutOnStandardFilesStays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		on    string // the descriptors that main replaces
		given func(l *testdaemon.Line, shellsLog string) testdaemon.Caller
	}{
		{"1 2", func(l *testdaemon.Line, _ string) testdaemon.Caller { return l.Shell(l.Command()) }},
		{"2", func(l *testdaemon.Line, _ string) testdaemon.Caller { return l.Pipe(l.Command()) }},
		{"0", func(l *testdaemon.Line, _ string) testdaemon.Caller { return l.Pipe(l.Command()) }},
		{"2", func(l *testdaemon.Line, log string) testdaemon.Caller {
			return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" >'`+log+`' 2>&1`))
		}},
		{"1 2", func(l *testdaemon.Line, _ string) testdaemon.Caller {
			return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" <&- >&- 2>&-`))
		}},
		{"", func(l *testdaemon.Line, log string) testdaemon.Caller {
			return l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" <"$1" >'`+log+`' 2>&1`))
		}},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.on+"/"+verb, func(t *testing.T) {
				dir := t.TempDir()
				log, shellsLog := filepath.Join(dir, "log"), filepath.Join(dir, "shells.log")
				l := testdaemon.NewLine(t)
				c := test.given(l, shellsLog)
				p := l.Process()
				putLog := func() {
					if test.on != "" {
						p.Do("log " + test.on + " " + log)
					}
				}
				if verb == "ready" {
					putLog()
				}
				p = p.Detaches(verb)
				putLog()
				p.Do("ready")
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				for fd, file := range p.Standard() {
					want := "/dev/null"
					if strings.Contains(test.on, strconv.Itoa(fd)) {
						want = log
					}
					if file != want {
						t.Errorf("descriptor %d of the daemon is %s, want %s", fd, file, want)
					}
				}
				p.Leaves("panic at last")
				l.MustBeOver()
				text, _ := os.ReadFile(log)
				if strings.Contains(test.on, "2") && !strings.Contains(string(text), "panic: at last") {
					t.Errorf("the log holds %q", text)
				}
				if text, _ := os.ReadFile(shellsLog); len(text) > 0 {
					t.Errorf("the shell's log holds %q", text)
				}
				if strings.Contains(c.Printed(), "at last") {
					t.Errorf("the caller sees %s", c.Printed())
				}
			})
		}
	}
}

// As dup2(1, 2) does, the `2>&1` of a main. What reads that pipe would wait for ever.
func TestPipeOfTheCallerUnderAnotherNumberIsStillTheCallers(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		l := testdaemon.NewLine(t)
		c := l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" 2>/dev/null`))
		p := l.Process()
		p.Do("log 2 /proc/self/fd/1")
		p = p.Detaches(verb)
		p.Do("log 2 /proc/self/fd/1")
		p.Do("ready")
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("%s: the caller sees %s and %s", verb, got, c.Printed())
		}
		for fd, file := range p.Standard() {
			if file != "/dev/null" {
				t.Errorf("%s: descriptor %d of the daemon is %s", verb, fd, file)
			}
		}
		p.Leaves("exit 0")
		l.MustBeOver()
	}
}

// A shell's redirection to it ends at Ready, as any other does; main's own does not.
func TestLogThatTheCallerWritesToAsWellStays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ verb, on, given string }{
		{"ready", "", ">>LOG 2>&1"},
		{"ready", "1 2", ">>LOG 2>&1"},
		{"detach", "", ">>LOG 2>&1"},
		{"detach", "1 2", ">>LOG 2>&1"},
		{"ready", "1 2", "<>LOG >&0 2>&0"},
		{"detach", "", "<>LOG >&0 2>&0"},
		{"detach", "1 2", "<>LOG >&0 2>&0"},
	} {
		t.Run(test.verb+"/"+test.on+"/"+test.given, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			l := testdaemon.NewLine(t)
			given := strings.ReplaceAll(test.given, "LOG", "'"+log+"'")
			c := l.Pipe(testdaemon.UnderShell(l.Command(), `exec "$@" `+given))
			p := l.Process()
			putLog := func() {
				if test.on != "" {
					p.Do("log " + test.on + " " + log)
				}
			}
			if test.verb == "ready" {
				putLog()
			}
			p = p.Detaches(test.verb)
			putLog()
			p.Do("ready")
			want := [3]string{"/dev/null", "/dev/null", "/dev/null"}
			if test.on != "" {
				want[1], want[2] = log, log
			}
			if got := p.Standard(); got != want {
				t.Errorf("the daemon has %v, want %v", got, want)
			}
			if got := p.Descriptors(); strings.Contains(got, log) {
				t.Errorf("the daemon's descriptors are %s", got)
			}
			if got := c.Exit(); got != "exit 0" {
				t.Errorf("the caller sees %s and %s", got, c.Printed())
			}
			p.Leaves("panic at last")
			l.MustBeOver()
			if text, _ := os.ReadFile(log); strings.Contains(string(text), "panic: at last") != (test.on != "") {
				t.Errorf("the log holds %q", text)
			}
		})
	}
}

// A lock of fcntl(2) ends when any descriptor of its file is closed.
func TestLockOnWhatTheCallerHasOpenStays(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	l := testdaemon.NewLine(t)
	c := l.Pipe(testdaemon.UnderShell(l.Command(), `: >'`+file+`'; exec "$@" <'`+file+`'`))
	p := l.Process().Detaches("detach")
	p.Do("log 0 " + os.DevNull)
	p.Do("lock " + file)
	p.Do("ready")
	other, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(other.Fd(), unix.F_GETLK, &lock); err != nil || int(lock.Pid) != p.PID {
		t.Errorf("%v, %v: want a lock of process %d", lock, err, p.PID)
	}
	c.Exit()
}

// As activation of go-systemd takes them, by Listeners and by Files.
func TestPassedSocketThatAnotherPackageHasTakenIsNotLost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ take, refusal string }{
		{"take-files", ""},
		{"take-listener", "pass on unknown (descriptor 3): file already closed"},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.take+"/"+verb, func(t *testing.T) {
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				socket, err := listener.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				l := testdaemon.NewLine(t)
				cmd := l.Command()
				cmd.ExtraFiles = []*os.File{socket}
				c := l.Pipe(testdaemon.UnderShell(cmd, `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`))
				p := l.Process()
				p.Do(test.take)
				if test.refusal != "" {
					for range 2 {
						p.Refuses(verb, "daemon: detach: ", test.refusal)
					}
					mustServe(t, listener.Addr(), p.PID)
					p.Leaves("exit 7")
					if got := c.Exit(); got != "exit 7" {
						t.Errorf("the caller sees %s and %s", got, c.Printed())
					}
					l.MustBeOver()
					l.MustBeSilent()
					return
				}
				second := p.Detaches(verb)
				second.Do("serve-passed")
				second.Do("ready")
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				mustServe(t, listener.Addr(), second.PID)
			})
		}
	}
}

// mustServe checks which process answers at an address.
func mustServe(t *testing.T, address net.Addr, pid int) {
	t.Helper()
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if got := strings.TrimSpace(string(answer)); got != strconv.Itoa(pid) {
		t.Errorf("%s is served by %q (%v), want %d", address, got, err, pid)
	}
}

// ld.so(8) is the program that the kernel has executed, and executed again it
// would take an argument for the program.
func TestDynamicLoaderIsNotStartedInPlaceOfTheProgram(t *testing.T) {
	t.Parallel()
	if !testdaemon.HaveCompiler() {
		testdaemon.SkipUnlessForbidden(t, "no C compiler")
	}
	dir := t.TempDir()
	build := testdaemon.GoCommand(t, module(t), "build", "-mod=mod", "-tags=needcgo", "-o", filepath.Join(dir, "program"))
	build.Env = append(build.Env, "CGO_ENABLED=1")
	mustRun(t, build)
	// The loader is what the program itself asks for (PT_INTERP).
	out, err := exec.Command("sh", "-c", `ldd "$0" | sed -n 's|^[[:space:]]*\(/[^ ]*ld[^ ]*\) .*|\1|p'`,
		filepath.Join(dir, "program")).Output()
	loader := strings.TrimSpace(string(out))
	if err != nil || loader == "" {
		t.Fatalf("ldd: %q, %v", out, err)
	}
	for _, proc := range []bool{true, false} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(fmt.Sprintf("proc %v/%s", proc, verb), func(t *testing.T) {
				l := testdaemon.NewLine(t)
				cmd := l.Called(exec.Command(loader, "./program", "/bin/echo", "HELLO"))
				cmd.Dir, cmd.Env = dir, append(testdaemon.BareEnvironment(), cmd.Env...)
				if !proc {
					cmd = testdaemon.InNamespaces(t,
						testdaemon.UnderShell(cmd, `mount -t tmpfs none /proc || exit 9; exec "$@"`), "--mount")
				}
				c := l.Pipe(cmd)
				first := l.Process()
				want := "exit 7"
				if proc {
					for range 2 {
						first.Refuses(verb, "daemon: detach ./program: ", filepath.Base(loader), "start it by itself")
					}
					first.Leaves("exit 12")
				} else { // the path that the loader was given serves
					first.Detaches(verb).Do("ready")
					want = "exit 0"
				}
				if got := c.Exit(); got != want || c.Printed() != "" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

func TestProgramUnderTheNameOfAnotherIsStartedAgain(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bash"); err != nil {
		testdaemon.SkipUnlessForbidden(t, err.Error())
	}
	for _, proc := range []bool{true, false} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(fmt.Sprintf("proc %v/%s", proc, verb), func(t *testing.T) {
				l := testdaemon.NewLine(t)
				program := copyOf(t, l.Command().Path)
				cmd := l.Command("HELLO")
				cmd.Path, cmd.Dir = "./"+filepath.Base(program), filepath.Dir(program)
				script := `exec -a ls "$@"`
				if !proc {
					script = `mount -t tmpfs none /proc || exit 9; ` + script
				}
				cmd = testdaemon.Wrap(cmd, "bash", "-c", script, "bash")
				if !proc {
					cmd = testdaemon.InNamespaces(t, cmd, "--mount")
				}
				c := l.Pipe(cmd)
				first := l.Process()
				first.Do("chdir /")
				second := first.Detaches(verb)
				if got := inode(t, fmt.Sprintf("/proc/%d/exe", second.PID)); got != inode(t, program) {
					t.Errorf("%v was started again", got)
				}
				if got := second.Ask("args"); got != `["ls","HELLO"]` {
					t.Errorf("its arguments are %s", got)
				}
				second.Do("ready")
				if got := c.Exit(); got != "exit 0" ||
					strings.Contains(c.Printed(), "HELLO") { // -race misses /proc, and says so
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

// Its launcher's group is one of the parent namespace, which has no number here.
func TestLeaderOfAGroupInAPIDNamespaceGetsReady(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		for _, order := range []string{"setpgid", "setsid", "pid"} {
			t.Run(verb+"/"+order, func(t *testing.T) {
				fifo := filepath.Join(t.TempDir(), "fifo")
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
				l := testdaemon.NewLine(t)
				// The outer shell is PID 1, whose end would be the daemon's.
				cmd := testdaemon.UnderShell(l.Command(),
					`"$0" -c '"$@"' "$0" "$@"; code=$?; read -r _ <'`+fifo+`'; exit $code`)
				c := l.Pipe(testdaemon.InNamespaces(t, cmd, "--pid", "--fork", "--mount-proc", "--kill-child"))
				first := l.Process()
				first.Do("background")
				second := first.Detaches(verb)
				second.Do("background")
				second.Ask(order)
				second.Do("ready")
				second.MustBeDetached()
				holdUp(t, fifo)() // until the shell reads it, which then ends
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

func TestFailedReadyLeavesTheProcessAsItWas(t *testing.T) {
	t.Parallel()
	fill := strings.Repeat("x", 100<<10)
	tooMuch := []string{"FILL=" + fill, "MORE=" + fill}
	for _, test := range []struct {
		name       string
		env        []string
		fail, mend func(p *testdaemon.Puppet, path string)
		refusal    string
	}{
		{"no permission", nil,
			func(_ *testdaemon.Puppet, path string) { os.Chmod(path, 0) },
			func(_ *testdaemon.Puppet, path string) { os.Chmod(path, 0o755) }, "permission denied"},
		{"too long", tooMuch,
			func(p *testdaemon.Puppet, _ string) { p.Do("limit-stack 131072") },
			func(p *testdaemon.Puppet, _ string) { p.Do("limit-stack 8388608") }, "argument list too long"},
		{"descriptor closed", nil,
			func(p *testdaemon.Puppet, _ string) { p.Do("close 4") }, nil, "pass on two (descriptor 4): file already closed"},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				cmd := l.Command()
				cmd.Path = copyOf(t, cmd.Path)
				cmd.Args[0] = cmd.Path
				cmd.Env = append(cmd.Env, test.env...)
				for _, name := range []string{"one", "two", "three"} {
					cmd.ExtraFiles = append(cmd.ExtraFiles, testdaemon.Memory(t, name))
				}
				c := l.Pipe(testdaemon.UnderShell(cmd,
					`ulimit -Sn 200; trap "" TTIN; LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=one:two:three exec "$@"`))
				p := l.Process()
				p.Do("catch HUP TSTP")
				p.Do("ignore TTOU")
				p.Ask("files") // which marks them close-on-exec
				test.fail(p, cmd.Path)
				before := stateOf(t, p)
				for range 3 {
					p.Refuses(verb, "daemon: detach: ", test.refusal)
					if answer := p.Ask(verb); strings.Contains(answer, "/proc/self/exe") ||
						strings.Contains(answer, "daemon.Detach") != (verb == "ready") {
						t.Errorf("%s: %s", verb, answer)
					}
				}
				if after := stateOf(t, p); after != before {
					t.Errorf("it was\n%s\nand is\n%s", before, after)
				}
				if test.mend == nil {
					return
				}
				test.mend(p, cmd.Path)
				second := p.Detaches(verb)
				if got := second.Ask("child-limit"); got != "200<nil>" {
					t.Errorf("a child of the daemon has the limit %s, and the caller's was 200", got)
				}
				second.Do("ready")
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

// stateOf is what a detach changes to begin with.
func stateOf(t *testing.T, p *testdaemon.Puppet) string {
	t.Helper()
	state := fmt.Sprintln("descriptors", p.Ask("limit"), p.Ask("child-blocked"))
	for _, key := range []string{"SigIgn", "SigCgt"} {
		state += fmt.Sprintln(key, p.Status(key))
	}
	for _, fd := range []int{2, 3, 4, 5} {
		state += fmt.Sprintln(fd, p.FileOf(fd))
		info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, fd))
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "flags:") {
				state += fmt.Sprint(fd, " ", line)
			}
		}
	}
	// The runtime's own thread for signals has another mask, and threads may be
	// new: what counts is which masks there are.
	var masks []string
	testdaemon.WaitUntil(t, "a moment in which no thread makes another", func() bool {
		masks = blockedMasks(p.PID)
		return !slices.ContainsFunc(masks, func(mask string) bool {
			bits, _ := strconv.ParseUint(mask, 16, 64)
			return bits>>(unix.SIGSEGV-1)&1 != 0 // the runtime blocks all signals meanwhile, in both
		})
	})
	return state + fmt.Sprint("blocked ", masks)
}

// blockedMasks returns the masks of blocked signals that the threads of a process have.
func blockedMasks(pid int) (masks []string) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, thread := range threads {
		status, _ := os.ReadFile(thread)
		_, rest, _ := strings.Cut(string(status), "SigBlk:\t")
		mask, _, _ := strings.Cut(rest, "\n")
		masks = append(masks, mask)
	}
	slices.Sort(masks)
	return slices.Compact(masks)
}

func TestBlockedSignalsStayAsTheCallerHadThem(t *testing.T) {
	t.Parallel()
	for _, blocked := range []string{"", "TERM", "INT QUIT TERM HUP", "TERM USR1 CHLD"} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(blocked+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				cmd := l.Command(blocked)
				cmd.Env = append(cmd.Env, agreed.Program+"=blocker")
				c := l.Pipe(cmd)
				first := l.Process()
				mask, child := first.Status("SigBlk"), first.Ask("child-blocked")
				bits, _ := strconv.ParseUint(mask, 16, 64)
				for name := range strings.FieldsSeq(blocked) {
					// A Go program unblocks those that end it, in each thread.
					if name == "USR1" && bits>>(unix.SignalNum("SIG"+name)-1)&1 == 0 {
						t.Errorf("the first process does not block %s: %s", name, mask)
					}
				}
				if blocked == "" && bits != 0 {
					t.Errorf("the first process blocks %s", mask)
				}
				second := first.Detaches(verb)
				for _, when := range []string{"before", "after"} {
					if got := second.Status("SigBlk"); got != mask {
						t.Errorf("%s Ready the daemon blocks %s, the first process did %s", when, got, mask)
					}
					if got := second.Ask("child-blocked"); got != child {
						t.Errorf("%s Ready its child blocks %s, that of the first process did %s", when, got, child)
					}
					second.Do("ready")
				}
				if got := c.Exit(); got != "exit 0" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

// The launcher is the daemon's parent, and exits when it is ready.
func TestDaemonOutlivesTheLauncherWhoseDeathIsASignal(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		l := testdaemon.NewLine(t)
		c := l.Pipe(l.Command())
		second := l.Process().Detaches(verb)
		second.Do("die-with-parent")
		second.Do("ready")
		if got := c.Exit(); got != "exit 0" {
			t.Errorf("the caller sees %s and %s", got, c.Printed())
		}
		second.MustBeDetached()
	}
}
