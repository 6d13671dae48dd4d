package daemon

import (
	"context"
	"math"
	"strconv"
	"syscall"
	"time"
)

// Heartbeat tells the supervisor that the program is alive (WATCHDOG=1).
// [RunWatchdog] calls it in a loop.
func Heartbeat() error { return notify(&heartbeat, nil) }

var heartbeat = verb{own: []Field{{key: "WATCHDOG", text: "1"}}, patience: brief}

// WatchdogTimeout returns the time within which the supervisor wants to see a
// heartbeat (WATCHDOG_USEC, see sd_watchdog_enabled(3)); beat at half of it. It is
// 0 if the watchdog is off: WATCHDOG_USEC is not set, or WATCHDOG_PID names another
// process. The error wraps [syscall.EINVAL] if WATCHDOG_USEC is 0, not a number of
// microseconds or above 2^63-1, or WATCHDOG_PID is no process id. A timeout is cut
// to the longest [time.Duration] (292 years).
func WatchdogTimeout() (time.Duration, error) {
	value := getenv("WATCHDOG_USEC")
	if value == "" {
		return 0, nil
	}
	usec, err := parsePositive("WATCHDOG_USEC", value, 64)
	if err != nil {
		return 0, err
	}
	if value := getenv("WATCHDOG_PID"); value != "" {
		watched, err := parsePositive("WATCHDOG_PID", value, 32)
		if err != nil || int(watched) != pid() {
			return 0, err
		}
	}
	return time.Duration(min(usec, math.MaxInt64/1000)) * time.Microsecond, nil
}

func parsePositive(key, value string, bits int) (int64, error) {
	n, err := strconv.ParseInt(value, 10, bits)
	if err != nil || n <= 0 || value[0] == '+' {
		return 0, opError("parse "+key, strconv.Quote(value), syscall.EINVAL)
	}
	return n, nil
}

// RunWatchdog sends a heartbeat at once and then every half of
// [WatchdogTimeout] for as long as healthy returns nil; a nil healthy means
// always. If healthy returns an error, RunWatchdog leaves the beat out, shows the
// error as STATUS, and asks again after an eighth of the timeout. The next success
// puts back the status that was said last. If healthy blocks there is no beat
// either, and the supervisor restarts the service. A beat that cannot be sent is no
// reason to stop: the next one may get through.
//
// RunWatchdog returns nil when ctx ends, even while healthy blocks, and at once if
// the watchdog is off. Its only error is that of WatchdogTimeout.
func RunWatchdog(ctx context.Context, healthy func() error) error {
	timeout, err := WatchdogTimeout()
	if timeout == 0 {
		return err
	}
	beat := verb{own: heartbeat.own, patience: brief, ctx: ctx}
	complaint := verb{complaint: true, patience: brief, ctx: ctx}
	recovery := beat // in one message, so that neither part gets through alone
	recovery.status = &notifier.lastStatus

	timer := time.NewTimer(timeout) // Reset says when it is to end
	defer timer.Stop()
	complained := false // the supervisor may be showing it
	for ctx.Err() == nil {
		begin, next := time.Now(), timeout/2
		switch err := check(ctx, healthy); {
		case ctx.Err() != nil: // which is no complaint
		case err != nil:
			_ = notify(&complaint, []Field{Status(err.Error())})
			complained = true
			next = timeout / 8 // after another half the timeout would be over
		case complained:
			complained = notify(&recovery, nil) != nil
		default:
			_ = notify(&beat, nil)
		}
		timer.Reset(next - time.Since(begin))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	return nil
}

// check runs healthy in a goroutine of its own, so that one that blocks does not
// outlast ctx.
func check(ctx context.Context, healthy func() error) error {
	if healthy == nil {
		return nil
	}
	results := make(chan error, 1)
	go func() { results <- healthy() }()
	select {
	case err := <-results:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
