package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/systemd"
	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// binary is where this program has been built.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "upgrade")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "upgrade")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
			return 1
		}
		return testdaemon.Run(m)
	}())
}

// Inside the booted machine.
const (
	installed = "/usr/local/sbin/upgrade"
	address   = "127.0.0.1:8080"
)

// A web is the server under the booted systemd, with its unit.
type web struct {
	*systemd.Service
	t *testing.T
	m *systemd.Machine
}

// startWeb installs the first version and starts it.
func startWeb(t *testing.T, lines string) *web {
	t.Helper()
	m := systemd.Boot(t)
	w := &web{t: t, m: m}
	w.install()
	w.Service = m.Install(t, "upgrade.service", lines)
	w.Start()
	return w
}

// install puts another version in the place of the installed one.
func (w *web) install() {
	w.t.Helper()
	os.ReadDir(".") // go test keeps no old result when a file here changes
	text, err := os.ReadFile(binary)
	if err != nil {
		w.t.Fatal(err)
	}
	w.m.WriteFile(w.t, installed, string(text), 0o755)
}

// upgrade upgrades and returns the process ids before and after.
func (w *web) upgrade() (before, after int) {
	w.t.Helper()
	before = w.MainPID()
	w.install()
	w.Reload()
	w.AwaitWhen("another main process", func() bool {
		after = w.MainPID()
		return after != before
	})
	w.Await("ActiveState", "active")
	return before, after
}

// mustBeServedBy checks whom a client meets.
func (w *web) mustBeServedBy(pid int) {
	w.t.Helper()
	page, err := w.m.Ask(address)
	if err != nil || page != pageOf(pid) {
		w.t.Fatalf("page %q, %v, want one by process %d", page, err, pid)
	}
}

func pageOf(pid int) string { return fmt.Sprintf("Process %d serves this page.\n", pid) }

// awaitAlone waits until this process is the only one of the service.
func (w *web) awaitAlone(pid int) {
	w.t.Helper()
	w.AwaitWhen(fmt.Sprintf("process %d is alone", pid), func() bool {
		return slices.Equal(w.Processes(), []int{pid})
	})
}

func TestSystemdUpgradesRefuseNobody(t *testing.T) {
	w := startWeb(t, "")
	client := w.m.Client(t, address)
	for range testdaemon.Rounds(20) {
		_, pid := w.upgrade()
		client.AwaitPage(pageOf(pid))
		w.awaitAlone(pid) // before that it refuses another upgrade
		if text := w.Show("StatusText"); text != "serving on [::]:8080" {
			t.Errorf("status %q", text)
		}
	}
	client.MustHaveBeenServed()
	if n := w.Show("NRestarts"); n != "0" {
		t.Errorf("%s restarts", n)
	}
}

// A connection is answered by the process that has accepted it.
func TestSystemdUpgradeLetsRequestsFinish(t *testing.T) {
	w := startWeb(t, "")
	conn := w.connect()
	old, pid := w.upgrade()
	w.mustBeServedBy(pid)
	if page, err := systemd.Get(conn); err != nil || page != pageOf(old) {
		t.Errorf("page %q, %v, want one by process %d", page, err, old)
	}
	w.awaitAlone(pid)
}

// connect makes a connection and returns when the server has accepted it.
func (w *web) connect() net.Conn {
	w.t.Helper()
	conn, err := w.m.Dial(address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	w.mustBeServedBy(w.MainPID()) // who came later
	return conn
}

func TestSystemdRestartsAfterACrash(t *testing.T) {
	for _, test := range []struct {
		when     string
		draining bool
	}{
		{"after the upgrade", false},
		{"while the old process answers its last request", true},
	} {
		t.Run(test.when, func(t *testing.T) {
			w := startWeb(t, "")
			if test.draining {
				w.connect() // it has five seconds for its request
			}
			_, pid := w.upgrade()
			if !test.draining {
				w.awaitAlone(pid)
			}
			w.Kill("KILL", pid)
			w.Await("NRestarts", "1")
			w.Await("ActiveState", "active")
			w.mustBeServedBy(w.MainPID())
			w.awaitAlone(w.MainPID())
		})
	}
}

// A version that fails leaves the old one serving, whatever it has said before.
func TestSystemdFailedUpgradeLeavesTheOldOneServing(t *testing.T) {
	const mainProcess = "fails when it has become the main process"
	const die = keeper.InsideDir + "/die"
	for _, test := range []struct{ version, text string }{
		{"fails at once", "#!/bin/sh\nexit 1\n"},
		{"ends without a failure", "#!/bin/sh\nexit 0\n"},
		{"is no program", "no program"},
		{mainProcess, `#!/bin/sh
			systemd-notify --ready --pid=$$
			until [ -e ` + die + ` ]; do sleep 0.1; done
			kill -KILL $$
		`},
	} {
		t.Run(test.version, func(t *testing.T) {
			w := startWeb(t, "")
			_, pid := w.upgrade() // systemd has not started this one
			w.awaitAlone(pid)
			client := w.m.Client(t, address)
			w.m.WriteFile(t, installed, test.text, 0o755)
			w.Reload()
			if test.version == mainProcess {
				w.AwaitWhen("it is the main process", func() bool { return w.MainPID() != pid })
				w.Await("SubState", "running")
				w.m.WriteFile(t, die, "", 0o644)
				defer os.Remove(w.m.Outside(die))
			}
			w.AwaitWhen("the failure is shown", func() bool {
				return strings.HasPrefix(w.Show("StatusText"), "upgrade failed: ")
			})
			w.Await("ActiveState", "active")
			w.awaitAlone(pid)
			if now := w.MainPID(); now != pid {
				t.Errorf("the main process is %d, and %d serves", now, pid)
			}
			_, pid = w.upgrade()
			client.AwaitPage(pageOf(pid))
			client.MustHaveBeenServed()
			if n := w.Show("NRestarts"); n != "0" {
				t.Errorf("%s restarts", n)
			}
		})
	}
}

func TestSystemdStopsTheNewOne(t *testing.T) {
	for _, draining := range []bool{false, true} {
		t.Run(fmt.Sprint("old process there ", draining), func(t *testing.T) {
			w := startWeb(t, "")
			old := w.connect()
			_, pid := w.upgrade()
			if !draining {
				old.Close()
				w.awaitAlone(pid)
			}
			conn := w.connect()
			stop := w.Begin("stop")
			w.AwaitWhen("it is asked to stop", func() bool { return w.Show("ActiveState") != "active" })
			// It waits for those who have connected.
			for _, conn := range []net.Conn{conn, old} {
				if !draining && conn == old {
					continue
				}
				if _, err := systemd.Get(conn); err != nil {
					t.Error(err)
				}
			}
			stop.Succeeds()
			w.mustBeStopped()
		})
	}
}

// A version that is not ready yet is no obstacle.
func TestSystemdStopsAnUpgrade(t *testing.T) {
	w := startWeb(t, "")
	w.m.WriteFile(t, installed, "#!/bin/sh\nexec sleep 1000\n", 0o755)
	w.Kill("HUP", w.MainPID()) // systemctl reload would wait
	w.AwaitWhen("there are two", func() bool { return len(w.Processes()) == 2 })
	w.Stop()
	w.mustBeStopped()
}

func (w *web) mustBeStopped() {
	w.t.Helper()
	for property, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "NRestarts": "0"} {
		if got := w.Show(property); got != want {
			w.t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
	if left := w.Processes(); len(left) > 0 {
		w.t.Errorf("processes %v are left", left)
	}
	if conn, err := w.m.Dial(address); err == nil {
		conn.Close()
		w.t.Error("somebody still listens")
	}
}

// The new process beats, and a new one that hangs is restarted.
func TestSystemdWatchesTheNewOne(t *testing.T) {
	w := startWeb(t, "[Service]\nWatchdogSec=3")
	_, pid := w.upgrade()
	w.awaitAlone(pid)
	for range 2 {
		before := w.Show("WatchdogTimestampMonotonic")
		w.AwaitWhen("a heartbeat", func() bool { return w.Show("WatchdogTimestampMonotonic") != before })
	}
	if n := w.Show("NRestarts"); n != "0" {
		t.Fatalf("%s restarts", n)
	}
	w.Kill("STOP", pid)
	w.Await("NRestarts", "1")
	w.Await("ActiveState", "active")
	w.mustBeServedBy(w.MainPID())
}

func TestSystemdAnalyzeHasNothingToSayOfTheUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		testdaemon.SkipUnlessForbidden(t, err.Error())
	}
	text, err := os.ReadFile("upgrade.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "upgrade.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), installed, binary)), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", unit)
	if out, err := verify.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// From a shell there is nobody to tell: the daemon that the shell has started
// makes way for another.
func TestUpgradeFromAShell(t *testing.T) {
	port := freePort(t)
	dir := t.TempDir()
	first := filepath.Join(dir, "upgrade")
	if err := os.Link(binary, first); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(first, "-addr", port)
	d := daemontest.Shell(t, cmd)
	if d.ExitCode() != 0 || d.PID == 0 {
		t.Fatalf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
	}
	pid := d.PID
	for range 3 {
		old := pid
		testdaemon.WaitUntil(t, "another process is there, alone", func() bool {
			// It refuses for a moment after the one before it has ended, and does
			// nothing once it has handed over.
			syscall.Kill(old, syscall.SIGHUP)
			pid = servedBy(t, port)
			return pid != old && slices.Equal(d.Processes(), []int{pid})
		})
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testdaemon.WaitUntil(t, "it has ended", func() bool { return len(d.Processes()) == 0 })
}

// freePort returns an address that the whole test may use: all versions have
// to be given the same.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// servedBy returns the id of the process that serves.
func servedBy(t *testing.T, address string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testdaemon.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	found := regexp.MustCompile(`^Process (\d+) serves`).FindSubmatch(text)
	if err != nil || found == nil {
		t.Fatalf("page %q, %v", text, err)
	}
	pid, _ := strconv.Atoi(string(found[1]))
	return pid
}

// Whoever watches the process that it has started takes its end for the
// service's: there it does not end.
func TestNoUpgradeUnderUpstart(t *testing.T) {
	var stderr testdaemon.Console
	cmd := exec.Command(binary, "-addr", "127.0.0.1:0")
	cmd.Stderr = &stderr
	job := daemontest.Upstart(t, cmd)
	if err := job.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	testdaemon.WaitUntil(t, "it says that it does not upgrade", func() bool {
		return strings.Contains(stderr.String(), "no upgrade")
	})
	if err := job.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if s := job.Wait(ctx); s.ExitStatus() != 0 {
		t.Errorf("ended with wait status %#x", s)
	}
}
