// Package daemontest is to a daemon's tests what net/http/httptest is to an
// HTTP server's: it stands in for whatever starts the daemon, so that a test
// sees what systemd, upstart or a shell would see of it.
//
//   - [Systemd] is a notify socket: it gives each notification as systemd
//     would read it, with the sender's pid and the files it passed, and
//     answers barriers.
//   - [Upstart] starts a command as an `expect stop` job and returns once it
//     has stopped itself and has been continued. [Job.Respawn] has it crash
//     and be started again.
//   - [Shell] starts a command with no supervisor, from a shell on a terminal
//     of its own, and returns once the prompt is back, with the exit status,
//     what was printed and the daemon's pid. [StartShell] is for tests that
//     type or stop it before that.
//
// A test of a daemon in the test's own process:
//
//	func TestServes(t *testing.T) {
//		systemd := daemontest.Systemd(t)
//		go run(t.Context()) // calls daemon.Ready and, at its end, daemon.Stopping
//		ready := systemd.Wait(t.Context(), "READY=1")
//		if status, _ := ready.Get("STATUS"); status != "ready" {
//			t.Errorf("STATUS=%s", status)
//		}
//	}
//
// And of a daemon as a program, with a terminal and a prompt:
//
//	func TestDetaches(t *testing.T) {
//		d := daemontest.Shell(t, exec.Command("./mydaemon", "-config", path))
//		if d.ExitCode() != 0 || d.PID == 0 {
//			t.Fatalf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
//		}
//		// The daemon runs now; it is ended when the test ends.
//	}
//
// The example of [Systemd] says how a test gets the program.
//
// # What does not arrive
//
// Every wait ends: with its context, and after [Timeout] where the context
// has no deadline. What was waited for is then missing, and the test fails
// with all that did happen. Nothing that a test starts here outlives it, nor
// the test process, however that ends.
//
// # How it works
//
// Upstart and Shell need a process between the test and the command: init and
// a shell are in other sessions than the test is, they adopt what the command
// leaves behind, and only a shell's child can be stopped with Ctrl-Z. That
// process is the test binary, started once more: whatever imports daemontest
// can become it during initialization, before main and TestMain. Other packages
// of the binary may be initialized there too, as in every process that a test
// starts from its own binary: that should do no work.
//
// The package works on Linux, with /proc mounted, and is empty elsewhere: a file
// of tests that use it is called …_linux_test.go.
package daemontest
