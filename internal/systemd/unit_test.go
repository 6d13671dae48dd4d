//go:build linux

package systemd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

// A manager is a service manager of the booted machine.
type manager struct {
	*Machine
	units string                         // where it reads unit files, inside
	ctl   func(args ...string) *exec.Cmd // its systemctl
}

// systemManager returns PID 1 itself.
func systemManager(t *testing.T) *manager {
	t.Helper()
	m := Boot(t)
	return &manager{Machine: m, units: "/etc/systemd/system", ctl: func(args ...string) *exec.Cmd {
		return m.Command("systemctl", args...)
	}}
}

// userManager starts a systemd --user for the time of the test.
func userManager(t *testing.T) *manager {
	t.Helper()
	system := systemManager(t)
	systemd, err := keeper.SystemdBinary(keeper.RootTree())
	if err != nil {
		t.Fatal(err)
	}
	u := system.unit(t, "systemd-puppet", fmt.Sprintf(`
Type=notify
User=daemon
Delegate=yes
RuntimeDirectory=%[1]s
RuntimeDirectoryMode=0700
Environment=XDG_RUNTIME_DIR=/run/%[1]s
ExecStart=
ExecStart=%[2]s --user --unit=%[3]s --log-target=console
`, "daemon-test-user", systemd, keeper.Target))
	if err := u.begin("start").end(); err != nil {
		status, _ := system.systemctl("status", "--no-pager", "--full", u.name+".service")
		testdaemon.SkipUnlessForbidden(t, fmt.Sprintf("can't start a user manager: %v\n%s", err, status))
	}
	return &manager{Machine: system.Machine, units: "/etc/systemd/user", ctl: func(args ...string) *exec.Cmd {
		cmd := system.Command("setpriv", append([]string{
			"--reuid=daemon", "--regid=daemon", "--clear-groups", "systemctl", "--user"}, args...)...)
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR=/run/daemon-test-user")
		return cmd
	}}
}

// A unit is a service of one test: the puppet below, or another of programs.
type unit struct {
	t     *testing.T
	m     *manager
	name  string // without .service
	line  net.Listener
	conns []net.Conn // what the listener has accepted
}

// unit makes a service of the program, with these lines in its [Service]
// section. Once the test is over the service and its file are gone.
func (m *manager) unit(t *testing.T, program, lines string) *unit {
	t.Helper()
	u := &unit{t: t, m: m, name: fmt.Sprintf("test%d", m.made.Add(1))}
	u.listen()
	u.write(".service", fmt.Sprintf(`
[Unit]
Description=%s
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
ExecStart=%s
Environment=%s=%s %s=%s GORACE=atexit_sleep_ms=0
StandardError=append:%s
TimeoutStopSec=10
%s
`, t.Name(), keeper.InsideBinary, agreed.Program, program, agreed.Line, u.file(".line"), u.file(".stderr"), lines))
	t.Cleanup(u.remove)
	return u
}

// file returns the path of one of the unit's own files, inside.
func (u *unit) file(suffix string) string {
	return filepath.Join(keeper.InsideDir, u.name+suffix)
}

// write makes a unit file and waits until systemd has seen it. A new unit
// needs no daemon-reload, and that would lose what other tests' services have
// asked for (an extended timeout, for one). All systemd looks at is the time at
// which the directory was changed, which two changes may share.
func (u *unit) write(suffix, text string) {
	u.t.Helper()
	dir := u.m.Outside(u.m.units)
	if err := os.WriteFile(filepath.Join(dir, u.name+suffix), []byte(text), 0o644); err != nil {
		u.t.Fatal(err)
	}
	deadline := time.Now().Add(testdaemon.Patience)
	for u.m.show(u.t, u.name+suffix, "LoadState")["LoadState"] != "loaded" {
		if time.Now().After(deadline) {
			u.t.Fatalf("systemd does not load %s%s:%s", u.name, suffix, text)
		}
		os.Chtimes(dir, time.Time{}, time.Now())
	}
}

func (u *unit) listen() {
	u.t.Helper()
	path := u.m.Outside(u.file(".line"))
	line, err := net.Listen("unix", path)
	if err != nil {
		u.t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		u.t.Fatal(err)
	}
	u.line = line
}

func (u *unit) remove() {
	u.t.Helper()
	if u.t.Failed() {
		status, _ := u.m.systemctl("status", "--no-pager", "--full", u.name+".service")
		stderr, _ := os.ReadFile(u.m.Outside(u.file(".stderr")))
		u.t.Logf("%s\nits standard error:\n%s\nsystemd's console:\n%s", status, stderr, u.m.Console.String())
	}
	u.line.Close()
	for _, conn := range u.conns {
		conn.Close() // a puppet ends
	}
	u.m.systemctl("stop", u.name+".socket")
	if out, err := u.m.systemctl("stop", u.name+".service"); err != nil {
		u.t.Errorf("stop: %v: %s", err, out)
	}
	u.m.systemctl("reset-failed", u.name+".service")
	for _, dir := range []string{u.m.units, keeper.InsideDir} {
		files, _ := filepath.Glob(filepath.Join(u.m.Outside(dir), u.name+".*"))
		for _, file := range files {
			os.Remove(file)
		}
	}
}

// systemctl returns what it printed.
func (m *manager) systemctl(args ...string) (string, error) {
	out, err := m.ctl(args...).CombinedOutput()
	return string(out), err
}

// show returns what systemd believes, property by property.
func (m *manager) show(t testing.TB, unit string, properties ...string) map[string]string {
	t.Helper()
	out, err := m.systemctl("show", "--property="+strings.Join(properties, ","), unit)
	if err != nil {
		t.Fatalf("systemctl show: %v: %s", err, out)
	}
	values := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		values[key] = value
	}
	return values
}

func (u *unit) show(property string) string {
	u.t.Helper()
	return u.m.show(u.t, u.name+".service", property)[property]
}

// want fails the test unless each property has the value that follows it.
func (u *unit) want(properties ...string) {
	u.t.Helper()
	var names []string
	for pair := range slices.Chunk(properties, 2) {
		names = append(names, pair[0])
	}
	values := u.m.show(u.t, u.name+".service", names...)
	for pair := range slices.Chunk(properties, 2) {
		if got, ok := values[pair[0]]; got != pair[1] || !ok {
			u.t.Errorf("%s=%q, want %q", pair[0], got, pair[1])
		}
	}
}

// await waits until a property has the value.
func (u *unit) await(property, value string) {
	u.t.Helper()
	for deadline := time.Now().Add(testdaemon.Patience); ; time.Sleep(10 * time.Millisecond) {
		got := u.show(property)
		if got == value {
			return
		}
		if time.Now().After(deadline) {
			u.t.Fatalf("%s=%q after %v, want %q", property, got, testdaemon.Patience, value)
		}
	}
}

// cgroup returns the directory of the running service's cgroup.
func (u *unit) cgroup() string {
	u.t.Helper()
	group := u.show("ControlGroup")
	if group == "" {
		u.t.Fatal("no cgroup")
	}
	return u.m.Outside("/sys/fs/cgroup" + group)
}

// wantAlone fails the test unless the service has one process.
func (u *unit) wantAlone() {
	u.t.Helper()
	text, err := os.ReadFile(filepath.Join(u.cgroup(), "cgroup.procs"))
	if err != nil {
		u.t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 1 {
		u.t.Errorf("%d processes, want the daemon alone", n)
	}
}

// A job is a systemctl that may take its time.
type job struct {
	u    *unit
	verb string
	done chan error
}

// begin asks systemd to start, stop, restart or reload the service.
func (u *unit) begin(verb string) *job {
	j := &job{u: u, verb: verb, done: make(chan error, 1)}
	go func() {
		out, err := u.m.systemctl(verb, u.name+".service")
		if err != nil {
			err = fmt.Errorf("systemctl %s: %w: %s", verb, err, out)
		}
		j.done <- err
	}()
	return j
}

// end waits for the job and returns its error.
func (j *job) end() error {
	j.u.t.Helper()
	select {
	case err := <-j.done:
		return err
	case <-time.After(testdaemon.Patience):
		j.u.t.Fatalf("systemctl %s has not returned after %v", j.verb, testdaemon.Patience)
		return nil
	}
}

func (j *job) succeeds() {
	j.u.t.Helper()
	if err := j.end(); err != nil {
		j.u.t.Fatal(err)
	}
}

func (j *job) fails() {
	j.u.t.Helper()
	if err := j.end(); err == nil {
		j.u.t.Fatalf("systemctl %s succeeded", j.verb)
	}
}

// mustBlock fails the test if the job has ended.
func (j *job) mustBlock() {
	j.u.t.Helper()
	select {
	case err := <-j.done:
		j.u.t.Fatalf("systemctl %s has returned: %v", j.verb, err)
	default:
	}
}

// A process is a puppet of a unit.
type process struct {
	*testdaemon.Process
	t   *testing.T
	pid string // as systemd sees it
}

// process returns the next one that the unit starts.
func (u *unit) process() *process {
	u.t.Helper()
	u.line.(*net.UnixListener).SetDeadline(time.Now().Add(testdaemon.Patience))
	conn, err := u.line.Accept()
	if err != nil {
		u.t.Fatalf("no process: %v", err)
	}
	u.conns = append(u.conns, conn)
	p := &process{Process: testdaemon.NewProcess(u.t, conn), t: u.t}
	p.pid = p.Ask("pid")
	return p
}
