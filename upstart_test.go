//go:build linux

package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

func TestReadyStopsTheProcessOnceUntilItIsContinued(t *testing.T) {
	testdaemon.Alone(t)
	for _, test := range []struct{ spinners, callers, runs int }{
		{0, 1, 200},
		{4, 1, 200},
		{0, 8, 50},
		{4, 8, 25},
	} {
		t.Run(fmt.Sprintf("%d goroutines spin and %d call", test.spinners, test.callers), func(t *testing.T) {
			m, file := newUpstartMemory(t)
			for range testdaemon.Rounds(test.runs) {
				*m = agreed.Memory{}
				cmd := testdaemon.Program(t, "upstart-stop", strconv.Itoa(test.spinners), strconv.Itoa(test.callers))
				cmd.ExtraFiles = []*os.File{file}
				p := startUpstartProcess(t, cmd)
				p.mustNext(upstartStopped)
				for range 2 { // and stays so
					p.mustStandStill(m)
				}
				p.signal(unix.SIGCONT)
				p.mustNext(upstartSuccess)
				if calls := uint32(test.callers + 2); m.Returned.Load() != calls {
					t.Errorf("%d calls of Ready returned, want %d", m.Returned.Load(), calls)
				}
			}
		})
	}
}

// newUpstartMemory is shared with a program that gets the file as descriptor 3.
func newUpstartMemory(t *testing.T) (*agreed.Memory, *os.File) {
	t.Helper()
	file := testdaemon.Memory(t, "")
	if err := file.Truncate(int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	m, err := agreed.MapMemory(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return m, file
}

func TestStoppedProcessEndsWithItsTest(t *testing.T) {
	const variable = "DAEMON_TEST_STOPPED"
	if os.Getenv(variable) != "" { // the test that is to be killed
		p := startUpstartProcess(t, testdaemon.Program(t, "upstart-verbs"))
		p.mustNext(upstartStopped)
		fmt.Println(p.process.Pid)
		select {}
	}
	cmd := testdaemon.Again(t, "TestStoppedProcessEndsWithItsTest")
	cmd.Env = append(cmd.Env, variable+"=yes")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	stdout.(*os.File).SetReadDeadline(time.Now().Add(testdaemon.Patience))
	var stopped int
	if _, err := fmt.Fscanln(stdout, &stopped); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(stopped, unix.SIGKILL)
	if s, err := testdaemon.ReadStat(stopped); err != nil || s.State != "T" {
		t.Errorf("before: %+v, %v", s, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	testdaemon.WaitUntil(t, "the end of the stopped process", func() bool {
		s, err := testdaemon.ReadStat(stopped)
		return err != nil || s.State == "Z"
	})
}

// An upstartProcess is a child of the test with UPSTART_JOB in its environment.
// It dies with the test, which may be killed while the process is stopped.
type upstartProcess struct {
	t       *testing.T
	process *os.Process
	ended   bool
}

// What wait(2) says.
const (
	upstartSuccess unix.WaitStatus = 0
	upstartStopped unix.WaitStatus = 0x7f | unix.WaitStatus(unix.SIGSTOP)<<8
)

func startUpstartProcess(t *testing.T, cmd *exec.Cmd) *upstartProcess {
	t.Helper()
	cmd.Env = append(cmd.Env, "UPSTART_JOB=test")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // whose death it is; the test's goroutine ends with it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &upstartProcess{t: t, process: cmd.Process}
	t.Cleanup(p.end)
	return p
}

// mustNext waits until the process stops or ends.
func (p *upstartProcess) mustNext(want unix.WaitStatus) {
	p.t.Helper()
	guard := time.AfterFunc(testdaemon.Patience, func() { _ = p.process.Kill() })
	defer guard.Stop()
	if got := p.next(); got != want {
		p.t.Fatalf("process %d: wait status %#x, want %#x", p.process.Pid, got, want)
	}
}

func (p *upstartProcess) next() (status unix.WaitStatus) {
	for {
		_, err := unix.Wait4(p.process.Pid, &status, unix.WUNTRACED, nil)
		if err != unix.EINTR {
			p.ended = err != nil || !status.Stopped()
			return status
		}
	}
}

func (p *upstartProcess) signal(signal os.Signal) {
	p.t.Helper()
	if err := p.process.Signal(signal); err != nil {
		p.t.Fatal(err)
	}
}

func (p *upstartProcess) end() {
	for !p.ended {
		_ = p.process.Kill()
		p.next()
	}
	_ = p.process.Release()
}

// mustStandStill checks that every thread is stopped, and that every call of
// Ready is still going on.
func (p *upstartProcess) mustStandStill(m *agreed.Memory) {
	p.t.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.process.Pid))
	if len(threads) == 0 {
		p.t.Errorf("process %d has no threads", p.process.Pid)
	}
	for _, thread := range threads {
		tid, _ := strconv.Atoi(filepath.Base(thread))
		if s, err := testdaemon.ReadStat(tid); err != nil || s.State != "T" {
			p.t.Errorf("thread %d is in state %q (%v)", tid, s.State, err)
		}
	}
	if called, returned := m.Called.Load(), m.Returned.Load(); called == 0 || returned != 0 {
		p.t.Errorf("%d of %d calls of Ready have returned", returned, called)
	}
}

func TestReadyFailsAsPID1WhichCannotStop(t *testing.T) {
	cmd := testdaemon.InNamespaces(t, testdaemon.Program(t, "upstart-pid1"), "--pid", "--fork")
	cmd.Env = append(cmd.Env, "UPSTART_JOB=test")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUpstartStartsTheJob has upstart's side of `expect stop` start the daemon
// 500 times.
func TestUpstartStartsTheJob(t *testing.T) {
	testdaemon.Alone(t)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // or the fake init takes a second to exit
	for _, test := range []struct {
		name   string
		runs   int
		args   []string
		stanza func(*testing.T, *exec.Cmd) *exec.Cmd // what the job's file says besides
	}{
		{"alone", 125, []string{"0", "once"}, nil},
		{"busy", 75, []string{"4", "once"}, nil},
		{"second Ready", 100, []string{"1", "again"}, nil},
		{"script with exec", 75, []string{"0", "again"}, upstartScript},
		{"setuid nobody", 25, []string{"0", "again"}, upstartSetuid},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range testdaemon.Rounds(test.runs) {
				cmd := testdaemon.Program(t, "upstart-job", test.args...)
				if test.stanza != nil {
					cmd = test.stanza(t, cmd)
				}
				job, printed := runUpstartJob(t, cmd)
				mustSayUpstart(t, job, printed)
			}
		})
	}
	t.Run("respawn", func(t *testing.T) { respawnUpstartJob(t, testdaemon.Program(t, "upstart-job", "1", "serve"), 100) })
}

// respawnUpstartJob has a job start, and crash once it has said its line,
// again and again.
func respawnUpstartJob(t *testing.T, cmd *exec.Cmd, runs int) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stdout)
	job := daemontest.Upstart(t, cmd)
	pids := map[int]bool{}
	for run := range testdaemon.Rounds(runs) {
		if run > 0 {
			job = job.Respawn(t.Context())
		}
		if pids[job.PID] {
			t.Errorf("process %d was there before", job.PID)
		}
		pids[job.PID] = true
		stdout.(*os.File).SetReadDeadline(time.Now().Add(testdaemon.Patience))
		line, _ := said.ReadString('\n')
		mustSayUpstart(t, job, line)
		mustStopOnce(t, job)
	}
}

// mustSayUpstart checks the line of a job's process.
func mustSayUpstart(t *testing.T, job *daemontest.Job, printed string) {
	t.Helper()
	want := fmt.Sprintf("%d: upstart, upstart, own \"\", inherited \"none\"\n", job.PID)
	if printed != want {
		t.Errorf("printed %q, want %q", printed, want)
	}
}

// mustStopOnce checks that a job's process has been stopped once, and answered.
func mustStopOnce(t *testing.T, job *daemontest.Job) {
	t.Helper()
	if stops := job.Stops(); len(stops) != 1 || stops[0] != job.Ready || stops[0].State != "T" || !stops[0].Answered {
		t.Errorf("process %d: stops %+v", job.PID, stops)
	}
}

// runUpstartJob has a job start and end.
func runUpstartJob(t *testing.T, cmd *exec.Cmd) (job *daemontest.Job, printed string) {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdout = &output
	job = daemontest.Upstart(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), testdaemon.Patience)
	defer cancel()
	if got := job.Wait(ctx); unix.WaitStatus(got) != upstartSuccess {
		t.Errorf("wait status %#x", got)
	}
	mustStopOnce(t, job)
	return job, output.String()
}

// upstartScript has a shell become the job.
func upstartScript(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
	return testdaemon.UnderShell(cmd, `umask 027; exec "$@"`)
}

// upstartSetuid makes the job nobody's.
func upstartSetuid(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	testdaemon.MustBeRoot(t)
	return testdaemon.AsNobody(t, cmd)
}

// A script that does not exec its daemon is the main process itself; the stop
// of its child is none to init, as the documentation says.
func TestUpstartNeverAnswersAScriptThatDoesNotExec(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	job := testdaemon.UnderShell(testdaemon.Program(t, "upstart-job", "0", "once"), `"$@" & echo $! >&3; wait`)
	cmd := exec.CommandContext(ctx, job.Path, job.Args[1:]...)
	cmd.Env, cmd.ExtraFiles = job.Env, []*os.File{w}

	init := &upstartFailure{TB: t, happened: make(chan string, 1)}
	go func() {
		defer close(init.happened)
		daemontest.Upstart(init, cmd)
	}()
	var child int
	_, err = fmt.Fscanln(r, &child)
	w.Close()
	if err != nil {
		t.Fatalf("%v; %s", err, <-init.happened)
	}
	stopped := func() bool {
		s, _ := testdaemon.ReadStat(child)
		return s.State == "T"
	}
	testdaemon.WaitUntil(t, "the stop", stopped)
	for range 50 {
		if !stopped() {
			t.Fatal("somebody has answered")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if failure := <-init.happened; !strings.Contains(failure, "had not stopped itself") {
		t.Errorf("upstart says %q", failure)
	}
	if s, err := testdaemon.ReadStat(child); err == nil {
		t.Errorf("the daemon is still there: %+v", s)
	}
}

// An upstartFailure is a test that is expected to fail.
type upstartFailure struct {
	testing.TB
	happened chan string
}

func (f *upstartFailure) Fatalf(format string, args ...any) {
	f.happened <- fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestUpstartWinsIfSystemdIsThereToo(t *testing.T) {
	systemd := daemontest.Systemd(t)
	// The fake upstart takes the variable away, but env(1) comes later.
	cmd := testdaemon.Wrap(testdaemon.Program(t, "upstart-verbs"), "env", "NOTIFY_SOCKET="+systemd.Addr())
	runUpstartJob(t, cmd)

	// Nothing has come before this.
	conn, err := net.Dial("unixgram", systemd.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("X_TEST=last")); err != nil {
		t.Fatal(err)
	}
	if n := systemd.Next(t.Context()); string(n.Raw) != "X_TEST=last" {
		t.Errorf("systemd was told %v", n)
	}
}
