//go:build linux

package notifying_test

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
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

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
		before func(m *testdaemon.Mailbox, fd int)
	}{
		{"closed", func(*testdaemon.Mailbox, int) {}},
		{"written to and closed", func(_ *testdaemon.Mailbox, fd int) {
			unix.Write(fd, []byte("what is this?"))
			time.Sleep(20 * time.Millisecond) // for one that would be content with it
		}},
		{"socket closed first", func(m *testdaemon.Mailbox, _ int) { m.Close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := testdaemon.ListenByHand(t)
			var handled atomic.Bool
			var receiver sync.WaitGroup
			receiver.Go(func() {
				fd := m.TakeBarrier()
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
		m := testdaemon.ListenByHand(t)
		var receiver sync.WaitGroup
		receiver.Go(func() {
			m.Wait()
			time.Sleep(20 * time.Millisecond) // for one that would not wait
			m.Close()
		})
		if err := barrierIn(t.Context(), t); err != nil {
			t.Error(err)
		}
		receiver.Wait()
	})
	t.Run("that is killed", func(t *testing.T) {
		m := testdaemon.ListenByHand(t)
		socket := os.NewFile(uintptr(m.FD), m.Address)
		m.FD = -1
		cmd := testdaemon.Program(t, "barrier-holder")
		cmd.ExtraFiles = []*os.File{socket}
		c := testdaemon.StartCommand(t, cmd)
		socket.Close()
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			c.Says("taken")
			c.Cmd.Process.Kill()
		}()
		if err := barrierIn(t.Context(), t); err != nil {
			t.Error(err)
		}
		<-killed
	})
}

func TestBarrierFailsIfTheProgramClosesAllDescriptors(t *testing.T) {
	m := testdaemon.ListenByHand(t)
	c := testdaemon.Start(t, "barrier-closes-all", m.Address)
	defer unix.Close(m.TakeBarrier())
	c.GoOn()
	c.Says(fmt.Sprintf("daemon: barrier %s: %v", m.Address, unix.EBADF))
	c.Exits(0)
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
		check := func(t *testing.T, m *testdaemon.Mailbox) {
			t.Helper()
			ctx, cancel := test.ctx(t)
			defer cancel()
			err := barrierIn(ctx, t)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), m.Address) {
				t.Errorf("%v, want %v of %s", err, test.want, m.Address)
			}
		}
		t.Run(test.name, func(t *testing.T) { check(t, testdaemon.ListenByHand(t)) })
		t.Run(test.name+" with a full queue", func(t *testing.T) {
			m := testdaemon.ListenByHand(t)
			sent := m.Fill()
			check(t, m)
			m.Drain(sent)
			if err := daemon.Heartbeat(); err != nil {
				t.Fatal(err)
			}
			if got := m.Next(); got != "WATCHDOG=1\n" {
				t.Errorf("%q", got)
			}
		})
	}
}

// For other notifications five seconds are enough then.
func TestBarrierWaitsForAReceiverThatHasRemovedItsSocket(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	m := testdaemon.ListenByHand(t)
	if err := daemon.Heartbeat(); err != nil { // connects
		t.Fatal(err)
	}
	m.Fill()
	os.Remove(m.Address)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	if err := daemon.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), m.Address) {
		t.Errorf("%v", err)
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
	descriptors, routines := testdaemon.OpenDescriptors(t), runtime.NumGoroutine()
	barriers(1000)
	testdaemon.Hears(t, systemd, nil, "")
	eventually(t, "goroutines", routines, runtime.NumGoroutine)
	eventually(t, "descriptors", descriptors, func() int { return testdaemon.OpenDescriptors(t) })
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
