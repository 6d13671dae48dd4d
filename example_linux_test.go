package daemon_test

import (
	"testing"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
)

// A test of a daemon that runs in the test's own process.
func Example_test() {
	_ = func(t *testing.T) { // func TestServes(t *testing.T)
		systemd := daemontest.Systemd(t)
		go daemon.Ready(daemon.Status("serving")) // the daemon
		ready := systemd.Wait(t.Context(), "READY=1")
		if status, _ := ready.Get("STATUS"); status != "serving" {
			t.Errorf("STATUS=%s", status)
		}
	}
}
