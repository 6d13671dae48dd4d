//go:build linux

package daemontest_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
)

// The usual test of a service: the program is started as systemd would start
// it, says that it is ready, and ends when it is told to. Here and in the other
// examples mydaemon is the program's path, which a TestMain has set, and t is
// the *testing.T.
func ExampleService() {
	service := daemontest.Service(t, exec.Command(mydaemon, "-status", "serving"))
	if status, _ := service.Ready.Get("STATUS"); status != "serving" {
		t.Errorf("STATUS=%s", status)
	}

	stopped := service.Stop(t.Context())
	if stopped.Stopping == nil || stopped.Status.ExitStatus() != 0 {
		t.Errorf("after SIGTERM: %v, exit status %d", stopped.Stopping, stopped.Status.ExitStatus())
	}
}

// Socket activation: systemd listens, and passes the socket on.
func ExampleService_socketActivation() {
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

	daemontest.Service(t, exec.Command(mydaemon), daemontest.Pass("http", socket))
	response, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
}

// A reload that fails is over, too: the service goes on as it was, and its
// status tells why.
func ExampleUnit_Reload() {
	page := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(page, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	service := daemontest.Service(t, exec.Command(mydaemon, "-page", page))
	if status, _ := service.Reload(t.Context()).Get("STATUS"); status != "ready" {
		t.Errorf("after a reload: STATUS=%s", status)
	}

	if err := os.Remove(page); err != nil {
		t.Fatal(err)
	}
	if status, _ := service.Reload(t.Context()).Get("STATUS"); !strings.Contains(status, "no such file") {
		t.Errorf("after a reload without a page: STATUS=%s", status)
	}
}

// A restart that refuses nobody: the daemon stores its listener, and who
// connects meanwhile waits for the new process.
func ExampleUnit_Restart() {
	address := "127.0.0.1:" + freePort()
	service := daemontest.Service(t, exec.Command(mydaemon, "-addr", address))
	stop, clientDone := make(chan bool), make(chan error)
	go func() {
		for {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				clientDone <- err
				return
			}
			conn.Close()
			select {
			case <-stop:
				clientDone <- nil
				return
			default:
			}
		}
	}()

	for range 3 {
		service = service.Restart(t.Context())
	}
	close(stop)
	if err := <-clientDone; err != nil {
		t.Errorf("a client: %v", err)
	}
}

// The watchdog: beats come while the service is healthy. When they do not,
// systemd kills it. This daemon is healthy as long as it can read its page.
func ExampleUnit_MissedBeat() {
	page := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(page, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	service := daemontest.Service(t, exec.Command(mydaemon, "-page", page), daemontest.WatchdogSec(500*time.Millisecond))
	for range 2 {
		service.Systemd.Wait(t.Context(), "WATCHDOG=1")
	}

	if err := os.Remove(page); err != nil {
		t.Fatal(err)
	}
	service.MissedBeat(t.Context())
}

// A daemon that cannot start says why, in words and by its exit status.
func ExampleStartService() {
	service := daemontest.StartService(t, exec.Command(mydaemon, "-page", "/nonexistent"))
	failed := service.Systemd.Wait(t.Context(), "ERRNO=2")
	if status, _ := failed.Get("STATUS"); !strings.Contains(status, "/nonexistent") {
		t.Errorf("STATUS=%s", status)
	}
	if status := service.Wait(t.Context()); status.ExitStatus() != 1 {
		t.Errorf("exit status %d", status.ExitStatus())
	}
}

// A test of code that runs in the test's own process.
func ExampleSystemd() {
	systemd := daemontest.Systemd(t)
	go daemon.Ready(daemon.Status("serving")) // what is tested
	ready := systemd.Wait(t.Context(), "READY=1")
	if status, _ := ready.Get("STATUS"); status != "serving" {
		t.Errorf("STATUS=%s", status)
	}
}

// A daemon that writes nothing, writes too much or leaves the descriptor open
// fails the test, with what it did and what it printed.
func ExampleNotifyFD() {
	command := daemontest.NotifyFD(t, exec.Command(mydaemon))
	if command.Ready != "READY=1\n" {
		t.Errorf("it has written %q", command.Ready)
	}
}

// A job that does not stop itself when it is ready, or not by SIGSTOP, fails
// the test, with what it did and what it printed.
func ExampleUpstart() {
	job := daemontest.Upstart(t, exec.Command(mydaemon))
	// It is ready, and upstart has continued it.
	if n := len(job.Stops()); n != 1 {
		t.Errorf("it has stopped itself %d times", n)
	}

	if err := job.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := job.Wait(t.Context()); status.ExitStatus() != 0 {
		t.Errorf("after SIGTERM: exit status %d", status.ExitStatus())
	}
}

// From a shell a daemon leaves itself behind. It is ended with the test.
func ExampleShell() {
	address := "127.0.0.1:" + freePort()
	d := daemontest.Shell(t, exec.Command(mydaemon, "-addr", address))
	if d.ExitCode() != 0 || d.PID == 0 {
		t.Fatalf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
	}
	// The prompt is back, so it serves now.
	response, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if page, err := io.ReadAll(response.Body); string(page) != "hello" {
		t.Errorf("page %q, %v", page, err)
	}
}

// What a daemon cannot do is told to the one who has started it: in words and
// by the exit status.
func ExampleShell_failure() {
	d := daemontest.Shell(t, exec.Command(mydaemon, "-sattus", "serving"))
	if d.ExitCode() != 2 || d.PID != 0 || !strings.Contains(d.Output, "not defined: -sattus") {
		t.Errorf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
	}
}
