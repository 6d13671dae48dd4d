//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	// A test that is killed, with a job, a daemon and a command in the
	// foreground; it prints their pids.
	programs["killed test"] = func() {
		t := &fakeT{}
		j := Upstart(t, shell("kill -STOP $$; exec sleep 60"))
		d := Shell(t, shell("setsid sleep 60 &"))
		s := StartShell(t, shell("sleep 60; true"))
		fmt.Println(j.PID, d.PID, s.PID)
		os.Stdout.Close()
		select {}
	}
}

func TestDaemonIsLeftBehind(t *testing.T) {
	var pid int
	passing(t, func(ft TB) {
		d := Shell(ft, shell(`echo out; echo err >&2; setsid sleep 60 </dev/null >/dev/null 2>&1 & echo $!`))
		pid = d.PID
		if d.ExitCode() != 0 || d.Status != 0 || pid == 0 {
			t.Errorf("exit code %d, %s, pid %d", d.ExitCode(), describe(d.Status), pid)
		}
		if want := fmt.Sprintf("out\nerr\n%d\n", pid); d.Output != want {
			t.Errorf("printed %q, want %q", d.Output, want)
		}
		if pids := d.Processes(); len(pids) != 1 || pids[0] != pid {
			t.Errorf("processes %v, daemon %d", pids, pid)
		}
		eventually(t, "the daemon leads its session", func() bool {
			p, err := readProcess(pid)
			return err != nil || p.session == pid
		})
	})
	if exists(pid) {
		t.Errorf("process %d is left", pid)
	}
}

func TestCommandThatLeavesNothing(t *testing.T) {
	tests := []struct {
		script string
		code   int
		signal syscall.Signal
	}{
		{"exit 0", 0, 0},
		{"exit 3", 3, 0},
		{"exit 143", 143, 0},
		{"kill -TERM $$", 143, unix.SIGTERM},
		{"kill -KILL $$", 137, unix.SIGKILL},
	}
	for _, test := range tests {
		d := Shell(t, shell("echo hello; "+test.script))
		if d.ExitCode() != test.code || d.Status.Signaled() != (test.signal != 0) ||
			test.signal != 0 && d.Status.Signal() != test.signal {
			t.Errorf("%s: exit code %d, %s", test.script, d.ExitCode(), describe(d.Status))
		}
		if d.PID != 0 || len(d.Processes()) != 0 || d.Output != "hello\n" {
			t.Errorf("%s: pid %d, processes %v, printed %q", test.script, d.PID, d.Processes(), d.Output)
		}
		if err := d.Signal(unix.SIGTERM); err != unix.ESRCH {
			t.Errorf("%s: signal: %v", test.script, err)
		}
	}
	failing(t, func(ft TB) { Shell(ft, shell("exit 0")).Wait(t.Context()) }, "/bin/sh has left no process behind")
	quick(t)
	failing(t, func(ft TB) { StartShell(ft, shell("exec sleep 60")).Wait(short(t)) },
		" of /bin/sh has not ended: context deadline")
}

func TestCommandFindsItselfInAShell(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/x")
	cmd := shell(`[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size; ps -o pid=,pgid=,sid=,tpgid=,tty= -p $$
		grep -E 'Sig(Blk|Ign)' /proc/self/status; ls -1 /proc/$$/fd; echo; pwd; env`)
	cmd.Env = append(os.Environ(), "UPSTART_JOB=x", "SYSTEMD_EXEC_PID=1", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "MINE=yes")
	cmd.Dir = "/"
	d := Shell(t, cmd)
	size, rest, _ := strings.Cut(d.Output, "\n")
	fields := strings.Fields(rest)
	if size != "24 80" || fields[0] != fields[1] || fields[0] == fields[2] || fields[0] != fields[3] ||
		!strings.HasPrefix(fields[4], "pts/") {
		t.Errorf("size %s; pid, group, session, foreground, terminal: %v", size, fields[:5])
	}
	want := "SigBlk: 0000000000000000 SigIgn: 0000000000000000"
	if got := strings.Join(fields[5:9], " "); got != want {
		t.Errorf("signals: %v", fields[5:9])
	}
	if _, env, ok := strings.Cut(d.Output, "\n0\n1\n2\n\n/\n"); !ok {
		t.Errorf("descriptors or directory: %q", d.Output)
	} else if !strings.Contains(env, "MINE=yes\n") {
		t.Errorf("environment: %q", env)
	}
	for _, name := range supervisorVariables {
		if strings.Contains(d.Output, name+"=") {
			t.Errorf("%s is set", name)
		}
	}
}

func TestCommandHasTheTerminalFromTheStart(t *testing.T) {
	for range 20 {
		s := StartShell(t, exec.Command("stty", "-echo")) // is stopped if it has not
		if d := s.Prompt(t.Context()); d.Status != 0 || len(s.parent.reports.all()) != 2 {
			t.Fatalf("%s, printed %q, %+v", describe(d.Status), d.Output, s.parent.reports.all())
		}
	}
}

func TestAllOutputComesBeforeThePrompt(t *testing.T) {
	for range 10 {
		d := Shell(t, shell("head -c 300000 /dev/zero | tr '\\0' x; echo; echo end"))
		if len(d.Output) != 300000+len("\nend\n") || !strings.HasSuffix(d.Output, "x\nend\n") {
			t.Fatalf("%d bytes", len(d.Output))
		}
	}
}

func TestOutputAfterThePromptIsNotTheCommands(t *testing.T) {
	s := StartShell(t, shell("trap '' HUP; (read x </dev/tty; sleep 0.05; echo late) & echo early"))
	d := s.Prompt(t.Context())
	if d.Output != "early\n" {
		t.Errorf("printed %q", d.Output)
	}
}

func TestDaemonIsTheSessionLeader(t *testing.T) {
	s := StartShell(t, shell(`sleep 60 & echo $!; setsid sleep 60 & echo $!; sleep 60 & echo $!; read x`))
	var pids []int
	s.Expect(t.Context(), "\n")
	eventually(t, "all are there, one of them a session leader", func() bool {
		pids = nil
		for _, field := range strings.Fields(s.Output()) {
			pid, _ := strconv.Atoi(field)
			pids = append(pids, pid)
		}
		if len(pids) < 3 {
			return false
		}
		p, err := readProcess(pids[1])
		return err == nil && p.session == p.pid
	})
	if got := s.Processes(); len(got) != 4 || got[0] != s.PID {
		t.Errorf("processes %v, expected %d and %v", got, s.PID, pids)
	}
	s.Type("\n")
	d := s.Prompt(t.Context())
	if d.PID != pids[1] || len(d.Processes()) != 3 {
		t.Errorf("daemon %d of %v, processes %v", d.PID, pids, d.Processes())
	}
}

func TestDaemonsEndIsSeen(t *testing.T) {
	d := Shell(t, shell(`setsid sh -c "trap 'exit 9' TERM; while :; do sleep 0.01; done" \
		</dev/null >/dev/null 2>&1 & exit 2`))
	// Before the shell has set its trap the signal kills it, which is as good.
	if err := d.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := d.Wait(t.Context()); status.ExitStatus() != 9 && status.Signal() != unix.SIGTERM {
		t.Errorf("the daemon %s", describe(status))
	}
	if err := d.Signal(unix.SIGTERM); err != unix.ESRCH {
		t.Error(err)
	}
	eventually(t, "nothing is left", func() bool { return len(d.Processes()) == 0 })
}

func TestStandardStreamsAreRedirected(t *testing.T) {
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(in, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	cmd := shell("cat; echo extra >&3; echo terminal >&2; tty <&2")
	cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = from, to, []*os.File{to}
	d := Shell(t, cmd)
	written, err := os.ReadFile(out)
	if err != nil || !strings.HasPrefix(string(written), "from the file\nextra\n/dev/pts/") || d.Output != "terminal\n" {
		t.Errorf("file %q, %v; terminal %q", written, err, d.Output)
	}
}

func TestPipeEndsWhenTheCommandReturns(t *testing.T) {
	cmd := shell("setsid sleep 60 </dev/null >/dev/null 2>&1 & echo out")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d := Shell(t, cmd)
	if out, err := io.ReadAll(pipe); err != nil || string(out) != "out\n" {
		t.Errorf("%q, %v", out, err)
	}
	if !exists(d.PID) {
		t.Error("the daemon has ended")
	}
}

func TestCommandIsThatOfOSExec(t *testing.T) {
	const script = `printf '%s|' "$0" "$@"; pwd; env | grep ^X | sort`
	tests := []exec.Cmd{
		{Path: "/bin/pwd"},
		{Path: "/bin/sh", Args: []string{"-a b", "-c", script, "", "c\nd", "\xff", "-e"},
			Env: []string{"X=\xfe", "X=\xff", "XY=\n"}},
		{Path: "./sh", Args: []string{"sh", "-c", script}, Dir: "/bin/"},
	}
	for _, test := range tests {
		plain, inShell := test, test
		want, err := plain.Output()
		if err != nil {
			t.Fatal(err)
		}
		if d := Shell(t, &inShell); d.Output != string(want) {
			t.Errorf("%v: printed %q, want %q", test.Args, d.Output, want)
		}
	}
}

func TestTypedTextThatNobodyReads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s")
	}
	t.Parallel()
	failing(t, func(ft TB) {
		StartShell(ft, exec.Command("sleep", "300")).Type(strings.Repeat("more than a terminal holds\n", 10_000))
	}, "typing: ", "timeout")
}

func TestTypedTextIsRead(t *testing.T) {
	s := StartShell(t, shell(`printf 'name: '; read name; printf 'name: '; read other; echo "hello $name and $other"`))
	s.Expect(t.Context(), "name: ")
	s.Type("a\n")
	s.Expect(t.Context(), "name: ")
	s.Type("b\n")
	s.Expect(t.Context(), "hello a and b\n")
	if d := s.Prompt(t.Context()); d.Status != 0 || d.Output != "name: a\nname: b\nhello a and b\n" ||
		s.Output() != d.Output {
		t.Errorf("%s, printed %q and %q", describe(d.Status), d.Output, s.Output())
	}
}

func TestKeysSendSignals(t *testing.T) {
	for key, signal := range map[string]syscall.Signal{"\x03": unix.SIGINT, "\x1c": unix.SIGQUIT} {
		s := StartShell(t, shell("ulimit -c 0; echo up; exec sleep 60"))
		s.Expect(t.Context(), "up\n") // in the foreground
		s.Type(key)
		if d := s.Prompt(t.Context()); !d.Status.Signaled() || d.Status.Signal() != signal {
			t.Errorf("%q: %s", key, describe(d.Status))
		}
	}
}

func TestStoppedCommandGoesOnInTheForeground(t *testing.T) {
	s := StartShell(t, shell("echo ready; read x; read x; echo $x; exit 3"))
	s.Expect(t.Context(), "ready\n")
	for range 2 {
		s.Type("\x1a")
		if signal := s.Stopped(t.Context()); signal != unix.SIGTSTP {
			t.Errorf("stopped by %v", signal)
		}
		if p, err := readProcess(s.PID); err != nil || p.state != "T" {
			t.Errorf("%+v, %v", p, err)
		}
		s.Type("\x03") // the shell has the terminal: not for the command
		s.Expect(t.Context(), "^C")
		if err := s.Foreground(); err != nil {
			t.Error(err)
		}
		eventually(t, "the command goes on", func() bool {
			p, err := readProcess(s.PID)
			return err == nil && p.state != "T"
		})
	}
	s.Type("one\n")
	s.Type("two\n")
	s.Expect(t.Context(), "two\ntwo\n")
	if d := s.Prompt(t.Context()); d.ExitCode() != 3 {
		t.Errorf("%s, printed %q", describe(d.Status), d.Output)
	}
	if err := s.Foreground(); err != unix.ESRCH {
		t.Error(err)
	}
}

func TestHangup(t *testing.T) {
	t.Run("in the foreground", func(t *testing.T) {
		s := StartShell(t, shell("echo ready; sleep 60"))
		s.Expect(t.Context(), "ready\n")
		s.Hangup()
		if d := s.Prompt(t.Context()); d.Status.Signal() != unix.SIGHUP || d.Output != "ready\n" {
			t.Errorf("%s, printed %q", describe(d.Status), d.Output)
		}
		failing(t, func(ft TB) {
			s.parent.t, ft = ft, s.parent.t
			defer func() { s.parent.t = ft }()
			s.Type("x")
		}, "typing")
	})
	t.Run("stopped", func(t *testing.T) {
		s := StartShell(t, exec.Command("sleep", "60"))
		s.Type("\x1a")
		s.Stopped(t.Context())
		s.Hangup()
		if status := s.Wait(t.Context()); status.Signal() != unix.SIGHUP {
			t.Errorf("the command %s", describe(status))
		}
	})
	t.Run("detached", func(t *testing.T) {
		s := StartShell(t, shell("setsid sleep 60 </dev/null >/dev/null 2>&1 & "))
		d := s.Prompt(t.Context())
		eventually(t, "the daemon has left the session", func() bool {
			p, err := readProcess(d.PID)
			return err == nil && p.session == d.PID
		})
		s.Hangup()
		if err := d.Signal(0); err != nil || !exists(d.PID) {
			t.Errorf("the daemon is gone: %v", err)
		}
	})
}

func TestCommandThatDoesNotReturn(t *testing.T) {
	quick(t)
	for name, script := range map[string]string{
		"gentle": "echo pid $$; sleep 60; true",
		"deaf":   "trap '' TERM HUP; echo pid $$; setsid sleep 60 & while :; do sleep 0.01; done",
	} {
		t.Run(name, func(t *testing.T) {
			var pids []int
			f := failing(t, func(ft TB) {
				s := StartShell(ft, shell(script))
				s.Expect(t.Context(), "pid")
				pids = s.Processes()
				s.Prompt(short(t))
				t.Error("Fatalf has returned")
			}, "/bin/sh has not returned", "deadline", "it has not called Ready, or stays in the foreground",
				"in state ", `"pid `)
			if len(f.left) > 0 {
				t.Errorf("processes are left at the failure: %v", f.left)
			}
			for _, pid := range pids {
				if exists(pid) {
					t.Errorf("process %d is left", pid)
				}
			}
		})
	}
	t.Run("terminal held", func(t *testing.T) {
		failing(t, func(ft TB) {
			s := StartShell(ft, shell("echo ready; read x; while :; do echo y; done"))
			s.Expect(t.Context(), "ready\n")
			s.Type("\n\x13") // Ctrl-S: nothing can be written any more
			s.Prompt(short(t))
		}, "has not returned")
	})
}

func TestCommandThatDoesSomethingElse(t *testing.T) {
	tests := []struct {
		name  string
		test  func(ft TB)
		words []string
	}{
		{"missing", func(ft TB) { Shell(ft, exec.Command("/nonexistent")) },
			[]string{"shell", "/nonexistent", "no such file"}},
		{"not found", func(ft TB) { Shell(ft, exec.Command("no-such-command")) }, []string{"no-such-command", "not found"}},
		{"no directory", func(ft TB) { Shell(ft, &exec.Cmd{Path: "/bin/sh", Dir: "/nonexistent"}) },
			[]string{"/bin/sh", "/nonexistent", "no such file"}},
		{"writer", func(ft TB) {
			cmd := shell("exit 0")
			cmd.Stdout = new(bytes.Buffer)
			Shell(ft, cmd)
		}, []string{"*bytes.Buffer", "*os.File"}},
		{"returned and not printed", func(ft TB) {
			StartShell(ft, shell("echo a")).Expect(context.Background(), "b")
		}, []string{"has returned", `not printed "b"`, `"a\n"`}},
		{"not printed", func(ft TB) {
			s := StartShell(ft, shell("echo a; exec sleep 60"))
			s.Expect(t.Context(), "a\n")
			s.Expect(short(t), "a\n")
		}, []string{"has not printed", "deadline", `"a\n"`}},
		{"not stopped", func(ft TB) { StartShell(ft, exec.Command("sleep", "60")).Stopped(short(t)) },
			[]string{"has not been stopped", "deadline"}},
		{"ended", func(ft TB) { StartShell(ft, shell("echo a; exit 3")).Stopped(t.Context()) },
			[]string{"exited with status 3", "was not stopped"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { failing(t, test.test, test.words...) })
	}
}

func TestContextEndsCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := StartShell(t, exec.CommandContext(ctx, "sleep", "60"))
	cancel()
	if d := s.Prompt(t.Context()); d.Status.Signal() != unix.SIGTERM {
		t.Errorf("%s", describe(d.Status))
	}
}

func TestManyShellsAtOnce(t *testing.T) {
	t.Run("group", func(t *testing.T) {
		for i := range 20 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				d := Shell(t, shell("echo $1; setsid sleep 60 & exit $1", strconv.Itoa(i)))
				if d.ExitCode() != i || d.Output != fmt.Sprintf("%d\n", i) || len(d.Processes()) != 1 {
					t.Errorf("exit code %d, printed %q, processes %v", d.ExitCode(), d.Output, d.Processes())
				}
			})
		}
	})
}

func TestNothingOutlivesAKilledTest(t *testing.T) {
	cmd := program(t, "killed test")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := io.ReadAll(out)
	var job, daemon, command int
	if n, scanErr := fmt.Sscan(string(line), &job, &daemon, &command); n != 3 {
		t.Errorf("%q, %v, %v", line, err, scanErr)
	}
	for _, pid := range []int{job, daemon, command} {
		if !exists(pid) {
			t.Errorf("process %d has ended before the test", pid)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range []int{job, daemon, command} {
		eventually(t, "a process ends with its test", func() bool { return !exists(pid) })
	}
}

func TestCommandRunsAsAnotherUser(t *testing.T) {
	cmd := shell("id -u; setsid sleep 60 &")
	asNobody(t, cmd)
	if d := Shell(t, cmd); d.Output != "65534\n" || d.PID == 0 {
		t.Errorf("printed %q, daemon %d", d.Output, d.PID)
	}
}

func TestShellLeavesNothing(t *testing.T) {
	leavesNothing(t, func(ft TB) {
		Shell(ft, shell("setsid sleep 60 & sleep 60 & exit 0"))
		StartShell(ft, exec.Command("sleep", "60"))
	})
}
