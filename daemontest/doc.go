// Package daemontest is to a daemon's tests what net/http/httptest is to an
// HTTP server's: it stands in for whatever starts the daemon, so that a test
// sees what systemd, s6, upstart or a shell would see of it.
//
//   - [Service] starts a command as a service of systemd and returns once it
//     has said READY=1. The test reloads, restarts and stops it, passes it
//     sockets, and has it killed when its beats stop.
//   - [NotifyFD] starts a command as s6, dinit, finit and OpenRC do, and
//     returns once it has written a line to the descriptor that NOTIFY_FD names.
//   - [Upstart] starts a command as an `expect stop` job and returns once it
//     has stopped itself and has been continued.
//   - [Shell] starts a command with no supervisor, from a shell on a terminal
//     of its own, and returns once the prompt is back, with the exit status,
//     what was printed and the daemon's pid. [StartShell] is for tests that
//     type or stop it before that.
//   - [Systemd] is a notify socket for code that runs in the test's own
//     process.
//
// The commands may be written in any language.
//
// # The daemon's binary
//
// In a test binary daemon.Ready neither detaches nor stops the process, so a test
// of a program needs the program itself. TestMain builds it once:
//
//	package main
//
//	import (
//		"log"
//		"os"
//		"os/exec"
//		"path/filepath"
//		"testing"
//
//		"github.com/seed-10280e03/daemon/daemontest"
//	)
//
//	var mydaemon string // its path
//
//	func TestMain(m *testing.M) {
//		os.Exit(func() int {
//			dir, err := os.MkdirTemp("", "mydaemon")
//			if err != nil {
//				log.Fatal(err)
//			}
//			defer os.RemoveAll(dir)
//			mydaemon = filepath.Join(dir, "mydaemon")
//			out, err := exec.Command("go", "build", "-o", mydaemon, ".").CombinedOutput()
//			if err != nil {
//				log.Printf("go build: %v\n%s", err, out)
//				return 1
//			}
//			return m.Run()
//		}())
//	}
//
// go test does not know what that go build reads. It runs the tests again when a
// file has changed in the directory in which they start the command. A daemon of
// several packages needs go test -count=1, or the result of an older program may
// be reported as ok (cached). go test -race finds the data races of the test; for
// those of the daemon give -race to that go build, too.
//
// Then a test is a few lines:
//
//	func TestServes(t *testing.T) {
//		service := daemontest.Service(t, exec.Command(mydaemon))
//		// It serves now, and is ended when the test ends.
//		if stopped := service.Stop(t.Context()); stopped.Stopping == nil {
//			t.Error("no STOPPING=1")
//		}
//	}
//
// # When something does not happen
//
// Every wait ends: with its context, and after [Timeout] if the context has no
// deadline, and at once if a process has ended that would have to speak. The
// test fails then, with all that did happen: what was said and when, how the
// process ended, what it printed last. Nothing that a test starts here outlives
// it, nor the test process, however that ends.
//
// # How it works
//
// A command needs a process between the test and itself: init and a shell are in
// other sessions than the test is, and adopt what the command leaves behind. That
// process is the test binary, started once more: package daemontest takes over
// during initialization there, before main and TestMain. The command's process,
// too, is the test binary at first. It sets LISTEN_PID and its like to its own
// pid, and has no signal ignored or blocked, whatever the test has inherited
// (from nohup, for one). Initializers of the test binary's packages may run in
// both processes, so they should do no work.
//
// The package works on Linux, with /proc mounted, and is empty elsewhere: a file
// of tests that use it is called …_linux_test.go.
package daemontest
