//go:build linux

package systemd

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

// What a real systemd believes of services made with this package.

func TestSystemdStartBlocksUntilReady(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	start := u.begin("start")
	p := u.process()
	u.want("ActiveState", "activating", "SubState", "start")
	start.mustBlock()

	p.Do("ready")
	start.succeeds()
	u.want("ActiveState", "active", "SubState", "running",
		"StatusText", "ready", "MainPID", p.pid, "NRestarts", "0")
	u.wantAlone()
}

func TestSystemdShowsStatusUntilTheServiceHasDrained(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	p := u.startReady()
	p.Do("status 17 connections")
	p.Do("barrier")
	u.want("StatusText", "17 connections", "ActiveState", "active")

	// Stopping on its own accord, before systemd asks for it.
	p.Do("stopping draining 3 connections")
	p.Do("barrier")
	u.want("ActiveState", "deactivating", "SubState", "stop-sigterm", "StatusText", "draining 3 connections")
	p.Do("status draining 1 connection")
	p.Do("barrier")
	u.want("SubState", "stop-sigterm", "StatusText", "draining 1 connection", "MainPID", p.pid)
	p.Send("exit 0")
	u.await("ActiveState", "inactive")
	u.want("Result", "success")
}

func TestSystemdStopBlocksWhileTheServiceDrains(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	p := u.startReady()
	stop := u.begin("stop")
	p.MustHear("terminated")
	p.Do("stopping draining 3 connections")
	p.Do("barrier")
	u.want("ActiveState", "deactivating", "SubState", "stop-sigterm", "StatusText", "draining 3 connections")
	stop.mustBlock()

	p.Send("exit 0")
	stop.succeeds()
	u.want("ActiveState", "inactive", "Result", "success", "ExecMainStatus", "0")
}

// startReady starts a puppet and has it call Ready.
func (u *unit) startReady() *process {
	u.t.Helper()
	start := u.begin("start")
	p := u.process()
	p.Do("ready")
	start.succeeds()
	return p
}

// Whatever a status holds, it costs the service nothing, and what systemd
// shows is what was said, made safe for a terminal.
func TestSystemdShowsEveryStatusAndHearsItsReady(t *testing.T) {
	for _, test := range []struct{ name, say, show string }{
		{"plain", "ready to serve", "ready to serve"},
		{"empty", "", ""},
		{"newline", "one\nMAINPID=1\nSTOPPING=1", "one MAINPID=1 STOPPING=1"},
		{"carriage return", "one\rSTOPPING=1", "one STOPPING=1"},
		{"NUL", "one\x00two", "one two"},
		{"ESC", "\x1b[31mred\x1b]0;title\x07", " [31mred ]0;title "},
		{"C1", "one\u0085two\u009b31m", "one two 31m"},
		{"DEL", "one\x7ftwo", "one two"},
		{"invalid UTF-8", "caf\xe9 \xff", "caf\ufffd \ufffd"},
		{"surrogates", "one\xed\xa0\x80two", "one\ufffd\ufffd\ufffdtwo"},
		{"noncharacters", "one\ufffetwo\U0010ffff\ufdd0", "one\ufffdtwo\ufffd\ufffd"},
		{"other planes", "\U0001f600 \U00010348 \ue000", "\U0001f600 \U00010348 \ue000"},
		{"trailing backslash", `C:\`, `C:\`},
		{"backslashes", `C:\temp\new \\host`, `C:\temp\new \\host`},
		{"quotes", `it's "quoted"`, `it's "quoted"`},
		{"spaces", "  one  two  ", "  one  two  "},
		{"assignment", "READY=0 BARRIER=1", "READY=0 BARRIER=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
			start := u.begin("start")
			p := u.process()
			p.Do("ready-status " + test.say)
			start.succeeds()
			u.want("StatusText", test.show, "ActiveState", "active", "MainPID", p.pid)
		})
	}

	// Of these systemd takes 4096 bytes in all.
	for _, test := range []struct {
		name, say string
		least     int // bytes shown
	}{
		{"5000 bytes", strings.Repeat("x", 5000), 4000},
		{"5000 backslashes", strings.Repeat(`\`, 5000), 2000},
		{"3000 two-byte runes", strings.Repeat("é", 3000), 4000},
		{"an odd byte and 3000 two-byte runes", "x" + strings.Repeat("é", 3000), 4000},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
			start := u.begin("start")
			p := u.process()
			p.Do("ready-status " + test.say)
			start.succeeds()
			u.want("ActiveState", "active", "MainPID", p.pid)
			got := u.show("StatusText")
			if !strings.HasPrefix(test.say, got) || len(got) < test.least || !utf8.ValidString(got) {
				t.Errorf("systemd shows %d bytes of %d: %.20q...", len(got), len(test.say), got)
			}
		})
	}
}

func TestSystemdShowsWhyAStartFailed(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	start := u.begin("start")
	p := u.process()
	p.Do("fail")
	p.Send("exit 7")
	start.fails()
	u.want("ActiveState", "failed", "Result", "exit-code", "ExecMainStatus", "7",
		"StatusErrno", strconv.Itoa(int(syscall.EADDRINUSE)),
		"StatusText", "open the shop: bind: address already in use")
}

func TestSystemdWatchesTheMainPIDThatItIsTold(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	start := u.begin("start")
	p := u.process()
	p.Do("ready-child")
	start.succeeds()
	if main := u.show("MainPID"); main == p.pid || main != u.show("StatusText") {
		t.Errorf("MainPID=%s, want %s", main, u.show("StatusText"))
	}
}

// The process that systemd started, a shell, waits for the daemon. With
// NotifyAccess=all the daemon may speak, and the shell's exit status counts.
func TestSystemdGoesOnWatchingAWrapper(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify\nNotifyAccess=all\nExecStart=\n"+
		"ExecStart=/bin/sh -c '"+keeper.InsideBinary+"; exit 1'")
	p := u.startReady()
	u.want("ActiveState", "active", "StatusText", "ready")
	if main := u.show("MainPID"); main == p.pid {
		t.Errorf("MainPID=%s is the daemon, want the shell", main)
	}
	p.Send("exit 0")
	u.await("ActiveState", "failed")
	u.want("Result", "exit-code", "ExecMainStatus", "1")
}

// Two services have the same time to start. The one that asked for more is
// still starting when the other, started after it, has run out of time.
func TestSystemdWaitsLongerForAServiceThatAsks(t *testing.T) {
	t.Parallel()
	const service = "Type=notify\nTimeoutStartSec=10"
	m := systemManager(t)
	u := m.unit(t, "systemd-puppet", service)
	start := u.begin("start")
	p := u.process()
	p.Do("extend")

	silent := m.unit(t, "systemd-puppet", service)
	late := silent.begin("start")
	silent.process().mustHearAndExit("terminated")
	late.fails()
	silent.want("Result", "timeout")

	u.want("ActiveState", "activating", "SubState", "start")
	start.mustBlock()
	p.Do("ready")
	start.succeeds()
	u.want("ActiveState", "active", "MainPID", p.pid)
}

// mustHearAndExit lets a process end by the signal.
func (p *process) mustHearAndExit(signal string) {
	p.t.Helper()
	p.MustHear(signal)
	p.Send("exit 0")
}

// Two services have the same watchdog. The one that beats lives on when the
// other, ready after it, has been killed; then it stops to beat.
func TestSystemdWatchdogKillsOnlyWhoDoesNotBeat(t *testing.T) {
	t.Parallel()
	const service = "Type=notify\nWatchdogSec=8"
	m := systemManager(t)
	u := m.unit(t, "systemd-puppet", service)
	p := u.startReady()
	p.Do("watchdog")

	silent := m.unit(t, "systemd-puppet", service)
	silent.startReady()
	silent.await("ActiveState", "failed")
	silent.want("Result", "watchdog")
	u.want("ActiveState", "active", "MainPID", p.pid, "StatusText", "ready")

	p.Do("watchdog the disk is full")
	u.await("ActiveState", "failed")
	u.want("Result", "watchdog", "StatusText", "the disk is full")
}

func TestSystemdHearsAHelperThatEndsAtOnce(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify\nNotifyAccess=all")
	p := u.startReady()
	for i := range 100 {
		status := fmt.Sprintf("helper %d", i)
		p.Do("helper " + status)
		u.want("StatusText", status)
	}
}

func TestSystemdKeepsStoredFilesOverRestartAndCrash(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify\nFileDescriptorStoreMax=10\nRestart=always\nRestartSec=0")
	p := u.startReady()
	if got := p.Ask("files"); got != "" {
		t.Errorf("first process has %q", got)
	}
	p.Do("store jobs one")
	p.Do("store jobs two")
	p.Do("store users three")
	u.want("NFileDescriptorStore", "3")

	restart := u.begin("restart")
	p.mustHearAndExit("terminated")
	p = u.process()
	if got, want := p.Ask("files"), "jobs=one jobs=two users=three"; got != want {
		t.Errorf("after a restart: %q, want %q", got, want)
	}
	p.Do("ready")
	restart.succeeds()

	p.Do("remove jobs")
	p.Do("barrier")
	u.want("NFileDescriptorStore", "1")
	p.Send("exit 1") // systemd starts it again
	p = u.process()
	if got, want := p.Ask("files"), "users=three"; got != want {
		t.Errorf("after a crash: %q, want %q", got, want)
	}
	p.Do("ready")
	u.await("ActiveState", "active")
}

// mustServeOverRestarts restarts the service while a client connects to it all
// the time, and fails the test unless every connection is answered.
func (u *unit) mustServeOverRestarts(address string) {
	u.t.Helper()
	cmd := u.m.Command(keeper.InsideBinary, address)
	cmd.Env = append(cmd.Env, agreed.Program+"=systemd-client")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		u.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		u.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()

	said := bufio.NewScanner(stdout)
	mustSay := func(want string) {
		u.t.Helper()
		stdout.(*os.File).SetReadDeadline(time.Now().Add(testdaemon.Patience))
		if said.Scan(); said.Text() != want {
			u.t.Fatalf("the client says %q, want %q (%v)", said.Text(), want, said.Err())
		}
	}
	u.await("ActiveState", "active") // by socket activation, it may be
	mustSay(u.show("MainPID"))
	for range 5 {
		before := u.show("MainPID")
		u.begin("restart").succeeds()
		after := u.show("MainPID")
		if before == after {
			u.t.Fatal("not restarted")
		}
		mustSay(after)
	}
	stdin.Close()
	mustSay("end")
}

func TestSystemdRefusesNoConnectionOverRestartWithStoredListener(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-web", "Type=notify\nFileDescriptorStoreMax=1")
	u.begin("start").succeeds()
	u.want("NFileDescriptorStore", "1")
	u.mustServeOverRestarts(u.show("StatusText"))
}

func TestSystemdRefusesNoConnectionOverRestartWithSocketUnit(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-web", "Type=notify")
	address := fmt.Sprintf("127.0.0.1:%d", 20000+u.m.made.Add(1))
	u.write(".socket", fmt.Sprintf(`
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=%s
FileDescriptorName=web
`, address))
	if out, err := u.m.systemctl("start", u.name+".socket"); err != nil {
		t.Fatalf("start the socket: %v: %s", err, out)
	}
	u.want("ActiveState", "inactive")
	u.mustServeOverRestarts(address)
	u.want("StatusText", address)
}

func TestSystemdReloadOfANotifyService(t *testing.T) {
	u := systemManager(t).unit(t, "systemd-puppet", "Type=notify")
	p := u.startReady()
	if out, err := u.m.systemctl("kill", "--signal=HUP", u.name+".service"); err != nil {
		t.Fatalf("kill: %v: %s", err, out)
	}
	p.MustHear("hangup")
	p.Do("reloading reading the new configuration")
	p.Do("barrier")
	u.want("ActiveState", "reloading", "StatusText", "reading the new configuration")
	p.Do("ready")
	p.Do("barrier")
	u.want("ActiveState", "active", "StatusText", "ready", "MainPID", p.pid)
}

func TestSystemdReloadBlocksUntilReady(t *testing.T) {
	m := systemManager(t)
	if m.Version < 253 {
		t.Skipf("systemd %d has no Type=notify-reload", m.Version)
	}
	u := m.unit(t, "systemd-puppet", "Type=notify-reload")
	p := u.startReady()
	for _, status := range []string{"ready, with the new configuration", "ready, with the old: line 3: no such key"} {
		reload := u.begin("reload")
		p.MustHear("hangup")
		p.Do("reloading reading the new configuration")
		p.Do("barrier")
		u.want("ActiveState", "reloading", "SubState", "reload-notify", "StatusText", "reading the new configuration")
		reload.mustBlock()
		p.Do("ready-status " + status)
		reload.succeeds()
		u.want("ActiveState", "active", "SubState", "running", "StatusText", status, "MainPID", p.pid)
	}
}

func TestSystemdServiceThatIsNotWaitedForStaysInTheForeground(t *testing.T) {
	for _, kind := range []string{"simple", "exec"} {
		for _, test := range []struct{ name, lines, status string }{
			{"no socket", "", ""},
			{"NotifyAccess", "NotifyAccess=main", "ready"},
			{"WatchdogSec", "WatchdogSec=1h", "ready"},
			{"FileDescriptorStoreMax", "FileDescriptorStoreMax=1", "ready"},
		} {
			t.Run(kind+"/"+test.name, func(t *testing.T) {
				u := systemManager(t).unit(t, "systemd-puppet", "Type="+kind+"\n"+test.lines)
				u.begin("start").succeeds()
				p := u.process()
				u.staysReady(p, test.status)
			})
		}
	}
}

// staysReady calls Detach and Ready, which must leave the process where it is.
func (u *unit) staysReady(p *process, status string) {
	u.t.Helper()
	p.Do("detach")
	p.Do("ready")
	p.Do("barrier")
	u.want("ActiveState", "active", "SubState", "running", "MainPID", p.pid, "StatusText", status)
	if pid := p.Ask("pid"); pid != p.pid {
		u.t.Errorf("process %s was %s", pid, p.pid)
	}
	u.wantAlone()
}

func TestSystemdTypeForkingTimesOut(t *testing.T) {
	t.Parallel()
	u := systemManager(t).unit(t, "systemd-puppet", "Type=forking\nTimeoutStartSec=10")
	start := u.begin("start")
	p := u.process()
	p.Do("ready")
	u.want("ActiveState", "activating", "SubState", "start")
	u.wantAlone()
	start.mustBlock()
	cgroup := u.cgroup()

	p.mustHearAndExit("terminated")
	start.fails()
	u.want("ActiveState", "failed", "Result", "timeout")
	p.Ends()
	if _, err := os.Stat(cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its cgroup is left: %v", err)
	}
}

func TestSystemdSandboxLetsNotificationsThrough(t *testing.T) {
	const everything = "DynamicUser=yes\nPrivateTmp=yes\nProtectSystem=strict\nProtectHome=yes\nPrivateDevices=yes\n" +
		"ProtectProc=invisible\nPrivateUsers=yes\nProtectKernelTunables=yes\nProtectControlGroups=yes\nPrivateNetwork=yes\n" +
		"RestrictAddressFamilies=AF_UNIX\nRestrictNamespaces=yes\nNoNewPrivileges=yes\nCapabilityBoundingSet=\n" +
		"SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources"
	for _, test := range []struct{ name, lines string }{
		{"nobody", "User=nobody"},
		{"DynamicUser", "DynamicUser=yes"},
		{"PrivateTmp", "PrivateTmp=yes"},
		{"ProtectSystem", "ProtectSystem=strict"},
		{"AF_UNIX", "RestrictAddressFamilies=AF_UNIX"},
		{"AF_UNIX AF_INET", "RestrictAddressFamilies=AF_UNIX AF_INET"},
		{"system-service", "SystemCallFilter=@system-service"},
		{"everything", everything},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := systemManager(t).unit(t, "systemd-puppet",
				"Type=notify\nFileDescriptorStoreMax=1\nWatchdogSec=1h\n"+test.lines)
			start := u.begin("start")
			p := u.process()
			u.want("ActiveState", "activating")
			p.Do("ready")
			start.succeeds()
			u.want("StatusText", "ready", "MainPID", p.pid)
			p.Do("watchdog")
			p.Do("store jobs one")
			u.want("NFileDescriptorStore", "1")

			stop := u.begin("stop")
			p.MustHear("terminated")
			p.Do("stopping draining")
			p.Do("barrier")
			u.want("ActiveState", "deactivating", "StatusText", "draining")
			p.Send("exit 0")
			stop.succeeds()
			u.want("Result", "success")
		})
	}
}

func TestSystemdUserManager(t *testing.T) {
	m := userManager(t)
	t.Run("start blocks until ready", func(t *testing.T) {
		u := m.unit(t, "systemd-puppet", "Type=notify")
		start := u.begin("start")
		p := u.process()
		u.want("ActiveState", "activating", "SubState", "start")
		start.mustBlock()
		p.Do("ready")
		start.succeeds()
		u.staysReady(p, "ready")

		stop := u.begin("stop")
		p.MustHear("terminated")
		p.Do("stopping draining")
		p.Do("barrier")
		u.want("ActiveState", "deactivating", "StatusText", "draining")
		p.Send("exit 0")
		stop.succeeds()
	})
	// Its parent is not PID 1. Before version 248 there is no SYSTEMD_EXEC_PID.
	for name, lines := range map[string]string{
		"no socket": "Type=simple", "old": "Type=simple\nUnsetEnvironment=SYSTEMD_EXEC_PID",
	} {
		t.Run(name, func(t *testing.T) {
			u := m.unit(t, "systemd-puppet", lines)
			u.begin("start").succeeds()
			u.staysReady(u.process(), "")
		})
	}
}
