//go:build linux

package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

func init() {
	programs["upstart-stop"] = upstartStop
	programs["upstart-pid1"] = upstartAsPID1
	programs["upstart-job"] = upstartJob
	programs["upstart-verbs"] = upstartVerbs
	programs["upstart-test"] = upstartTest
}

func upstartMust(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// upstartMemory is shared by a program and its test, which looks into it while
// the program is stopped.
type upstartMemory struct {
	called, returned atomic.Uint32    // calls of Ready
	spun             [4]atomic.Uint32 // turns of spinning goroutines
}

func mapUpstartMemory(fd int) (*upstartMemory, error) {
	page, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return (*upstartMemory)(unsafe.Pointer(unsafe.SliceData(page))), err
}

func newUpstartMemory(t *testing.T) (*upstartMemory, *os.File) {
	t.Helper()
	fd, err := unix.MemfdCreate("upstart", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	m, err := mapUpstartMemory(fd)
	if err != nil {
		t.Fatal(err)
	}
	return m, file
}

// spin keeps goroutines busy, and returns when all of them are.
func (m *upstartMemory) spin(goroutines int) {
	for i := range goroutines {
		go func() {
			for {
				m.spun[i].Add(1)
			}
		}()
	}
	for i := range goroutines {
		for m.spun[i].Load() == 0 {
			runtime.Gosched()
		}
	}
}

// ready calls Ready. Nothing must come between it and the count of its return.
func (m *upstartMemory) ready() {
	m.called.Add(1)
	err := daemon.Ready()
	m.returned.Add(1)
	upstartMust(err)
}

// upstartStop calls Ready, on several goroutines while others spin, and then
// twice more, at last with UPSTART_JOB set again.
func upstartStop() {
	m, err := mapUpstartMemory(3)
	upstartMust(err)
	spinners, _ := strconv.Atoi(os.Args[1])
	callers, _ := strconv.Atoi(os.Args[2])
	m.spin(spinners)
	daemon.Foreground() // is about detaching: it must not keep this from stopping
	var others sync.WaitGroup
	for range callers - 1 {
		others.Go(m.ready)
	}
	m.ready()
	others.Wait()
	m.ready()
	upstartMust(os.Setenv("UPSTART_JOB", "again"))
	m.ready()
}

func TestReadyStopsTheProcessOnceUntilItIsContinued(t *testing.T) {
	for _, test := range []struct{ spinners, callers, runs int }{
		{0, 1, 200},
		{4, 1, 200},
		{0, 8, 50},
		{4, 8, 25},
	} {
		t.Run(fmt.Sprintf("%d goroutines spin and %d call", test.spinners, test.callers), func(t *testing.T) {
			m, file := newUpstartMemory(t)
			for range rounds(test.runs) {
				*m = upstartMemory{}
				cmd := program(t, "upstart-stop", strconv.Itoa(test.spinners), strconv.Itoa(test.callers))
				cmd.ExtraFiles = []*os.File{file}
				p := startUpstartProcess(t, cmd)
				p.mustNext(upstartStopped)
				for range 2 { // and stays so
					p.mustStandStill(m)
				}
				p.signal(unix.SIGCONT)
				p.mustNext(upstartSuccess)
				if calls := uint32(test.callers + 2); m.returned.Load() != calls {
					t.Errorf("%d calls of Ready returned, want %d", m.returned.Load(), calls)
				}
			}
		})
	}
}

// upstartTest is a test that is in the middle of the one above.
func upstartTest() {
	t := new(testing.T)
	p := startUpstartProcess(t, program(t, "upstart-verbs"))
	p.mustNext(upstartStopped)
	fmt.Println(p.process.Pid)
	select {}
}

func TestStoppedProcessEndsWithItsTest(t *testing.T) {
	cmd := program(t, "upstart-test")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	stdout.(*os.File).SetReadDeadline(time.Now().Add(patience))
	var stopped int
	if _, err := fmt.Fscanln(stdout, &stopped); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(stopped, unix.SIGKILL)
	if s, err := readStat(stopped); err != nil || s.state != "T" {
		t.Errorf("before: %+v, %v", s, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the end of the stopped process", func() bool {
		s, err := readStat(stopped)
		return err != nil || s.state == "Z"
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
	guard := time.AfterFunc(patience, func() { _ = p.process.Kill() })
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
func (p *upstartProcess) mustStandStill(m *upstartMemory) {
	p.t.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.process.Pid))
	if len(threads) == 0 {
		p.t.Errorf("process %d has no threads", p.process.Pid)
	}
	for _, thread := range threads {
		tid, _ := strconv.Atoi(filepath.Base(thread))
		if s, err := readStat(tid); err != nil || s.state != "T" {
			p.t.Errorf("thread %d is in state %q (%v)", tid, s.state, err)
		}
	}
	if called, returned := m.called.Load(), m.returned.Load(); called == 0 || returned != 0 {
		p.t.Errorf("%d of %d calls of Ready have returned", returned, called)
	}
}

// upstartAsPID1 succeeds where Ready says why it cannot stop the process.
func upstartAsPID1() {
	err := daemon.Ready()
	if os.Getpid() != 1 || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "SIGSTOP") {
		upstartMust(fmt.Errorf("pid %d: %v", os.Getpid(), err))
	}
}

func TestReadyFailsAsPID1WhichCannotStop(t *testing.T) {
	cmd := inNamespaces(t, program(t, "upstart-pid1"), "--pid", "--fork")
	cmd.Env = append(cmd.Env, "UPSTART_JOB=test")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// upstartJob calls Ready while goroutines spin, and says what has become of
// its environment. Then it is over, or calls Ready again, or serves.
func upstartJob() {
	spinners, _ := strconv.Atoi(os.Args[1])
	new(upstartMemory).spin(spinners)
	before := daemon.Detect()
	upstartMust(daemon.Ready())
	own, _ := os.LookupEnv("UPSTART_JOB")
	inherited, err := exec.Command("/bin/sh", "-c", `printf %s "${UPSTART_JOB-none}"`).Output()
	upstartMust(err)
	fmt.Printf("%d: %v, %v, own %q, inherited %q\n", os.Getpid(), before, daemon.Detect(), own, inherited)
	switch os.Args[2] {
	case "again":
		upstartMust(daemon.Ready())
	case "serve":
		select {}
	}
}

// TestUpstartStartsTheJob has upstart's side of `expect stop` start the daemon
// 500 times.
func TestUpstartStartsTheJob(t *testing.T) {
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
			for range rounds(test.runs) {
				cmd := program(t, "upstart-job", test.args...)
				if test.stanza != nil {
					cmd = test.stanza(t, cmd)
				}
				job, printed := runUpstartJob(t, cmd)
				mustSayUpstart(t, job, printed)
			}
		})
	}
	t.Run("respawn", func(t *testing.T) { respawnUpstartJob(t, program(t, "upstart-job", "1", "serve"), 100) })
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
	for run := range rounds(runs) {
		if run > 0 {
			job = job.Respawn(t.Context())
		}
		if pids[job.PID] {
			t.Errorf("process %d was there before", job.PID)
		}
		pids[job.PID] = true
		stdout.(*os.File).SetReadDeadline(time.Now().Add(patience))
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
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got := job.Wait(ctx); unix.WaitStatus(got) != upstartSuccess {
		t.Errorf("wait status %#x", got)
	}
	mustStopOnce(t, job)
	return job, output.String()
}

// upstartScript has a shell become the job.
func upstartScript(_ *testing.T, cmd *exec.Cmd) *exec.Cmd {
	return underShell(cmd, `umask 027; exec "$@"`)
}

// upstartSetuid makes the job nobody's, who may not enter the directory that
// go test has put this binary into.
func upstartSetuid(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	mustBeRoot(t)
	binary, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { binary.Close() })
	cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{binary}
	return asNobody(cmd)
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
	job := underShell(program(t, "upstart-job", "0", "once"), `"$@" & echo $! >&3; wait`)
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
		s, _ := readStat(child)
		return s.state == "T"
	}
	waitUntil(t, "the stop", stopped)
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
	if s, err := readStat(child); err == nil {
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

// upstartVerbs says all there is to say.
func upstartVerbs() {
	for range 2 {
		for _, err := range []error{
			daemon.Notify(daemon.Status("working")),
			daemon.Reloading(),
			daemon.Ready(daemon.Status("ready"), daemon.MainPID(1)),
			daemon.Stopping(),
			daemon.Fail(unix.EIO),
			daemon.Heartbeat(),
			daemon.Barrier(context.Background()),
			daemon.StoreFiles("name", os.Stdin),
			daemon.RemoveFiles("name"),
			daemon.Detach(),
		} {
			upstartMust(err)
		}
	}
}

func TestUpstartWinsWhereSystemdIsThereToo(t *testing.T) {
	systemd := daemontest.Systemd(t)
	// The fake upstart takes the variable away, but env(1) comes later.
	cmd := wrap(program(t, "upstart-verbs"), "env", "NOTIFY_SOCKET="+systemd.Addr())
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
