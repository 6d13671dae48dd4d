//go:build linux

package examples_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-10280e03/daemon/daemontest"
)

// installed returns the text of an example's file, about the binaries of this
// test and not about those in /usr/local/sbin.
func installed(t *testing.T, file string) string {
	t.Helper()
	return strings.ReplaceAll(read(t, file), "/usr/local/sbin", bin)
}

// tool skips the test if a program is missing.
func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		skip(t, err.Error())
	}
}

// What systemd-analyze says of the units, as README.md tells it.
func TestUnits(t *testing.T) {
	tool(t, "systemd-analyze")
	dir := t.TempDir()
	var units []string
	for _, file := range []string{"httpd/httpd.service", "httpd/httpd.socket", "worker/worker.service"} {
		unit := filepath.Join(dir, filepath.Base(file))
		write(t, unit, installed(t, file))
		units = append(units, unit)
	}
	for _, args := range [][]string{
		append([]string{"verify", "--recursive-errors=no"}, units...),
		// The exposure level, in tenths, is no more than this.
		{"security", "--offline=true", "--threshold=12", units[0]},
		{"security", "--offline=true", "--threshold=3", units[2]},
	} {
		out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
		}
	}
}

// The SysV lines of README.md: start-stop-daemon returns when httpd serves, or
// with its exit status.
func TestStartStopDaemon(t *testing.T) {
	tool(t, "start-stop-daemon")
	lines := regexp.MustCompile(`(?m)^start-stop-daemon .*$`).FindAllString(read(t, "README.md"), -1)
	if len(lines) != 3 {
		t.Fatalf("no longer a start, a stop and a reload: %q", lines)
	}
	dir := t.TempDir()
	exe, log := filepath.Join(dir, "httpd"), filepath.Join(dir, "log")
	if err := os.Link(filepath.Join(bin, "httpd"), exe); err != nil { // for --exec it has a name of its own
		t.Fatal(err)
	}
	run := func(line, addr string) error {
		here := strings.NewReplacer("/usr/local/sbin/httpd", exe, "/var/log/httpd.log", log, ":8080", addr).Replace(line)
		return exec.CommandContext(patient(t), "sh", "-c", here).Run()
	}
	var failed *exec.ExitError
	if err := run(lines[0], "nowhere"); !errors.As(err, &failed) || failed.ExitCode() != 1 {
		t.Errorf("no such address: %v", err)
	}
	if err := run(lines[0], anyPort); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("start-stop-daemon", "--stop", "--retry", "KILL/60", "--exec", exe).Run() })
	get(t, serving(t, read(t, log)))
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := run(lines[2], anyPort); err != nil {
		t.Error(err)
	}
	eventually(t, "it has a new log", func() bool {
		_, err := os.Stat(log)
		return err == nil
	})
	if err := run(lines[1], anyPort); err != nil {
		t.Error(err)
	}
}

// What OpenRC starts by worker.openrc is ready by the notify socket if there is
// one, and otherwise stays in the foreground.
func TestOpenRCCommand(t *testing.T) {
	dir := t.TempDir() // the spool
	script := filepath.Join(t.TempDir(), "worker.openrc")
	log := filepath.Join(t.TempDir(), "log")
	paths := strings.NewReplacer("/var/spool/worker", dir, "/var/log/worker.log", log)
	write(t, script, paths.Replace(installed(t, "worker/worker.openrc")))
	// As supervise-daemon.sh puts the command line together.
	run := func() *process {
		return start(t, exec.Command("sh", "-c", `. "$0"; eval exec $command $command_args $command_args_foreground`, script))
	}

	systemd := daemontest.Systemd(t)
	p := run()
	if n := systemd.Wait(patient(t), "READY=1"); n.PID != p.pid() {
		t.Errorf("worker is process %d: %v", p.pid(), n)
	}
	p.signal(syscall.SIGTERM)
	p.exit(0)

	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "gone"))
	drop(t, dir, "file", "text")
	p = run()
	eventually(t, "it works", func() bool {
		_, err := os.Stat(filepath.Join(dir, "file.gz"))
		return err == nil
	})
	if exe, _ := os.Readlink("/proc/" + strconv.Itoa(p.pid()) + "/exe"); exe != filepath.Join(bin, "worker") {
		t.Errorf("the started process is %s", exe)
	}
	p.signal(syscall.SIGTERM)
	p.exit(0)
}

// Scripts that no other test runs are at least scripts.
func TestScripts(t *testing.T) {
	for _, file := range []string{"httpd/httpd.openrc", "worker/worker.openrc"} {
		if out, err := exec.Command("sh", "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	for _, file := range []string{"httpd/httpd.conf", "worker/worker.conf"} {
		if fields := fmt.Sprint(strings.Fields(read(t, file))); !strings.Contains(fields, " expect stop respawn ") {
			t.Errorf("%s does not say: expect stop, respawn", file)
		}
	}
}
