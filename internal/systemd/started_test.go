//go:build linux

package systemd

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

// What systemd believes of programs that it has not started itself, and of those
// that go into the background.

// goesIntoBackground has a process leave, and returns the daemon.
func (u *unit) goesIntoBackground(p *process, order string) (daemon *process) {
	u.t.Helper()
	p.Send(order)
	p.Ends()
	return u.process()
}

func TestSystemdTypeForkingWithAProgramInTheBackground(t *testing.T) {
	for _, verb := range []string{"ready", "detach"} {
		for _, pidFile := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/PIDFile=%t", verb, pidFile), func(t *testing.T) {
				lines := "Type=forking"
				if pidFile {
					lines += "\nPIDFile=" + keeper.InsideDir + "/%N.pid"
				}
				u := systemManager(t).unit(t, "systemd-puppet", lines)
				start := u.begin("start")
				p := u.process()
				p.Do("background")
				p = u.goesIntoBackground(p, verb)
				u.want("ActiveState", "activating", "SubState", "start")
				start.mustBlock()
				if pidFile {
					p.Do("pid-file " + u.file(".pid"))
				}
				p.Do("ready")
				start.succeeds()
				u.want("ActiveState", "active", "SubState", "running", "MainPID", p.pid, "NRestarts", "0")
				u.wantAlone()

				p.Send("exit 3") // its status is not lost
				u.await("ActiveState", "failed")
				u.want("Result", "exit-code", "ExecMainStatus", "3")
			})
		}
	}
}

func TestSystemdTypeForkingFailsAsTheDaemonDoes(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=forking")
	start := u.begin("start")
	p := u.process()
	p.Do("background")
	p = u.goesIntoBackground(p, "ready")
	p.Send("exit 7")
	start.fails()
	u.want("ActiveState", "failed", "Result", "exit-code")
}

func TestSystemdOneshotWithAProgramInTheBackground(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=oneshot\nRemainAfterExit=yes")
	start := u.begin("start")
	p := u.process()
	p.Do("background")
	p = u.goesIntoBackground(p, "ready")
	start.mustBlock()
	p.Do("ready")
	start.succeeds()
	u.want("ActiveState", "active", "SubState", "exited")
	if got := p.Ask("pid"); got != p.pid {
		t.Errorf("process %s was %s", got, p.pid)
	}
	u.wantAlone()

	stop := u.begin("stop")
	p.mustHearAndExit("terminated")
	stop.succeeds()
	u.want("ActiveState", "inactive", "Result", "success")
}

// With a socket Background changes nothing.
func TestSystemdIsToldAlsoByAProgramForTheBackground(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	start := u.begin("start")
	p := u.process()
	p.Do("background")
	p.Do("detach")
	p.Do("ready")
	start.succeeds()
	u.staysReady(p, "ready")
}

// mount(8), which systemd executes, waits for a helper of the filesystem's.
func TestSystemdMountUnitWaitsForItsHelper(t *testing.T) {
	for _, order := range []string{"background", "detach"} { // the second goes without being asked
		t.Run(order, func(t *testing.T) {
			u := systemManager(t).unit(t, "systemd-puppet", "")
			where, kind := "/"+u.name, "daemon"+u.name
			if err := os.Mkdir(u.m.Outside(where), 0o755); err != nil {
				t.Fatal(err)
			}
			u.script("/sbin/mount."+kind, fmt.Sprintf("exec env %s=systemd-puppet %s=%s %s \"$@\"",
				agreed.Program, agreed.Line, u.file(".line"), keeper.InsideBinary))
			u.write(".mount", fmt.Sprintf("[Unit]\nDefaultDependencies=no\n[Mount]\nWhat=none\nWhere=%s\nType=%s\n",
				where, kind))
			t.Cleanup(func() { u.m.systemctl("stop", u.name+".mount") })

			done := make(chan error, 1)
			go func() {
				out, err := u.m.systemctl("start", u.name+".mount")
				if err != nil {
					err = fmt.Errorf("systemctl start: %w: %s", err, out)
				}
				done <- err
			}()
			p := u.process()
			verb := order
			if order == "background" {
				p.Do("background")
				verb = "ready"
			}
			p = u.goesIntoBackground(p, verb)
			p.Do("mount " + where)
			p.Do("ready")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			state := u.m.show(t, u.name+".mount", "ActiveState", "SubState", "Result")
			if state["ActiveState"] != "active" || state["SubState"] != "mounted" || state["Result"] != "success" {
				t.Errorf("the mount unit is %v", state)
			}
			if got := p.Ask("pid"); got != p.pid {
				t.Errorf("process %s was %s", got, p.pid)
			}
		})
	}
}

// script makes a file that a shell executes.
func (u *unit) script(path, text string) {
	u.t.Helper()
	if err := testdaemon.WriteFile(u.m.Outside(path), "#!/bin/sh\n"+text+"\n", 0o755); err != nil {
		u.t.Fatal(err)
	}
}

// wrappers wait for the program that they have started. DIR is the unit's own.
var wrappers = map[string]string{
	"sh":      "/bin/sh -c 'PROGRAM; exit $$?'",
	"script":  "DIR/script",
	"flock":   "flock DIR/lock PROGRAM",
	"timeout": "timeout 10000 PROGRAM",
	"runuser": "runuser -u daemon -- PROGRAM",
	"unshare": "unshare --pid --fork --kill-child --mount-proc sh -c 'PROGRAM; exit $$?'",
	// As sudo --preserve-env=NOTIFY_SOCKET leaves the environment.
	"sudo": "env -u SYSTEMD_EXEC_PID sh -c 'PROGRAM; exit $$?'",
}

// behind makes a service whose program a wrapper starts.
func (m *manager) behind(t *testing.T, wrapper string) *unit {
	t.Helper()
	command := strings.NewReplacer("PROGRAM", keeper.InsideBinary, "DIR", keeper.InsideDir+"/%N.files").Replace(wrapper)
	u := m.unit(t, "systemd-puppet",
		"Type=notify\nNotifyAccess=all\nRestart=on-failure\nRestartSec=0\nExecStart=\nExecStart="+command)
	dir := u.file(".files")
	if err := os.Mkdir(u.m.Outside(dir), 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(u.m.Outside(dir)) })
	u.script(dir+"/script", keeper.InsideBinary+"; exit $?")
	return u
}

// However the program ends, the service ends so, and is started again.
func TestSystemdSeesTheEndOfAProgramBehindAWrapper(t *testing.T) {
	for name, wrapper := range wrappers {
		for _, end := range []string{"exit 3", "panic out of order", "become kill -SEGV $$"} {
			t.Run(name+"/"+end, func(t *testing.T) {
				t.Parallel()
				u := systemManager(t).behind(t, wrapper)
				p := u.startReady()
				main := u.show("MainPID")
				if main == p.pid || main == "0" {
					t.Errorf("MainPID=%s, and the program, which is not systemd's child, is %s", main, p.pid)
				}
				u.want("ActiveState", "active", "StatusText", "ready", "NRestarts", "0")

				p.Send(end)
				p = u.process() // started again
				p.Do("ready")
				u.await("ActiveState", "active")
				u.want("NRestarts", "1")
				p.Send("exit 0")
				u.await("ActiveState", "inactive")
				u.want("Result", "success")
			})
		}
	}
}

// The program has in its PID namespace the number that a stranger has in
// systemd's.
func TestSystemdAdoptsNoStrangerFromAnotherPIDNamespace(t *testing.T) {
	for _, wrapper := range []string{"", "env -u SYSTEMD_EXEC_PID "} {
		t.Run(wrapper, func(t *testing.T) { adoptsNoStranger(t, wrapper) })
	}
}

func adoptsNoStranger(t *testing.T, wrapper string) {
	m := systemManager(t)
	stranger := m.unit(t, "systemd-puppet", "Type=notify")
	its := stranger.startReady()

	u := m.behind(t, "unshare --pid --fork --kill-child --mount-proc "+wrapper+"DIR/reach "+its.pid)
	// The kernel may let root choose the next number; counting up to it takes long.
	u.script(u.file(".files")+"/reach",
		`{ echo $(($1 - 3)) >/proc/sys/kernel/ns_last_pid; } 2>/dev/null
		while [ "$(sh -c 'echo $$')" -lt $(($1 - 1)) ]; do :; done; `+keeper.InsideBinary+"; exit $?")
	p := u.startReady()
	if p.pid != its.pid {
		t.Fatalf("the program is %s in there, want %s", p.pid, its.pid)
	}
	if main := u.show("MainPID"); main == its.pid {
		t.Errorf("MainPID=%s, which is the stranger's", main)
	}
	u.want("ActiveState", "active", "StatusText", "ready")
	stop := u.begin("stop")
	p.Send("exit 0")
	stop.succeeds()
	if got := its.Ask("pid"); got != its.pid {
		t.Errorf("the stranger says %q", got)
	}
	stranger.want("ActiveState", "active", "MainPID", its.pid)
}

// PID 1 of a namespace sends no MAINPID.
func TestSystemdHearsPID1OfAnotherNamespace(t *testing.T) {
	u := systemManager(t).behind(t, "unshare --pid --fork --kill-child --mount-proc PROGRAM")
	p := u.startReady()
	if p.pid != "1" {
		t.Fatalf("the program is %s in there", p.pid)
	}
	u.want("ActiveState", "active", "StatusText", "ready")
	p.Send("exit 3")
	p = u.process() // started again
	p.Do("ready")
	u.await("ActiveState", "active")
	u.want("NRestarts", "1")
}

// systemd 257 names another process in the variables, unless the unit has its own.
func TestSystemdPassesAllToAServiceWithPrivatePIDs(t *testing.T) {
	m := systemManager(t)
	if m.Version < 257 {
		t.Skipf("systemd %d has no PrivatePIDs=", m.Version)
	}
	u := m.unit(t, "systemd-puppet", "Type=notify\nPrivatePIDs=yes\nEnvironment=WATCHDOG_PID= LISTEN_PID=1\n"+
		"WatchdogSec=8\nFileDescriptorStoreMax=1\nRestart=always\nRestartSec=0")
	p := u.startReady()
	p.Do("store jobs one")
	p.Send("exit 0")
	p = u.process() // started again
	if got := p.Ask("files"); got != "jobs=one" {
		t.Errorf("it has %q", got)
	}
	p.Do("ready")
	p.Do("watchdog")
	p.Do("watchdog the disk is full")
	u.await("StatusText", "the disk is full")
}

func TestSystemdShowsTheStatusAgainAfterAReload(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	start := u.begin("start")
	p := u.process()
	p.Do("ready-status serving on :80")
	start.succeeds()
	for range 2 {
		p.Do("reload")
		p.Do("barrier")
		u.want("ActiveState", "reloading", "StatusText", "serving on :80")
		p.Do("status half of it is read")
		p.Do("ready")
		p.Do("barrier")
		u.want("ActiveState", "active", "StatusText", "serving on :80")
	}
}

// Of what systemd has passed a child process knows nothing.
func TestSystemdPassesFilesToOneProcess(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet",
		"Type=notify\nFileDescriptorStoreMax=10\nEnvironment=LISTEN_PIDFDID=1")
	p := u.startReady()
	p.Do("store jobs one")
	restart := u.begin("restart")
	p.mustHearAndExit("terminated")
	p = u.process()
	p.Do("unset")
	if got := p.Ask("files"); got != "jobs=one" {
		t.Errorf("it has %q", got)
	}
	if environ := p.Ask("child-environ"); strings.Contains(environ, "LISTEN_") {
		t.Errorf("a child has %s", environ)
	}
	p.Do("ready")
	restart.succeeds()
}
