//go:build linux

package examples_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/systemd"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// Inside the booted machine.
const (
	installedHTTPD = "/usr/local/sbin/httpd"
	httpdAddress   = "127.0.0.1:8080"
)

// A web is httpd under the booted systemd, with its unit as it is.
type web struct {
	*systemd.Service
	t *testing.T
	m *systemd.Machine
}

func startWeb(t *testing.T) *web {
	t.Helper()
	m := systemd.Boot(t)
	w := &web{t: t, m: m}
	w.install()
	settings := ""
	if strconv.IntSize == 32 { // which the unit refuses on a 64-bit machine
		settings = "[Service]\nSystemCallArchitectures="
	}
	w.Service = m.Install(t, "httpd/httpd.service", settings)
	w.Start()
	if n := w.Show("NFileDescriptorStore"); n != "1" {
		t.Fatalf("systemd keeps %s sockets", n)
	}
	return w
}

// install puts another version in the place of the installed one.
func (w *web) install() {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(bin, "httpd"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.m.WriteFile(w.t, installedHTTPD, string(text), 0o755)
}

func (w *web) installBroken() {
	w.t.Helper()
	w.m.WriteFile(w.t, installedHTTPD, "#!/bin/sh\nexit 1\n", 0o755)
}

func servedBy(pid int) string { return fmt.Sprintf("Process %d serves this page.", pid) }

func (w *web) mustBeServedBy(pid int) {
	w.t.Helper()
	page, err := w.m.Ask(httpdAddress)
	if err != nil || !strings.Contains(page, servedBy(pid)) {
		w.t.Fatalf("page %q, %v, want one by process %d", page, err, pid)
	}
}

func TestHTTPDUpgradesRefuseNobody(t *testing.T) {
	w := startWeb(t)
	client := w.m.Client(t, httpdAddress)
	for range testdaemon.Rounds(20) {
		before := w.MainPID()
		w.install()
		w.Restart()
		pid := w.MainPID()
		if pid == before || !slices.Equal(w.Processes(), []int{pid}) {
			t.Fatalf("process %d was restarted, and is now %d of %v", before, pid, w.Processes())
		}
		client.AwaitPage(servedBy(pid))
	}
	client.MustHaveBeenServed()
	if n := w.Show("NRestarts"); n != "0" {
		t.Errorf("%s restarts that nobody asked for", n)
	}
}

func TestHTTPDIsRestartedAfterACrash(t *testing.T) {
	w := startWeb(t)
	w.Restart()
	w.Kill("KILL", w.MainPID())
	if _, err := w.m.Ask(httpdAddress); err != nil {
		t.Errorf("who connects after the crash: %v", err)
	}
	w.Await("NRestarts", "1")
	w.Await("ActiveState", "active")
	w.mustBeServedBy(w.MainPID())
}

// A version that cannot start keeps those who connect waiting until there is
// one that can.
func TestHTTPDWaitsForAVersionThatStarts(t *testing.T) {
	w := startWeb(t)
	w.installBroken()
	if out, err := w.Systemctl("restart"); err == nil {
		t.Errorf("the restart has succeeded: %s", out)
	}
	conn, err := w.m.Dial(httpdAddress)
	if err != nil {
		t.Fatal(err)
	}
	w.AwaitWhen("systemd has tried it more often than its limit is by default", func() bool {
		n, err := strconv.Atoi(w.Show("NRestarts"))
		return err == nil && n > 5
	})
	w.install()
	if page, err := systemd.Get(conn); err != nil || !strings.Contains(page, "serves this page") {
		t.Errorf("page %q, %v", page, err)
	}
	w.Await("ActiveState", "active")
}

func TestHTTPDStopClosesThePort(t *testing.T) {
	w := startWeb(t)
	w.Restart()
	w.Stop()
	for property, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "NRestarts": "0"} {
		if got := w.Show(property); got != want {
			t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
	if left := w.Processes(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if conn, err := w.m.Dial(httpdAddress); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}
