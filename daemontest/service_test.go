//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that do as their arguments say, one after the other.
func init() {
	programs["service"] = func() {
		for _, step := range os.Args[1:] {
			name, text, _ := strings.Cut(step, " ")
			serviceSteps[name](text)
		}
	}
	programs["print"] = func() {
		fmt.Println("before")
		must(send(os.Getenv("NOTIFY_SOCKET"), "READY=1"))
		time.Sleep(time.Hour)
	}
	programs["hand over"] = handOver
	programs["reload"] = reload
}

var serviceSteps = map[string]func(text string){
	"say": func(text string) { must(send(os.Getenv("NOTIFY_SOCKET"), text)) },
	"store": func(text string) {
		path, name, _ := strings.Cut(text, " FDNAME=")
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		must(err)
		must(send(os.Getenv("NOTIFY_SOCKET"), "FDSTORE=1\nFDNAME="+name, int(file.Fd())))
	},
	"store-again": func(text string) { // what it was passed
		must(send(os.Getenv("NOTIFY_SOCKET"), "FDSTORE=1\nFDNAME="+text, 3))
	},
	"store-pipe": func(text string) { // whose other end is closed with this process
		r, _, err := os.Pipe()
		must(err)
		must(send(os.Getenv("NOTIFY_SOCKET"), "FDSTORE=1\nFDNAME="+text, int(r.Fd())))
	},
	"print":        func(text string) { fmt.Println(os.ExpandEnv(text)) },
	"print-listen": func(string) { fmt.Println(os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")) },
	"read": func(text string) {
		fd, err := strconv.Atoi(text)
		must(err)
		content := make([]byte, 100)
		n, err := unix.Pread(fd, content, 0)
		must(err)
		fmt.Printf("%s\n", content[:n])
	},
	"sleep": func(string) { time.Sleep(time.Hour) },
	"serve": func(string) { // until SIGTERM
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		must(send(os.Getenv("NOTIFY_SOCKET"), "READY=1"))
		<-signals
	},
	"exit": func(text string) {
		code, err := strconv.Atoi(text)
		must(err)
		syscall.Exit(code) // os.Exit takes a second under the race detector
	},
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		syscall.Exit(1)
	}
}

// handOver starts a process that says that it is the main one, and exits.
func handOver() {
	address := os.Getenv("NOTIFY_SOCKET")
	if first, err := strconv.Atoi(os.Getenv("SUCCESSOR_OF")); err == nil {
		must(send(address, fmt.Sprintf("READY=1\nSTATUS=successor\nMAINPID=%d", os.Getpid())))
		syscall.Kill(first, syscall.SIGKILL) // which may be gone: not the parent
		time.Sleep(time.Hour)
	}
	must(send(address, "READY=1\nSTATUS=first"))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("SUCCESSOR_OF=%d", os.Getpid()))
	must(cmd.Start())
	time.Sleep(time.Hour)
}

// reload says that it is reloaded, with a field, each time that it is.
func reload() {
	address := os.Getenv("NOTIFY_SOCKET")
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	must(send(address, "READY=1"))
	for range hangups {
		field := strings.Replace(os.Args[1], "now", strconv.FormatInt(monotonic()/1000, 10), 1)
		for _, text := range []string{"RELOADING=1\n" + field, "STATUS=x", "READY=1\nSTATUS=again"} {
			must(send(address, text))
		}
	}
}

// serviceProgram is the command of a program that takes these steps.
func serviceProgram(t *testing.T, steps ...string) *exec.Cmd {
	t.Helper()
	return program(t, "service", steps...)
}

func TestServiceIsReady(t *testing.T) {
	t.Parallel() // it does not change the environment
	u := Service(t, serviceProgram(t, "say STATUS=starting", "say READY=1\nSTATUS=serving", "say STATUS=more", "sleep"))
	if status, _ := u.Ready.Get("STATUS"); status != "serving" || u.Ready.PID != u.PID || u.MainPID() != u.PID {
		t.Errorf("process %d, main process %d, ready %v", u.PID, u.MainPID(), u.Ready)
	}
	u.Systemd.Wait(t.Context(), "STATUS=more")
	if pids := u.Processes(); !slices.Equal(pids, []int{u.PID}) {
		t.Errorf("processes %v", pids)
	}
}

func TestServiceFindsItselfUnderSystemd(t *testing.T) {
	t.Setenv("UPSTART_JOB", "x")
	t.Setenv("NOTIFY_FD", "3")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PIDFDID", "1")
	cmd := shell(`env; echo; ps -o sid= -p $$; grep -E 'Sig(Blk|Ign)' /proc/self/status
		ls -1 /proc/$$/fd; readlink /proc/$$/fd/0; echo end; exec sleep 60`)
	cmd.Env = append(os.Environ(), "MINE=$$")
	u := StartService(t, cmd, WatchdogSec(1500*time.Millisecond))
	eventually(t, "it has printed all", func() bool { return strings.HasSuffix(u.Output(), "end\n") })
	env, rest, _ := strings.Cut(u.Output(), "\n\n")
	pid := strconv.Itoa(u.PID)
	for _, want := range []string{
		"MINE=$$", "NOTIFY_SOCKET=" + u.Systemd.Addr(), "SYSTEMD_EXEC_PID=" + pid,
		"WATCHDOG_USEC=1500000", "WATCHDOG_PID=" + pid,
	} {
		if !slices.Contains(strings.Split(env, "\n"), want) {
			t.Errorf("no %s in %s", want, env)
		}
	}
	if !regexp.MustCompile(`(?m)^INVOCATION_ID=[0-9a-f]{32}$`).MatchString(env) {
		t.Errorf("no INVOCATION_ID in %s", env)
	}
	for _, name := range []string{"UPSTART_JOB", "NOTIFY_FD", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
		"LISTEN_PIDFDID"} {
		if strings.Contains(env, name+"=") {
			t.Errorf("%s is set", name)
		}
	}
	want := pid + " SigBlk: 0000000000000000 SigIgn: 0000000000000000 0 1 2 /dev/null end"
	if got := strings.Join(strings.Fields(rest), " "); got != want {
		t.Errorf("session, signals, descriptors: %s, want %s", got, want)
	}
}

func TestServiceIsPassedFiles(t *testing.T) {
	var files []*os.File
	for _, text := range []string{"one", "two", "three"} {
		path := filepath.Join(t.TempDir(), text)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	cmd := serviceProgram(t, "print-listen", "print $LISTEN_PID", "read 3", "read 4", "read 5", "say READY=1", "sleep")
	u := Service(t, cmd, Pass("a", files[0]), Pass("b c", files[1:]...))
	closeAll(files)
	want := fmt.Sprintf("3 a:b c:b c\n%d\none\ntwo\nthree\n", u.PID)
	eventually(t, "it has printed "+want, func() bool { return u.Output() == want })

	again := u.Restart(t.Context())
	want += fmt.Sprintf("3 a:b c:b c\n%d\none\ntwo\nthree\n", again.PID)
	eventually(t, "it has printed "+want, func() bool { return again.Output() == want })
}

func TestListenerIsPassed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	Service(t, serviceProgram(t, "say READY=1", "sleep"), Pass("http", file))
	file.Close()
	done := make(chan error, 1)
	go func() { // the listener goes on working here: it has not been made to block
		conn, err := listener.Accept()
		if err == nil {
			conn.Close()
		}
		done <- err
	}()
	listener.Close()
	select {
	case <-done:
	case <-time.After(Timeout):
		t.Error("Accept does not end")
	}
}

func TestServiceThatIsNotReady(t *testing.T) {
	child := fmt.Sprintf("%s=service", testProgram)
	byChild := func() *exec.Cmd {
		cmd := shell(`"$0" "say READY=1"; exec sleep 60`)
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args[3] = exe
		cmd.Env = append(os.Environ(), child)
		return cmd
	}
	tests := []struct {
		name  string
		start func(ft TB)
		words []string
	}{
		{"exit", func(ft TB) {
			Service(ft, serviceProgram(t, "say STATUS=a", "print last words", "exit 1"))
		}, []string{"no READY=1: the process exited with status 1 after ",
			"s; it printed \"last words\\n\"; received so far:\n\tafter ", `"STATUS=a" from pid `}},
		{"killed", func(ft TB) { Service(ft, shell("kill -SEGV $$")) },
			[]string{"no READY=1: the process was killed by SIGSEGV", "it printed nothing"}},
		{"left behind", func(ft TB) { Service(ft, shell("sleep 60 & exit 0")) },
			[]string{"exited with status 0 after", ", and left process ", " behind"}},
		{"by a child", func(ft TB) {
			u := StartService(ft, byChild())
			u.Systemd.Next(t.Context())
			u.Systemd.Wait(short(t), "READY=1")
		}, []string{"no READY=1: context deadline exceeded (a notification was ignored by systemd: pid ",
			"is not the main process", "NotifyAccess=all", " when the test ended it; it printed"}},
		{"beats", func(ft TB) {
			steps := slices.Repeat([]string{"say WATCHDOG=1"}, 54)
			u := StartService(ft, serviceProgram(t, append(steps, "say STATUS=x", "sleep")...))
			u.Systemd.Wait(t.Context(), "STATUS=x")
			u.Systemd.Wait(short(t), "READY=1")
		}, []string{`"WATCHDOG=1" from pid `, " (×54, the last ", "ms ago)\n\tafter ", `"STATUS=x" from`}},
		{"missing", func(ft TB) { Service(ft, exec.Command("/nonexistent")) },
			[]string{"service: ", "/nonexistent", "no such file"}},
		{"not found", func(ft TB) { Service(ft, exec.Command("no-such-command")) }, []string{"no-such-command", "not found"}},
		{"context", func(ft TB) { Service(ft, exec.CommandContext(short(t), "sleep", "60")) },
			[]string{"was killed by SIGTERM", "the command's context having ended"}},
		{"extra files", func(ft TB) {
			cmd := shell("exit 0")
			cmd.ExtraFiles = []*os.File{os.Stdin}
			Service(ft, cmd)
		}, []string{"ExtraFiles", "Pass"}},
		{"chroot", func(ft TB) {
			cmd := shell("exit 0")
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/tmp"}
			Service(ft, cmd)
		}, []string{"Chroot"}},
		{"bad name", func(ft TB) { Service(ft, shell("exit 0"), Pass("a:b")) },
			[]string{`Pass("a:b")`, "printable ASCII characters without ':'"}},
		{"no file", func(ft TB) { Service(ft, shell("exit 0"), Pass("a", os.Stdin, nil)) },
			[]string{`Pass("a"): file 1 is nil`}},
		{"bad watchdog", func(ft TB) { Service(ft, shell("exit 0"), WatchdogSec(0)) }, []string{"WatchdogSec(0s)"}},
		{"closed file", func(ft TB) {
			file, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
			Service(ft, shell("exit 0"), Pass("a", file))
		}, []string{`Pass("a")`, "closed"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := failing(t, test.start, test.words...)
			if len(f.left) > 0 {
				t.Errorf("processes are left at the failure: %v", f.left)
			}
		})
	}
}

func TestEveryProcessMaySpeak(t *testing.T) {
	cmd := shell(`"$0" "say READY=1"; exec sleep 60`)
	cmd.Args[3] = program(t, "service").Path
	cmd.Env = append(os.Environ(), testProgram+"=service")
	if u := Service(t, cmd, NotifyAccessAll()); u.Ready.PID == u.PID {
		t.Errorf("process %d: %v", u.PID, u.Ready)
	}
}

func TestServiceSaysMuchAndEnds(t *testing.T) {
	for range 20 {
		u := StartService(t, serviceProgram(t, "say STATUS=1", "say STATUS=2", "say STATUS=3", "exit 3"))
		if status := u.Wait(t.Context()); status.ExitStatus() != 3 {
			t.Fatalf("the service %s", describe(status))
		}
		for i := range 3 { // all that it has said is there now
			if status, _ := u.Systemd.Next(over()).Get("STATUS"); status != strconv.Itoa(i+1) {
				t.Fatalf("status %s in place %d", status, i+1)
			}
		}
		if err := u.Signal(unix.SIGTERM); err != unix.ESRCH {
			t.Errorf("signal: %v", err)
		}
	}
}

func TestServiceIsReloaded(t *testing.T) {
	reloading := func(fields string) *exec.Cmd { return program(t, "reload", fields) }
	u := Service(t, reloading("MONOTONIC_USEC=now"))
	for range 2 {
		n := u.Reload(t.Context())
		if status, _ := n.Get("STATUS"); status != "again" {
			t.Errorf("after the reload: %v", n)
		}
	}
	quick(t)
	failing(t, func(ft TB) {
		Service(ft, reloading("X=y")).Reload(short(t))
	}, "no RELOADING=1 with MONOTONIC_USEC after SIGHUP", "deadline")
	failing(t, func(ft TB) {
		Service(ft, reloading("MONOTONIC_USEC=1")).Reload(short(t))
	}, "no RELOADING=1 with MONOTONIC_USEC after SIGHUP", "MONOTONIC_USEC=1")
	failing(t, func(ft TB) {
		Service(ft, serviceProgram(t, "say READY=1", "sleep")).Reload(t.Context())
	}, "no RELOADING=1 with MONOTONIC_USEC after SIGHUP: the process was killed by SIGHUP")
}

func TestFailureTellsTheTimesFromTheStart(t *testing.T) {
	u := StartService(t, shell("date +%s%N; exit 1"))
	u.Wait(t.Context())
	last, _ := u.ended()
	nsec, err := strconv.ParseInt(strings.TrimSpace(u.Output()), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if printed, end := time.Unix(0, nsec), u.Systemd.since().Add(last.After); end.Before(printed) {
		t.Errorf("ended %v before it printed the time", printed.Sub(end))
	}
	failing(t, func(ft TB) {
		u := Service(ft, serviceProgram(t, "say READY=1", "sleep")).Restart(t.Context())
		u.Systemd.Wait(short(t), "STATUS=b")
	}, "\n\tbefore this start: \"READY=1\" from pid ", "\n\tafter ")
}

func TestServiceIsStopped(t *testing.T) {
	u := Service(t, serviceProgram(t, "serve", "say STOPPING=1", "exit 3"))
	stopped := u.Stop(t.Context())
	if stopped.Status.ExitStatus() != 3 || stopped.Stopping == nil || stopped.After <= 0 {
		t.Errorf("%+v", stopped)
	}
	u = Service(t, serviceProgram(t, "say READY=1", "sleep"))
	if stopped := u.Stop(t.Context()); stopped.Status.Signal() != unix.SIGTERM || stopped.Stopping != nil {
		t.Errorf("%+v", stopped)
	}
	failing(t, func(ft TB) {
		u := Service(ft, serviceProgram(t, "say READY=1", "exit 3"))
		u.Wait(t.Context())
		u.Stop(t.Context())
	}, "nothing to stop: the process exited with status 3 after ")
	quick(t)
	failing(t, func(ft TB) {
		Service(ft, shell(fmt.Sprintf(`trap '' TERM; %s=service "%s" "say READY=1"; while :; do sleep 0.01; done`,
			testProgram, program(t, "service").Path)), NotifyAccessAll()).Stop(short(t))
	}, "has not ended on SIGTERM: context deadline")
}

func TestStopIsForTheWholeService(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "marker")
	u := StartService(t, shell(`trap 'wait; exit' TERM
		sh -c 'trap "echo got TERM >\"\$1\"; exit" TERM; echo up; while :; do sleep 0.01; done' sh "$1" &
		while :; do sleep 0.01; done`, marker))
	eventually(t, "the child is up", func() bool { return u.Output() == "up\n" })
	u.Stop(t.Context())
	if text, err := os.ReadFile(marker); string(text) != "got TERM\n" {
		t.Errorf("the child said %q, %v", text, err)
	}
}

func TestWhatAServiceLeavesBehindIsKilled(t *testing.T) {
	cmd := shell("(trap '' TERM; sleep 60) & setsid sleep 60 & echo up; read x; exit 0")
	stdin := untilClosed(t, cmd)
	u := StartService(t, cmd)
	eventually(t, "it is up", func() bool { return u.Output() == "up\n" })
	pids := u.Processes()
	if len(pids) < 3 {
		t.Errorf("processes %v", pids)
	}
	stdin.Close()
	u.Wait(t.Context())
	for _, pid := range pids {
		eventually(t, "it has ended", func() bool { return !exists(pid) })
	}
}

// A start that has said READY=1 again is not the next one.
func TestRestartWaitsForTheNewStart(t *testing.T) {
	u := Service(t, serviceProgram(t, "say READY=1", "say READY=1", "sleep"))
	eventually(t, "it has said both", func() bool { return len(u.Systemd.All()) == 2 })
	again := u.Restart(t.Context())
	if again.Ready.PID != again.PID {
		t.Errorf("process %d is ready, want %d", again.Ready.PID, again.PID)
	}
}

func TestManyFilesArePassed(t *testing.T) {
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	u := StartService(t, shell(`echo $LISTEN_FDS; [ -e /proc/$$/fd/602 ] && [ ! -e /proc/$$/fd/603 ]`),
		Pass("many", slices.Repeat([]*os.File{file}, 600)...))
	if status := u.Wait(t.Context()); status != 0 || u.Output() != "600\n" {
		t.Errorf("%s, printed %q", describe(status), u.Output())
	}
}

func TestServiceIsRestartedWithStoredFiles(t *testing.T) {
	dir := t.TempDir()
	paths := map[string]string{}
	for _, name := range []string{"one", "two", "gone"} {
		paths[name] = filepath.Join(dir, name)
		if err := os.WriteFile(paths[name], []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	passed, err := os.Open(paths["one"])
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	cmd := shell(`if [ "$LISTEN_FDS" = 1 ]; then
			exec "$0" "store $1 FDNAME=two" "store $2 FDNAME=gone" "store $2 FDNAME=a:b" "store-pipe hung" "say FDSTOREREMOVE=1
FDNAME=gone" "say READY=1" sleep
		fi
		exec "$0" print-listen "read 4" "store-again again" "store-again again" "say READY=1" sleep`, paths["two"], paths["gone"])
	cmd.Args[3] = program(t, "service").Path
	cmd.Env = append(os.Environ(), testProgram+"=service")

	first := Service(t, cmd, Pass("main", passed))
	second := first.Restart(t.Context())
	if second.PID == first.PID || exists(first.PID) {
		t.Errorf("process %d after %d", second.PID, first.PID)
	}
	// "gone" has been removed, "a:b" is no name, "hung" is hung up.
	printed := "3 main:two:stored\ntwo\n"
	eventually(t, "it has printed "+printed, func() bool { return second.Output() == printed })
	if status := first.Wait(over()); status.Signal() != unix.SIGTERM {
		t.Errorf("the first %s", describe(status))
	}
	if err := first.Signal(0); err != unix.ESRCH {
		t.Errorf("signal to the first: %v", err)
	}
	// What is there already is not stored again.
	if err := second.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	third := second.Restart(t.Context())
	third.Stop(t.Context())
	printed += "4 main:two:stored:again\ntwo\n"
	if out := third.Output(); out != printed {
		t.Errorf("printed %q", out)
	}
	// The stop has dropped them.
	fourth := third.Restart(t.Context())
	fourth.Stop(t.Context())
	if out := fourth.Output(); out != printed {
		t.Errorf("printed %q", out)
	}
}

func TestServiceThatIsNotRestarted(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "marker")
	cmd := func(then string) *exec.Cmd {
		os.Remove(marker)
		cmd := shell(`[ -e "$1" ] && { `+then+`; }; echo >"$1"; exec "$0" "say READY=1" sleep`, marker)
		cmd.Args[3] = program(t, "service").Path
		cmd.Env = append(os.Environ(), testProgram+"=service")
		return cmd
	}
	failing(t, func(ft TB) { Service(ft, cmd("echo a word; exit 3")).Restart(t.Context()) },
		"no READY=1: the process exited with status 3", "a word")
	failing(t, func(ft TB) { Service(ft, cmd("exec sleep 60")).Restart(patient(t)) }, "no READY=1: context deadline")
	failing(t, func(ft TB) {
		u := Service(ft, cmd("true"))
		u.Restart(t.Context())
		u.Restart(t.Context())
	}, "has not been restarted", "done already")
	path := script(t, "exec sleep 60")
	failing(t, func(ft TB) {
		u := StartService(ft, exec.Command(path))
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
		u.Restart(t.Context())
	}, "has not been restarted", path, "no such file")
}

func TestManyAreLeftBehindAtARestart(t *testing.T) {
	quick(t)
	cmd := shell(`i=0; while [ $i -lt 40 ]; do (trap '' TERM; exec sleep 60) & i=$((i+1)); done; exec "$0" "say READY=1" sleep`)
	cmd.Args[3] = program(t, "service").Path
	cmd.Env = append(os.Environ(), testProgram+"=service")
	u := Service(t, cmd)
	for range 2 {
		u = u.Restart(t.Context())
	}
	eventually(t, "there are as many as before", func() bool { return len(u.Processes()) == 41 })
}

func TestServiceFollowsMainPID(t *testing.T) {
	u := StartService(t, program(t, "hand over"), NotifyAccessAll())
	u.Systemd.Wait(t.Context(), "STATUS=first")
	second := u.Systemd.Wait(t.Context(), "STATUS=successor")
	if second.PID == u.PID || u.MainPID() != second.PID {
		t.Errorf("process %d, successor %d, main process %d", u.PID, second.PID, u.MainPID())
	}
	eventually(t, "the first is gone", func() bool { return !exists(u.PID) })
	if err := u.Signal(0); err != nil {
		t.Errorf("the service has ended: %v", err)
	}
	if stopped := u.Stop(t.Context()); stopped.Status.Signal() != unix.SIGTERM {
		t.Errorf("the successor %s", describe(stopped.Status))
	}
	if exists(second.PID) {
		t.Error("the successor is left")
	}
	u.Restart(t.Context())
}

func TestStrangerIsNoMainPID(t *testing.T) {
	f := inTest(t, func(ft TB) {
		u := Service(ft, serviceProgram(t, fmt.Sprintf("say READY=1\nMAINPID=%d", os.Getpid()), "sleep"))
		if u.MainPID() != u.PID {
			t.Errorf("main process %d, process %d", u.MainPID(), u.PID)
		}
	})
	if f.failure != "" || len(f.logs) != 1 || !strings.Contains(f.logs[0], "MAINPID="+strconv.Itoa(os.Getpid())) {
		t.Errorf("%q, logged %q", f.failure, f.logs)
	}
}

func TestMissedBeat(t *testing.T) {
	u := Service(t, serviceProgram(t, "say READY=1", "say WATCHDOG=1", "sleep"), WatchdogSec(100*time.Millisecond))
	before := u.Systemd.Wait(t.Context(), "WATCHDOG=1").Received
	status := u.MissedBeat(t.Context())
	// The program is written in Go, which catches SIGABRT and exits.
	if took := time.Since(before); took < 100*time.Millisecond ||
		status.ExitStatus() != 2 && status.Signal() != unix.SIGABRT {
		t.Errorf("the service %s, after %v", describe(status), took)
	}
	u = Service(t, serviceProgram(t, "say READY=1\nWATCHDOG=trigger", "sleep"), WatchdogSec(time.Hour))
	u.MissedBeat(t.Context())
	u = Service(t, serviceProgram(t, "say READY=1", "say WATCHDOG_USEC=1000", "say STATUS=x", "sleep"),
		WatchdogSec(time.Hour))
	u.Systemd.Wait(t.Context(), "STATUS=x")
	u.MissedBeat(t.Context())

	failing(t, func(ft TB) {
		Service(ft, serviceProgram(t, "say READY=1", "sleep"), WatchdogSec(time.Hour)).MissedBeat(short(t))
	}, "no beat missed: context deadline", "received so far")
	failing(t, func(ft TB) {
		Service(ft, serviceProgram(t, "say READY=1", "exit 3"), WatchdogSec(time.Hour)).MissedBeat(t.Context())
	}, "no beat missed: the process exited with status 3")
	failing(t, func(ft TB) {
		Service(ft, serviceProgram(t, "say READY=1", "sleep")).MissedBeat(t.Context())
	}, "no watchdog", "WatchdogSec")
}

func TestServicesStreamsAreThoseOfOSExec(t *testing.T) {
	script := fmt.Sprintf(`echo out; echo err >&2; read x; echo $x; exec "%s" "print last" "say READY=1" sleep`,
		program(t, "service").Path)
	newCmd := func() *exec.Cmd {
		cmd := shell(script)
		cmd.Env = append(os.Environ(), testProgram+"=service")
		cmd.Stdin = strings.NewReader("in\n")
		return cmd
	}
	var out bytes.Buffer
	passing(t, func(ft TB) {
		cmd := newCmd()
		cmd.Stdout = &out
		u := Service(ft, cmd)
		eventually(t, "its standard error is there", func() bool { return u.Output() == "err\n" })
	})
	if !strings.HasPrefix(out.String(), "out\nin\n") {
		t.Errorf("standard output %q", out.String())
	}
	cmd := newCmd()
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	passing(t, func(ft TB) {
		u := Service(ft, cmd).Restart(t.Context())
		want := []byte("out\nin\nlast\nout\n\nlast\n")
		text = make([]byte, len(want))
		if _, err := io.ReadFull(pipe, text); err != nil || !bytes.Equal(text, want) {
			t.Errorf("standard output %q, %v; process %d", text, err, u.PID)
		}
	})
}

func TestContextEndsService(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	u := StartService(t, exec.CommandContext(ctx, "sleep", "60"))
	cancel()
	if status := u.Wait(t.Context()); status.Signal() != unix.SIGTERM {
		t.Errorf("the service %s", describe(status))
	}
}

func TestManyServicesAtOnce(t *testing.T) {
	t.Run("group", func(t *testing.T) {
		for i := range 10 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				u := Service(t, serviceProgram(t, fmt.Sprintf("say READY=1\nSTATUS=%d", i), "sleep"))
				u = u.Restart(t.Context())
				if status, _ := u.Ready.Get("STATUS"); status != strconv.Itoa(i) {
					t.Errorf("STATUS=%s", status)
				}
			})
		}
	})
}

func TestServiceRunsAsAnotherUser(t *testing.T) {
	cmd := shell(`id -u; echo $LISTEN_PID $$; exec sleep 60`)
	asNobody(t, cmd)
	u := StartService(t, cmd, Pass("x", os.Stdin))
	want := fmt.Sprintf("65534\n%d %d\n", u.PID, u.PID)
	eventually(t, "it has printed "+want, func() bool { return u.Output() == want })
	if err := u.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	u.Wait(t.Context())
}

func TestServiceLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	leavesNothing(t, func(ft TB) {
		cmd := serviceProgram(t, "store /dev/null FDNAME=x", "say READY=1", "sleep")
		Service(ft, cmd, Pass("x", os.Stderr)).Restart(t.Context())
	})
	if entries, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(entries) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", entries, err)
	}
}

// A notification does not overtake what was printed before it.
func TestOutputHasWhatWasPrintedBefore(t *testing.T) {
	for range 50 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			u := Service(t, program(t, "print"))
			if u.Output() != "before\n" {
				t.Errorf("printed %q", u.Output())
			}
		})
	}
}
