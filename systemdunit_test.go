//go:build linux

package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A manager is a service manager of the booted machine.
type manager struct {
	*machine
	units string                         // where it reads unit files, inside
	ctl   func(args ...string) *exec.Cmd // its systemctl
}

// systemManager returns PID 1 itself.
func systemManager(t *testing.T) *manager {
	t.Helper()
	m := bootSystemd(t)
	return &manager{machine: m, units: "/etc/systemd/system", ctl: func(args ...string) *exec.Cmd {
		return m.command("systemctl", args...)
	}}
}

// userManager starts a systemd --user for the time of the test.
func userManager(t *testing.T) *manager {
	t.Helper()
	system := systemManager(t)
	systemd, err := systemdBinary(rootTree())
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
`, "daemon-test-user", systemd, bootTarget))
	if err := u.begin("start").end(); err != nil {
		status, _ := system.systemctl("status", "--no-pager", "--full", u.name+".service")
		skipUnlessForbidden(t, fmt.Sprintf("can't start a user manager: %v\n%s", err, status))
	}
	return &manager{machine: system.machine, units: "/etc/systemd/user", ctl: func(args ...string) *exec.Cmd {
		cmd := system.command("setpriv", append([]string{
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
	if _, ok := programs[program]; !ok {
		t.Fatalf("no test program %q", program)
	}
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
`, t.Name(), insideBinary, testProgram, program, lineAddress, u.file(".line"), u.file(".stderr"), lines))
	t.Cleanup(u.remove)
	return u
}

// file returns the path of one of the unit's own files, inside.
func (u *unit) file(suffix string) string {
	return filepath.Join(insideDir, u.name+suffix)
}

// write makes a unit file and waits until systemd has seen it. A new unit
// needs no daemon-reload, and that would lose what other tests' services have
// asked for (an extended timeout, for one). All systemd looks at is the time at
// which the directory was changed, which two changes may share.
func (u *unit) write(suffix, text string) {
	u.t.Helper()
	dir := u.m.outside(u.m.units)
	if err := os.WriteFile(filepath.Join(dir, u.name+suffix), []byte(text), 0o644); err != nil {
		u.t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for u.m.show(u.t, u.name+suffix, "LoadState")["LoadState"] != "loaded" {
		if time.Now().After(deadline) {
			u.t.Fatalf("systemd does not load %s%s:%s", u.name, suffix, text)
		}
		os.Chtimes(dir, time.Time{}, time.Now())
	}
}

func (u *unit) listen() {
	u.t.Helper()
	path := u.m.outside(u.file(".line"))
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
		stderr, _ := os.ReadFile(u.m.outside(u.file(".stderr")))
		u.t.Logf("%s\nits standard error:\n%s\nsystemd's console:\n%s", status, stderr, u.m.console.String())
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
	for _, dir := range []string{u.m.units, insideDir} {
		files, _ := filepath.Glob(filepath.Join(u.m.outside(dir), u.name+".*"))
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
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		got := u.show(property)
		if got == value {
			return
		}
		if time.Now().After(deadline) {
			u.t.Fatalf("%s=%q after %v, want %q", property, got, patience, value)
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
	return u.m.outside("/sys/fs/cgroup" + group)
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
	case <-time.After(patience):
		j.u.t.Fatalf("systemctl %s has not returned after %v", j.verb, patience)
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

// The puppet is the daemon of most tests. It does what the test tells it, one
// order after the other, through a socket: "status drained" says that status,
// and the answer is ok or the error. It passes on SIGTERM and SIGHUP, as a line
// between two orders, and ends when the test hangs up.
func init() { programs["systemd-puppet"] = puppet }

const lineAddress = "DAEMON_TEST_LINE"

// orders are what the puppet can do, questions what it can be asked. The tests
// add theirs.
var (
	orders = map[string]func(argument string) error{
		"exit": func(code string) error {
			number, err := strconv.Atoi(code)
			if err == nil {
				os.Exit(number)
			}
			return err
		},
	}
	questions = map[string]func() string{
		"pid": func() string { return strconv.Itoa(os.Getpid()) },
	}
)

func puppet() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	conn, err := net.Dial("unix", os.Getenv(lineAddress))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	go func() {
		for signal := range signals {
			fmt.Fprintf(conn, "%q\n", signal)
		}
	}()
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		text, err := strconv.Unquote(scanner.Text())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		fmt.Fprintf(conn, "%q\n", obey(text))
	}
}

func obey(text string) (answer string) {
	word, argument, _ := strings.Cut(text, " ")
	if question, ok := questions[word]; ok {
		return question()
	}
	order, ok := orders[word]
	if !ok {
		return fmt.Sprintf("no order %q", word)
	}
	if err := order(argument); err != nil {
		return err.Error()
	}
	return "ok"
}

// A process is a puppet as the test sees it.
type process struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	pid  string // as systemd sees it
}

// process returns the next one that the unit starts.
func (u *unit) process() *process {
	u.t.Helper()
	u.line.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
	conn, err := u.line.Accept()
	if err != nil {
		u.t.Fatalf("no process: %v", err)
	}
	u.conns = append(u.conns, conn)
	p := &process{t: u.t, conn: conn, in: bufio.NewReader(conn)}
	p.pid = p.ask("pid")
	return p
}

func (p *process) ask(question string) (answer string) {
	p.t.Helper()
	p.send(question)
	return p.hear()
}

// do gives the puppet an order that it must carry out.
func (p *process) do(order string) {
	p.t.Helper()
	if answer := p.ask(order); answer != "ok" {
		p.t.Fatalf("%s: %s", order, answer)
	}
}

// send gives an order whose answer is heard later, or never.
func (p *process) send(order string) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.conn, "%q\n", order); err != nil {
		p.t.Fatalf("%s: %v", order, err)
	}
}

// hear returns what the puppet says next.
func (p *process) hear() string {
	p.t.Helper()
	text, err := p.read()
	if err != nil {
		p.t.Fatalf("the service's process says nothing: %v", err)
	}
	return text
}

func (p *process) read() (string, error) {
	p.conn.SetReadDeadline(time.Now().Add(patience))
	quoted, err := p.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	return strconv.Unquote(strings.TrimSuffix(quoted, "\n"))
}

func (p *process) mustHear(want string) {
	p.t.Helper()
	if got := p.hear(); got != want {
		p.t.Fatalf("the service's process says %q, want %q", got, want)
	}
}

// ends waits for the end of the process.
func (p *process) ends() {
	p.t.Helper()
	for {
		_, err := p.read()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return
		}
		if err != nil {
			p.t.Fatalf("the service's process lives: %v", err)
		}
	}
}
