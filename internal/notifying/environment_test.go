//go:build linux

package notifying_test

import (
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

func TestUnsetVariablesAreRememberedWhileTheyAreAbsent(t *testing.T) {
	for _, test := range []struct {
		name, orders string
		want         []string // said
		heard        [2]string
	}{
		{"remembered", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 unset 1", []string{"1 systemd 1ms"}, [2]string{"1", ""}},
		{"two at a time", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 WATCHDOG_PID=1 unset 1 WATCHDOG_PID= 2",
			[]string{"1 systemd 0s", "2 systemd 1ms"}, [2]string{"1 2", ""}},
		{"unset twice", "NOTIFY_SOCKET=A unset unset 1", []string{"1 systemd 0s"}, [2]string{"1", ""}},
		{"removed by someone else", "NOTIFY_SOCKET=A -NOTIFY_SOCKET unset 1", []string{"1 none 0s"}, [2]string{"", ""}},
		{"never set", "unset 1 NOTIFY_SOCKET=A 2", []string{"1 none 0s", "2 systemd 0s"}, [2]string{"2", ""}},
		{"set again", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1", []string{"1 systemd 0s"}, [2]string{"", "1"}},
		{"set again, empty", "NOTIFY_SOCKET=A WATCHDOG_USEC=1000 unset NOTIFY_SOCKET= 1 WATCHDOG_USEC= 2",
			[]string{"1 none 1ms", "2 none 0s"}, [2]string{"", ""}},
		{"set and removed", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1 -NOTIFY_SOCKET 2",
			[]string{"1 systemd 0s", "2 none 0s"}, [2]string{"", "1"}},
		{"set and unset", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET=B 1 unset 2", []string{"1 systemd 0s", "2 systemd 0s"},
			[2]string{"", "1 2"}},
		{"empty and unset", "NOTIFY_SOCKET=A unset NOTIFY_SOCKET= unset 1", []string{"1 none 0s"}, [2]string{"", ""}},
		{"upstart", "NOTIFY_SOCKET=A UPSTART_JOB=web unset 1 UPSTART_JOB= 2",
			[]string{"1 upstart 0s", "2 systemd 0s"}, [2]string{"2", ""}},
		{"set and removed behind another", "NOTIFY_FD=3 unset NOTIFY_SOCKET=A NOTIFY_FD= 1 -NOTIFY_SOCKET -NOTIFY_FD 2",
			[]string{"1 systemd 0s", "2 none 0s"}, [2]string{"1", ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := testdaemon.Directory(t)
			boxes := [2]*testdaemon.Mailbox{testdaemon.OpenMailbox(t, dir+"/A"), testdaemon.OpenMailbox(t, dir+"/B")}
			orders := strings.ReplaceAll(test.orders, "SOCKET=A", "SOCKET="+boxes[0].Address)
			orders = strings.ReplaceAll(orders, "SOCKET=B", "SOCKET="+boxes[1].Address)
			c := testdaemon.StartCommand(t, testdaemon.Program(t, "env-orders", strings.Fields(orders)...))
			for _, want := range test.want {
				c.Says(want)
			}
			c.Exits(0)
			for i, want := range test.heard {
				for _, step := range strings.Fields(want) {
					if got := boxes[i].Next(); got != "STATUS="+step+"\n" {
						t.Errorf("%q, want step %s", got, step)
					}
				}
				if got, ok := boxes[i].Take(); ok {
					t.Errorf("%q arrived at %s", got, boxes[i].Address)
				}
			}
		})
	}
}

func TestUnsetVariablesAreNotInherited(t *testing.T) {
	c := testdaemon.StartCommand(t, testdaemon.Program(t, "env-inherit"))
	for _, variable := range agreed.SupervisorVariables {
		c.Says(variable + " false false")
	}
	c.Says("true")
	c.Exits(0)
}

func TestNoNotificationIsLostWhileTheEnvironmentIsUnset(t *testing.T) {
	m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	c := testdaemon.Start(t, "env-race", m.Address)
	for range agreed.UnsetRounds {
		if got := m.Next(); got != "WATCHDOG=1\n" {
			t.Fatalf("%q", got)
		}
	}
	c.Exits(0)
}
