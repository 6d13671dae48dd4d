//go:build linux

package daemon

import (
	"errors"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzEnvironment reads the environment as it comes and as UnsetEnvironment
// has remembered it. For the number "own" this process's id is put in.
func FuzzEnvironment(f *testing.F) {
	f.Add("/run/notify", "web", "3000000", "own", "own", "2", "a:b")
	f.Add("@", "", "9223372036854775807", "", "own", "2147483647", ":")
	f.Add("", "", "18446744073709551616", "own ", "own", "-1", "")
	f.Add(" ", "", "+1", "0", "own", "+2", "a")
	f.Cleanup(func() { remembered.Store(nil) }) // for the other tests
	f.Fuzz(func(t *testing.T, socket, job, usec, watched, listener, count, names string) {
		if strings.Contains(socket+job+usec+watched+listener+count+names, "\x00") {
			t.Skip() // the environment holds none
		}
		remembered.Store(nil)
		own := strconv.Itoa(pid)
		watched, listener = strings.ReplaceAll(watched, "own", own), strings.ReplaceAll(listener, "own", own)
		for key, value := range map[string]string{
			"NOTIFY_SOCKET": socket, "UPSTART_JOB": job, "WATCHDOG_USEC": usec, "WATCHDOG_PID": watched,
			"LISTEN_PID": listener, "LISTEN_FDS": count, "LISTEN_FDNAMES": names,
		} {
			t.Setenv(key, value)
		}
		for range 2 {
			checkSupervisor(t, socket, job)
			checkWatchdog(t, usec, watched)
			checkPassed(t, listener == own, count, names)
			UnsetEnvironment()
		}
	})
}

func checkSupervisor(t *testing.T, socket, job string) {
	t.Helper()
	want, wantAddress := None, ""
	switch {
	case job != "":
		want = Upstart
	case socket != "":
		want, wantAddress = Systemd, socket
	}
	if got, address := supervisor(); got != want || address != wantAddress || Detect() != want {
		t.Fatalf("%v at %q, want %v at %q", got, address, want, wantAddress)
	}
}

// number parses a decimal number from 1 to limit.
func number(text string, limit int64) (n int64, ok bool) {
	var parsed big.Int
	_, ok = parsed.SetString(text, 10)
	ok = ok && !strings.ContainsAny(text, "+-_") && parsed.IsInt64() && parsed.Int64() >= 1 && parsed.Int64() <= limit
	return parsed.Int64(), ok
}

func checkWatchdog(t *testing.T, usec, watched string) {
	t.Helper()
	timeout, err := WatchdogTimeout()
	wanted, ok := number(usec, math.MaxInt64)
	who, known := number(watched, math.MaxInt32)
	switch {
	case usec == "" && timeout == 0 && err == nil:
	case usec != "" && (!ok || watched != "" && !known):
		if timeout != 0 || !errors.Is(err, unix.EINVAL) {
			t.Fatalf("%v, %v, want %v", timeout, err, unix.EINVAL)
		}
	case usec != "" && watched != "" && who != int64(pid) && timeout == 0 && err == nil:
	case usec != "" && err == nil && timeout == time.Duration(min(wanted, math.MaxInt64/1000))*time.Microsecond:
	default:
		t.Fatalf("%v, %v", timeout, err)
	}
}

func checkPassed(t *testing.T, own bool, count, names string) {
	t.Helper()
	got, gotNames := passedFiles()
	want, ok := number(strings.TrimPrefix(count, "+"), math.MaxInt32-firstPassed)
	if !ok || !own {
		want = 0
	}
	if int64(got) != want {
		t.Fatalf("%d descriptors, want %d", got, want)
	}
	if want > 0 && strings.Join(gotNames, ":") != names {
		t.Fatalf("names %q, want %q", gotNames, names)
	}
}
