//go:build linux

package notifying_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// What becomes of notifications if the receiver or the process itself is not well.

// startFull starts a program that notifies with several goroutines and has it call with a full queue.
func startFull(t *testing.T, name string, removePath bool) (c *testdaemon.Child, m *testdaemon.Mailbox, sent int) {
	t.Helper()
	m = testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	c = testdaemon.Start(t, name, m.Address)
	m.Hears(c, "WATCHDOG=1\n")
	sent = m.Fill()
	if removePath {
		os.Remove(m.Address)
	}
	c.GoOn()
	c.Says("calling")
	return c, m, sent
}

// endsWell checks that the child is heard, now that there is room, and ends.
func endsWell(c *testdaemon.Child, m *testdaemon.Mailbox) {
	c.T.Helper()
	if datagram, ok := m.Take(); ok {
		c.T.Errorf("%q arrived after all", datagram)
	}
	c.GoOn()
	c.Says("<nil>")
	m.Hears(c, "WATCHDOG=1\n")
	c.Exits(0)
}

// giveUp checks that so many calls of the child do, each after its own limit:
// of those that waited for one another, the last would take longer than the
// first by a limit.
func giveUp(c *testdaemon.Child, m *testdaemon.Mailbox, calls int, limit time.Duration) {
	c.T.Helper()
	var took []time.Duration
	for range calls {
		duration, result, _ := strings.Cut(c.Line(), " ")
		d, err := time.ParseDuration(duration)
		if err != nil {
			c.T.Fatal(err)
		}
		took = append(took, d)
		if want := fmt.Sprintf("daemon: send %s: %v", m.Address, os.ErrDeadlineExceeded); result != want {
			c.T.Errorf("%s, want %s", result, want)
		}
	}
	first, last := slices.Min(took), slices.Max(took)
	if first < limit || first > limit+10*time.Second || last-first >= limit {
		c.T.Errorf("took %v to %v, want %v each", first, last, limit)
	}
}

func TestEachCallWaitsItsOwnFiveSecondsForRoom(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-hasty", false)
	giveUp(c, m, 12, 5*time.Second)
	m.Drain(sent)
	endsWell(c, m)
}

func TestManyCallsWaitInFewThreads(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-crowd", false)
	giveUp(c, m, 500, 5*time.Second)
	m.Drain(sent)
	endsWell(c, m)
}

// Some programs take all descriptors from themselves, once they are up (RLIMIT_NOFILE is 0).
func TestWaitWithoutDescriptorsTakesNoProcessor(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-with-limit-0", false)
	c.Says(fmt.Sprintf("false daemon: send %s: %v", m.Address, os.ErrDeadlineExceeded))
	m.Drain(sent)
	endsWell(c, m)
}

func TestReadyIsHeardByAReceiverThatReadsAfterEightSeconds(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", false)
	time.Sleep(8 * time.Second)
	m.Drain(sent)
	var heard []string
	for range 3 {
		heard = append(heard, m.Next())
		if _, result, _ := strings.Cut(c.Line(), " "); result != "<nil>" {
			t.Error(result)
		}
	}
	slices.Sort(heard)
	want := []string{fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", c.PID()), "RELOADING=1\nMONOTONIC_USEC=1\n",
		"STOPPING=1\n"}
	if !slices.Equal(heard, want) {
		t.Errorf("%q, want %q", heard, want)
	}
	endsWell(c, m)
}

// OpenRC removes its socket after READY=1 and does not read any more.
func TestReadyDoesNotWaitLongForAReceiverThatHasRemovedItsSocket(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", true)
	giveUp(c, m, 3, 5*time.Second)
	m.Drain(sent)
	endsWell(c, m)
}

var notifyPatience = flag.Bool("notify.patience", false, "wait the 90 seconds after which Ready gives up")

func TestReadyGivesUpAfterNinetySeconds(t *testing.T) {
	if !*notifyPatience {
		t.Skip("takes 90 s: -notify.patience")
	}
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", false)
	giveUp(c, m, 3, 90*time.Second)
	m.Drain(sent)
	endsWell(c, m)
}

func TestReadyIsHeardOutOfAChroot(t *testing.T) {
	testdaemon.MustBeRoot(t)
	t.Parallel()
	m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	c := testdaemon.Start(t, "notify-patient-in-chroot", m.Address, t.TempDir())
	m.Hears(c, "WATCHDOG=1\n")
	m.Hears(c, "WATCHDOG=1\n")
	sent := m.Fill()
	c.GoOn()
	c.Says("calling")
	time.Sleep(8 * time.Second)
	m.Drain(sent)
	for range 3 {
		m.Next()
		if _, result, _ := strings.Cut(c.Line(), " "); result != "<nil>" {
			t.Error(result)
		}
	}
	endsWell(c, m)
}

func TestStoreFilesWaitsUntilEarlierFilesHaveBeenReceived(t *testing.T) {
	t.Parallel()
	m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	if err := os.Chmod(m.Address, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(strings.TrimSuffix(m.Address, "/notify"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := testdaemon.Program(t, "notify-many-rights")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.Address)
	if os.Geteuid() == 0 { // root may have more
		testdaemon.AsNobody(t, cmd)
	}
	c := testdaemon.StartCommand(t, cmd)
	for range 3 { // the third has 60 before it, which are not above the limit
		c.Says("<nil>")
	}
	time.Sleep(100 * time.Millisecond) // for the fourth to meet the limit
	for range 4 {
		m.Next() // nobody receives the descriptors: the kernel drops them
	}
	c.Says("<nil>")
	c.Exits(0)
}

func TestBarrierNeedsTwoDescriptorsAndNoMore(t *testing.T) {
	for free := range 6 {
		m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
		c := testdaemon.Start(t, "notify-few-descriptors", m.Address, fmt.Sprint(free))
		m.Hears(c, "WATCHDOG=1\n")
		if free >= 2 {
			unix.Close(m.TakeBarrier())
		}
		c.Says(fmt.Sprint(free < 2))
		c.Exits(0)
	}
}

// A receiver ends and comes back at the same path, 10,000 times.
func TestReceiverThatComesBackIsHeardAgain(t *testing.T) {
	path := testdaemon.Directory(t) + "/notify"
	t.Setenv("NOTIFY_SOCKET", path)
	reaches := func(m *testdaemon.Mailbox) {
		t.Helper()
		if err := daemon.Heartbeat(); err != nil {
			t.Fatal(err)
		}
		if got, _ := m.Take(); got != "WATCHDOG=1\n" {
			t.Fatalf("%q", got)
		}
	}
	fails := func(want error) {
		t.Helper()
		if err := daemon.Heartbeat(); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Fatalf("%v, want %v of %s", err, want, path)
		}
	}
	m := testdaemon.BindMailbox(t, path)
	defer func() { m.Close() }()
	reaches(m)
	before := testdaemon.OpenDescriptors(t)
	for round := range 10_000 {
		switch round % 3 {
		case 0: // its path is removed
			m.Close()
			os.Remove(path)
			fails(unix.ENOENT)
			m = testdaemon.BindMailbox(t, path)
		case 1: // its path is left
			m.Close()
			fails(unix.ECONNREFUSED)
			fails(unix.ECONNREFUSED)
			os.Remove(path)
			m = testdaemon.BindMailbox(t, path)
		case 2: // another takes its place first
			os.Remove(path)
			other := testdaemon.BindMailbox(t, path)
			reaches(m)
			m.Close()
			m = other
		}
		reaches(m)
	}
	if after := testdaemon.OpenDescriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
}

func TestNotificationsOfManyGoroutinesArriveWholeAndInOrder(t *testing.T) {
	t.Parallel()
	m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	c := testdaemon.Start(t, "notify-goroutines", m.Address)
	pid := fmt.Sprintf("MAINPID=%d\n", c.PID())
	var count [agreed.Goroutines]int
	always := map[string]int{"READY=1\nSTATUS=ready\n" + pid: agreed.Goroutines * agreed.Each / 2,
		"STOPPING=1\n": agreed.Goroutines * agreed.Each / 2}
	for range agreed.Goroutines * agreed.Each * 2 {
		got := m.Next()
		if always[got] > 0 {
			always[got]--
			continue
		}
		var goroutine, i int
		fmt.Sscanf(got, "READY=1\nSTATUS=%d %d\n", &goroutine, &i)
		status, fill := agreed.IthOf(goroutine, i)
		want := "READY=1\nSTATUS=" + status + "\n" + pid + "X_FILL=" + fill + "\n"
		if got != want || i != count[goroutine] {
			t.Fatalf("%q, want %q, as the %dth of its goroutine", got, want, count[goroutine])
		}
		count[goroutine]++
	}
	c.Exits(0)
	if got, ok := m.Take(); ok {
		t.Errorf("%q arrived, too", got)
	}
}

func TestNotificationsTakeNoMemory(t *testing.T) {
	m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
	t.Setenv("NOTIFY_SOCKET", m.Address)
	status := strings.Repeat("größer ", 1000)
	calls := map[string]func() error{
		"all fields": func() error {
			return daemon.Ready(daemon.Status(status), daemon.MainPID(7), daemon.Errno(5), daemon.BusError(status[:100]),
				daemon.ExtendTimeout(time.Minute), daemon.Set("X_A", `\`))
		},
		"real time": func() error { return daemon.Reloading() },
		"fields":    func() error { return daemon.Reloading(daemon.Status(status)) },
	}
	for _, verb := range agreed.Verbs {
		if verb.Name != "Fail" && verb.Name != "StoreFiles" {
			calls[verb.Name] = verb.Call
		}
	}
	var space [5000]byte
	for name, call := range calls {
		allocs := testing.AllocsPerRun(100, func() {
			if err := call(); err != nil {
				t.Fatal(name, err)
			}
			if _, err := unix.Read(m.FD, space[:]); err != nil {
				t.Fatal(name, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// hearsAll checks what a program says and sends that calls all verbs.
func hearsAll(m *testdaemon.Mailbox, c *testdaemon.Child) {
	m.T.Helper()
	for _, verb := range agreed.Verbs {
		c.Says("<nil>")
		m.Hears(c, verb.Want)
	}
}

func TestNotificationsGetThroughWithAllDescriptorsInUse(t *testing.T) {
	for _, firstCall := range []string{"before", "after"} {
		t.Run(firstCall, func(t *testing.T) {
			m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
			c := testdaemon.Start(t, "notify-no-descriptor-left", m.Address, firstCall)
			m.Hears(c, agreed.Verbs[0].Want)
			hearsAll(m, c)
			m.Close()
			os.Remove(m.Address)
			m = testdaemon.OpenMailbox(t, m.Address)
			c.GoOn()
			hearsAll(m, c)
			c.Exits(0)
		})
	}
}

func TestNotificationsGetThroughAfterAllDescriptorsWereClosed(t *testing.T) {
	for _, others := range []string{"0 sockets", "2 sockets", "40 sockets", "4100 pipes", "4100 sockets Store"} {
		t.Run(others, func(t *testing.T) {
			var limit unix.Rlimit
			if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); limit.Max < 5000 {
				testdaemon.SkipUnlessForbidden(t, fmt.Sprintf("at most %d descriptors", limit.Max))
			}
			m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
			c := testdaemon.Start(t, "notify-closes-all", m.Address, others)
			m.Hears(c, agreed.Verbs[0].Want)
			if strings.HasSuffix(others, "Store") {
				c.Says("<nil>")
				m.Next()
			}
			hearsAll(m, c)
			c.Exits(0)
		})
	}
}

// The kernel's first table of descriptors has room for 64: to grow it takes
// milliseconds.
func TestNotifySocketIsInTheFirstTableAndNoStandardDescriptor(t *testing.T) {
	for _, name := range []string{"notify-sockets", "notify-closes-standard"} {
		for _, closed := range []string{"<&-", ">&-", "2>&-", "<&- >&- 2>&-"} {
			t.Run(name+" "+closed, func(t *testing.T) {
				m := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
				cmd := testdaemon.UnderShell(testdaemon.Program(t, name), `exec "$@" `+closed)
				cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.Address)
				c := testdaemon.StartCommand(t, cmd)
				m.Hears(c, agreed.Verbs[0].Want)
				got := m.Next()
				fd, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(got, "STATUS="), "\n"))
				if fd < 3 || fd > 63 || err != nil {
					t.Errorf("%q: want one socket, of 3 to 63", got)
				}
				c.Exits(0)
			})
		}
	}
}
