//go:build linux

package daemon_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/seed-10280e03/daemon"
)

func init() {
	programs["env-orders"] = obeyOrders
	programs["env-inherit"] = tellInherited
	programs["env-race"] = notifyWhileUnsetting
}

// obeyOrders changes its environment by KEY=value, -KEY and "unset"
// (UnsetEnvironment), and tells after all others how it sees it.
func obeyOrders() {
	for _, order := range os.Args[1:] {
		key, value, assignment := strings.Cut(order, "=")
		removed, removal := strings.CutPrefix(order, "-")
		switch {
		case assignment:
			try(os.Setenv(key, value))
		case removal:
			try(os.Unsetenv(removed))
		case order == "unset":
			daemon.UnsetEnvironment()
		default:
			timeout, err := daemon.WatchdogTimeout()
			try(err)
			try(daemon.Notify(daemon.Status(order)))
			fmt.Println(order, daemon.Detect(), timeout)
		}
	}
}

func TestUnsetVariablesAreRememberedWhileTheyAreAbsent(t *testing.T) {
	for _, test := range []struct {
		name, orders string
		want         []string // said
		heard        [2]string
	}{
		{"remembered", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 unset 1", []string{"1 systemd 1ms"}, [2]string{"1", ""}},
		{"two at a time", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 WATCHDOG_PID=1 unset 1 WATCHDOG_PID= 2", []string{"1 systemd 0s", "2 systemd 1ms"}, [2]string{"1 2", ""}},
		{"unset twice", "NOTIFY_SOCKET=A unset unset 1", []string{"1 systemd 0s"}, [2]string{"1", ""}},
		{"removed by someone else", "NOTIFY_SOCKET=A -NOTIFY_SOCKET unset 1", []string{"1 none 0s"}, [2]string{"", ""}},
		{"never set", "unset 1 NOTIFY_SOCKET=A 2", []string{"1 none 0s", "2 systemd 0s"}, [2]string{"2", ""}},
		{"set again", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1", []string{"1 systemd 0s"}, [2]string{"", "1"}},
		{"set again, empty", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 unset NOTIFY_SOCKET= 1 WATCHDOG_USEC= 2", []string{"1 none 1ms", "2 none 0s"}, [2]string{"", ""}},
		{"set and removed", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1 -NOTIFY_SOCKET 2", []string{"1 systemd 0s", "2 systemd 0s"}, [2]string{"2", "1"}},
		{"set and unset", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1 unset 2", []string{"1 systemd 0s", "2 systemd 0s"}, [2]string{"", "1 2"}},
		{"empty and unset", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET= unset 1", []string{"1 none 0s"}, [2]string{"", ""}},
		{"upstart", "NOTIFY_SOCKET=A UPSTART_JOB=web unset 1 UPSTART_JOB= 2", []string{"1 upstart 0s", "2 systemd 0s"}, [2]string{"2", ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := directory(t)
			boxes := [2]*mailbox{openMailbox(t, dir+"/A"), openMailbox(t, dir+"/B")}
			orders := strings.ReplaceAll(test.orders, "SOCKET=A", "SOCKET="+boxes[0].address)
			orders = strings.ReplaceAll(orders, "SOCKET=B", "SOCKET="+boxes[1].address)
			c := startCommand(t, program(t, "env-orders", strings.Fields(orders)...))
			for _, want := range test.want {
				c.says(want)
			}
			c.exits(0)
			for i, want := range test.heard {
				for _, step := range strings.Fields(want) {
					if got := boxes[i].next(); got != "STATUS="+step+"\n" {
						t.Errorf("%q, want step %s", got, step)
					}
				}
				if got, ok := boxes[i].take(); ok {
					t.Errorf("%q arrived at %s", got, boxes[i].address)
				}
			}
		})
	}
}

func tellInherited() {
	for _, variable := range supervisorVariables {
		try(os.Setenv(variable, "1"))
	}
	daemon.UnsetEnvironment()
	inherited, err := exec.Command("env").Output()
	try(err)
	for _, variable := range supervisorVariables {
		_, here := os.LookupEnv(variable)
		fmt.Println(variable, here, strings.Contains(string(inherited), variable))
	}
	fmt.Println(strings.Contains(string(inherited), "PATH="))
}

func TestUnsetVariablesAreNotInherited(t *testing.T) {
	c := startCommand(t, program(t, "env-inherit"))
	for _, variable := range supervisorVariables {
		c.says(variable + " false false")
	}
	c.says("true")
	c.exits(0)
}

// notifyWhileUnsetting has NOTIFY_SOCKET remembered as empty each time before.
func notifyWhileUnsetting() {
	address := os.Getenv("NOTIFY_SOCKET")
	for range unsetRounds {
		os.Setenv("NOTIFY_SOCKET", "")
		daemon.UnsetEnvironment()
		os.Setenv("NOTIFY_SOCKET", address)
		var both sync.WaitGroup
		both.Go(func() { try(daemon.Heartbeat()) })
		both.Go(daemon.UnsetEnvironment)
		both.Wait()
	}
}

const unsetRounds = 5000

func TestNoNotificationIsLostWhileTheEnvironmentIsUnset(t *testing.T) {
	m := openMailbox(t, directory(t)+"/notify")
	c := start(t, "env-race", m.address)
	for range unsetRounds {
		if got := m.next(); got != "WATCHDOG=1\n" {
			t.Fatalf("%q", got)
		}
	}
	c.exits(0)
}

// supervisorVariables are what UnsetEnvironment removes.
var supervisorVariables = []string{
	"NOTIFY_SOCKET", "UPSTART_JOB", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
}

func TestDetect(t *testing.T) {
	for _, test := range []struct {
		socket, job string
		want        daemon.Supervisor
		name        string
	}{
		{"", "", daemon.None, "none"},
		{"/run/notify", "", daemon.Systemd, "systemd"},
		{"no address at all", "", daemon.Systemd, "systemd"},
		{"", "web", daemon.Upstart, "upstart"},
		{"/run/notify", "web", daemon.Upstart, "upstart"},
	} {
		t.Run(fmt.Sprintf("%q %q", test.socket, test.job), func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", test.socket)
			t.Setenv("UPSTART_JOB", test.job)
			if got := daemon.Detect(); got != test.want || got.String() != test.name {
				t.Errorf("%v (%q), want %q", int(got), got, test.name)
			}
		})
	}
	t.Run("unset", func(t *testing.T) {
		for _, variable := range supervisorVariables {
			t.Setenv(variable, "") // has it set back at the end
			os.Unsetenv(variable)
		}
		if got := daemon.Detect(); got != daemon.None {
			t.Errorf("%v, want none", got)
		}
	})
	if got := daemon.Supervisor(7).String(); got != "Supervisor(7)" {
		t.Error(got)
	}
}
