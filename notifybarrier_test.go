//go:build linux

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

func init() {
	programs["barrier-holder"] = func() {
		_, err := takeBarrier(3) // inherited
		try(err)
		fmt.Println("taken")
		awaitLine()
	}
}

// takeBarrier waits for a barrier and returns its descriptor.
func takeBarrier(socket int) (fd int, err error) {
	var data, control [5000]byte
	n, size, _, _, err := unix.Recvmsg(socket, data[:], control[:], unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, size, _, _, err = unix.Recvmsg(socket, data[:], control[:], unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%q has %d control messages (%w)", data[:n], len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if string(data[:n]) != "BARRIER=1\n" || err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%q has %d descriptors (%w)", data[:n], len(fds), err)
	}
	return fds[0], nil
}

// takeBarrier also waits a while, for one that would not wait for the answer.
func (m *mailbox) takeBarrier() (fd int) {
	m.t.Helper()
	m.wait()
	fd, err := takeBarrier(m.fd)
	if err != nil {
		m.t.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
	return fd
}

func listenByHand(t *testing.T) *mailbox {
	t.Helper()
	m := openMailbox(t, directory(t)+"/notify")
	t.Setenv("NOTIFY_SOCKET", m.address)
	return m
}

// barrierIn is Barrier, which must return before the test has waited too long.
func barrierIn(ctx context.Context, t *testing.T) error {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- daemon.Barrier(ctx) }()
	select {
	case err := <-returned:
		return err
	case <-time.After(daemontest.Timeout):
		t.Fatal("Barrier does not return")
		return nil
	}
}

func TestBarrierWaitsUntilItIsLetGo(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(m *mailbox, fd int)
	}{
		{"closed", func(*mailbox, int) {}},
		{"written to and closed", func(_ *mailbox, fd int) {
			unix.Write(fd, []byte("what is this?"))
			time.Sleep(20 * time.Millisecond) // for one that would be content with it
		}},
		{"socket closed first", func(m *mailbox, _ int) { m.close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := listenByHand(t)
			var handled atomic.Bool
			var receiver sync.WaitGroup
			receiver.Go(func() {
				fd := m.takeBarrier()
				test.before(m, fd)
				handled.Store(true)
				unix.Close(fd)
			})
			if err := barrierIn(t.Context(), t); err != nil || !handled.Load() {
				t.Errorf("returned %v, handled: %t", err, handled.Load())
			}
			receiver.Wait()
		})
	}
}

func TestBarrierComesAfterWhatWasSaid(t *testing.T) {
	systemd := daemontest.Systemd(t)
	for i := range 100 {
		if err := daemon.Notify(daemon.MainPID(1 + i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := barrierIn(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 100 {
		if got, want := string(systemd.Next(now).Raw), fmt.Sprintf("MAINPID=%d\n", 1+i); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestBarrierEndsWithTheReceiver(t *testing.T) {
	t.Run("that has not read it", func(t *testing.T) {
		m := listenByHand(t)
		var receiver sync.WaitGroup
		receiver.Go(func() {
			m.wait()
			time.Sleep(20 * time.Millisecond) // for one that would not wait
			m.close()
		})
		if err := barrierIn(t.Context(), t); err != nil {
			t.Error(err)
		}
		receiver.Wait()
	})
	t.Run("that is killed", func(t *testing.T) {
		m := listenByHand(t)
		socket := os.NewFile(uintptr(m.fd), m.address)
		m.fd = -1
		cmd := program(t, "barrier-holder")
		cmd.ExtraFiles = []*os.File{socket}
		c := startCommand(t, cmd)
		socket.Close()
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			c.says("taken")
			c.cmd.Process.Kill()
		}()
		if err := barrierIn(t.Context(), t); err != nil {
			t.Error(err)
		}
		<-killed
	})
}

func TestBarrierEndsWithItsContext(t *testing.T) {
	deadline := func(t *testing.T) (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), 20*time.Millisecond)
	}
	cancellation := func(t *testing.T) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		return ctx, cancel
	}
	canceled := func(t *testing.T) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return ctx, cancel
	}
	for _, test := range []struct {
		name string
		ctx  func(*testing.T) (context.Context, context.CancelFunc)
		want error
	}{
		{"deadline", deadline, context.DeadlineExceeded},
		{"cancellation", cancellation, context.Canceled},
		{"at once", canceled, context.Canceled},
	} {
		check := func(t *testing.T, m *mailbox) {
			t.Helper()
			ctx, cancel := test.ctx(t)
			defer cancel()
			err := barrierIn(ctx, t)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), m.address) {
				t.Errorf("%v, want %v of %s", err, test.want, m.address)
			}
		}
		t.Run(test.name, func(t *testing.T) { check(t, listenByHand(t)) })
		t.Run(test.name+" with a full queue", func(t *testing.T) {
			m := listenByHand(t)
			sent := m.fill()
			check(t, m)
			m.drain(sent)
			if err := daemon.Heartbeat(); err != nil {
				t.Fatal(err)
			}
			if got := m.next(); got != "WATCHDOG=1\n" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestBarriersLeakNothing(t *testing.T) {
	systemd := daemontest.Systemd(t)
	bad, cancel := context.WithCancel(t.Context())
	cancel()
	barriers := func(count int) {
		for range count {
			if err := daemon.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			daemon.Barrier(bad) // may be answered all the same
		}
	}
	barriers(1)
	descriptors, routines := openDescriptors(t), runtime.NumGoroutine()
	barriers(1000)
	hears(t, systemd, nil, "")
	eventually(t, "goroutines", routines, runtime.NumGoroutine)
	eventually(t, "descriptors", descriptors, func() int { return openDescriptors(t) })
}

// eventually waits until there are no more of something than before.
func eventually(t *testing.T, what string, before int, count func() int) {
	t.Helper()
	for deadline := time.Now().Add(daemontest.Timeout); count() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d %s, %d before", count(), what, before)
		}
	}
}
