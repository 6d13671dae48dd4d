//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	gosystemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/mdlayher/sdnotify"
	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

const rounds = 20_000

// A message is measured for each way of sending it.
type message struct {
	name  string
	bytes string
	own   func() error // sends it by this package
	limit float64      // what own may cost, in bare sends; 0: not a figure to reach
	ways  []*way       // unix.Send, the raw system call, this package, mdlayher, go-systemd
}

// A way of sending a message; samples are nanoseconds per burst.
type way struct {
	name    string
	call    func() error
	allocs  float64
	samples []int64
}

func (w *way) nanoseconds(burst int, loop int64) float64 {
	return float64(median(w.samples)-loop) / float64(burst-1)
}

func notifications(directory string) {
	pid := os.Getpid()
	messages := []*message{{
		name:  "Ready()",
		bytes: fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", pid),
		own:   func() error { return daemon.Ready() },
		limit: 1.10,
	}, {
		name:  "Ready(Status, MainPID)",
		bytes: fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", pid),
		// The same status as Ready's: a Ready without one says the last again.
		own: func() error { return daemon.Ready(daemon.Status("ready"), daemon.MainPID(pid)) },
	}, {
		name:  "Heartbeat()",
		bytes: "WATCHDOG=1\n",
		own:   daemon.Heartbeat,
		limit: 1.10,
	}, {
		name:  "Notify(Status)",
		bytes: "STATUS=serving on :8080\n",
		own:   func() error { return daemon.Notify(daemon.Status("serving on :8080")) },
	}}
	receiver := listen(filepath.Join(directory, "notify"))
	check(os.Setenv("NOTIFY_SOCKET", receiver.address))
	defer os.Unsetenv("NOTIFY_SOCKET")
	nothing := &way{call: func() error { return nil }} // the loop and the clock
	contestants := []*way{nothing}
	for _, m := range messages {
		m.ways = waysOf(m, receiver.address)
		contestants = append(contestants, m.ways...)
		for _, w := range m.ways {
			check(w.call())
			receiver.expect(w.name, m.bytes)
			w.allocs = testing.AllocsPerRun(100, func() { check(w.call()); receiver.drain() })
		}
	}
	burst := receiver.burst
	for range rounds {
		for _, i := range rand.Perm(len(contestants)) {
			w := contestants[i]
			w.samples = append(w.samples, timeBurst(burst, w.call))
			if n := receiver.drain(); n != burst && w != nothing {
				panic(fmt.Sprintf("%s: %d of %d messages arrived", w.name, n, burst))
			}
		}
	}
	report(messages, burst, median(nothing.samples))
}

func waysOf(m *message, address string) []*way {
	bare := dial(address)
	datagram := []byte(m.bytes)
	// mdlayher/sdnotify opens its socket once, and go-systemd at each call. Both
	// get their text ready made, which is the fastest that they can be called.
	notifier, err := sdnotify.New()
	check(err)
	return []*way{
		{name: "`unix.Send`", call: func() error {
			return unix.Send(bare, datagram, unix.MSG_NOSIGNAL)
		}},
		{name: "`unix.RawSyscall6(SYS_SENDTO)`: no scheduler bookkeeping", call: func() error {
			_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(bare), uintptr(unsafe.Pointer(&datagram[0])),
				uintptr(len(datagram)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno != 0 {
				return errno
			}
			return nil
		}},
		{name: "**daemon." + m.name + "**", call: m.own},
		{name: "mdlayher/sdnotify", call: func() error { return notifier.Notify(m.bytes) }},
		{name: "go-systemd", call: func() error {
			_, err := gosystemd.SdNotify(false, m.bytes)
			return err
		}},
	}
}

// timeBurst times a burst but for its first call, which finds the caches full of
// the other ways' code.
func timeBurst(burst int, call func() error) (nanoseconds int64) {
	check(call())
	start := time.Now()
	for range burst - 1 {
		check(call())
	}
	return time.Since(start).Nanoseconds()
}

func report(messages []*message, burst int, loop int64) {
	rows := [][]string{{"what sends it", "ns per call", "over `unix.Send`", "ratio", "allocations"}}
	for _, m := range messages {
		bare := m.ways[0].nanoseconds(burst, loop)
		rows = append(rows, []string{fmt.Sprintf("*%q*", m.bytes), "", "", "", ""})
		for _, w := range m.ways {
			ns := w.nanoseconds(burst, loop)
			rows = append(rows, []string{w.name, fmt.Sprintf("%.0f", ns), fmt.Sprintf("%+.0f", ns-bare),
				fmt.Sprintf("%.3f", ns/bare), fmt.Sprint(w.allocs)})
		}
		ns, allocs := m.ways[2].nanoseconds(burst, loop), m.ways[2].allocs
		mdlayher, goSystemd := m.ways[3].nanoseconds(burst, loop), m.ways[4].nanoseconds(burst, loop)
		if m.limit != 0 {
			want(ns <= m.limit*bare, "%s costs at most %.2f bare sends: %.3f", m.name, m.limit, ns/bare)
		}
		want(allocs == 0, "%s allocates nothing: %v", m.name, allocs)
		want(ns <= mdlayher, "%s is no slower than mdlayher/sdnotify: %.2f times as fast", m.name, mdlayher/ns)
		want(goSystemd >= 5*ns, "%s is at least 5 times as fast as go-systemd: %.1f", m.name, goSystemd/ns)
	}
	table(rows)
}

// receiver is a socket like systemd's. It is drained by this very thread
// between bursts that fit its queue: a full queue would measure the queue, and
// a reader on another CPU the socket's lock.
type receiver struct {
	fd      int
	address string
	burst   int
	buffer  [4096]byte
}

func listen(address string) *receiver {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(err)
	check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
	check(unix.Bind(fd, &unix.SockaddrUnix{Name: address}))

	text, err := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	check(err)
	queue, err := strconv.Atoi(strings.TrimSpace(string(text)))
	check(err)
	return &receiver{fd: fd, address: address, burst: min(max(queue-1, 2), 128)}
}

func dial(address string) (fd int) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	check(unix.Connect(fd, &unix.SockaddrUnix{Name: address}))
	return fd
}

// drain reads what is there and returns how many messages it was.
func (r *receiver) drain() (count int) {
	for {
		_, err := unix.Read(r.fd, r.buffer[:])
		switch err {
		case nil:
			count++
		case unix.EAGAIN:
			return count
		case unix.EINTR:
		default:
			panic(err)
		}
	}
}

// expect stops an unfair comparison: all ways send the same bytes.
func (r *receiver) expect(way, bytes string) {
	n, err := unix.Read(r.fd, r.buffer[:])
	check(err)
	if got := string(r.buffer[:n]); got != bytes {
		panic(fmt.Sprintf("%s sent %q, not %q", way, got, bytes))
	}
}
