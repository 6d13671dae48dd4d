//go:build linux

package examples_test

import (
	"compress/gzip"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
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

func TestWorkerUnderSystemd(t *testing.T) {
	systemd, ctx, dir := daemontest.Systemd(t), patient(t), t.TempDir()
	drop(t, dir, "early", "here before the start")
	p := start(t, command("worker", "-dir", dir, "-every", "20ms"))
	if n := systemd.Next(ctx); n.Assignments[0] != "READY=1" || n.PID != p.pid() || status(n) != "waiting for files in "+dir {
		t.Errorf("first: %v", n)
	}
	if text := unpacked(t, filepath.Join(dir, "early")); text != "here before the start" {
		t.Errorf("early: %q", text)
	}
	drop(t, dir, "late", "here later")
	if n := systemd.Next(ctx); status(n) != "1 files compressed" {
		t.Errorf("after a file: %v", n)
	}
	if text := unpacked(t, filepath.Join(dir, "late")); text != "here later" {
		t.Errorf("late: %q", text)
	}
	p.signal(syscall.SIGTERM)
	systemd.Wait(ctx, "STOPPING=1")
	p.exit(0)
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
	eventually(t, "it works on the file", func() bool {
		_, err := os.Stat(filepath.Join(dir, "endless.tmp"))
		return err == nil
	})
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
	if errno, _ := n.Get("ERRNO"); errno != strconv.Itoa(int(syscall.ENOENT)) || !strings.Contains(status(n), "no such file") {
		t.Errorf("%v", n)
	}
}
