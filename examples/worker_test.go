//go:build linux

package examples_test

import (
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// drop moves a file into the directory.
func drop(t *testing.T, dir, name, text string) {
	t.Helper()
	dropSized(t, dir, name, text, int64(len(text)))
}

// dropSized makes the file longer: zeros that take no room on the disk.
func dropSized(t *testing.T, dir, name, text string, size int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	write(t, path, text)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// unpacked is what has become of a file.
func unpacked(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", path, err)
	}
	return string(text)
}

// settled is the status of a worker that has compressed n files.
func settled(dir string, n int) string {
	return fmt.Sprintf("waiting for files in %s, %d compressed", dir, n)
}

// incomplete returns the files on which a worker is at work, or was.
func incomplete(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, ".*"))
	return paths
}

func TestWorkerUnderSystemd(t *testing.T) {
	systemd, ctx, dir := daemontest.Systemd(t), patient(t), t.TempDir()
	drop(t, dir, "early", "here before the start")
	p := start(t, command("worker", "-dir", dir, "-every", "20ms"))
	if n := systemd.Next(ctx); n.Assignments[0] != "READY=1" || n.PID != p.pid() || status(n) != settled(dir, 0) {
		t.Errorf("first: %v", n)
	}
	for i, name := range []string{"early", "late"} {
		if name == "late" {
			drop(t, dir, name, "here later")
		}
		if n := systemd.Next(ctx); status(n) != settled(dir, i+1) {
			t.Errorf("after %s: %v", name, n)
		}
		if text := unpacked(t, filepath.Join(dir, name)); !strings.HasPrefix(text, "here ") {
			t.Errorf("%s: %q", name, text)
		}
	}
	p.signal(syscall.SIGTERM)
	systemd.Wait(ctx, "STOPPING=1")
	p.exit(0)
}

// What it cannot compress it leaves as it is, says so, and goes on.
func TestWorkerLeavesWhatItCannotCompress(t *testing.T) {
	systemd, ctx, dir, log := daemontest.Systemd(t), patient(t), t.TempDir(), filepath.Join(t.TempDir(), "log")
	p := start(t, command("worker", "-dir", dir, "-every", "20ms", "-log", log))
	systemd.Wait(ctx, "READY=1")
	prlimit(t, p.pid(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil)
	if err := os.Mkdir(filepath.Join(dir, "directory.gz"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("l", 253) // and .gz is too much
	noise := make([]byte, 2<<20)
	rand.Read(noise)
	want := map[string]string{
		"again.gz":  "that of the first",
		"again":     "second",
		"big":       string(noise),
		"directory": "third",
		long:        "fourth",
	}
	for name, text := range want {
		if name == "again" { // its .gz has to be first
			continue
		}
		drop(t, dir, name, text)
	}
	drop(t, dir, "again", want["again"])
	drop(t, dir, "zenith", "good")
	for {
		text := status(systemd.Next(ctx))
		if strings.Contains(text, " 1 compressed,") && strings.Contains(text, "again:") && strings.Contains(text, "big:") &&
			strings.Contains(text, "directory:") && strings.Contains(text, long+":") {
			break
		}
	}
	if text := unpacked(t, filepath.Join(dir, "zenith")); text != "good" {
		t.Errorf("zenith: %q", text)
	}
	for name, text := range want {
		if got := read(t, filepath.Join(dir, name)); got != text {
			t.Errorf("%s is now %d bytes: %.20q", name, len(got), got)
		}
	}

	logged := read(t, log)
	if !strings.Contains(logged, "file too large") {
		t.Errorf("in the log: %s", logged)
	}
	drop(t, dir, "zero", "good, too")
	if n := systemd.Next(ctx); !strings.Contains(status(n), " 2 compressed, left as they are: again: ") {
		t.Errorf("after the good one: %v", n)
	}
	if text := read(t, log); text != logged {
		t.Errorf("it logs the same again: %s", strings.TrimPrefix(text, logged))
	}
	p.signal(syscall.SIGTERM)
	p.exit(0)
	if left := incomplete(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Who may not read the file may not read the compressed one.
func TestWorkerPublishesNothing(t *testing.T) {
	systemd, ctx, dir := daemontest.Systemd(t), patient(t), t.TempDir()
	start(t, command("worker", "-dir", dir, "-every", "20ms"))
	systemd.Wait(ctx, "READY=1")
	for i, mode := range []os.FileMode{0o600, 0o640, 0o666, 0o444} {
		name := fmt.Sprintf("%o", mode)
		source := filepath.Join(t.TempDir(), name)
		write(t, source, "text")
		if err := os.Chmod(source, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(source, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if n := systemd.Next(ctx); status(n) != settled(dir, i+1) {
			t.Fatalf("%v: %v", mode, n)
		}
		if info, err := os.Stat(filepath.Join(dir, name+".gz")); err != nil || info.Mode() != mode {
			t.Errorf("a file with mode %v becomes one with %v", mode, info.Mode())
		}
	}
}

// A file that changes while it is compressed is not lost, and one that never
// ends does not keep anybody waiting for the start.
func TestWorkerIsCarefulWithAFileThatChanges(t *testing.T) {
	systemd, ctx, dir := daemontest.Systemd(t), patient(t), t.TempDir()
	write(t, filepath.Join(dir, ".worker-1"), "left by one that was killed")
	dropSized(t, dir, "file", "", 1<<40)
	start(t, command("worker", "-dir", dir, "-every", "20ms"))
	systemd.Wait(ctx, "READY=1")
	var working []string
	eventually(t, "it works on the file", func() bool {
		working = incomplete(dir)
		return len(working) > 0
	})
	if info, err := os.Stat(working[0]); len(working) > 1 || err != nil || info.Mode() != 0o600 {
		t.Errorf("it works on %v, mode %v", working, info.Mode())
	}
	if err := os.Truncate(filepath.Join(dir, "file"), 1); err != nil {
		t.Fatal(err)
	}
	if n := systemd.Next(ctx); status(n) != settled(dir, 0)+", left as they are: file: it has changed meanwhile" {
		t.Errorf("after the change: %v", n)
	}
	if n := systemd.Next(ctx); status(n) != settled(dir, 1) {
		t.Errorf("later: %v", n)
	}
	if text := unpacked(t, filepath.Join(dir, "file")); text != "\x00" {
		t.Errorf("file: %q", text)
	}
}

func TestWorkerFromAShell(t *testing.T) {
	home := t.TempDir()
	dir, log := filepath.Join(home, "spool"), filepath.Join(home, "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := command("worker", "-dir", "spool", "-every", "20ms", "-log", "log")
	cmd.Dir = home
	d := daemontest.Shell(t, cmd)
	if d.ExitCode() != 0 || d.PID == 0 || len(d.Processes()) != 1 {
		t.Fatalf("exit status %d, processes %v, printed %q", d.ExitCode(), d.Processes(), d.Output)
	}
	drop(t, dir, "file", "text")
	eventually(t, "it works", func() bool {
		_, err := os.Stat(filepath.Join(dir, "file"))
		return err != nil
	})
	if text := unpacked(t, filepath.Join(dir, "file")); text != "text" {
		t.Errorf("file: %q", text)
	}

	rotate(t, log, d)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if s := d.Wait(patient(t)); s.ExitStatus() != 1 {
		t.Errorf("without its directory it ended with wait status %#x", s)
	}
	if text := read(t, log); !strings.Contains(text, dir+": no such file") {
		t.Errorf("in the log: %q", text)
	}
}

func TestWorkerLogHasThePanic(t *testing.T) {
	mustLogPanic(t, "worker", "-dir", t.TempDir())
}

// That nobody hears the end is no failure of the work.
func TestWorkerStopsAlsoWhenItCannotSaySo(t *testing.T) {
	path := filepath.Join(testdaemon.Directory(t), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	p := start(t, command("worker", "-dir", t.TempDir()))
	systemd.SetReadDeadline(time.Now().Add(patience))
	if _, err := systemd.Read(make([]byte, 4096)); err != nil {
		t.Fatalf("no notification: %v", err)
	}
	systemd.Close()
	p.signal(syscall.SIGTERM)
	p.exit(0)
	if !strings.Contains(p.stderr.String(), "connection refused") && !strings.Contains(p.stderr.String(), "no such file") {
		t.Errorf("worker printed %q", p.stderr.String())
	}
}

// There is a heartbeat for as long as the loop turns, and none while it is
// stuck: here, with a file that never ends.
func TestWorkerHeartbeat(t *testing.T) {
	systemd, ctx, dir := daemontest.Systemd(t), patient(t), t.TempDir()
	const beat = 50 * time.Millisecond
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int(2*beat/time.Microsecond)))
	start(t, command("worker", "-dir", dir, "-every", "20ms"))
	systemd.Wait(ctx, "READY=1")
	for range 3 {
		systemd.Wait(ctx, "WATCHDOG=1")
	}
	dropSized(t, dir, "endless", "", 1<<40)
	eventually(t, "it works on the file", func() bool { return len(incomplete(dir)) > 0 })
	mark(t, systemd, "STUCK=1")
	systemd.Wait(ctx, "STUCK=1")
	time.Sleep(20 * beat)
	mark(t, systemd, "LATER=1")
	beats := 0
	for {
		n := systemd.Next(ctx)
		if _, ok := n.Get("LATER"); ok {
			break
		}
		beats++
	}
	if beats > 1 { // the one that was on its way
		t.Errorf("%d heartbeats while it is stuck", beats)
	}
}

// mark puts a notification of the test's own between those of a daemon.
func mark(t *testing.T, systemd *daemontest.Supervisor, text string) {
	t.Helper()
	c, err := net.Dial("unixgram", systemd.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestWorkerSaysWhyItFails(t *testing.T) {
	t.Run("at the start, to a shell", func(t *testing.T) {
		d := daemontest.Shell(t, command("worker", "-dir", filepath.Join(t.TempDir(), "none")))
		if d.ExitCode() != 1 || !strings.Contains(d.Output, "no such file") || d.PID != 0 {
			t.Errorf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
		}
	})
	t.Run("at the start, to systemd", func(t *testing.T) {
		systemd := daemontest.Systemd(t)
		p := start(t, command("worker", "-dir", filepath.Join(t.TempDir(), "none")))
		failed(t, systemd.Next(patient(t)))
		p.exit(1)
	})
	t.Run("later", func(t *testing.T) {
		systemd, dir := daemontest.Systemd(t), t.TempDir()
		p := start(t, command("worker", "-dir", dir, "-every", "20ms"))
		systemd.Wait(patient(t), "READY=1")
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		failed(t, systemd.Next(patient(t)))
		p.exit(1)
	})
}

// failed checks that a notification says that there is no such directory.
func failed(t *testing.T, n daemontest.Notification) {
	t.Helper()
	if errno, _ := n.Get("ERRNO"); errno != strconv.Itoa(int(syscall.ENOENT)) ||
		!strings.Contains(status(n), "no such file") {
		t.Errorf("%v", n)
	}
}
