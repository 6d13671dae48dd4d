//go:build linux

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// What needs no machine: datagrams byte for byte, addresses, the environment,
// files. Folders of internal have the other tests.

func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }

var mainPID = agreed.MainPID(os.Getpid())

func TestNotificationsAreByteForByte(t *testing.T) {
	type fields = []daemon.Field
	ready := func(f fields) error { return daemon.Ready(f...) }
	stopping := func(f fields) error { return daemon.Stopping(f...) }
	reloading := func(f fields) error { return daemon.Reloading(f...) }
	notify := func(f fields) error { return daemon.Notify(f...) }

	systemd := daemontest.Systemd(t)
	sayReady(t, systemd)
	for _, verb := range agreed.Verbs {
		t.Run(verb.Name, func(t *testing.T) { testdaemon.Hears(t, systemd, verb.Call(), verb.Want) })
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
		{"defaults before the others", ready,
			fields{daemon.Errno(5), daemon.MainPID(7), daemon.BusError("a.b"), daemon.Status("up")},
			"READY=1\nSTATUS=up\nMAINPID=7\nERRNO=5\nBUSERROR=a.b\n"},
		{"the verb first", stopping, fields{daemon.Set("X_A", "1"), daemon.Status("bye")}, "STOPPING=1\nSTATUS=bye\nX_A=1\n"},
		{"the verb first in a reload", reloading,
			fields{daemon.Set("MONOTONIC_USEC", "5"), daemon.MainPID(7), daemon.Status("again")},
			"RELOADING=1\nMONOTONIC_USEC=5\nSTATUS=again\nMAINPID=7\n"},
		{"status and pid first", notify, fields{daemon.Errno(5), daemon.MainPID(7), daemon.Status("up")},
			"STATUS=up\nMAINPID=7\nERRNO=5\n"},
		{"the last of a key", ready,
			fields{daemon.Set("X_A", "1"), daemon.Set("X_B", "2"), daemon.Status("a"), daemon.Set("X_A", "3"),
				daemon.Status("b")},
			"READY=1\nSTATUS=b\n" + mainPID + "X_B=2\nX_A=3\n"},
		{"the last of a key, by Set", ready,
			fields{daemon.Status("a"), daemon.Set("STATUS", "b"), daemon.Set("READY", "2"),
				daemon.Set("MAINPID", "9"), daemon.Set("READY", "3")},
			"READY=3\nSTATUS=b\nMAINPID=9\n"},
		{"the last pid", ready, fields{daemon.Set("MAINPID", "5"), daemon.Set("MAINPID", "6")},
			"READY=1\nSTATUS=ready\nMAINPID=6\n"},
		{"the last pid, by MainPID", notify, fields{daemon.Set("MAINPID", "5"), daemon.MainPID(6)}, "MAINPID=6\n"},
		{"the last pid, by Set", notify, fields{daemon.MainPID(5), daemon.Set("MAINPID", "6")}, "MAINPID=6\n"},
		{"the same text twice", notify, fields{daemon.Set("X_A", "1"), daemon.Set("X_A", "1")}, "X_A=1\n"},
		{"no time", notify, fields{daemon.ExtendTimeout(0)}, "EXTEND_TIMEOUT_USEC=0\n"},
		{"less than a microsecond", notify, fields{daemon.ExtendTimeout(1999)}, "EXTEND_TIMEOUT_USEC=1\n"},
		{"all time", notify, fields{daemon.ExtendTimeout(math.MaxInt64)}, "EXTEND_TIMEOUT_USEC=9223372036854775\n"},
		{"greatest pid", notify, fields{daemon.MainPID(math.MaxInt)}, fmt.Sprintf("MAINPID=%d\n", math.MaxInt)},
		{"keys", notify, fields{daemon.Set("A", ""), daemon.Set("_", "="), daemon.Set("A_Z09", " a b "),
			daemon.Set("BARRIER2", "1"), daemon.Set("FDPOLL", "0")},
			"A=\n_==\nA_Z09= a b \nBARRIER2=1\nFDPOLL=0\n"},
		{"backslashes", notify, fields{daemon.Set("X_A", `\a\\`), daemon.Status(`C:\`), daemon.BusError(`\`)},
			`STATUS=C:\\` + "\n" + `X_A=\\a\\\\` + "\n" + `BUSERROR=\\` + "\n"},
		{"4096 bytes", notify, fields{daemon.Set("X_A", strings.Repeat("a", 4096-5))},
			"X_A=" + strings.Repeat("a", 4096-5) + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			sayReady(t, systemd)
			testdaemon.Hears(t, systemd, test.say(test.fields), test.want)
		})
	}

	t.Run("nothing to say", func(t *testing.T) {
		testdaemon.Hears(t, systemd, daemon.Notify(), "")
		testdaemon.Hears(t, systemd, daemon.Fail(nil), "")
	})

	for _, test := range []struct {
		name  string
		field daemon.Field
		want  error
	}{
		{`""`, daemon.Field{}, unix.EINVAL},
		{"MAINPID=0", daemon.MainPID(0), unix.EINVAL},
		{"MAINPID=-1", daemon.MainPID(-1), unix.EINVAL},
		{"ERRNO=-1", daemon.Errno(-1), unix.EINVAL},
		{"EXTEND_TIMEOUT_USEC", daemon.ExtendTimeout(-1), unix.EINVAL},
		{"EXTEND_TIMEOUT_USEC", daemon.ExtendTimeout(-time.Hour), unix.EINVAL},
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
				testdaemon.Hears(t, systemd, nil, "")
			}
		})
	}
}

// sayReady makes the status one that a Ready repeats which has none of its own.
func sayReady(t *testing.T, systemd *daemontest.Supervisor) {
	t.Helper()
	testdaemon.Hears(t, systemd, daemon.Ready(daemon.Status("ready")), "READY=1\nSTATUS=ready\n"+mainPID)
}

func TestReadyRepeatsTheStatusOfTheReadyBefore(t *testing.T) {
	systemd := daemontest.Systemd(t)
	testdaemon.Hears(t, systemd, daemon.Ready(daemon.Status("a\\b\n")), "READY=1\nSTATUS=a\\\\b \n"+mainPID)
	testdaemon.Hears(t, systemd, daemon.Notify(daemon.Status("busy")), "STATUS=busy\n")
	for range 2 {
		testdaemon.Hears(t, systemd, daemon.Ready(), "READY=1\nSTATUS=a\\\\b \n"+mainPID)
	}
}

func TestReadyTellsAnotherSupervisorNothingOfTheFirst(t *testing.T) {
	first := daemontest.Systemd(t)
	testdaemon.Hears(t, first, daemon.Ready(daemon.Status("up")), "READY=1\nSTATUS=up\n"+mainPID)
	if err := daemon.Ready(); err != nil { // which repeats it
		t.Fatal(err)
	}
	second := daemontest.Systemd(t)
	testdaemon.Hears(t, second, daemon.Ready(), "READY=1\nSTATUS=ready\n"+mainPID)
}

func TestReadySendsAgain(t *testing.T) {
	systemd := daemontest.Systemd(t)
	sayReady(t, systemd)
	for range 3 {
		testdaemon.Hears(t, systemd, daemon.Ready(), "READY=1\nSTATUS=ready\n"+mainPID)
	}
	testdaemon.Hears(t, systemd, daemon.Ready(daemon.Status("line 3: no such key")),
		"READY=1\nSTATUS=line 3: no such key\n"+mainPID)
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
		if want := fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=a\n", said); string(n.Raw) != want ||
			said < before || said > after {
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
		{"errno", syscall.EADDRINUSE, fmt.Sprintf("STATUS=address already in use\nERRNO=%d\n", int(syscall.EADDRINUSE))},
		{"wrapped", fmt.Errorf("read configuration: %w", missing),
			"STATUS=read configuration: open /nowhere/to/be/found: no such file or directory\nERRNO=2\n"},
		{"joined", errors.Join(errors.New("a"), unix.EPERM), "STATUS=a operation not permitted\nERRNO=1\n"},
		{"no errno", errors.New("a\nREADY=1"), "STATUS=a READY=1\n"},
		{"nil", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) { testdaemon.Hears(t, systemd, daemon.Fail(test.err), test.want) })
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
				sayReady(t, systemd)
				err := daemon.Ready(daemon.BusError(test.say))
				if !fits(ready + "BUSERROR=" + test.hear + "\n") {
					refuses(t, systemd, err, unix.EMSGSIZE)
					return
				}
				means(t, systemd, err, "READY=1", "STATUS=ready", mainPID, "BUSERROR="+test.hear)
			})
			t.Run("Set", func(t *testing.T) {
				sayReady(t, systemd)
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
	heard := testdaemon.Notifications(t, systemd)
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
	if heard := testdaemon.Notifications(t, systemd); len(heard) != 0 {
		t.Errorf("heard %q", heard)
	}
}

func TestAddresses(t *testing.T) {
	dir := testdaemon.Directory(t)
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
			m := testdaemon.OpenMailbox(t, test.address)
			t.Setenv("NOTIFY_SOCKET", test.address)
			if err := daemon.Ready(daemon.Status("ready")); err != nil { // which Ready repeats
				t.Fatal(err)
			}
			m.Next()
			for _, verb := range agreed.Verbs {
				if err := verb.Call(); err != nil {
					t.Fatal(err)
				}
				if got := m.Next(); got != verb.Want {
					t.Errorf("%s: %q, want %q", verb.Name, got, verb.Want)
				}
			}
			// The same as a program, which does not detach.
			c := testdaemon.Start(t, "notify-ready", test.address)
			c.Says(fmt.Sprintf("%d <nil>", c.PID()))
			if got, want := m.Next(), fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", c.PID()); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			c.Exits(7)
		})
	}

	dead := dir + "/dead"
	testdaemon.OpenMailbox(t, dead).Close()
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
			for _, verb := range agreed.Verbs {
				check(verb.Name, verb.Call())
			}
			check("Barrier", daemon.Barrier(t.Context()))
			c := testdaemon.Start(t, "notify-ready", test.address)
			c.Says(fmt.Sprintf("%d daemon: connect %s: %v", c.PID(), test.address, test.want))
			c.Exits(7)
		})
	}
}

// The address is looked up at each call.
func TestAddressThatChanges(t *testing.T) {
	dir := testdaemon.Directory(t)
	first, second := testdaemon.OpenMailbox(t, dir+"/1"), testdaemon.OpenMailbox(t, dir+"/2")
	for range 3 {
		for _, m := range []*testdaemon.Mailbox{first, second} {
			t.Setenv("NOTIFY_SOCKET", m.Address)
			if err := daemon.Heartbeat(); err != nil {
				t.Fatal(err)
			}
			if got := m.Next(); got != "WATCHDOG=1\n" {
				t.Errorf("%q", got)
			}
		}
	}
}

func TestNothingIsDoneIfNobodyListens(t *testing.T) {
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
	for _, test := range []struct{ name, socket, job, fd string }{
		{"none", "", "", ""},
		{"upstart", "", "web", ""},
		{"descriptor", "", "", "3"},
		{"upstart and systemd", systemd.Addr(), "web", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", test.socket)
			t.Setenv("UPSTART_JOB", test.job)
			t.Setenv("NOTIFY_FD", test.fd)
			for name, call := range quiet {
				if err := call(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	testdaemon.Hears(t, systemd, nil, "")
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

func TestDetect(t *testing.T) {
	for _, test := range []struct {
		socket, job, fd string
		want            daemon.Supervisor
		name            string
	}{
		{"", "", "", daemon.None, "none"},
		{"/run/notify", "", "", daemon.Systemd, "systemd"},
		{"no address at all", "", "", daemon.Systemd, "systemd"},
		{"", "web", "", daemon.Upstart, "upstart"},
		{"", "", "3", daemon.Descriptor, "descriptor"},
		{"/run/notify", "", "3", daemon.Systemd, "systemd"},
		{"/run/notify", "web", "3", daemon.Upstart, "upstart"},
	} {
		t.Run(fmt.Sprintf("%q %q %q", test.socket, test.job, test.fd), func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", test.socket)
			t.Setenv("UPSTART_JOB", test.job)
			t.Setenv("NOTIFY_FD", test.fd)
			if got := daemon.Detect(); got != test.want || got.String() != test.name {
				t.Errorf("%v (%q), want %q", int(got), got, test.name)
			}
		})
	}
	t.Run("unset", func(t *testing.T) {
		for _, variable := range agreed.SupervisorVariables {
			t.Setenv(variable, "") // has it set back at the end
			os.Unsetenv(variable)
		}
		if got := daemon.Detect(); got != daemon.None {
			t.Errorf("%v, want none", got)
		}
	})
	if got := daemon.Supervisor(7).String(); got != "Supervisor(7)" {
		t.Error(got)
	}
}

func TestWatchdogTimeout(t *testing.T) {
	own, other := strconv.Itoa(os.Getpid()), strconv.Itoa(os.Getppid())
	const longest = math.MaxInt64 / 1000 * time.Microsecond
	for _, test := range []struct {
		usec, pid string
		want      time.Duration
		culprit   string // if it is an error
	}{
		{"3000000", "", 3 * time.Second, ""},
		{"3000000", own, 3 * time.Second, ""},
		{"1", own, time.Microsecond, ""},
		{"0003", "", 3 * time.Microsecond, ""},
		{"9223372036854775", "", longest, ""},
		{"9223372036854776", "", longest, ""},
		{"9223372036854775807", "", longest, ""},

		{"", "", 0, ""},
		{"", own, 0, ""},
		{"", "x", 0, ""},
		{"3000000", other, 0, ""},
		{"3000000", "1", 0, ""},

		{"0", "", 0, "WATCHDOG_USEC"},
		{"0", own, 0, "WATCHDOG_USEC"},
		{"-1", "", 0, "WATCHDOG_USEC"},
		{"-0", "", 0, "WATCHDOG_USEC"},
		{"+1", "", 0, "WATCHDOG_USEC"},
		{"3s", "", 0, "WATCHDOG_USEC"},
		{"1.5", "", 0, "WATCHDOG_USEC"},
		{"0x10", "", 0, "WATCHDOG_USEC"},
		{"1_000", "", 0, "WATCHDOG_USEC"},
		{" ", "", 0, "WATCHDOG_USEC"},
		{"9223372036854775808", "", 0, "WATCHDOG_USEC"},
		{"18446744073709551615", "", 0, "WATCHDOG_USEC"},
		{"18446744073709551617", "", 0, "WATCHDOG_USEC"},
		{"1", "0", 0, "WATCHDOG_PID"},
		{"1", "-1", 0, "WATCHDOG_PID"},
		{"1", "+" + own, 0, "WATCHDOG_PID"},
		{"1", own + "x", 0, "WATCHDOG_PID"},
		{"1", "x", 0, "WATCHDOG_PID"},
		{"1", "4294967297", 0, "WATCHDOG_PID"},
	} {
		t.Run(fmt.Sprintf("%q %q", test.usec, test.pid), func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", test.usec)
			t.Setenv("WATCHDOG_PID", test.pid)
			got, err := daemon.WatchdogTimeout()
			if test.culprit == "" {
				if got != test.want || err != nil {
					t.Errorf("%v, %v, want %v", got, err, test.want)
				}
				return
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			for _, err := range []error{err, daemon.RunWatchdog(ended, nil)} {
				if got != 0 || !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), test.culprit) {
					t.Errorf("%v, %v, want %v of %s", got, err, unix.EINVAL, test.culprit)
				}
			}
		})
	}
	t.Run("unset", func(t *testing.T) {
		for _, variable := range []string{"WATCHDOG_USEC", "WATCHDOG_PID"} {
			t.Setenv(variable, "")
			os.Unsetenv(variable)
		}
		if got, err := daemon.WatchdogTimeout(); got != 0 || err != nil {
			t.Errorf("%v, %v, want 0", got, err)
		}
	})
}

func TestFilesArePassed(t *testing.T) {
	const own = "$$" // the shell's pid becomes the program's
	for _, test := range []struct {
		name, pid, count, names, before string
		want                            []string // none: no file
	}{
		{"two", own, "2", "web:db", "", []string{"web", "db"}},
		{"one of two", own, "1", "web", "", []string{"web"}},
		{"same name", own, "2", "web:web", "", []string{"web", "web"}},
		{"no names", own, "2", "", "", []string{"unknown", "unknown"}},
		{"fewer names", own, "2", "web", "", []string{"web", "unknown"}},
		{"more names", own, "2", "web:db:x", "", []string{"web", "db"}},
		{"environment unset before", own, "2", "web:db", "unset", []string{"web", "db"}},
		{"non-blocking", own, "2", "web:db", "nonblock", []string{"web", "db"}},
		{"the second marked close-on-exec", own, "2", "web:db", "mark", []string{"web"}},
		{"fewer open than promised", own, "5", "web:db", "", []string{"web", "db"}},
		{"fewer open than promised, non-blocking", own, "5", "web:db", "nonblock", []string{"web", "db"}},
		{"fewer open than promised, and files of the program's own", own, "5", "web:db", "open", []string{"web", "db"}},
		{"many more promised", own, "2000000000", "web:db", "", []string{"web", "db"}},

		{"no pid", "", "2", "web:db", "", nil},
		{"other pid", "$PPID", "2", "web:db", "", nil},
		{"other pid, unset", "$PPID", "2", "web:db", "unset", nil},
		{"none", own, "0", "", "", nil},
		{"no number", own, "", "web:db", "", nil},
		{"negative", own, "-1", "web:db", "", nil},
		{"not a number", own, "x", "web:db", "", nil},
		{"too great", own, "9223372036854775807", "web:db", "", nil},
		{"far too great", own, "18446744073709551617", "web:db", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startWithFiles(t, test.pid, test.count, test.names, test.before)
			for i, name := range test.want {
				c.Says(passedFile(i, name))
			}
			c.Says(fmt.Sprint(len(test.want) > 0, true))
			if len(test.want) > 0 {
				c.Says("true")
			}
			c.Exits(0)
		})
	}
}

func TestStoreFilesSendsEachFileOnce(t *testing.T) {
	systemd := daemontest.Systemd(t)
	var files []*os.File
	for i := range 507 {
		files = append(files, testdaemon.Memory(t, fmt.Sprint(i)))
	}
	long := strings.Repeat("n", 255)
	for _, test := range []struct {
		name, as, raw string
		files         int
		messages      []int
	}{
		{"one", "a", "a", 1, []int{1}},
		{"all characters", ` !"~\`, ` !"~\\`, 2, []int{2}},
		{"longest name", long, long, 1, []int{1}},
		{"253", "a", "a", 253, []int{253}},
		{"254", "a", "a", 254, []int{253, 1}},
		{"507", "a", "a", 507, []int{253, 253, 1}},
		{"none", "a", "a", 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := daemon.StoreFiles(test.as, files[:test.files]...); err != nil {
				t.Fatal(err)
			}
			next := 0
			heard := testdaemon.Notifications(t, systemd)
			for i, n := range heard {
				if want := "FDSTORE=1\nFDNAME=" + test.raw + "\n"; string(n.Raw) != want || len(n.Files) != test.messages[i] {
					t.Fatalf("%v, want %q with %d files", n, want, test.messages[i])
				}
				for _, file := range n.Files {
					content, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
					if want := fmt.Sprint(next); string(content) != want || err != nil {
						t.Errorf("%q, %v, want %s", content, err, want)
					}
					file.Close()
					next++
				}
			}
			if next != test.files || len(heard) != len(test.messages) {
				t.Errorf("%d files in %d messages", next, len(heard))
			}
			means(t, systemd, daemon.RemoveFiles(test.as), "FDSTOREREMOVE=1", "FDNAME="+test.as)
		})
	}
}

func TestStoreFilesLeavesTheCallersFileAsItIs(t *testing.T) {
	systemd := daemontest.Systemd(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := daemon.StoreFiles("a", r); err != nil {
		t.Fatal(err)
	}
	var flags int
	conn, err := r.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	}
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x (%v): a read could not be ended any more", flags, err)
	}
	r.Close()
	kept := systemd.Next(t.Context()).Files[0]
	if _, err := w.WriteString("hello"); err != nil {
		t.Error(err)
	}
	w.Close()
	if got, err := io.ReadAll(kept); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStoreFilesRefuses(t *testing.T) {
	systemd := daemontest.Systemd(t)
	open, closed := testdaemon.Memory(t, "open"), testdaemon.Memory(t, "closed")
	closed.Close()
	many := slices.Repeat([]*os.File{open}, 300)
	for _, test := range []struct {
		name, as string
		files    []*os.File
		want     error
	}{
		{"no name", "", many[:1], unix.EINVAL},
		{"no name and no files", "", nil, unix.EINVAL},
		{"long name", strings.Repeat("n", 256), many[:1], unix.EINVAL},
		{"colon", "a:b", many[:1], unix.EINVAL},
		{"newline", "a\nFDPOLL=0", many[:1], unix.EINVAL},
		{"control character", "a\x1b", many[:1], unix.EINVAL},
		{"DEL", "\x7f", many[:1], unix.EINVAL},
		{"not ASCII", "é", many[:1], unix.EINVAL},
		{"closed file", "a", []*os.File{open, closed}, os.ErrClosed},
		{"closed file behind many", "a", append(many, closed), os.ErrClosed},
		{"nil", "a", []*os.File{open, nil}, os.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			refuses(t, systemd, daemon.StoreFiles(test.as, test.files...), test.want)
			if test.want == unix.EINVAL {
				refuses(t, systemd, daemon.RemoveFiles(test.as), test.want)
			}
		})
	}
}

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
	m := testdaemon.OpenMailbox(f, testdaemon.Directory(f)+"/notify")
	f.Setenv("NOTIFY_SOCKET", m.Address)
	f.Fuzz(func(t *testing.T, verb byte, plan []byte, status, bus, key, value string, pid, errno int, extend int64) {
		m.T = t
		var fields []daemon.Field
		var said []assignment
		valid := true
		say := func(f daemon.Field, ok bool, key string, value any) {
			fields = append(fields, f)
			said = append(said, assignment{key, fmt.Sprint(value)})
			valid = valid && ok
		}
		set := func(key, value string) {
			ok := goodKey.MatchString(key) && key != "BARRIER" && key != "FDSTORE" && key != "MAINPIDFD" &&
				!badValue.MatchString(value)
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
				say(daemon.Errno(errno), errno >= 0 && errno <= 4095, "ERRNO", errno)
			case 7:
				say(daemon.ExtendTimeout(time.Duration(extend)), extend >= 0, "EXTEND_TIMEOUT_USEC", extend/1000)
			case 8:
				say(daemon.MainPID(os.Getpid()), true, "MAINPID", os.Getpid())
			}
		}

		if err := daemon.Ready(daemon.Status("ready")); err != nil { // which Ready repeats
			t.Fatal(err)
		}
		m.Next()
		err := call(fields...)
		raw, sent := m.Take()
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
		if another, ok := m.Take(); ok {
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

// FuzzEnvironment reads the environment as it comes and as UnsetEnvironment
// has remembered it. For the number "own" this process's id is put in.
func FuzzEnvironment(f *testing.F) {
	f.Add("/run/notify", "web", "3000000", "own", "own", "2", "a:b")
	f.Add("@", "", "9223372036854775807", "", "own", "2147483647", ":")
	f.Add("", "", "18446744073709551616", "own ", "own", "-1", "")
	f.Add(" ", "", "+1", "0", "own", "+2", "a")
	testdaemon.Binary(f)
	forgetEnvironment(f)
	passDescriptor3(f)
	f.Fuzz(func(t *testing.T, socket, job, usec, watched, listener, count, names string) {
		if strings.Contains(socket+job+usec+watched+listener+count+names, "\x00") {
			t.Skip() // the environment holds none
		}
		own := strconv.Itoa(os.Getpid())
		watched, listener = strings.ReplaceAll(watched, "own", own), strings.ReplaceAll(listener, "own", own)
		for key, value := range map[string]string{
			"NOTIFY_SOCKET": socket, "UPSTART_JOB": job, "WATCHDOG_USEC": usec, "WATCHDOG_PID": watched,
			"LISTEN_PID": listener, "LISTEN_FDS": count, "LISTEN_FDNAMES": names,
		} {
			t.Setenv(key, value)
		}
		for _, before := range []string{"", "unset"} {
			checkSupervisor(t, socket, job)
			checkWatchdog(t, usec, watched)
			checkPassed(t, listener == own, count, names, before)
			daemon.UnsetEnvironment()
		}
	})
}

// forgetEnvironment makes what is remembered at the end of the test empty.
func forgetEnvironment(f *testing.F) {
	for _, variable := range agreed.SupervisorVariables {
		f.Setenv(variable, "") // has it set back
	}
	f.Cleanup(func() {
		for _, variable := range agreed.SupervisorVariables {
			os.Setenv(variable, "")
		}
		daemon.UnsetEnvironment()
	})
}

// passDescriptor3 makes this process's own descriptor 3 look like one that was
// passed: Files must not return it.
func passDescriptor3(f *testing.F) {
	flags, err := unix.FcntlInt(3, unix.F_GETFD, 0)
	if err == nil {
		_, err = unix.FcntlInt(3, unix.F_SETFD, flags&^unix.FD_CLOEXEC)
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.FcntlInt(3, unix.F_SETFD, flags) })
}

func checkSupervisor(t *testing.T, socket, job string) {
	t.Helper()
	want, words := daemon.None, ""
	switch {
	case job != "":
		want = daemon.Upstart
	case socket != "":
		want, words = daemon.Systemd, " "+socket+": " // in each error
	}
	if got := daemon.Detect(); got != want {
		t.Fatalf("%v, want %v", got, want)
	}
	err := daemon.Notify(daemon.Set("X_A", strings.Repeat("a", 4096))) // so that nothing is sent
	if (err != nil) != (want == daemon.Systemd) || err != nil && !strings.Contains(err.Error(), words) {
		t.Fatalf("%v, want one of %q", err, words)
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
	timeout, err := daemon.WatchdogTimeout()
	wanted, ok := number(usec, math.MaxInt64)
	who, known := number(watched, math.MaxInt32)
	switch {
	case usec == "" && timeout == 0 && err == nil:
	case usec != "" && (!ok || watched != "" && !known):
		if timeout != 0 || !errors.Is(err, unix.EINVAL) {
			t.Fatalf("%v, %v, want %v", timeout, err, unix.EINVAL)
		}
	case usec != "" && watched != "" && who != int64(os.Getpid()) && timeout == 0 && err == nil:
	case usec != "" && err == nil && timeout == time.Duration(min(wanted, math.MaxInt64/1000))*time.Microsecond:
	default:
		t.Fatalf("%v, %v", timeout, err)
	}
}

// checkPassed has a program with two descriptors tell what Files returns, if it
// is to be anything: once they are taken, a process keeps them.
func checkPassed(t *testing.T, own bool, count, names, before string) {
	t.Helper()
	want, ok := number(strings.TrimPrefix(count, "+"), math.MaxInt32-3)
	if !ok || !own {
		if files := daemon.Files(); files != nil {
			t.Fatalf("%d files", len(files))
		}
		return
	}
	c := startWithFiles(t, "$$", count, names, before)
	all := strings.Split(names, ":")
	for i := range min(want, 2) {
		name := "unknown"
		if names != "" && int(i) < len(all) {
			name = all[i]
		}
		c.Says(passedFile(int(i), name))
	}
	c.Says("true true")
	c.Says("true")
	c.Exits(0)
}

// startWithFiles starts a program with two files at 3 and 4, that tells of them.
// pid is LISTEN_PID as a shell reads it: $$ is the program's own.
func startWithFiles(t *testing.T, pid, count, names, before string) *testdaemon.Child {
	t.Helper()
	cmd := testdaemon.UnderShell(testdaemon.Program(t, "files-passed", before),
		`export LISTEN_PID=`+pid+`; exec "$@" 5<&-`) // a fuzzing process leaves 5 open
	cmd.Env = append(cmd.Env, "LISTEN_FDS="+count, "LISTEN_FDNAMES="+names,
		"GODEBUG=containermaxprocs=0") // or the runtime has files of its own at 5 and 6
	cmd.ExtraFiles = []*os.File{testdaemon.Memory(t, "first"), testdaemon.Memory(t, "second")}
	return testdaemon.StartCommand(t, cmd)
}

// passedFile is what it says of one.
func passedFile(i int, name string) string {
	return fmt.Sprintf("%d %q holds %q, close-on-exec %d", 3+i, name, []string{"first", "second"}[i], unix.FD_CLOEXEC)
}
