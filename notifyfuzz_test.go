//go:build linux

package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

// assignment is what a test says, as systemd is to read it.
type assignment struct{ key, value string }

func (a assignment) String() string { return a.key + "=" + a.value }

// safe is text without what could harm.
func safe(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r):
			return ' '
		case unicode.Is(unicode.Noncharacter_Code_Point, r):
			return unicode.ReplacementChar
		}
		return r
	}, string([]rune(text)))
}

var (
	goodKey  = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)
	badValue = regexp.MustCompile("[\n\r\x00]")
)

// FuzzDatagram says things through a real socket, decodes them by systemd's
// rules and compares them with what the documentation promises. Each byte of
// plan is one field.
func FuzzDatagram(f *testing.F) {
	for verb := range byte(5) {
		f.Add(verb, []byte{0, 1, 2, 3, 4, 5, 6, 7}, "up\n", "a\\b", "X_A", "c\xff", 7, 5, int64(1999))
		f.Add(verb, []byte{0, 8}, "serving", "", "", "", 0, 0, int64(0)) // as most do
		f.Add(verb, []byte{0}, "serving", "", "", "", 0, 0, int64(0))
		f.Add(verb, []byte{0}, strings.Repeat("long ", 1000), "", "", "", 0, 0, int64(0))
		f.Add(verb, []byte{0, 5}, "serving", "", "", "", 7, 0, int64(0))
		f.Add(verb, []byte{3, 0, 8}, "ok", "", "STATUS", "a\n", 0, 0, int64(0))
		f.Add(verb, []byte{5, 8, 0}, "ok", "", "", "", 0, 0, int64(0))
		f.Add(verb, []byte{8, 3}, "", "", "STATUS", "a\n", 0, 0, int64(0))
		f.Add(verb, []byte{3, 0}, strings.Repeat("é\\", 2000), "", "STATUS", strings.Repeat(`\`, 2040), 0, -1, int64(-1))
	}
	m := openMailbox(f, directory(f)+"/notify")
	f.Setenv("NOTIFY_SOCKET", m.address)
	f.Fuzz(func(t *testing.T, verb byte, plan []byte, status, bus, key, value string, pid, errno int, extend int64) {
		m.t = t
		var fields []daemon.Field
		var said []assignment
		valid := true
		say := func(f daemon.Field, ok bool, key string, value any) {
			fields = append(fields, f)
			said = append(said, assignment{key, fmt.Sprint(value)})
			valid = valid && ok
		}
		set := func(key, value string) {
			ok := goodKey.MatchString(key) && key != "BARRIER" && key != "FDSTORE" && !badValue.MatchString(value)
			say(daemon.Set(key, value), ok, key, value)
		}
		var call func(...daemon.Field) error
		var own []assignment
		switch verb % 5 {
		case 0:
			call, own = daemon.Ready, []assignment{{"READY", "1"}, {"STATUS", "ready"}, {"MAINPID", fmt.Sprint(os.Getpid())}}
		case 1:
			call, own = daemon.Reloading, []assignment{{"RELOADING", "1"}, {"MONOTONIC_USEC", ""}}
			set("MONOTONIC_USEC", "1")
		case 2:
			call, own = daemon.Stopping, []assignment{{"STOPPING", "1"}}
		case 3:
			call = daemon.Notify
		case 4:
			call = func(...daemon.Field) error { return daemon.Fail(fmt.Errorf("%s%w", status, unix.Errno(5))) }
			plan = nil
			say(daemon.Field{}, true, "STATUS", status+unix.Errno(5).Error())
			say(daemon.Field{}, true, "ERRNO", 5)
		}
		for _, step := range plan[:min(len(plan), 20)] {
			switch step % 9 {
			case 0:
				say(daemon.Status(status), true, "STATUS", status)
			case 1:
				say(daemon.Status(value), true, "STATUS", value)
			case 2:
				say(daemon.BusError(bus), true, "BUSERROR", bus)
			case 3:
				set(key, value)
			case 4:
				set("X_B", bus)
			case 5:
				say(daemon.MainPID(pid), pid >= 1, "MAINPID", pid)
			case 6:
				say(daemon.Errno(errno), errno >= 0, "ERRNO", errno)
			case 7:
				say(daemon.ExtendTimeout(time.Duration(extend)), extend >= 0, "EXTEND_TIMEOUT_USEC", extend/1000)
			case 8:
				say(daemon.MainPID(os.Getpid()), true, "MAINPID", os.Getpid())
			}
		}

		err := call(fields...)
		raw, sent := m.take()
		want, ok := promised(own, said)
		var refused error
		switch {
		case !valid:
			refused = unix.EINVAL
		case !ok:
			refused = unix.EMSGSIZE
		}
		if !errors.Is(err, refused) || sent != (refused == nil && len(want) > 0) {
			t.Fatalf("%v, and sent is %q (%t): want %v, %q", err, raw, sent, refused, want)
		}
		got, err := daemontest.Decode([]byte(raw))
		if sent && (err != nil || !slices.Equal(got, want) || !strings.HasSuffix(raw, "\n")) {
			t.Fatalf("%q is %q, %v, want %q", raw, got, err, want)
		}
		if another, ok := m.take(); ok {
			t.Fatalf("%q, too", another)
		}
	})
}

// promised is what systemd is to read: the verb's own assignments, STATUS and
// MAINPID, and the caller's in order; of several with one key the last.
func promised(own, said []assignment) (want []string, ok bool) {
	rank := func(a assignment) int {
		switch a.key {
		case "STATUS":
			return 10
		case "MAINPID":
			return 11
		}
		if i := slices.IndexFunc(own, func(o assignment) bool { return o.key == a.key }); i >= 0 {
			return i
		}
		return 12
	}
	var kept []assignment
	rest := "" // beside STATUS
	all := append(slices.Clone(own), said...)
	for i, a := range all {
		if slices.ContainsFunc(all[i+1:], func(later assignment) bool { return later.key == a.key }) {
			continue
		}
		if a.key == "STATUS" || a.key == "BUSERROR" {
			a.value = safe(a.value)
		}
		if a.key != "STATUS" {
			rest += a.String() + "\n"
		}
		kept = append(kept, a)
	}
	slices.SortStableFunc(kept, func(a, b assignment) int { return rank(a) - rank(b) })
	for _, a := range kept {
		if a.key == "STATUS" {
			if !fits(rest + "STATUS=\n") {
				continue
			}
			a.value = cut(a.value, rest)
		}
		want = append(want, a.String())
	}
	return want, fits(rest)
}
