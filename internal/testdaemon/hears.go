//go:build linux

package testdaemon

import (
	"os"
	"slices"
	"testing"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
)

// Hears checks that a verb has returned nil and that want, and nothing else,
// has arrived.
func Hears(t testing.TB, systemd *daemontest.Supervisor, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	heard := Notifications(t, systemd)
	if want == "" && len(heard) == 0 {
		return
	}
	if len(heard) != 1 || string(heard[0].Raw) != want {
		t.Errorf("heard %q, want %q", heard, want)
	}
}

// Notifications returns those that have been sent since it was called last.
func Notifications(t testing.TB, systemd *daemontest.Supervisor) (heard []daemontest.Notification) {
	t.Helper()
	const end = "X_END=1"
	if err := daemon.Notify(daemon.Set("X_END", "1")); err != nil {
		t.Fatal(err)
	}
	for {
		n := systemd.Next(t.Context())
		if slices.Equal(n.Assignments, []string{end}) {
			return heard
		}
		heard = append(heard, n)
	}
}

// OpenDescriptors counts what this process has open.
func OpenDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
