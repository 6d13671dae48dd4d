//go:build linux

package daemontest_test

import (
	"os/exec"
	"strings"
	"syscall"

	"github.com/seed-10280e03/daemon/daemontest"
)

// The usual test of a service: the program is started as systemd would start
// it, says that it is ready, and ends when it is told to. Here and in the other
// examples mydaemon is the program's path, and t the *testing.T.
//
// A test gets the program by a `go build -o` in its TestMain. Or the program is
// the test binary: where TestMain finds a variable of yours in the environment it
// calls main and not m.Run, and the command is os.Args[0] with that variable.
func ExampleSystemd() {
	systemd := daemontest.Systemd(t) // first: cmd inherits NOTIFY_SOCKET
	cmd := exec.CommandContext(t.Context(), mydaemon, "-status", "serving")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() }) // the context has ended by then, and so has the process

	ready := systemd.Wait(t.Context(), "READY=1")
	if ready.PID != cmd.Process.Pid {
		t.Errorf("process %d is ready, and %d was started", ready.PID, cmd.Process.Pid)
	}
	if status, _ := ready.Get("STATUS"); status != "serving" {
		t.Errorf("STATUS=%s", status)
	}

	cmd.Process.Signal(syscall.SIGTERM)
	systemd.Wait(t.Context(), "STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// A job that does not stop itself when it is ready, or not by SIGSTOP, fails
// the test, with what it did and what it printed.
func ExampleUpstart() {
	job := daemontest.Upstart(t, exec.Command(mydaemon, "-status", "serving"))
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
	d := daemontest.Shell(t, exec.Command(mydaemon, "-status", "serving"))
	if d.ExitCode() != 0 || d.PID == 0 {
		t.Fatalf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
	}
	// The prompt is back, so it serves now.
}

// What a daemon cannot do is told to the one who has started it: in words and
// by the exit status.
func ExampleShell_failure() {
	d := daemontest.Shell(t, exec.Command(mydaemon, "-sattus", "serving"))
	if d.ExitCode() != 2 || d.PID != 0 || !strings.Contains(d.Output, "not defined: -sattus") {
		t.Errorf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
	}
}
