//go:build linux

package notifying_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// watched is a notify socket with a watchdog, and runWatchdog as long as the
// test lasts; stop ends it and tells what it returned.
func watched(t *testing.T, timeout time.Duration, healthy func() error) (systemd *daemontest.Supervisor, stop func() error) {
	systemd = daemontest.Systemd(t)
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(timeout.Microseconds(), 10))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.RunWatchdog(ctx, healthy) }()
	stop = func() error {
		t.Helper()
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(daemontest.Timeout):
			t.Fatal("RunWatchdog does not return")
			return nil
		}
	}
	return systemd, stop
}

const beat = "WATCHDOG=1\n"

// The bounds are wide, for a busy machine: beats at the whole timeout are
// always above, and beats all the time below.
func TestRunWatchdogBeatsTwiceInATimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	systemd, stop := watched(t, timeout, nil)
	var gaps []time.Duration
	var last time.Time
	for range 12 {
		n := systemd.Next(t.Context())
		if string(n.Raw) != beat {
			t.Errorf("%q", n.Raw)
		}
		if !last.IsZero() {
			gaps = append(gaps, n.Received.Sub(last))
		}
		last = n.Received
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	slices.Sort(gaps)
	if gaps[0] > timeout*3/4 || gaps[len(gaps)-1] < timeout/4 {
		t.Errorf("waits from %v to %v between beats, want %v", gaps[0], gaps[len(gaps)-1], timeout/2)
	}
}

// Neither if healthy takes most of the time, and a timer's channel holds what came
// before a Reset, as it did until Go 1.22.
func TestRunWatchdogBeatsNoSoonerIfHealthyTakesItsTime(t *testing.T) {
	t.Setenv("GODEBUG", "asynctimerchan=1")
	const timeout, beats = 200 * time.Millisecond, 6
	begin := time.Now()
	systemd, stop := watched(t, timeout, func() error { time.Sleep(timeout * 3 / 8); return nil })
	for range beats {
		systemd.Wait(t.Context(), "WATCHDOG=1")
	}
	if passed := time.Since(begin); passed < (beats-1)*timeout/2 {
		t.Errorf("%d beats in %v", beats, passed)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// inquiry has the test answer when ask is called.
type inquiry chan chan error

func (q inquiry) ask() error {
	answer := make(chan error)
	q <- answer
	return <-answer
}

// next waits until ask is called; what is sent there is returned by it.
func (q inquiry) next(t *testing.T) chan<- error {
	t.Helper()
	select {
	case answer := <-q:
		return answer
	case <-time.After(daemontest.Timeout):
		t.Fatal("healthy is not called")
		return nil
	}
}

func TestRunWatchdogShowsWhyItDoesNotBeat(t *testing.T) {
	sick := errors.New("disk full\nWATCHDOG=1")
	health := make(inquiry)
	systemd, stop := watched(t, 2*time.Millisecond, health.ask)
	for i, test := range []struct {
		result error
		want   string
	}{
		{nil, beat},
		{nil, beat},
		{sick, "STATUS=disk full WATCHDOG=1\n"},
		{sick, "STATUS=disk full WATCHDOG=1\n"},
		{errors.New("disk broken"), "STATUS=disk broken\n"},
		{nil, beat + "STATUS=\n"},
		{nil, beat},
	} {
		health.next(t) <- test.result
		if got := string(systemd.Next(t.Context()).Raw); got != test.want {
			t.Errorf("%d: %q, want %q", i, got, test.want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	testdaemon.Hears(t, systemd, nil, "")
}

// After half of the timeout it would be too late for another beat.
func TestRunWatchdogAsksAgainAfterAnEighth(t *testing.T) {
	const timeout = 2 * time.Second
	health := make(inquiry)
	_, stop := watched(t, timeout, health.ask)
	answer := health.next(t)
	var gaps [3]time.Duration
	for i := range gaps {
		begin := time.Now()
		answer <- errors.New("disk full")
		answer = health.next(t)
		gaps[i] = time.Since(begin)
	}
	answer <- nil
	if err := stop(); err != nil {
		t.Error(err)
	}
	if slices.Min(gaps[:]) > timeout*3/8 || slices.Max(gaps[:]) < timeout/16 {
		t.Errorf("waits of %v before it asks again, want %v", gaps, timeout/8)
	}
}

func TestRunWatchdogDoesNotBeatWhileHealthyBlocks(t *testing.T) {
	blocked, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	calls := 0
	systemd, stop := watched(t, 2*time.Millisecond, func() error {
		if calls++; calls == 2 {
			close(blocked)
			<-release
		}
		return nil
	})
	if got := string(systemd.Next(t.Context()).Raw); got != beat {
		t.Errorf("%q", got)
	}
	<-blocked
	time.Sleep(20 * time.Millisecond) // for many a beat
	if err := stop(); err != nil {
		t.Error(err)
	}
	testdaemon.Hears(t, systemd, nil, "")
}

// lateContext has whoever looks at Done wait until healthy has returned.
type lateContext struct {
	context.Context
	returned <-chan struct{}
}

func (c lateContext) Done() <-chan struct{} {
	select {
	case <-c.returned:
	case <-time.After(daemontest.Timeout):
	}
	time.Sleep(100 * time.Microsecond) // for its result to be there as well
	return c.Context.Done()
}

// What healthy returns because the context has ended is no complaint.
func TestRunWatchdogIsSilentOnceItsContextHasEnded(t *testing.T) {
	systemd := daemontest.Systemd(t)
	t.Setenv("WATCHDOG_USEC", "1000000")
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		returned := make(chan struct{})
		err := daemon.RunWatchdog(lateContext{ctx, returned}, func() error {
			defer close(returned)
			cancel()
			return ctx.Err()
		})
		testdaemon.Hears(t, systemd, err, "")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	testdaemon.Hears(t, systemd, daemon.RunWatchdog(ended, nil), "")
}

func TestRunWatchdogGoesOnIfABeatCannotBeSent(t *testing.T) {
	m := testdaemon.ListenByHand(t)
	health := make(inquiry)
	_, stop := watched(t, 2*time.Millisecond, health.ask)
	t.Setenv("NOTIFY_SOCKET", m.Address)
	answer := health.next(t)
	hear := func(result error, want string) {
		t.Helper()
		answer <- result
		if got := m.Next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		answer = health.next(t)
	}
	hear(nil, beat)
	for _, result := range []error{nil, errors.New("sick")} {
		back := beat
		if result != nil {
			hear(result, "STATUS=sick\n")
			back = beat + "STATUS=\n" // which could not be sent before
		}
		m.Close()
		for range 3 {
			answer <- nil
			answer = health.next(t)
		}
		os.Remove(m.Address)
		m = testdaemon.OpenMailbox(t, m.Address)
		hear(nil, back)
		hear(nil, beat)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A beat that waits for room would be over only after 5 s.
func TestRunWatchdogEndsWithItsContextIfTheQueueIsFull(t *testing.T) {
	const watchdogs = 3
	m := testdaemon.ListenByHand(t)
	t.Setenv("NOTIFY_SOCKET", m.Address)
	t.Setenv("WATCHDOG_USEC", "1000000")
	sent := m.Fill()
	begun := time.Now()
	for range watchdogs {
		ctx, cancel := context.WithCancel(t.Context())
		err := daemon.RunWatchdog(ctx, func() error {
			time.AfterFunc(50*time.Millisecond, cancel)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(begun); took >= watchdogs*5*time.Second-time.Second {
		t.Errorf("took %v", took)
	}
	m.Drain(sent)
	if got, ok := m.Take(); ok {
		t.Errorf("%q arrived", got)
	}
}

func TestRunWatchdogEndsAtOnceIfTheWatchdogIsOff(t *testing.T) {
	systemd := daemontest.Systemd(t)
	for _, env := range [][2]string{{"", ""}, {"1000", strconv.Itoa(os.Getppid())}} {
		t.Setenv("WATCHDOG_USEC", env[0])
		t.Setenv("WATCHDOG_PID", env[1])
		err := daemon.RunWatchdog(context.Background(), func() error { return errors.New("called") })
		testdaemon.Hears(t, systemd, err, "")
	}
}
