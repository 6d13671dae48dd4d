//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// programs are what the tests start: this test binary, started once more with
// testProgram in its environment, runs one of them instead of the tests.
var programs = map[string]func(){}

const testProgram = "DAEMONTEST_PROGRAM"

func TestMain(m *testing.M) {
	name, ok := os.LookupEnv(testProgram)
	if !ok {
		os.Exit(m.Run())
	}
	programs[name]()
}

// program is the command that runs one of programs.
func program(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), testProgram+"="+name)
	return cmd
}

// shell is the command that runs a script.
func shell(script string, args ...string) *exec.Cmd {
	return exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
}

// skip skips a test for what this machine lacks, or fails it if that is forbidden.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("DAEMON_TEST_NO_SKIP") != "" {
		t.Fatal(reason, " (and DAEMON_TEST_NO_SKIP is set)")
	}
	t.Skip(reason)
}

const nobody = 65534

// asNobody has the command run as another user, who can execute this test binary
// then, whatever the umask was when it was built.
func asNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "only root can start a program as another user")
	}
	exe, err := os.Executable()
	if err == nil {
		err = os.Chmod(exe, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// script makes an executable file of a script.
func script(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "script")
	syscall.ForkLock.RLock() // a child that has it open for writing would make it busy
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// untilClosed gives the command a standard input that ends when the test says so.
func untilClosed(t *testing.T, cmd *exec.Cmd) (stdin io.Closer) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	cmd.Stdin = read
	return write
}

// A fakeT is a test within the test, which may fail.
type fakeT struct {
	*testing.T
	cleanups []func()
	failure  string
	left     []int // the processes below the test when it failed
	logs     []string
}

func (f *fakeT) Helper()           {}
func (f *fakeT) Cleanup(do func()) { f.cleanups = append(f.cleanups, do) }
func (f *fakeT) Logf(format string, args ...any) {
	f.logs = append(f.logs, fmt.Sprintf(format, args...))
}

func (f *fakeT) Fatalf(format string, args ...any) {
	f.failure += fmt.Sprintf(format, args...)
	f.left = descendants(os.Getpid())
	runtime.Goexit()
}

// inTest runs a test within the test, its cleanups included.
func inTest(t *testing.T, test func(TB)) *fakeT {
	f := &fakeT{T: t}
	f.run(func() { test(f) })
	for _, do := range slices.Backward(f.cleanups) {
		f.run(do)
	}
	return f
}

func (f *fakeT) run(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
}

// failing runs a test within the test that must fail, and whose failure must
// hold each of the words.
func failing(t *testing.T, test func(TB), words ...string) *fakeT {
	t.Helper()
	f := inTest(t, test)
	if f.failure == "" {
		t.Fatal("did not fail")
	}
	for _, word := range words {
		if !strings.Contains(f.failure, word) {
			t.Errorf("no %q in the failure: %s", word, f.failure)
		}
	}
	return f
}

// passing runs a test within the test that must not fail.
func passing(t *testing.T, test func(TB)) {
	t.Helper()
	if f := inTest(t, test); f.failure != "" {
		t.Fatal(f.failure)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(Timeout); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// leavesNothing checks that a test within the test leaves neither descriptors
// nor goroutines nor processes behind.
func leavesNothing(t *testing.T, test func(TB)) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close forgotten files
	passing(t, test)                                 // what is made once and for all is made now
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 10 {
		passing(t, test)
	}
	eventually(t, "the descriptors are as before", func() bool { return openFiles(t) <= files })
	eventually(t, "the goroutines are as before", func() bool { return runtime.NumGoroutine() <= goroutines })
	if left := descendants(os.Getpid()); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// exists reports whether there is a process that has not ended.
func exists(pid int) bool {
	p, err := readProcess(pid)
	return err == nil && p.state != "Z" && p.state != "X"
}

// over is a context that has ended: for what must be there already.
func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// short is a context for a wait that fails.
func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// patient is a context for a wait that fails after the command has done something,
// which takes time on a busy machine.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// quick makes processes that do not end by themselves be killed soon.
func quick(t *testing.T) {
	before := grace
	grace = 100 * time.Millisecond
	t.Cleanup(func() { grace = before })
}
