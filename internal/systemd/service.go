//go:build linux

package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// A Service is a unit file that is installed inside as an administrator does it.
// It is gone when the test is over.
type Service struct {
	t    *testing.T
	m    *Machine
	name string // httpd.service
}

// Install installs a unit file. The lines are added to it as a drop-in.
func (m *Machine) Install(t *testing.T, file, lines string) *Service {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{t: t, m: m, name: filepath.Base(file)}
	unit := m.Outside("/etc/systemd/system/" + s.name)
	t.Cleanup(func() { s.remove(unit) })
	m.WriteFile(t, "/etc/systemd/system/"+s.name, string(text), 0o644)
	// The machine has none of the units on which others depend by default.
	m.WriteFile(t, "/etc/systemd/system/"+s.name+".d/test.conf", "[Unit]\nDefaultDependencies=no\n"+lines+"\n", 0o644)
	s.mustSystemctl("daemon-reload")
	return s
}

// WriteFile puts a file in the place of what is there, if anything is.
func (m *Machine) WriteFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	path = m.Outside(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = testdaemon.WriteFile(path+".new", text, mode)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Service) remove(unit string) {
	if s.t.Failed() {
		status, _ := s.Systemctl("status", "--no-pager", "--full")
		s.t.Logf("%s\nsystemd's console:\n%s", status, s.m.Console.String())
	}
	s.Systemctl("stop")
	s.Systemctl("reset-failed")
	os.Remove(unit)
	os.RemoveAll(unit + ".d")
	s.m.Command("systemctl", "daemon-reload").Run()
}

// Systemctl returns what systemctl prints when it does that to the service.
func (s *Service) Systemctl(verb string, args ...string) (string, error) {
	args = append([]string{verb}, args...)
	if verb != "daemon-reload" {
		args = append(args, s.name)
	}
	out, err := s.m.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("systemctl %v: %w: %s", args, err, out)
	}
	return string(out), err
}

func (s *Service) mustSystemctl(verb string) {
	s.t.Helper()
	if _, err := s.Systemctl(verb); err != nil {
		s.t.Fatal(err)
	}
}

// Start, Stop, Restart and Reload return when systemctl has succeeded.
func (s *Service) Start()   { s.t.Helper(); s.mustSystemctl("start") }
func (s *Service) Stop()    { s.t.Helper(); s.mustSystemctl("stop") }
func (s *Service) Restart() { s.t.Helper(); s.mustSystemctl("restart") }
func (s *Service) Reload()  { s.t.Helper(); s.mustSystemctl("reload") }

// A Systemctl is one that may take its time.
type Systemctl struct {
	t    *testing.T
	done chan error
}

// Begin does that to the service in the background.
func (s *Service) Begin(verb string) *Systemctl {
	c := &Systemctl{t: s.t, done: make(chan error, 1)}
	go func() {
		_, err := s.Systemctl(verb)
		c.done <- err
	}()
	return c
}

// Succeeds waits until it has.
func (c *Systemctl) Succeeds() {
	c.t.Helper()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Fatal(err)
		}
	case <-time.After(testdaemon.Patience):
		c.t.Fatalf("systemctl has not returned after %v", testdaemon.Patience)
	}
}

// Show returns what systemd believes.
func (s *Service) Show(property string) string {
	s.t.Helper()
	out, err := s.Systemctl("show", "--property="+property, "--value")
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// Await waits until a property has the value.
func (s *Service) Await(property, value string) {
	s.t.Helper()
	s.AwaitWhen(property+"="+value, func() bool { return s.Show(property) == value })
}

// AwaitWhen waits for a condition.
func (s *Service) AwaitWhen(what string, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(testdaemon.Patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not after %v", what, testdaemon.Patience)
		}
	}
}

// MainPID returns the id, inside, of the process that systemd watches.
func (s *Service) MainPID() int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.Show("MainPID"))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// Processes returns the ids, inside, of the service's processes.
func (s *Service) Processes() (pids []int) {
	s.t.Helper()
	group := s.Show("ControlGroup")
	if group == "" {
		return nil
	}
	// Read inside: here the same processes have other ids.
	out, err := s.m.Command("cat", "/sys/fs/cgroup"+group+"/cgroup.procs").Output()
	if err != nil {
		return nil
	}
	for _, word := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			s.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// Kill sends a signal, by its name, to a process inside.
func (s *Service) Kill(signal string, pid int) {
	s.t.Helper()
	if out, err := s.m.Command("sh", "-c", "kill -s $0 $1", signal, strconv.Itoa(pid)).CombinedOutput(); err != nil {
		s.t.Fatalf("kill: %v: %s", err, out)
	}
}
