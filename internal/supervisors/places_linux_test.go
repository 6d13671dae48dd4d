package supervisors_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// Where a program that only calls Ready stays, and where it goes.

// pid1 is a service whose script is PID 1 of a namespace.
func pid1(t *testing.T, script string) *service {
	t.Helper()
	s := newService(t, testdaemon.NewLine(t), script)
	s.start(inPIDNamespace(t, "exec "+quote(s.run)).Args...)
	return s
}

func TestPID1Stays(t *testing.T) {
	s := pid1(t, "exec PUPPET")
	p := s.Process()
	p.Do("ready")
	if got := p.Ask("pid"); got != "1" {
		t.Errorf("it is PID %s", got)
	}
	mustBeAlone(t, s.Line, p)
}

// A container whose entry point is a script that does not execute the program.
func TestSessionOfPID1Stays(t *testing.T) {
	for name, script := range map[string]string{
		"script":     "PUPPET; exit $?",
		"nested":     "sh -c 'PUPPET; exit $?'; exit $?",
		"pipe":       "PUPPET 2>&1 | cat; exit",
		"background": "PUPPET & wait $!",
		"orphan":     "sh -c 'ORPHAN </dev/null | cat &'; wait; sleep infinity",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "")
			orphan := s.write("orphan", orphanScript)
			s.write("run", "#!/bin/sh\n"+strings.ReplaceAll(script, "ORPHAN", quote(orphan)))
			s.start(inPIDNamespace(t, "exec "+quote(s.run)).Args...)
			p := s.Process()
			p.Do("ready")
			mustBeAlone(t, s.Line, p)
		})
	}
}

// The same in the session that dumb-init makes for its script; what enters the
// container (docker exec) has another, and so has what another process has left to
// dumb-init (a crond that went into the background).
func TestSessionOfDumbInitStays(t *testing.T) {
	const orphaned = `while read -r _ _ _ parent _ </proc/\$\$/stat; [ \$parent != 1 ]; do sleep 0.01; done; `
	for script, stays := range map[string]bool{
		"PUPPET; exit $?":                      true,
		"PUPPET 2>&1 | cat; exit":              true,
		"setsid sh -c 'PUPPET; exit $?'; exit": false,
		`sh -c 'setsid sh -c "` + orphaned + `PUPPET; exit" &'; sleep infinity`: false,
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), script)
			s.start(inPIDNamespace(t,
				"exec "+quote(s.shellCalled("dumb-init"))+" -c 'setsid "+s.run+"; sleep infinity'").Args...)
			staysOrLeaves(t, s.Line, s.Process(), "ready", stays)
		})
	}
}

// The same in the session that su makes for its command, in that script. One that is
// itself in another session than PID 1's (docker exec) has nobody to wait for it.
func TestSessionOfSuStays(t *testing.T) {
	for name, test := range map[string]struct {
		su, script string
		stays      bool
	}{
		"su":              {"su", "SU -c 'setsid RUN; exit $?'; exit $?", true},
		"su is PID 1":     {"su", "exec SU -c 'setsid RUN; exit $?'", true},
		"runuser":         {"runuser", "SU -c 'setsid RUN; exit $?'; exit $?", true},
		"sudo runs su":    {"sudo", `SU -c 'setsid SU -c "setsid RUN; exit"; exit'; exit`, true},
		"another wrapper": {"other", "SU -c 'setsid RUN; exit $?'; sleep infinity", false},
		"another session": {"su", "setsid SU -c 'setsid RUN; exit $?'; sleep infinity", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "PUPPET; exit $?")
			script := strings.NewReplacer("SU", s.shellCalled(test.su), "RUN", s.run).Replace(test.script)
			s.start(inPIDNamespace(t, script).Args...)
			staysOrLeaves(t, s.Line, s.Process(), "ready", test.stays)
		})
	}
}

// The numbers in /proc may be those of another PID namespace than the program's.
func TestForeignProcDoesNotMislead(t *testing.T) {
	runsv := need(t, "runsv", "runit")
	for name, script := range map[string]string{
		"supervisor":       "setsid " + runsv + " DIR; :",
		"session of PID 1": "DIR/run; :",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "exec PUPPET")
			command := exec.Command("/bin/sh", "-c", strings.ReplaceAll(script, "DIR", s.dir))
			s.start(testdaemon.InNamespaces(t, command, "--pid", "--fork", "--kill-child").Args...)
			p := s.Process()
			p.Do("ready")
			mustBeAlone(t, s.Line, p)
		})
	}
}

// What an init starts leads its own session.
func TestProgramThatPID1StartsStays(t *testing.T) {
	for name, streams := range map[string]string{
		"null":  "</dev/null >/dev/null 2>&1",
		"pipes": "2>&1 | cat",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := pid1(t, "exec setsid PUPPET "+streams+" & wait; sleep infinity")
			p := s.Process()
			p.Do("ready")
			if leader, parent := p.Ask("session"), p.Ask("parent"); leader != p.Ask("pid") || parent != "1" {
				t.Fatalf("it has session %s, parent %s", leader, parent)
			}
			mustBeAlone(t, s.Line, p)
		})
	}
}

// As a container's runtime starts a program in a container that runs.
func TestParentOutsideOfThePIDNamespaceStays(t *testing.T) {
	inside := pid1(t, "exec PUPPET")
	init := inside.Process()

	s := newService(t, testdaemon.NewLine(t), "exec setsid PUPPET")
	s.start(enter(t, init, s.run)...)
	p := s.Process()
	p.Do("ready")
	if parent := p.Ask("parent"); parent != "0" {
		t.Fatalf("its parent is %s", parent)
	}
	mustBeAlone(t, s.Line, p)

	// A shell in there starts a daemon on purpose.
	s = newService(t, testdaemon.NewLine(t), "exec setsid sh -c 'PUPPET && PUPPET'")
	s.start(enter(t, init, s.run)...)
	becomesDaemon(s.Process(), "ready")
	becomesDaemon(s.Process(), "detach")
}

// enter returns the command that runs another in the namespaces of a process.
func enter(t *testing.T, p *testdaemon.Puppet, command string) []string {
	t.Helper()
	argv := []string{need(t, "nsenter", "util-linux"), "--target", strconv.Itoa(p.PID), "--pid", "--mount"}
	if os.Geteuid() != 0 {
		argv = append(argv, "--user", "--preserve-credentials")
	}
	return append(argv, command)
}

// orphanScript executes the puppet once PID 1 has inherited it.
const orphanScript = `#!/bin/sh
until read -r _ _ _ parent _ </proc/$$/stat && [ "$parent" = 1 ]; do sleep 0.01; done
exec PUPPET
`

// PID 1 has inherited it from a shell, whose terminal or pipe it has: what
// `ssh host 'd &'` leaves.
func TestOrphanGoesIntoTheBackground(t *testing.T) {
	for name, pipeline := range map[string]string{
		"pipe":            "setsid sh -c 'ORPHAN &' 2>&1 | cat",
		"standard input":  ": | setsid sh -c 'ORPHAN <&3 >/dev/null 2>&1 &' 3<&0; sleep infinity",
		"standard output": "setsid sh -c 'ORPHAN </dev/null 2>/dev/null &' | cat",
		"standard error":  "setsid sh -c 'ORPHAN </dev/null >/dev/null &' 2>&1 | cat",
		"closed":          "setsid sh -c 'ORPHAN <&- 2>&- &' | cat",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := orphanage(t, pipeline)
			s.start(inPIDNamespace(t, "exec "+quote(s.run)).Args...)
			becomesDaemon(s.Process(), "ready")
			if strings.HasSuffix(pipeline, "| cat") {
				s.Process().Do("ready") // it has ended
			}
		})
	}
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		s := orphanage(t, "setsid sh -c 'ORPHAN &'; read line")
		s.Line.Shell(inPIDNamespace(t, "exec "+quote(s.run)))
		becomesDaemon(s.Process(), "ready")
	})
}

// In a container whose PID 1 is a supervisor, or on a machine that dinit has booted.
func TestOrphanThatASupervisorInheritsGoesIntoTheBackground(t *testing.T) {
	for _, name := range []string{"dinit", "supervisord"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := orphanage(t, "setsid sh -c 'ORPHAN &' 2>&1 | cat")
			s.start(inPIDNamespace(t, "exec "+quote(s.shellCalled(name))+" "+quote(s.run)).Args...)
			p := s.Process()
			if parent := nameOf(t, p.Stat().Parent); parent != name {
				t.Fatalf("the parent is called %q", parent)
			}
			becomesDaemon(p, "ready")
			s.Process().Do("ready") // the pipe has ended
		})
	}
}

// orphanage is a service whose script starts a pipeline, in which ORPHAN stands
// for the command that becomes a puppet whose parent is PID 1, and then becomes
// another puppet.
func orphanage(t *testing.T, pipeline string) *service {
	t.Helper()
	s := newService(t, testdaemon.NewLine(t), "")
	orphan := s.write("orphan", orphanScript)
	s.write("run", "#!/bin/sh\n"+strings.ReplaceAll(pipeline, "ORPHAN", orphan)+"\nexec PUPPET\n")
	return s
}

// The shell may end at any moment.
func TestOrphanGoesIntoTheBackgroundEachTime(t *testing.T) {
	const rounds = 60
	s := pid1(t, fmt.Sprintf(`
for i in $(seq %d); do
	setsid sh -c 'PUPPET &' | cat
done
exec PUPPET`, rounds))
	for range rounds {
		becomesDaemon(s.Process(), "ready") // or the pipe does not end
	}
	p := s.Process()
	if got := p.Ask("pid"); got != "1" {
		t.Errorf("after %d orphans PID %s has called", rounds, got)
	}
}

// The same by the machine's own init, or whoever adopts orphans here.
func TestOrphanOfThisMachineReleasesItsPipe(t *testing.T) {
	for range testdaemon.Rounds(20) {
		line := testdaemon.NewLine(t)
		cmd := exec.Command("setsid", "--wait", "sh", "-c", withPuppet(line, "PUPPET &"))
		caller := line.Pipe(cmd)
		becomesDaemon(line.Process(), "ready")
		if got := caller.Exit(); got != "exit 0" {
			t.Fatalf("%s, printed %q", got, caller.Printed())
		}
	}
}

// start-stop-daemon --background wants the process that it has started.
func TestStartStopDaemonKeepsItsProcess(t *testing.T) {
	command := need(t, "start-stop-daemon", "dpkg")
	for name, options := range map[string]string{"null": "", "log": "--output /dev/full"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "")
			s.write("program", "#!/bin/sh\nexec PUPPET\n")
			s.write("run", fmt.Sprintf("#!/bin/sh\ncd %[1]s\n"+
				"%[2]s --start --background %[3]s --make-pidfile --pidfile %[1]s/pid --startas ./program --chdir %[1]s\n"+
				"sleep infinity\n",
				quote(s.dir), command, options))
			s.start(inPIDNamespace(t, "exec "+quote(s.run)).Args...)
			p := s.Process()
			p.Do("ready")
			pid, err := os.ReadFile(filepath.Join(s.dir, "pid"))
			if got := p.Ask("pid"); strings.TrimSpace(string(pid)) != got {
				t.Errorf("process %s is ready, and the pid file has %q, %v", got, pid, err)
			}
			if parent := p.Ask("parent"); parent != "1" {
				t.Errorf("its parent is %s", parent)
			}
			mustBeAlone(t, s.Line, p)
		})
	}
}

// The parent may be there for a while, and may have gone when the program is
// ready: OpenRC's waits for rc_start_wait, and busybox's for the exec.
func TestStartStopDaemonIsAParentForAWhile(t *testing.T) {
	for options, stays := range map[string]bool{
		"--start --background --exec x": true, "-S -b -m -x x": true, "-Sbm -x x": true,
		"-Sbmp FILE -x x": true, "-Sbmx x -p FILE": true, // busybox's
		"--start --exec x": false, "-S -x x -- --background -b": false, "-S -x b": false, "-Spb -x x": false,
	} {
		for name, script := range map[string]string{
			"waits": "setsid PUPPET </dev/null >/dev/null 2>&1; exit $?",
			"gone":  "setsid PUPPET </dev/null >/dev/null 2>&1 & read line <DIR/go",
		} {
			if name == "gone" && !stays {
				continue // it leaves no trace of its options
			}
			t.Run(options+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := newService(t, testdaemon.NewLine(t), "")
				fifo := filepath.Join(s.dir, "go")
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
				shell := s.shellCalled("start-stop-daemon")
				program := s.write("program", strings.ReplaceAll(script, "DIR", s.dir))
				s.start(append([]string{shell, program}, strings.Fields(options)...)...)
				p := s.Process()
				if parent := nameOf(t, p.Stat().Parent); parent != "start-stop-daem" {
					t.Fatalf("the parent is called %q", parent)
				}
				if name == "gone" {
					parent := p.Stat().Parent
					if err := os.WriteFile(fifo, []byte("\n"), 0); err != nil {
						t.Fatal(err)
					}
					testdaemon.WaitUntil(t, "the parent's end", func() bool { return p.Stat().Parent != parent })
				}
				staysOrLeaves(t, s.Line, p, "ready", stays)
			})
		}
	}
}

// For an instant an ending parent has a name, but no options any more.
func TestStartStopDaemonThatIsEnding(t *testing.T) {
	for _, name := range []string{"start-stop-daemon", "busybox"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "exec PUPPET </dev/null")
			path := filepath.Join(s.dir, name)
			if err := os.Symlink(testdaemon.Binary(t), path); err != nil {
				t.Fatal(err)
			}
			program := testdaemon.Program(t, "ending")
			cmd := s.Called(exec.Command(path, s.run))
			cmd.Env = append(cmd.Env, program.Env...)
			c := testdaemon.StartCommand(t, cmd)
			p := s.Process()
			testdaemon.WaitUntil(t, "the parent's end", func() bool {
				line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.PID()))
				return err == nil && len(line) == 0
			})
			p.Send("ready")
			c.GoOn()
			p.MustHear("ok")
			c.Exits(0)
			mustBeAlone(t, s.Line, p)
		})
	}
}

// Its applet may be called by busybox's name.
func TestStartStopDaemonOfBusybox(t *testing.T) {
	lines := map[string]bool{"start-stop-daemon -S -b": true, "start-stop-daemon -S": false, "sh -b": false}
	for options, stays := range lines {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "setsid PUPPET; exit $?")
			shell := s.shellCalled("busybox")
			s.start(append([]string{shell, s.run}, strings.Fields(options)...)...)
			staysOrLeaves(t, s.Line, s.Process(), "ready", stays)
		})
	}
}

// A user's systemd before 248 tells nothing, and inherits its user's orphans.
func TestProgramThatAUserManagerStartsStays(t *testing.T) {
	for script, stays := range map[string]bool{"setsid PUPPET": true, "PUPPET": false} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), script+"; exit $?")
			systemd := s.shellCalled("systemd")
			s.start("sh", "-c", quote(systemd)+" "+quote(s.run)+" 2>&1 | cat")
			staysOrLeaves(t, s.Line, s.Process(), "ready", stays)
		})
	}
}

// The parent's name tells of a systemd that sets no SYSTEMD_EXEC_PID. It has been
// looked at when there is no descriptor any more.
func TestMainPIDIsKnownWithoutADescriptor(t *testing.T) {
	t.Parallel()
	s := newService(t, testdaemon.NewLine(t), "exec PUPPET")
	address := filepath.Join(s.dir, "of", "systemd", "notify")
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		t.Fatal(err)
	}
	m := testdaemon.OpenMailbox(t, address)
	shell := s.shellCalled("systemd")
	program := s.write("program", "NOTIFY_SOCKET="+quote(address)+" "+quote(s.run)+"; exit $?\n")
	s.start(shell, program)
	p := s.Process()
	p.Do("status starting")
	p.Do("limit-files 3 100")
	p.Do("ready")
	m.Next()
	if got, want := m.Next(), fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", p.PID); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// OpenRC waits for a program that goes into the background by itself, and sends
// others there.
func TestOpenRCServiceScripts(t *testing.T) {
	need(t, "openrc-run", "openrc")
	for name, test := range map[string]struct {
		settings string
		stays    bool
	}{
		"by itself":          {"", false},
		"command_background": {"command_background=yes\npidfile=/run/service.pid", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "exec PUPPET")
			script := quote(s.write("init", "#!/sbin/openrc-run\ncommand="+quote(quote(s.run))+"\n"+test.settings+"\n"))
			s.start(openRC(t, fmt.Sprintf("setsid %[1]s --nodeps start && %[1]s --nodeps status && exec %[2]s",
				script, quote(s.run))).Args...)
			p := s.Process()
			if test.stays {
				if p.Ask("pid") == "1" {
					p = s.Process()
				}
				p.Do("ready")
				p.MustLive()
			} else {
				becomesDaemon(p, "ready")
				if pid := s.Process().Ask("pid"); pid != "1" { // the start has succeeded
					t.Errorf("process %s has called", pid)
				}
			}
		})
	}
}

// systemd names the process that it has executed itself, and all that come of it
// inherit that.
func TestProcessThatSystemdHasExecutedStays(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		stays  bool
	}{
		"itself":      {"SYSTEMD_EXEC_PID=$$ exec PUPPET", true},
		"behind exec": {"export SYSTEMD_EXEC_PID=$$; exec nice -n 1 PUPPET", true},
		"child":       {"export SYSTEMD_EXEC_PID=$$; PUPPET; exit $?", false},
		"another":     {"export SYSTEMD_EXEC_PID=1; exec PUPPET", false},
		"empty":       {"export SYSTEMD_EXEC_PID=; exec PUPPET", false},
		"no number":   {"export SYSTEMD_EXEC_PID=$$x; exec PUPPET", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), test.script)
			s.start(s.run)
			staysOrLeaves(t, s.Line, s.Process(), "ready", test.stays)
		})
	}
}

// Of Foreground and Background the last call counts if there is no supervisor to tell,
// and neither if there is one.
func TestForegroundAndBackground(t *testing.T) {
	for name, test := range map[string]struct {
		orders []string
		stays  bool
	}{
		"foreground":                         {[]string{"foreground"}, true},
		"background":                         {[]string{"background"}, false},
		"foreground, background":             {[]string{"foreground", "background"}, false},
		"background, foreground":             {[]string{"background", "foreground"}, true},
		"background, foreground, background": {[]string{"background", "foreground", "background"}, false},
	} {
		for _, verb := range []string{"ready", "detach"} {
			for place, start := range map[string]func(t *testing.T) *service{
				"shell": func(t *testing.T) *service {
					s := newService(t, testdaemon.NewLine(t), "exec PUPPET")
					s.start(s.run)
					return s
				},
				"started by PID 1": func(t *testing.T) *service {
					return pid1(t, "exec setsid PUPPET & sleep infinity")
				},
				"executed by systemd": func(t *testing.T) *service {
					s := newService(t, testdaemon.NewLine(t), "SYSTEMD_EXEC_PID=$$ exec PUPPET")
					s.start(s.run)
					return s
				},
			} {
				t.Run(name+"/"+verb+"/"+place, func(t *testing.T) {
					t.Parallel()
					s := start(t)
					p := s.Process()
					for _, order := range test.orders {
						p.Do(order)
					}
					staysOrLeaves(t, s.Line, p, verb, test.stays)
				})
			}
		}
	}
}

func TestBackgroundChangesNothingForUpstart(t *testing.T) {
	line := testdaemon.NewLine(t)
	cmd := line.Command()
	cmd.Env = append(cmd.Env, "UPSTART_JOB=test")
	line.Pipe(cmd)
	p := line.Process()
	p.Do("background")
	p.Send("ready")
	testdaemon.WaitUntil(t, "its stop", func() bool { return p.Stat().State == "T" })
	unix.Kill(p.PID, unix.SIGCONT)
	p.MustHear("ok")
	mustBeAlone(t, line, p)
}

func TestBackgroundChangesNothingForSystemd(t *testing.T) {
	line := testdaemon.NewLine(t)
	mailbox := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	cmd := line.Command()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+mailbox.Address)
	line.Pipe(cmd)
	p := line.Process()
	p.Do("background")
	p.Do("ready")
	if got := mailbox.Next(); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("it has sent %q", got)
	}
	mustBeAlone(t, line, p)
}
