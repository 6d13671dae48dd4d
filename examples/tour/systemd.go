//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon/daemontest"
)

// systemd shows a service of Type=notify.
func (s *section) systemd() {
	v := s.start(daemontest.Systemd(s))
	s.now("systemd", "starts pid %d with NOTIFY_SOCKET=%s", v.main, v.systemd.Addr())
	s.promise = "It says READY=1"
	ctx, cancel := s.limited()
	defer cancel()
	for ready := false; !ready; {
		n, ok := v.next(ctx)
		if !ok {
			s.Fatalf("it %s and had not said so%s%s", describe(v.status()), v.leftBehind(), v.output())
		}
		v.show(n)
		if ready = slices.Contains(n.Assignments, "READY=1"); ready {
			s.and("sent by process %d of user %d, says the kernel", n.PID, n.UID)
		}
	}
	s.live(process{v.main, v.signal, v.wait}, "systemd")
}

// A service is a daemon under the fake systemd, with whom it may leave behind.
type service struct {
	s       *section
	systemd *daemontest.Supervisor
	main    int           // the process that systemd watches
	printed *os.File      // what the journal would get
	gone    chan struct{} // closed when no process is left

	mu    sync.Mutex
	ended map[int]syscall.WaitStatus
}

// The first thread must not end before the process: Pdeathsig is about it.
func init() { runtime.LockOSThread() }

// start starts the daemon. Like systemd this process adopts whom the daemon
// leaves behind, and ends them when the section ends.
func (s *section) start(systemd *daemontest.Supervisor) *service {
	printed, err := os.CreateTemp("", "tour")
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.Cleanup(func() { printed.Close() })
	os.Remove(printed.Name())

	cmd := s.command(context.Background())
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	// A supervisor's variable that is empty counts as unset in this package;
	// elsewhere it may not.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasSuffix(v, "=") })
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	s.started = time.Now()
	if err := cmd.Start(); err != nil {
		s.Fatalf("%v", err)
	}
	v := &service{
		s: s, systemd: systemd, main: cmd.Process.Pid, printed: printed,
		gone: make(chan struct{}), ended: map[int]syscall.WaitStatus{},
	}
	go v.reap()
	s.Cleanup(v.end)
	return v
}

// reap waits for every process of the service. It tells of each end through
// the notify socket: whatever the process has said is in front of that.
func (v *service) reap() {
	defer close(v.gone)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch err {
		case nil:
			v.mu.Lock()
			v.ended[pid] = status
			v.mu.Unlock()
			if c, err := net.Dial("unixgram", v.systemd.Addr()); err == nil {
				c.Write([]byte("ENDED=" + strconv.Itoa(pid)))
				c.Close()
			}
		case unix.EINTR:
		default:
			return
		}
	}
}

// next returns the next notification, or false when the main process has ended
// and there is none left of it.
func (v *service) next(ctx context.Context) (n daemontest.Notification, ok bool) {
	for {
		n := v.systemd.Next(ctx)
		if n.PID != os.Getpid() {
			return n, true
		}
		if pid, _ := n.Get("ENDED"); pid == strconv.Itoa(v.main) {
			return n, false
		}
	}
}

// show shows a notification, and keeps the promises about it.
func (v *service) show(n daemontest.Notification) {
	s := v.s
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
	s.promise = "What it says comes from its main process"
	if n.PID != v.main {
		s.Fatalf("pid %d has said it, and pid %d is the main process: the unit needs NotifyAccess=all", n.PID, v.main)
	}
	s.promise = "MAINPID is a process of its own"
	if text, ok := n.Get("MAINPID"); ok {
		pid, _ := strconv.Atoi(text)
		if !v.has(pid) {
			s.Fatalf("it is %s", text)
		}
		v.main = pid
	}
	s.promise = promise
}

// has tells whether a process belongs to the service.
func (v *service) has(pid int) bool {
	for pid > 1 {
		if pid = read(pid).parent; pid == os.Getpid() {
			return true
		}
	}
	return false
}

func (v *service) signal(sig syscall.Signal) error { return unix.Kill(v.main, sig) }

func (v *service) wait(ctx context.Context) syscall.WaitStatus {
	for {
		n, ok := v.next(ctx)
		if !ok {
			return v.status()
		}
		v.show(n)
	}
}

// status is how the main process has ended.
func (v *service) status() syscall.WaitStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ended[v.main]
}

func (v *service) leftBehind() string {
	if left := children(os.Getpid()); len(left) > 0 {
		return fmt.Sprintf("; it has left pid %d behind, and under Type=notify a daemon stays in the foreground", left[0])
	}
	return ""
}

// output is the beginning of what the daemon has printed.
func (v *service) output() string {
	text := make([]byte, 2000)
	n, _ := v.printed.ReadAt(text, 0)
	if n == 0 {
		return ""
	}
	return "; it printed\n" + strings.TrimSpace(string(text[:n]))
}

// end ends every process of the service.
func (v *service) end() {
	sig, patience := unix.SIGTERM, time.After(5*time.Second)
	for {
		for _, pid := range children(os.Getpid()) {
			unix.Kill(pid, sig)
			unix.Kill(pid, unix.SIGCONT)
		}
		select {
		case <-v.gone:
			unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
			return
		case <-patience:
			sig = unix.SIGKILL
		case <-time.After(20 * time.Millisecond):
		}
	}
}
