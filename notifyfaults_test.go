//go:build linux

package daemon_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

// What becomes of notifications where the receiver or the process itself is
// not well.

func init() {
	programs["notify-hasty"] = callAllAtOnce("Heartbeat", "Heartbeat", "Heartbeat", "Heartbeat", "Heartbeat",
		"Heartbeat", "Heartbeat", "Heartbeat", "Notify", "Fail", "StoreFiles", "RemoveFiles")
	programs["notify-patient"] = callAllAtOnce("Ready", "Reloading", "Stopping")
	programs["notify-patient-in-chroot"] = notifyInChroot
	programs["notify-many-rights"] = storeTooMany
	programs["notify-few-descriptors"] = barrierWithFewDescriptors
	programs["notify-goroutines"] = notifyFromGoroutines
	programs["notify-no-descriptor-left"] = useUpDescriptors
	programs["notify-closes-all"] = closeAll
	programs["notify-closes-standard"] = func() {
		try(unix.CloseRange(0, 2, 0))
		tellSockets()
	}
	programs["notify-sockets"] = tellSockets
}

// callAllAtOnce makes a program that notifies once and then, told to go on,
// calls verbs, each in a goroutine of its own, and tells how they end. At last
// it notifies once more.
func callAllAtOnce(names ...string) func() {
	return func() {
		try(daemon.Heartbeat())
		awaitLine()
		fmt.Println("calling")
		results := make(chan string)
		for _, name := range names {
			go func() {
				begun := time.Now()
				err := verb(name)()
				results <- fmt.Sprint(time.Since(begun), " ", err)
			}()
		}
		for range names {
			fmt.Println(<-results)
		}
		awaitLine()
		fmt.Println(daemon.Heartbeat())
	}
}

// startFull starts such a program and has it call with a full queue.
func startFull(t *testing.T, name string, removePath bool) (c *child, m *mailbox, sent int) {
	t.Helper()
	m = openMailbox(t, directory(t)+"/notify")
	c = start(t, name, m.address)
	m.hears(c, "WATCHDOG=1\n")
	sent = m.fill()
	if removePath {
		os.Remove(m.address)
	}
	c.goOn()
	c.says("calling")
	return c, m, sent
}

// endsWell checks that the child is heard, now that there is room, and ends.
func (c *child) endsWell(m *mailbox) {
	c.t.Helper()
	if datagram, ok := m.take(); ok {
		c.t.Errorf("%q arrived after all", datagram)
	}
	c.goOn()
	c.says("<nil>")
	m.hears(c, "WATCHDOG=1\n")
	c.exits(0)
}

// giveUp checks that so many calls of the child do, each after its own limit:
// of those that waited for one another, the last would take longer than the
// first by a limit.
func (c *child) giveUp(m *mailbox, calls int, limit time.Duration) {
	c.t.Helper()
	var took []time.Duration
	for range calls {
		duration, result, _ := strings.Cut(c.line(), " ")
		d, err := time.ParseDuration(duration)
		if err != nil {
			c.t.Fatal(err)
		}
		took = append(took, d)
		if want := fmt.Sprintf("daemon: send %s: %v", m.address, os.ErrDeadlineExceeded); result != want {
			c.t.Errorf("%s, want %s", result, want)
		}
	}
	first, last := slices.Min(took), slices.Max(took)
	if first < limit || first > limit+10*time.Second || last-first >= limit {
		c.t.Errorf("took %v to %v, want %v each", first, last, limit)
	}
}

func verb(name string) func() error {
	for _, verb := range verbs {
		if verb.name == name {
			return verb.call
		}
	}
	panic(name)
}

func TestEachCallWaitsItsOwnFiveSecondsForRoom(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-hasty", false)
	c.giveUp(m, 12, 5*time.Second)
	m.drain(sent)
	c.endsWell(m)
}

func TestReadyIsHeardByAReceiverThatReadsAfterEightSeconds(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", false)
	time.Sleep(8 * time.Second)
	m.drain(sent)
	var heard []string
	for range 3 {
		heard = append(heard, m.next())
		if _, result, _ := strings.Cut(c.line(), " "); result != "<nil>" {
			t.Error(result)
		}
	}
	slices.Sort(heard)
	want := []string{fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", c.pid()), "RELOADING=1\nMONOTONIC_USEC=1\n", "STOPPING=1\n"}
	if !slices.Equal(heard, want) {
		t.Errorf("%q, want %q", heard, want)
	}
	c.endsWell(m)
}

// OpenRC removes its socket after READY=1 and does not read any more.
func TestReadyDoesNotWaitLongForAReceiverThatHasRemovedItsSocket(t *testing.T) {
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", true)
	c.giveUp(m, 3, 5*time.Second)
	m.drain(sent)
	c.endsWell(m)
}

var notifyPatience = flag.Bool("notify.patience", false, "wait the 90 seconds after which Ready gives up")

func TestReadyGivesUpAfterNinetySeconds(t *testing.T) {
	if !*notifyPatience {
		t.Skip("takes 90 s: -notify.patience")
	}
	t.Parallel()
	c, m, sent := startFull(t, "notify-patient", false)
	c.giveUp(m, 3, 90*time.Second)
	m.drain(sent)
	c.endsWell(m)
}

// notifyInChroot is notify-patient, from where the socket's path leads nowhere.
func notifyInChroot() {
	try(daemon.Heartbeat())
	try(unix.Chroot(os.Args[1]))
	programs["notify-patient"]()
}

func TestReadyIsHeardOutOfAChroot(t *testing.T) {
	mustBeRoot(t)
	t.Parallel()
	m := openMailbox(t, directory(t)+"/notify")
	c := start(t, "notify-patient-in-chroot", m.address, t.TempDir())
	m.hears(c, "WATCHDOG=1\n")
	m.hears(c, "WATCHDOG=1\n")
	sent := m.fill()
	c.goOn()
	c.says("calling")
	time.Sleep(8 * time.Second)
	m.drain(sent)
	for range 3 {
		m.next()
		if _, result, _ := strings.Cut(c.line(), " "); result != "<nil>" {
			t.Error(result)
		}
	}
	c.endsWell(m)
}

// storeTooMany stores more than an ordinary user may have on their way: as many
// as it may have open.
func storeTooMany() {
	try(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	files := slices.Repeat([]*os.File{os.Stdin}, 30)
	for range 4 {
		fmt.Println(daemon.StoreFiles("x", files...))
	}
}

func TestStoreFilesWaitsUntilEarlierFilesHaveBeenReceived(t *testing.T) {
	t.Parallel()
	m := openMailbox(t, directory(t)+"/notify")
	if err := os.Chmod(m.address, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(strings.TrimSuffix(m.address, "/notify"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "notify-many-rights")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.address)
	if os.Geteuid() == 0 { // root may have more
		cmd.Path = "/proc/self/exe" // may be where only root comes
		asNobody(cmd)
	}
	c := startCommand(t, cmd)
	for range 3 { // the third has 60 before it, which are not above the limit
		c.says("<nil>")
	}
	time.Sleep(100 * time.Millisecond) // for the fourth to meet the limit
	for range 4 {
		m.next() // nobody receives the descriptors: the kernel drops them
	}
	c.says("<nil>")
	c.exits(0)
}

// barrierWithFewDescriptors leaves itself as many as it is told.
func barrierWithFewDescriptors() {
	var free int
	fmt.Sscan(os.Args[1], &free)
	try(daemon.Heartbeat())
	var all []int
	try(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	for fd, err := unix.Dup(0); err != unix.EMFILE; fd, err = unix.Dup(0) {
		try(err)
		all = append(all, fd)
	}
	for _, fd := range all[:free] {
		try(unix.Close(fd))
	}
	fmt.Println(errors.Is(daemon.Barrier(context.Background()), unix.EMFILE))
}

func TestBarrierNeedsTwoDescriptorsAndNoMore(t *testing.T) {
	for free := range 6 {
		m := openMailbox(t, directory(t)+"/notify")
		c := start(t, "notify-few-descriptors", m.address, fmt.Sprint(free))
		m.hears(c, "WATCHDOG=1\n")
		if free >= 2 {
			unix.Close(m.takeBarrier())
		}
		c.says(fmt.Sprint(free < 2))
		c.exits(0)
	}
}

// A receiver ends and comes back at the same path, 10,000 times.
func TestReceiverThatComesBackIsHeardAgain(t *testing.T) {
	path := directory(t) + "/notify"
	t.Setenv("NOTIFY_SOCKET", path)
	reaches := func(m *mailbox) {
		t.Helper()
		if err := daemon.Heartbeat(); err != nil {
			t.Fatal(err)
		}
		if got, _ := m.take(); got != "WATCHDOG=1\n" {
			t.Fatalf("%q", got)
		}
	}
	fails := func(want error) {
		t.Helper()
		if err := daemon.Heartbeat(); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Fatalf("%v, want %v of %s", err, want, path)
		}
	}
	m := bindMailbox(t, path)
	defer func() { m.close() }()
	reaches(m)
	before := openDescriptors(t)
	for round := range 10_000 {
		switch round % 3 {
		case 0: // its path is removed
			m.close()
			os.Remove(path)
			fails(unix.ENOENT)
			m = bindMailbox(t, path)
		case 1: // its path is left
			m.close()
			fails(unix.ECONNREFUSED)
			fails(unix.ECONNREFUSED)
			os.Remove(path)
			m = bindMailbox(t, path)
		case 2: // another takes its place first
			os.Remove(path)
			other := bindMailbox(t, path)
			reaches(m)
			m.close()
			m = other
		}
		reaches(m)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

const goroutines, each = 64, 1000

// ithOf is the ith notification of a goroutine.
func ithOf(goroutine, i int) (status, fill string) {
	return fmt.Sprintf("%d %d", goroutine, i), strings.Repeat(string(rune('a'+goroutine%26)), goroutine*30)
}

// notifyFromGoroutines has the garbage collector preempt them by signals
// (SIGURG) meanwhile.
func notifyFromGoroutines() {
	var all sync.WaitGroup
	for goroutine := range goroutines {
		all.Go(func() {
			for i := range each {
				status, fill := ithOf(goroutine, i)
				try(daemon.Ready(daemon.Status(status), daemon.Set("X_FILL", fill)))
				if i%2 == 0 { // these are encoded already; they are patient, as one of 64 must be
					try(daemon.Ready())
					try(daemon.Stopping())
				}
			}
		})
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
	all.Wait()
}

func TestNotificationsOfManyGoroutinesArriveWholeAndInOrder(t *testing.T) {
	t.Parallel()
	m := openMailbox(t, directory(t)+"/notify")
	c := start(t, "notify-goroutines", m.address)
	pid := fmt.Sprintf("MAINPID=%d\n", c.pid())
	var count [goroutines]int
	always := map[string]int{"READY=1\nSTATUS=ready\n" + pid: goroutines * each / 2, "STOPPING=1\n": goroutines * each / 2}
	for range goroutines * each * 2 {
		got := m.next()
		if always[got] > 0 {
			always[got]--
			continue
		}
		var goroutine, i int
		fmt.Sscanf(got, "READY=1\nSTATUS=%d %d\n", &goroutine, &i)
		status, fill := ithOf(goroutine, i)
		want := "READY=1\nSTATUS=" + status + "\n" + pid + "X_FILL=" + fill + "\n"
		if got != want || i != count[goroutine] {
			t.Fatalf("%q, want %q, as the %dth of its goroutine", got, want, count[goroutine])
		}
		count[goroutine]++
	}
	c.exits(0)
	if got, ok := m.take(); ok {
		t.Errorf("%q arrived, too", got)
	}
}

func TestNotificationsTakeNoMemory(t *testing.T) {
	m := openMailbox(t, directory(t)+"/notify")
	t.Setenv("NOTIFY_SOCKET", m.address)
	status := strings.Repeat("größer ", 1000)
	calls := map[string]func() error{
		"all fields": func() error {
			return daemon.Ready(daemon.Status(status), daemon.MainPID(7), daemon.Errno(5), daemon.BusError(status[:100]),
				daemon.ExtendTimeout(time.Minute), daemon.Set("X_A", `\`))
		},
		"real time": func() error { return daemon.Reloading() },
		"fields":    func() error { return daemon.Reloading(daemon.Status(status)) },
	}
	for _, verb := range verbs {
		if verb.name != "Fail" && verb.name != "StoreFiles" {
			calls[verb.name] = verb.call
		}
	}
	var space [5000]byte
	for name, call := range calls {
		allocs := testing.AllocsPerRun(100, func() {
			if err := call(); err != nil {
				t.Fatal(name, err)
			}
			if _, err := unix.Read(m.fd, space[:]); err != nil {
				t.Fatal(name, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// useUpDescriptors opens all descriptors that it may after the first call or,
// told so, all but one before it.
func useUpDescriptors() {
	try(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	if os.Args[1] == "after" {
		try(daemon.Ready())
	}
	var last int
	for fd, err := unix.Dup(0); err != unix.EMFILE; fd, err = unix.Dup(0) {
		try(err)
		last = fd
	}
	if os.Args[1] == "before" {
		try(unix.Close(last))
		try(daemon.Ready())
	}
	callAll()
	awaitLine() // the receiver has come back
	callAll()
}

func callAll() {
	for _, verb := range verbs {
		fmt.Println(verb.call())
	}
}

// hearsAll is the other side of callAll.
func (m *mailbox) hearsAll(c *child) {
	m.t.Helper()
	for _, verb := range verbs {
		c.says("<nil>")
		m.hears(c, verb.want)
	}
}

// hears checks that a child has sent what this process would send as want.
func (m *mailbox) hears(c *child, want string) {
	m.t.Helper()
	want = strings.ReplaceAll(want, mainPID, fmt.Sprintf("MAINPID=%d\n", c.pid()))
	if got := m.next(); got != want {
		m.t.Errorf("%q, want %q", got, want)
	}
}

func TestNotificationsGetThroughWithAllDescriptorsInUse(t *testing.T) {
	for _, firstCall := range []string{"before", "after"} {
		t.Run(firstCall, func(t *testing.T) {
			m := openMailbox(t, directory(t)+"/notify")
			c := start(t, "notify-no-descriptor-left", m.address, firstCall)
			m.hears(c, verbs[0].want)
			m.hearsAll(c)
			m.close()
			os.Remove(m.address)
			m = openMailbox(t, m.address)
			c.goOn()
			m.hearsAll(c)
			c.exits(0)
		})
	}
}

// closeAll closes all descriptors from 3 up after the first call, opens as many
// others as it is told, and looks whether something is sent there. "Store" has
// it call StoreFiles before all others.
func closeAll() {
	debug.SetGCPercent(-1) // or the runtime might miss its own descriptor
	var count int
	var kind, first string
	fmt.Sscan(os.Args[1], &count, &kind, &first)
	try(daemon.Ready())
	try(unix.CloseRange(3, 1<<31-1, 0))
	var others []int
	for len(others) < count {
		var pair [2]int
		if kind == "pipes" {
			try(unix.Pipe2(pair[:], unix.O_NONBLOCK))
		} else {
			var err error
			pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
			try(err)
		}
		others = append(others, pair[:]...)
	}
	if first == "Store" {
		fmt.Println(verb("StoreFiles")())
	}
	callAll()
	for i, fd := range others {
		if kind == "pipes" && i%2 == 1 { // for writing
			continue
		}
		var space [5000]byte
		if n, err := unix.Read(fd, space[:]); n > 0 {
			try(fmt.Errorf("descriptor %d has received %q (%v)", fd, space[:max(n, 0)], err))
		}
	}
}

func TestNotificationsGetThroughAfterAllDescriptorsWereClosed(t *testing.T) {
	for _, others := range []string{"0 sockets", "2 sockets", "100 sockets", "2000 sockets", "4100 pipes", "4100 sockets Store"} {
		t.Run(others, func(t *testing.T) {
			var limit unix.Rlimit
			if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); limit.Max < 5000 {
				skipUnlessForbidden(t, fmt.Sprintf("at most %d descriptors", limit.Max))
			}
			m := openMailbox(t, directory(t)+"/notify")
			c := start(t, "notify-closes-all", m.address, others)
			m.hears(c, verbs[0].want)
			if strings.HasSuffix(others, "Store") {
				c.says("<nil>")
				m.next()
			}
			m.hearsAll(c)
			c.exits(0)
		})
	}
}

// tellSockets tells which descriptors have become sockets by the first call,
// and that a child does not inherit them.
func tellSockets() {
	before := sockets()
	try(daemon.Ready())
	after := slices.DeleteFunc(sockets(), func(fd string) bool { return slices.Contains(before, fd) })
	for _, fd := range after {
		if err := exec.Command("test", "-e", "/proc/self/fd/"+fd).Run(); err == nil {
			after = append(after, "inherited")
		}
	}
	try(daemon.Notify(daemon.Status(strings.Join(after, " "))))
}

func sockets() (fds []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	try(err)
	for _, entry := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + entry.Name()); strings.HasPrefix(target, "socket:") {
			fds = append(fds, entry.Name())
		}
	}
	return fds
}

func TestNotifySocketIsNoStandardDescriptor(t *testing.T) {
	for _, name := range []string{"notify-sockets", "notify-closes-standard"} {
		for _, closed := range []string{"<&-", ">&-", "2>&-", "<&- >&- 2>&-"} {
			t.Run(name+" "+closed, func(t *testing.T) {
				m := openMailbox(t, directory(t)+"/notify")
				c := startCommand(t, inShell(program(t, name), `exec "$0" `+closed, "NOTIFY_SOCKET="+m.address))
				m.hears(c, verbs[0].want)
				got := m.next()
				fd, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(got, "STATUS="), "\n"))
				if fd < 3 || err != nil {
					t.Errorf("%q: want one socket, and none of 0 to 2", got)
				}
				c.exits(0)
			})
		}
	}
}

// inShell has a shell execute a program in its own place, as "$0" of script.
func inShell(cmd *exec.Cmd, script string, env ...string) *exec.Cmd {
	shell := exec.Command("sh", append([]string{"-c", script}, cmd.Args...)...)
	shell.Env = append(cmd.Env, env...)
	return shell
}
