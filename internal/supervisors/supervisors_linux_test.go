// Package supervisors_test runs a daemon under the supervisors that Debian has
// beside systemd, and in the places where none is.
package supervisors_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }

// A service is what a supervisor runs: a shell's script in a directory.
type service struct {
	*testing.T
	*testdaemon.Line
	dir string
	run string // the script's path
}

// newService makes one. In its script PUPPET stands for the command that becomes
// a puppet.
func newService(t *testing.T, line *testdaemon.Line, script string) *service {
	t.Helper()
	dir := testdaemon.Directory(t)
	s := &service{t, line, dir, filepath.Join(dir, "run")}
	s.write("run", "#!/bin/sh\n"+script+"\n")
	return s
}

// write makes an executable file.
func (s *service) write(name, text string) (path string) {
	s.T.Helper()
	path = filepath.Join(s.dir, name)
	if err := testdaemon.WriteFile(path, withPuppet(s.Line, text), 0o755); err != nil {
		s.Fatal(err)
	}
	return path
}

// shellCalled returns the path of a shell whose processes have this name.
func (s *service) shellCalled(name string) (path string) {
	s.T.Helper()
	path = filepath.Join(s.dir, name)
	if err := os.Symlink("/bin/sh", path); err != nil {
		s.Fatal(err)
	}
	return path
}

// withPuppet puts the command in the place of PUPPET. It does without the
// caller's environment, which OpenRC clears.
func withPuppet(l *testdaemon.Line, script string) string {
	cmd := l.Command()
	words := []string{"env"}
	for _, assignment := range cmd.Env {
		if key, _, _ := strings.Cut(assignment, "="); key != "PATH" {
			words = append(words, quote(assignment))
		}
	}
	return strings.ReplaceAll(script, "PUPPET", strings.Join(append(words, quote(cmd.Path)), " "))
}

// quote makes one word of a shell's of the text.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// start starts a supervisor in a session of its own. It ends with the test, or
// with the test's process.
func (s *service) start(argv ...string) *exec.Cmd {
	s.T.Helper()
	cmd := s.Called(exec.Command(argv[0], argv[1:]...))
	cmd.Env = append(cmd.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	printed, err := os.Create(filepath.Join(s.dir, "printed"))
	if err != nil {
		s.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = printed, printed
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.T.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		printed.Close()
		if text, _ := os.ReadFile(printed.Name()); s.Failed() {
			s.Logf("%v printed:\n%s", argv, text)
		}
	})
	return cmd
}

// need returns the path of a command. Without it the test skips.
func need(t *testing.T, command, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	if err != nil {
		testdaemon.SkipUnlessForbidden(t, fmt.Sprintf("no %s (Debian's package %s)", command, debianPackage))
	}
	return path
}

// A supervisor starts a service, and starts it again when its process ends.
type supervisor struct {
	name  string // as the kernel shows it
	start func(s *service)
}

// None of these sets a variable to go by.
var supervisors = []supervisor{
	{"runsv", func(s *service) { s.start(need(s.T, "runsv", "runit"), s.dir) }},
	{"s6-supervise", func(s *service) { s.start(need(s.T, "s6-supervise", "s6"), s.dir) }},
	{"supervise", func(s *service) { s.start(need(s.T, "supervise", "daemontools"), s.dir) }},
	{"supervisord", startSupervisord},
	{"supervise-daemo", startOpenRC},
}

func startSupervisord(s *service) {
	path := need(s.T, "supervisord", "supervisor")
	config := s.write("supervisord.conf", fmt.Sprintf(`
[supervisord]
nodaemon=true
user=%s
logfile=/dev/null
logfile_maxbytes=0
pidfile=%s/pid
childlogdir=%[2]s
[program:service]
command=%s
autorestart=true
startsecs=0
startretries=1000
`, strconv.Itoa(os.Geteuid()), s.dir, quote(s.run)))
	s.start(path, "--configuration="+config)
}

// startOpenRC runs a service script of OpenRC, in namespaces in which /run is
// empty and from which no process escapes.
func startOpenRC(s *service) {
	need(s.T, "openrc-run", "openrc")
	script := s.write("init", fmt.Sprintf(`#!/sbin/openrc-run
supervisor=supervise-daemon
command=%s
respawn_max=0
`, quote(quote(s.run))))
	s.start(openRC(s.T, quote(script)+" --nodeps start && sleep infinity").Args...)
}

// openRC returns a command that runs a shell's script as PID 1 with OpenRC's
// files about it.
func openRC(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	return inPIDNamespace(t, `
mount -t tmpfs none /run &&
mkdir -p /run/openrc/daemons /run/openrc/exclusive /run/openrc/options /run/openrc/started /run/openrc/starting &&
echo default >/run/openrc/softlevel &&
`+script)
}

// inPIDNamespace returns a command that runs a shell's script as PID 1.
func inPIDNamespace(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	return testdaemon.InNamespaces(t, exec.Command("/bin/sh", "-c", script),
		"--pid", "--fork", "--kill-child", "--mount-proc")
}

// underEach has each supervisor run the script.
func underEach(t *testing.T, script string, test func(s *service, name string)) {
	t.Helper()
	for _, supervisor := range supervisors {
		t.Run(supervisor.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), script)
			supervisor.start(s)
			test(s, supervisor.name)
		})
	}
}

// mustBeAlone fails the test unless the puppet is the only one that was started
// since the last that the test has talked to, and the only one that runs.
func mustBeAlone(t *testing.T, l *testdaemon.Line, p *testdaemon.Puppet) {
	t.Helper()
	l.MustBeSilent()
	binary := testdaemon.Binary(t)
	running := slices.DeleteFunc(l.Processes(), func(pid int) bool {
		path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return path != binary
	})
	if !slices.Equal(running, []int{p.PID}) {
		t.Errorf("there are the processes %v, want %d alone", running, p.PID)
	}
}

// nameOf is the command name of a process.
func nameOf(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(name), "\n")
}

// becomesDaemon has the first process leave, and the one in which main begins
// again be ready.
func becomesDaemon(p *testdaemon.Puppet, order string) *testdaemon.Puppet {
	daemon := p.Detaches(order)
	daemon.Do("ready")
	daemon.MustBeDetached()
	return daemon
}

// staysOrLeaves has a process call Ready or Detach, and fails the test unless it
// stays, or becomes a daemon.
func staysOrLeaves(t *testing.T, l *testdaemon.Line, p *testdaemon.Puppet, order string, stays bool) {
	t.Helper()
	if !stays {
		becomesDaemon(p, order)
		return
	}
	p.Do(order)
	mustBeAlone(t, l, p)
}

func TestSupervisedProgramStaysInTheForeground(t *testing.T) {
	for _, verb := range []string{"ready", "detach"} {
		t.Run(verb, func(t *testing.T) {
			underEach(t, "exec PUPPET", func(s *service, name string) {
				p := s.Process()
				p.Do(verb)
				p.Do(verb) // again
				parent := p.Stat().Parent
				if got := nameOf(s.T, parent); got != name {
					s.Fatalf("the parent is called %q", got)
				}
				mustBeAlone(s.T, s.Line, p)

				// It is the process on which the supervisor has an eye.
				p.Leaves("exit 1")
				p = s.Process()
				p.Do(verb)
				if got := p.Stat().Parent; got != parent {
					s.Errorf("the second process's parent is %d, want %d", got, parent)
				}
				mustBeAlone(s.T, s.Line, p)
			})
		})
	}
}

// A run script begins with settings, and with programs that execute one another.
func TestSupervisedProgramStaysBehindAChainOfPrograms(t *testing.T) {
	underEach(t, "umask 027; exec nice -n 1 env A=B sh -c 'exec \"$@\"' sh PUPPET", func(s *service, name string) {
		p := s.Process()
		p.Do("ready")
		mustBeAlone(s.T, s.Line, p)
	})
}

func TestSupervisedScriptStartsADaemon(t *testing.T) {
	underEach(t, "PUPPET && exec PUPPET", func(s *service, name string) {
		daemon := becomesDaemon(s.Process(), "ready")
		p := s.Process() // the script has gone on
		p.Do("ready")
		if got := nameOf(s.T, p.Stat().Parent); got != name {
			s.Errorf("the service's parent is called %q", got)
		}
		daemon.Leaves("exit 1") // which nobody minds
		mustBeAlone(s.T, s.Line, p)
	})
}

func TestFinishScriptStartsADaemon(t *testing.T) {
	for _, supervisor := range supervisors[:2] { // the others know none
		t.Run(supervisor.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "exec PUPPET")
			s.write("finish", "#!/bin/sh\nPUPPET\n")
			supervisor.start(s)
			p := s.Process()
			p.Do("ready")
			p.Leaves("exit 1")
			daemon := becomesDaemon(s.Process(), "ready")
			p = s.Process() // the finish script has ended
			p.Do("ready")
			daemon.Leaves("exit 1")
			mustBeAlone(s.T, s.Line, p)
		})
	}
}

// With a flag for it a program goes into the background wherever it is, and the
// supervisor starts another.
func TestSupervisedProgramGoesIntoTheBackgroundOnDemand(t *testing.T) {
	underEach(t, "exec PUPPET", func(s *service, name string) {
		p := s.Process()
		p.Do("foreground")
		p.Do("background")
		daemon := becomesDaemon(p, "ready")
		p = s.Process()
		p.Do("background")
		p.Do("foreground")
		p.Do("ready")
		daemon.Leaves("exit 1")
		mustBeAlone(s.T, s.Line, p)
	})
}

// Names that no real supervisor is at hand for, and their likes.
func TestSupervisorIsKnownByItsName(t *testing.T) {
	for name, known := range map[string]bool{
		"dinit": true, "runsv": true, "s6-supervise": true, "supervise": true,
		"supervise-daemon": true, "supervisord": true,
		"dini": false, "dinitctl": false, "runsvdir": false, "s6-svscan": false,
		"supervisor": false, "supervised": false, "SUPERVISE": false, "supervise ": false, "sh": false,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := testdaemon.NewLine(t)
			s := newService(t, line, "")
			s.start(s.shellCalled(name), "-c", withPuppet(line, "PUPPET; exit $?"))
			staysOrLeaves(t, line, line.Process(), "ready", known)
		})
	}
}
