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
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	programs["notify"] = func() {
		for _, text := range os.Args[1:] {
			if err := send(os.Getenv("NOTIFY_SOCKET"), text); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// send sends a datagram, with descriptors.
func send(address, text string, fds ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(fd, []byte(text), control, &unix.SockaddrUnix{Name: address}, 0)
}

func mustSend(t *testing.T, address, text string, fds ...int) {
	t.Helper()
	if err := send(address, text, fds...); err != nil {
		t.Fatal(err)
	}
}

func TestNotificationsArriveInOrder(t *testing.T) {
	s := Systemd(t)
	if s.Addr() != os.Getenv("NOTIFY_SOCKET") {
		t.Errorf("Addr is %q, NOTIFY_SOCKET is %q", s.Addr(), os.Getenv("NOTIFY_SOCKET"))
	}
	before := time.Now()
	first := "READY=1\nSTATUS=a\\\\b\n"
	cmd := program(t, "notify", first, "STATUS=second", "")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := s.Next(t.Context())
	if string(n.Raw) != first || n.Err != nil || !slices.Equal(n.Assignments, []string{"READY=1", `STATUS=a\b`}) {
		t.Errorf("first: %q, %q, %v", n.Raw, n.Assignments, n.Err)
	}
	if status, ok := n.Get("STATUS"); status != `a\b` || !ok {
		t.Errorf("STATUS is %q, %v", status, ok)
	}
	if _, ok := n.Get("STAT"); ok {
		t.Error("there is a STAT")
	}
	if n.PID != cmd.Process.Pid || n.UID != os.Getuid() || n.GID != os.Getgid() {
		t.Errorf("sent by pid %d, uid %d, gid %d; it was %d", n.PID, n.UID, n.GID, cmd.Process.Pid)
	}
	if n.Received.Before(before) || n.Received.After(time.Now()) {
		t.Errorf("received at %v", n.Received)
	}
	if n = s.Next(t.Context()); string(n.Raw) != "STATUS=second" {
		t.Errorf("second: %q", n.Raw)
	}
	if n = s.Next(t.Context()); len(n.Raw) != 0 || n.Err != nil || len(n.Assignments) != 0 {
		t.Errorf("third: %v", n)
	}
}

func TestWaitSkipsOthers(t *testing.T) {
	s := Systemd(t)
	for _, text := range []string{"STATUS=READY=1", "READY=1\\", "RELOADING=1\nREADY=1\nSTATUS=x", "STATUS=y"} {
		mustSend(t, s.Addr(), text)
	}
	if n := s.Wait(t.Context(), "READY=1"); len(n.Assignments) != 3 {
		t.Errorf("found %v", n)
	}
	if n := s.Next(t.Context()); string(n.Raw) != "STATUS=y" {
		t.Errorf("next is %v", n)
	}
}

func TestFailureSaysHowLongWasWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where 30 seconds pass at once
		failing(t, func(ft TB) {
			s := &Supervisor{t: ft}
			s.Next(context.Background())
		}, "no notification within 30s; received so far: nothing")
	})
}

func TestWhatSystemdDropsArrives(t *testing.T) {
	s := Systemd(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tests := []struct {
		text string
		fds  int
		why  string
	}{
		{strings.Repeat("x", 4097), 0, "longer than 4096"},
		{strings.Repeat("x", 70000), 0, "longer than 4096"},
		{"READY=1\x00STATUS=x", 2, "NUL"},
		{"READY=1\nSTATUS=\\", 0, "backslash"},
		{"BARRIER=1", 0, "with 0 descriptors"},
		{"BARRIER=1", 2, "with 2 descriptors"},
		{"BARRIER=1\nREADY=1", 1, "must be alone"},
	}
	for _, test := range tests {
		mustSend(t, s.Addr(), test.text, slices.Repeat([]int{int(file.Fd())}, test.fds)...)
		n := s.Next(t.Context())
		if n.Err == nil || !strings.Contains(n.Err.Error(), test.why) || n.Assignments != nil || n.Files != nil {
			t.Errorf("%.20q: %q, %v, want %q", test.text, n.Assignments, n.Err, test.why)
		}
		if want := test.text[:min(len(test.text), 64<<10)]; string(n.Raw) != want {
			t.Errorf("%.20q: Raw has %d bytes of %d", test.text, len(n.Raw), len(want))
		}
	}
}

func TestPathIsShort(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tmp := range []string{os.TempDir(), long} {
		t.Run(strings.Repeat("very long name ", 30), func(t *testing.T) {
			t.Setenv("TMPDIR", tmp)
			s := Systemd(t)
			if len(s.Addr()) > 107 {
				t.Errorf("%d bytes: %s", len(s.Addr()), s.Addr())
			}
			mustSend(t, s.Addr(), "READY=1")
			s.Wait(t.Context(), "READY=1")
		})
	}
}

func TestAddressIsAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("TMPDIR", ".")
	if s := Systemd(t); !filepath.IsAbs(s.Addr()) {
		t.Errorf("%s: what the daemon takes is a path from the root", s.Addr())
	}
}

func TestAnyUserMayNotify(t *testing.T) {
	s := Systemd(t)
	for path, want := range map[string]os.FileMode{s.Addr(): 0o777, filepath.Dir(s.Addr()): 0o755} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	cmd := program(t, "notify", "READY=1")
	cmd.Path = "/proc/self/exe" // nobody may not enter the directory of the binary
	asNobody(t, cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n := s.Next(t.Context()); n.UID != nobody || n.GID != nobody {
		t.Errorf("uid %d, gid %d", n.UID, n.GID)
	}
}

func TestEnvironmentIsTheTests(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("UPSTART_JOB", "x")
	os.Unsetenv("UPSTART_JOB")
	t.Setenv("NOTIFY_SOCKET", "/outer")
	passing(t, func(t TB) {
		t.(*fakeT).T.Run("inner", func(t *testing.T) {
			Systemd(t)
			for _, name := range []string{"UPSTART_JOB", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID",
				"LISTEN_FDNAMES", "SYSTEMD_EXEC_PID"} {
				// Empty, not unset: what a library remembers of a variable that it
				// has unset does not count then.
				if value, ok := os.LookupEnv(name); value != "" || !ok {
					t.Errorf("%s=%q, %v", name, value, ok)
				}
			}
		})
	})
	if os.Getenv("WATCHDOG_USEC") != "1000000" || os.Getenv("NOTIFY_SOCKET") != "/outer" {
		t.Error("the environment is not as it was before")
	}
	if value, ok := os.LookupEnv("UPSTART_JOB"); ok {
		t.Errorf("UPSTART_JOB=%q", value)
	}
}

// barrier sends BARRIER=1 with the write end of a pipe, and waits until that
// has been closed.
func barrier(t *testing.T, address string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = send(address, "BARRIER=1", int(w.Fd()))
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(Timeout))
	if _, err = r.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("barrier: %v", err)
	}
}

func TestBarrierMeansAllHasArrived(t *testing.T) {
	s := Systemd(t)
	for i := range 200 {
		mustSend(t, s.Addr(), fmt.Sprintf("STATUS=%d", i))
		barrier(t, s.Addr())
		if status, _ := s.Next(over()).Get("STATUS"); status != fmt.Sprint(i) {
			t.Fatalf("STATUS=%s after barrier %d", status, i)
		}
	}
}

func TestSenderNeverWaitsForTheTest(t *testing.T) {
	const many = 5000
	s := Systemd(t)
	for i := range many {
		mustSend(t, s.Addr(), fmt.Sprintf("STATUS=%d", i))
	}
	barrier(t, s.Addr())
	for i := range many {
		if status, _ := s.Next(over()).Get("STATUS"); status != fmt.Sprint(i) {
			t.Fatalf("STATUS=%s in place %d", status, i)
		}
	}
}

func TestEachNotificationGoesToOneCaller(t *testing.T) {
	const many = 200
	s := Systemd(t)
	got := make(chan string)
	for range many {
		go func() {
			status, _ := s.Next(context.Background()).Get("STATUS")
			got <- status
		}()
	}
	for i := range many {
		mustSend(t, s.Addr(), fmt.Sprintf("STATUS=%d", i))
	}
	seen := map[string]bool{}
	for range many {
		seen[<-got] = true
	}
	if len(seen) != many {
		t.Errorf("%d of %d", len(seen), many)
	}
}

func TestFilesArePassed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var passed []*os.File
	passing(t, func(ft TB) {
		s := Systemd(ft)
		fd := int(file.Fd())
		mustSend(t, s.Addr(), "FDSTORE=1\nFDNAME=x", fd, fd)
		mustSend(t, s.Addr(), "FDSTORE=1", slices.Repeat([]int{fd}, 253)...)
		n := s.Next(t.Context())
		passed = n.Files
		if len(passed) != 2 {
			t.Fatalf("%d files", len(passed))
		}
		content, err := io.ReadAll(passed[0])
		if err != nil || string(content) != "content" {
			t.Errorf("%q, %v", content, err)
		}
		if flags, err := unix.FcntlInt(passed[1].Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
		if n = s.Next(t.Context()); n.Err != nil || len(n.Files) != 253 {
			t.Errorf("%d files, %v", len(n.Files), n.Err)
		}
	})
	for _, f := range passed {
		if err := f.Close(); err == nil {
			t.Error("a file is open after the test")
		}
	}
}

func TestNotificationThatDoesNotArrive(t *testing.T) {
	t.Run("nothing", func(t *testing.T) {
		failing(t, func(ft TB) { Systemd(ft).Next(short(t)) }, "no notification", "deadline", "received so far: nothing")
	})
	t.Run("others", func(t *testing.T) {
		failing(t, func(ft TB) {
			s := Systemd(ft)
			mustSend(t, s.Addr(), "STATUS=taken")
			mustSend(t, s.Addr(), "STATUS=skipped\n", 0)
			mustSend(t, s.Addr(), "READY=1\\")
			s.Next(t.Context())
			s.Wait(short(t), "READY=1")
		}, "no READY=1", "deadline", `"STATUS=taken"`, `"STATUS=skipped\n"`, fmt.Sprintf("pid %d", os.Getpid()),
			"1 file", `"READY=1\\"`, "backslash")
	})
	t.Run("bare key", func(t *testing.T) {
		failing(t, func(ft TB) { Systemd(ft).Wait(t.Context(), "READY") }, `wait for "READY": want KEY=VALUE`)
	})
	t.Run("cancelled", func(t *testing.T) {
		failing(t, func(ft TB) { Systemd(ft).Next(over()) }, "canceled")
	})
	t.Run("after the test", func(t *testing.T) {
		failing(t, func(ft TB) {
			var s *Supervisor
			ft.Cleanup(func() { s.Next(context.Background()) })
			s = Systemd(ft)
		}, "nothing more can arrive")
	})
	t.Run("no directory", func(t *testing.T) {
		t.Setenv("TMPDIR", "/nonexistent")
		failing(t, func(ft TB) { Systemd(ft) }, "notify socket", "/nonexistent")
	})
}

func TestSystemdLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	leavesNothing(t, func(ft TB) {
		s := Systemd(ft)
		mustSend(t, s.Addr(), "READY=1", 0, 1, 2)
		mustSend(t, s.Addr(), "READY=1\\", 0, 1, 2)
		mustSend(t, s.Addr(), "BARRIER=1", 0)
		mustSend(t, s.Addr(), "BARRIER=1\nREADY=1", 0)
		s.Next(t.Context())
		mustSend(t, s.Addr(), "STATUS=last", 0) // may or may not have been read at the end
	})
	if entries, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(entries) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", entries, err)
	}
}

// TestOtherSendersAreUnderstood checks the rules against systemd's own sender,
// if there is one.
func TestOtherSendersAreUnderstood(t *testing.T) {
	path, err := exec.LookPath("systemd-notify")
	if err != nil {
		skip(t, err.Error())
	}
	s := Systemd(t)
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, "--ready", "--status=from systemd", "X_A=b")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil { // it may end with a barrier, and wait for the answer
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	n := s.Next(t.Context())
	if !slices.Equal(n.Assignments, []string{"READY=1", "STATUS=from systemd", "X_A=b"}) {
		t.Errorf("got %v", n)
	}
}

// What has been sent is there, and so a test may say that something was not.
func TestAllHasWhatWasSentBefore(t *testing.T) {
	s := Systemd(t)
	for i := range 500 {
		mustSend(t, s.Addr(), "WATCHDOG=1")
		if n := len(s.All()); n != i+1 {
			t.Fatalf("%d of %d", n, i+1)
		}
	}
}

// A bubble's channels are no other goroutine's to close, and its time must not pass.
func TestAllCanBeAskedInABubble(t *testing.T) {
	s := Systemd(t)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		for i := range 100 {
			mustSend(t, s.Addr(), "WATCHDOG=1")
			if n := len(s.All()); n != i+1 {
				t.Fatalf("%d of %d", n, i+1)
			}
		}
		if passed := time.Since(begin); passed != 0 {
			t.Errorf("meanwhile %v have passed", passed)
		}
	})
}
