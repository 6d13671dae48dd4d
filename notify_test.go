//go:build linux

package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

func init() {
	programs["notify-ready"] = func() {
		err := daemon.Ready()
		fmt.Println(os.Getpid(), err)
		os.Exit(7)
	}
}

// mainPID is the line that Ready adds.
var mainPID = fmt.Sprintf("MAINPID=%d\n", os.Getpid())

// verbs are all that notify, but Barrier.
var verbs = []struct {
	name string
	call func() error
	want string // the datagram
}{
	{"Ready", func() error { return daemon.Ready() }, "READY=1\nSTATUS=ready\n" + mainPID},
	{"Reloading", func() error { return daemon.Reloading(daemon.Set("MONOTONIC_USEC", "1")) }, "RELOADING=1\nMONOTONIC_USEC=1\n"},
	{"Stopping", func() error { return daemon.Stopping() }, "STOPPING=1\n"},
	{"Fail", func() error { return daemon.Fail(syscall.ENOSPC) }, "STATUS=no space left on device\nERRNO=28\n"},
	{"Notify", func() error { return daemon.Notify(daemon.Status("42 users")) }, "STATUS=42 users\n"},
	{"Heartbeat", daemon.Heartbeat, "WATCHDOG=1\n"},
	{"StoreFiles", func() error { return daemon.StoreFiles("a", os.Stdin) }, "FDSTORE=1\nFDNAME=a\n"},
	{"RemoveFiles", func() error { return daemon.RemoveFiles("a") }, "FDSTOREREMOVE=1\nFDNAME=a\n"},
}

func TestNotificationsAreByteForByte(t *testing.T) {
	type fields = []daemon.Field
	ready := func(f fields) error { return daemon.Ready(f...) }
	stopping := func(f fields) error { return daemon.Stopping(f...) }
	reloading := func(f fields) error { return daemon.Reloading(f...) }
	notify := func(f fields) error { return daemon.Notify(f...) }

	systemd := daemontest.Systemd(t)
	for _, verb := range verbs {
		t.Run(verb.name, func(t *testing.T) { hears(t, systemd, verb.call(), verb.want) })
	}
	for _, test := range []struct {
		name   string
		say    func(fields) error
		fields fields
		want   string
	}{
		{"own status", ready, fields{daemon.Status("up")}, "READY=1\nSTATUS=up\n" + mainPID},
		{"no status", ready, fields{daemon.Status("")}, "READY=1\nSTATUS=\n" + mainPID},
		{"own pid", ready, fields{daemon.MainPID(1)}, "READY=1\nSTATUS=ready\nMAINPID=1\n"},
		{"defaults before the others", ready, fields{daemon.Errno(5), daemon.MainPID(7), daemon.BusError("a.b"), daemon.Status("up")},
			"READY=1\nSTATUS=up\nMAINPID=7\nERRNO=5\nBUSERROR=a.b\n"},
		{"the verb first", stopping, fields{daemon.Set("X_A", "1"), daemon.Status("bye")}, "STOPPING=1\nSTATUS=bye\nX_A=1\n"},
		{"the verb first in a reload", reloading, fields{daemon.Set("MONOTONIC_USEC", "5"), daemon.MainPID(7), daemon.Status("again")},
			"RELOADING=1\nMONOTONIC_USEC=5\nSTATUS=again\nMAINPID=7\n"},
		{"status and pid first", notify, fields{daemon.Errno(5), daemon.MainPID(7), daemon.Status("up")}, "STATUS=up\nMAINPID=7\nERRNO=5\n"},
		{"the last of a key", ready, fields{daemon.Set("X_A", "1"), daemon.Set("X_B", "2"), daemon.Status("a"), daemon.Set("X_A", "3"), daemon.Status("b")},
			"READY=1\nSTATUS=b\n" + mainPID + "X_B=2\nX_A=3\n"},
		{"the last of a key, by Set", ready, fields{daemon.Status("a"), daemon.Set("STATUS", "b"), daemon.Set("READY", "2"), daemon.Set("MAINPID", "9"), daemon.Set("READY", "3")},
			"READY=3\nSTATUS=b\nMAINPID=9\n"},
		{"the same text twice", notify, fields{daemon.Set("X_A", "1"), daemon.Set("X_A", "1")}, "X_A=1\n"},
		{"no time", notify, fields{daemon.ExtendTimeout(0)}, "EXTEND_TIMEOUT_USEC=0\n"},
		{"less than a microsecond", notify, fields{daemon.ExtendTimeout(1999)}, "EXTEND_TIMEOUT_USEC=1\n"},
		{"all time", notify, fields{daemon.ExtendTimeout(math.MaxInt64)}, "EXTEND_TIMEOUT_USEC=9223372036854775\n"},
		{"greatest pid", notify, fields{daemon.MainPID(math.MaxInt)}, fmt.Sprintf("MAINPID=%d\n", math.MaxInt)},
		{"keys", notify, fields{daemon.Set("A", ""), daemon.Set("_", "="), daemon.Set("A_Z09", " a b "), daemon.Set("BARRIER2", "1"), daemon.Set("FDPOLL", "0")},
			"A=\n_==\nA_Z09= a b \nBARRIER2=1\nFDPOLL=0\n"},
		{"backslashes", notify, fields{daemon.Set("X_A", `\a\\`), daemon.Status(`C:\`), daemon.BusError(`\`)}, `STATUS=C:\\` + "\n" + `X_A=\\a\\\\` + "\n" + `BUSERROR=\\` + "\n"},
		{"4096 bytes", notify, fields{daemon.Set("X_A", strings.Repeat("a", 4096-5))}, "X_A=" + strings.Repeat("a", 4096-5) + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) { hears(t, systemd, test.say(test.fields), test.want) })
	}

	t.Run("nothing to say", func(t *testing.T) {
		hears(t, systemd, daemon.Notify(), "")
		hears(t, systemd, daemon.Fail(nil), "")
	})

	for _, test := range []struct {
		name  string
		field daemon.Field
		want  error
	}{
		{`""`, daemon.Field{}, unix.EINVAL},
		{`"MAINPID"`, daemon.MainPID(0), unix.EINVAL},
		{`"MAINPID"`, daemon.MainPID(-1), unix.EINVAL},
		{`"ERRNO"`, daemon.Errno(-1), unix.EINVAL},
		{`"EXTEND_TIMEOUT_USEC"`, daemon.ExtendTimeout(-1), unix.EINVAL},
		{`"EXTEND_TIMEOUT_USEC"`, daemon.ExtendTimeout(-time.Hour), unix.EINVAL},
		{`""`, daemon.Set("", "1"), unix.EINVAL},
		{`"BARRIER"`, daemon.Set("BARRIER", "1"), unix.EINVAL},
		{`"FDSTORE"`, daemon.Set("FDSTORE", "1"), unix.EINVAL},
		{`"x_A"`, daemon.Set("x_A", "1"), unix.EINVAL},
		{`"X-A"`, daemon.Set("X-A", "1"), unix.EINVAL},
		{`"X A"`, daemon.Set("X A", "1"), unix.EINVAL},
		{`"X=A"`, daemon.Set("X=A", "1"), unix.EINVAL},
		{`"1X"`, daemon.Set("1X", "1"), unix.EINVAL},
		{`"X\nREADY"`, daemon.Set("X\nREADY", "1"), unix.EINVAL},
		{`"X_É"`, daemon.Set("X_É", "1"), unix.EINVAL},
		{`"X_A"`, daemon.Set("X_A", "a\nb"), unix.EINVAL},
		{`"X_A"`, daemon.Set("X_A", "a\r"), unix.EINVAL},
		{`"X_A"`, daemon.Set("X_A", "\x00"), unix.EINVAL},
		{systemd.Addr(), daemon.Set("X_A", strings.Repeat("a", 4096)), unix.EMSGSIZE},
		{systemd.Addr(), daemon.Set(strings.Repeat("X", 4096), ""), unix.EMSGSIZE},
		{systemd.Addr(), daemon.Set("X_A", strings.Repeat(`\`, 2046)), unix.EMSGSIZE},
		{systemd.Addr(), daemon.BusError(strings.Repeat("a", 4096)), unix.EMSGSIZE},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, say := range []func(fields) error{ready, stopping, reloading, notify} {
				err := say(fields{daemon.Status("a"), test.field, daemon.MainPID(1)})
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.name) {
					t.Errorf("%v, want %v of %s", err, test.want, test.name)
				}
				hears(t, systemd, nil, "")
			}
		})
	}
}

// hears checks that a verb has returned nil and that want, and nothing else,
// has arrived.
func hears(t *testing.T, systemd *daemontest.Supervisor, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	heard := notifications(t, systemd)
	if want == "" && len(heard) == 0 {
		return
	}
	if len(heard) != 1 || string(heard[0].Raw) != want {
		t.Errorf("heard %q, want %q", heard, want)
	}
}

// notifications are those that have been sent since it was called last.
func notifications(t *testing.T, systemd *daemontest.Supervisor) (heard []daemontest.Notification) {
	t.Helper()
	const end = "X_END=1"
	if err := daemon.Notify(daemon.Set("X_END", "1")); err != nil {
		t.Fatal(err)
	}
	for {
		n := systemd.Next(t.Context())
		if slices.Equal(n.Assignments, []string{end}) {
			return heard
		}
		heard = append(heard, n)
	}
}

func TestReadySendsAgain(t *testing.T) {
	systemd := daemontest.Systemd(t)
	for range 3 {
		hears(t, systemd, daemon.Ready(), "READY=1\nSTATUS=ready\n"+mainPID)
	}
	hears(t, systemd, daemon.Ready(daemon.Status("line 3: no such key")), "READY=1\nSTATUS=line 3: no such key\n"+mainPID)
}

func TestReloadingTellsTheTime(t *testing.T) {
	now := func() int64 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		return now.Nano() / 1000
	}
	systemd := daemontest.Systemd(t)
	for range 2 { // connects, and is connected
		before := now()
		if err := daemon.Reloading(daemon.Status("a")); err != nil {
			t.Fatal(err)
		}
		after := now()
		n := systemd.Next(t.Context())
		var said int64
		fmt.Sscanf(string(n.Raw), "RELOADING=1\nMONOTONIC_USEC=%d\n", &said)
		if want := fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=a\n", said); string(n.Raw) != want || said < before || said > after {
			t.Errorf("%q, want the time from %d to %d", n.Raw, before, after)
		}
	}
}

func TestFailTellsTheErrno(t *testing.T) {
	systemd := daemontest.Systemd(t)
	_, missing := os.Open("/nowhere/to/be/found")
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"errno", syscall.EADDRINUSE, "STATUS=address already in use\nERRNO=98\n"},
		{"wrapped", fmt.Errorf("read configuration: %w", missing), "STATUS=read configuration: open /nowhere/to/be/found: no such file or directory\nERRNO=2\n"},
		{"joined", errors.Join(errors.New("a"), unix.EPERM), "STATUS=a operation not permitted\nERRNO=1\n"},
		{"no errno", errors.New("a\nREADY=1"), "STATUS=a READY=1\n"},
		{"nil", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) { hears(t, systemd, daemon.Fail(test.err), test.want) })
	}
}

// Whatever a text holds, READY comes first, and systemd reads what was said
// and nothing else.
func TestTextAddsNothingAndCostsNothing(t *testing.T) {
	systemd := daemontest.Systemd(t)
	for _, test := range []struct{ name, say, hear string }{
		{"empty", "", ""},
		{"plain", "42 users, 100% ready", "42 users, 100% ready"},
		{"runes", "größer €5 😀 \u2028", "größer €5 😀 \u2028"},
		{"newline", "one\nMAINPID=1\n", "one MAINPID=1 "},
		{"carriage return", "one\rBARRIER=1", "one BARRIER=1"},
		{"NUL", "one\x00two", "one two"},
		{"ESC", "\x1b[31mred\x1b]0;title\x07", " [31mred ]0;title "},
		{"tab", "one\ttwo", "one two"},
		{"DEL", "one\x7ftwo\x7f", "one two "},
		{"C1", "one\u0085two\u009b31m\u0080\u009f\u00a0", "one two 31m  \u00a0"},
		{"invalid UTF-8", "caf\xe9 \xff\xc3", "caf\ufffd \ufffd\ufffd"},
		{"C1 as a byte", "one\x9b31m", "one\ufffd31m"},
		{"overlong newline", "one\xc0\x8atwo", "one\ufffd\ufffdtwo"},
		{"surrogate", "\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
		// To systemd these are not UTF-8: it would leave out the whole status.
		{"noncharacters", "a\ufffeb\uffffc\ufdd0d\ufdefe\U0010ffff", "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd"},
		{"backslashes", `C:\temp\new \\host`, `C:\temp\new \\host`},
		{"trailing backslash", `C:\`, `C:\`},
		{"backslash and newline", "C:\\\nBARRIER=1", `C:\ BARRIER=1`},
		{"assignment", "READY=0 BARRIER=1", "READY=0 BARRIER=1"},
		{"5000 bytes", strings.Repeat("x", 5000), strings.Repeat("x", 5000)},
		{"5000 backslashes", strings.Repeat(`\`, 5000), strings.Repeat(`\`, 5000)},
		{"an odd byte and 5000 backslashes", "x" + strings.Repeat(`\`, 5000), "x" + strings.Repeat(`\`, 5000)},
		{"3000 two-byte runes", strings.Repeat("é", 3000), strings.Repeat("é", 3000)},
		{"an odd byte and 3000 two-byte runes", "x" + strings.Repeat("é", 3000), "x" + strings.Repeat("é", 3000)},
		{"2000 four-byte runes", strings.Repeat("😀", 2000), strings.Repeat("😀", 2000)},
		{"5000 bytes that are not UTF-8", strings.Repeat("\xff", 5000), strings.Repeat("\ufffd", 5000)},
	} {
		t.Run(test.name, func(t *testing.T) {
			ready := "READY=1\n" + mainPID
			t.Run("Status", func(t *testing.T) {
				err := daemon.Ready(daemon.Status(test.say))
				means(t, systemd, err, "READY=1\n", "STATUS="+cut(test.hear, ready), mainPID)
			})
			t.Run("Fail", func(t *testing.T) {
				err := daemon.Fail(errors.New(test.say))
				means(t, systemd, err, "STATUS="+cut(test.hear, ""))
			})
			ready = "READY=1\nSTATUS=ready\n" + mainPID
			t.Run("BusError", func(t *testing.T) {
				err := daemon.Ready(daemon.BusError(test.say))
				if !fits(ready + "BUSERROR=" + test.hear + "\n") {
					refuses(t, systemd, err, unix.EMSGSIZE)
					return
				}
				means(t, systemd, err, "READY=1", "STATUS=ready", mainPID, "BUSERROR="+test.hear)
			})
			t.Run("Set", func(t *testing.T) {
				err := daemon.Ready(daemon.Set("X_TEXT", test.say))
				switch {
				case strings.ContainsAny(test.say, "\n\r\x00"):
					refuses(t, systemd, err, unix.EINVAL)
				case !fits(ready + "X_TEXT=" + test.say + "\n"):
					refuses(t, systemd, err, unix.EMSGSIZE)
				default:
					means(t, systemd, err, "READY=1", "STATUS=ready", mainPID, "X_TEXT="+test.say)
				}
			})
		})
	}
}

// Where one byte decides whether the end of a status still fits.
func TestStatusIsCutBetweenRunes(t *testing.T) {
	systemd := daemontest.Systemd(t)
	for _, end := range []string{"x", `\`, "é", "€", "😀"} {
		for size := 4040; size <= 4100; size++ {
			status := strings.Repeat("x", size) + end + "x"
			err := daemon.Ready(daemon.Status(status), daemon.MainPID(1))
			means(t, systemd, err, "READY=1", "STATUS="+cut(status, "READY=1\nMAINPID=1\n"), "MAINPID=1")
		}
	}
	t.Run("to nothing", func(t *testing.T) {
		value := strings.Repeat("a", 4096-len("X_A=\n"))
		means(t, systemd, daemon.Notify(daemon.Status("b"), daemon.Set("X_A", value)), "X_A="+value)
	})
}

// fits tells whether a datagram, its backslashes not doubled yet, is short
// enough.
func fits(datagram string) bool {
	return len(datagram)+strings.Count(datagram, `\`) <= 4096
}

// cut is what is sent of a status beside the rest of the datagram.
func cut(status, rest string) string {
	room := 4096 - len(rest) - strings.Count(rest, `\`) - len("STATUS=\n")
	for i, r := range status {
		room -= utf8.RuneLen(r)
		if r == '\\' {
			room--
		}
		if room < 0 {
			return status[:i]
		}
	}
	return status
}

// means checks that a verb has returned nil, and what systemd reads in its
// notification.
func means(t *testing.T, systemd *daemontest.Supervisor, err error, want ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i] = strings.TrimSuffix(want[i], "\n")
	}
	heard := notifications(t, systemd)
	if len(heard) != 1 || heard[0].Err != nil || !slices.Equal(heard[0].Assignments, want) {
		t.Fatalf("heard %.300q, want %.300q", heard, want)
	}
}

// refuses checks that a verb has returned the error want and sent nothing.
func refuses(t *testing.T, systemd *daemontest.Supervisor, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	if heard := notifications(t, systemd); len(heard) != 0 {
		t.Errorf("heard %q", heard)
	}
}

func TestAddresses(t *testing.T) {
	dir := directory(t)
	path := func(length int) string { return dir + "/" + strings.Repeat("s", length-len(dir)-len("/")) }
	abstract := fmt.Sprintf("@daemon-test-%d-", os.Getpid())
	for _, test := range []struct{ name, address string }{
		{"path", dir + "/notify"},
		{"path with all kinds of characters", dir + "/a b@\\é\n"},
		{"path of 107 bytes", path(107)},
		{"abstract", abstract},
		{"abstract with a slash", abstract + "/a"},
		{"abstract of 107 bytes", abstract + strings.Repeat("s", 107-len(abstract))},
		{"abstract of 108 bytes", abstract + strings.Repeat("s", 108-len(abstract))},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := openMailbox(t, test.address)
			t.Setenv("NOTIFY_SOCKET", test.address)
			for _, verb := range verbs {
				if err := verb.call(); err != nil {
					t.Fatal(err)
				}
				if got := m.next(); got != verb.want {
					t.Errorf("%s: %q, want %q", verb.name, got, verb.want)
				}
			}
			// The same as a program, which does not detach.
			c := start(t, "notify-ready", test.address)
			c.says(fmt.Sprintf("%d <nil>", c.pid()))
			if got, want := m.next(), fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", c.pid()); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			c.exits(7)
		})
	}

	dead := dir + "/dead"
	openMailbox(t, dead).close()
	stream := listenStream(t, dir+"/stream")
	for _, test := range []struct {
		name, address string
		want          error
	}{
		{"missing", dir + "/missing", unix.ENOENT},
		{"missing directory", dir + "/missing/notify", unix.ENOENT},
		{"below a file", "/dev/null/notify", unix.ENOTDIR},
		{"dead", dead, unix.ECONNREFUSED},
		{"no socket", dir, unix.ECONNREFUSED},
		{"stream socket", stream, unix.EPROTOTYPE},
		{"abstract and missing", abstract + "missing", unix.ECONNREFUSED},
		{"relative", "run/notify", unix.EAFNOSUPPORT},
		{"relative to here", "./notify", unix.EAFNOSUPPORT},
		{"virtual machine", "vsock:2:1234", unix.EAFNOSUPPORT},
		{"space", " ", unix.EAFNOSUPPORT},
		{"path of 108 bytes", path(108), unix.EINVAL},
		{"path of 109 bytes", path(109), unix.EINVAL},
		{"path of 5000 bytes", "/" + strings.Repeat("s", 4999), unix.EINVAL},
		{"abstract of 109 bytes", "@" + strings.Repeat("s", 108), unix.EINVAL},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", test.address)
			check := func(verb string, err error) {
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.address) {
					t.Errorf("%s: %v, want %v of %s", verb, err, test.want, test.address)
				}
			}
			for _, verb := range verbs {
				check(verb.name, verb.call())
			}
			check("Barrier", daemon.Barrier(t.Context()))
			c := start(t, "notify-ready", test.address)
			c.says(fmt.Sprintf("%d daemon: connect %s: %v", c.pid(), test.address, test.want))
			c.exits(7)
		})
	}
}

// The address is looked up at each call.
func TestAddressThatChanges(t *testing.T) {
	dir := directory(t)
	first, second := openMailbox(t, dir+"/1"), openMailbox(t, dir+"/2")
	for range 3 {
		for _, m := range []*mailbox{first, second} {
			t.Setenv("NOTIFY_SOCKET", m.address)
			if err := daemon.Heartbeat(); err != nil {
				t.Fatal(err)
			}
			if got := m.next(); got != "WATCHDOG=1\n" {
				t.Errorf("%q", got)
			}
		}
	}
}

func TestNothingIsDoneWhereNobodyListens(t *testing.T) {
	systemd := daemontest.Systemd(t)
	closed, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	quiet := map[string]func() error{
		"Reloading":   func() error { return daemon.Reloading(daemon.MainPID(0)) },
		"Stopping":    func() error { return daemon.Stopping(daemon.MainPID(0)) },
		"Notify":      func() error { return daemon.Notify(daemon.MainPID(0)) },
		"Fail":        func() error { return daemon.Fail(unix.EPERM) },
		"Heartbeat":   daemon.Heartbeat,
		"Barrier":     func() error { return daemon.Barrier(canceled) },
		"StoreFiles":  func() error { return daemon.StoreFiles(":", closed) },
		"RemoveFiles": func() error { return daemon.RemoveFiles(":") },
		"RunWatchdog": func() error { return daemon.RunWatchdog(t.Context(), nil) },
	}
	for _, test := range []struct{ name, socket, job string }{
		{"none", "", ""},
		{"upstart", "", "web"},
		{"both", systemd.Addr(), "web"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", test.socket)
			t.Setenv("UPSTART_JOB", test.job)
			for name, call := range quiet {
				if err := call(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	hears(t, systemd, nil, "")
}

// mailbox is a notify socket that is read only when the test says so. Where
// nothing depends on that, daemontest's is the better listener.
type mailbox struct {
	t       testing.TB
	address string
	fd      int
}

// openMailbox is closed, and its path removed, at the end of the test.
func openMailbox(t testing.TB, address string) *mailbox {
	t.Helper()
	m := bindMailbox(t, address)
	t.Cleanup(func() {
		m.close()
		os.Remove(address)
	})
	return m
}

func bindMailbox(t testing.TB, address string) *mailbox {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		// Not unix.SockaddrUnix: that refuses the longest abstract name.
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: address})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &mailbox{t, address, fd}
}

// close leaves the path where it is.
func (m *mailbox) close() {
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
	m.fd = -1
}

// take is what is there already.
func (m *mailbox) take() (datagram string, ok bool) {
	m.t.Helper()
	var space [5000]byte
	n, _, err := unix.Recvfrom(m.fd, space[:], unix.MSG_DONTWAIT)
	if err != nil && err != unix.EAGAIN {
		m.t.Fatal(err)
	}
	return string(space[:max(n, 0)]), err == nil
}

// next waits for a datagram.
func (m *mailbox) next() string {
	m.t.Helper()
	m.wait()
	datagram, _ := m.take()
	return datagram
}

func (m *mailbox) wait() {
	m.t.Helper()
	fds := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(daemontest.Timeout); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline)/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			m.t.Fatalf("no datagram: %v", err)
		}
		return
	}
}

// fill sends datagrams until no sender finds room, and returns how many: each
// may have only so many in a queue.
func (m *mailbox) fill() (sent int) {
	m.t.Helper()
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		defer unix.Close(fd)
		before := sent
		for {
			err := unix.Sendto(fd, []byte("X_FILL=1\n"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: m.address})
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				m.t.Fatal(err)
			}
			sent++
		}
		if sent == before {
			return sent
		}
	}
}

// drain takes what fill has sent.
func (m *mailbox) drain(sent int) {
	m.t.Helper()
	for range sent {
		if got, _ := m.take(); got != "X_FILL=1\n" {
			m.t.Fatalf("%q in the queue", got)
		}
	}
}

// directory is a new one with a path short enough for a socket.
func directory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listenStream(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// child is one of programs that runs, spoken to in lines. It is killed at the
// end of the test, and where it takes too long: every wait for it ends.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// start starts a program with a notify socket.
func start(t testing.TB, name, address string, args ...string) *child {
	t.Helper()
	cmd := program(t, name, args...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+address)
	return startCommand(t, cmd)
}

func startCommand(t testing.TB, cmd *exec.Cmd) *child {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(5*daemontest.Timeout, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &child{t, cmd, in, bufio.NewReader(out)}
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// line is the next line of the child's output.
func (c *child) line() string {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%q, and then %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (c *child) says(want string) {
	c.t.Helper()
	if got := c.line(); got != want {
		c.t.Fatalf("the child says %.300q, want %.300q", got, want)
	}
}

// goOn lets the child's awaitLine return.
func (c *child) goOn() {
	c.t.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		c.t.Fatal(err)
	}
}

// exits waits for the child's end. It must have said no more.
func (c *child) exits(code int) {
	c.t.Helper()
	rest, _ := io.ReadAll(c.out)
	c.cmd.Wait()
	if got := c.cmd.ProcessState; got.ExitCode() != code || len(rest) > 0 {
		c.t.Fatalf("%v, want exit status %d; said %q", got, code, rest)
	}
}

// awaitLine is the child's side of goOn.
func awaitLine() {
	var newline [1]byte
	os.Stdin.Read(newline[:])
}

// try ends a program that failed.
func try(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
