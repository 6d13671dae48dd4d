//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds programs that notify, also if the receiver or the process itself is
// not well.
func init() {
	programs["notify-ready"] = func() {
		err := daemon.Ready()
		fmt.Println(os.Getpid(), err)
		os.Exit(7)
	}
	programs["notify-hasty"] = callAllAtOnce("Heartbeat", "Heartbeat", "Heartbeat", "Heartbeat", "Heartbeat",
		"Heartbeat", "Heartbeat", "Heartbeat", "Notify", "Fail", "StoreFiles", "RemoveFiles")
	programs["notify-crowd"] = func() {
		debug.SetMaxThreads(100)
		callAllAtOnce(slices.Repeat([]string{"Heartbeat"}, 500)...)()
	}
	programs["notify-patient"] = callAllAtOnce("Ready", "Reloading", "Stopping")
	programs["notify-patient-in-chroot"] = notifyInChroot
	programs["notify-with-limit-0"] = waitWithLimit0
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
	programs["barrier-holder"] = func() {
		_, err := agreed.TakeBarrier(3) // inherited
		try(err)
		fmt.Println("taken")
		awaitLine()
	}
	programs["barrier-closes-all"] = func() {
		result := make(chan error)
		go func() { result <- daemon.Barrier(context.Background()) }()
		awaitLine() // until it waits
		try(unix.CloseRange(3, 1<<31-1, 0))
		fmt.Println(<-result)
	}
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

func verb(name string) func() error {
	for _, verb := range agreed.Verbs {
		if verb.Name == name {
			return verb.Call
		}
	}
	panic(name)
}

// notifyInChroot is notify-patient, from where the socket's path leads nowhere.
func notifyInChroot() {
	try(daemon.Heartbeat())
	try(unix.Chroot(os.Args[1]))
	programs["notify-patient"]()
}

// waitWithLimit0 waits for room where not even one descriptor can be polled, and tells
// whether that took most of a processor.
func waitWithLimit0() {
	try(daemon.Heartbeat())
	awaitLine()
	try(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{}))
	fmt.Println("calling")
	before := processorTime()
	err := daemon.Heartbeat()
	fmt.Println(processorTime()-before > time.Second, err)
	awaitLine()
	fmt.Println(daemon.Heartbeat())
}

func processorTime() time.Duration {
	var used unix.Rusage
	try(unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// storeTooMany stores more than an ordinary user may have on their way: as many
// as it may have open. After the first call it has no descriptor left.
func storeTooMany() {
	try(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	files := slices.Repeat([]*os.File{os.Stdin}, 30)
	fmt.Println(daemon.StoreFiles("x", files...))
	for _, err := unix.Dup(0); err != unix.EMFILE; _, err = unix.Dup(0) {
		try(err)
	}
	for range 3 {
		fmt.Println(daemon.StoreFiles("x", files...))
	}
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

// notifyFromGoroutines has the garbage collector preempt them by signals
// (SIGURG) meanwhile.
func notifyFromGoroutines() {
	var all sync.WaitGroup
	for goroutine := range agreed.Goroutines {
		all.Go(func() {
			for i := range agreed.Each {
				status, fill := agreed.IthOf(goroutine, i)
				try(daemon.Ready(daemon.Status(status), daemon.Set("X_FILL", fill)))
				if i%2 == 0 { // these are encoded already; they are patient, as one of 64 must be
					try(daemon.Ready(daemon.Status("ready")))
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
	for _, verb := range agreed.Verbs {
		fmt.Println(verb.Call())
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
