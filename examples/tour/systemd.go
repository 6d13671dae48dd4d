//go:build linux

package main

import (
	"context"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
)

// systemd shows a service of Type=notify.
func (s *section) systemd() {
	cmd := s.command(s.ctx)
	s.started = time.Now()
	v := service{s: s, Unit: daemontest.StartService(s, cmd, daemontest.NotifyAccessAll())}
	s.now("systemd", "starts pid %d with NOTIFY_SOCKET=%s", v.PID, v.Systemd.Addr())
	s.promise = "It says READY=1"
	ctx, cancel := s.limited()
	defer cancel()
	for ready := false; !ready; {
		n := v.Systemd.Next(ctx)
		v.show(n)
		if ready = slices.Contains(n.Assignments, "READY=1"); ready {
			s.and("sent by process %d of user %d, says the kernel", n.PID, n.UID)
		}
	}
	s.live(process{v.MainPID(), v.Signal, v.wait}, "systemd")
}

// A service is a daemon under systemd.
type service struct {
	*daemontest.Unit
	s     *section
	shown int // notifications
}

// show shows a notification, and keeps the promises about it.
func (v *service) show(n daemontest.Notification) {
	s := v.s
	v.shown++
	for i, assignment := range n.Assignments {
		if i == 0 {
			s.at(n.Received.Sub(s.started), process{pid: n.PID}.String(), "%s", assignment)
		} else {
			s.and("%s", assignment)
		}
	}
	if len(n.Files) > 0 {
		s.and("descriptors passed: %d", len(n.Files))
	}
	promise := s.promise
	s.promise = "systemd understands what it says"
	if n.Err != nil {
		s.Fatalf("%v", n)
	}
	s.promise = "MAINPID is a process of its own"
	if text, ok := n.Get("MAINPID"); ok && text != strconv.Itoa(v.MainPID()) {
		s.Fatalf("it is %s", text)
	}
	s.promise = "What it says comes from its main process"
	if n.PID != v.MainPID() {
		s.Fatalf("pid %d has said it, and pid %d is the main process: the unit needs NotifyAccess=all", n.PID, v.MainPID())
	}
	s.promise = promise
}

// wait waits until the service has ended, and shows what it has said since.
func (v *service) wait(ctx context.Context) syscall.WaitStatus {
	status := v.Wait(ctx)
	for _, n := range v.Systemd.All()[v.shown:] {
		v.show(n)
	}
	return status
}
