//go:build linux

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// starts measures what importing a package adds to the start of a program that
// then ends without a call of it.
func starts(directory string) {
	const rounds = 400
	programs := []*program{
		{name: "imports only os", file: "none"},
		{name: "**daemon**", file: "daemon", path: "github.com/seed-10280e03/daemon"},
		{name: "mdlayher/sdnotify", file: "mdlayher", path: "github.com/mdlayher/sdnotify"},
		{name: "go-systemd/daemon", file: "gosystemd", path: "github.com/coreos/go-systemd/v22/daemon"},
	}
	var uncounted error
	for range rounds {
		for _, i := range rand.Perm(len(programs)) {
			p := programs[i]
			path := filepath.Join(directory, p.file)
			p.cpu = append(p.cpu, timeCPU(path))
			p.initializers = append(p.initializers, timeInitializers(path))
			if uncounted == nil && len(p.calls) < rounds/10 {
				var n int64
				n, uncounted = countCalls(path)
				p.calls = append(p.calls, n)
			}
		}
	}
	reportStarts(programs, uncounted)
}

type program struct {
	name, file   string
	path         string               // of the package that it imports
	cpu          []float64            // microseconds of all threads, user and system
	initializers []map[string]float64 // microseconds of each package's
	calls        []int64              // see countCalls
}

func reportStarts(programs []*program, uncounted error) {
	rows := [][]string{{"program imports", "its initializers, µs", "with its imports', µs", "CPU, µs", "added", "system calls", "added"}}
	base := programs[0]
	own := func(p *program) float64 {
		return p.initialization(func(path string) bool { return path == p.path })
	}
	all := func(p *program) float64 {
		return p.initialization(func(path string) bool { _, ok := base.initializers[0][path]; return !ok })
	}
	for _, p := range programs {
		row := []string{p.name, fmt.Sprintf("%.0f", own(p)), fmt.Sprintf("%.0f", all(p)),
			fmt.Sprintf("%.0f", median(p.cpu)), fmt.Sprintf("%+.0f", median(p.cpu)-median(base.cpu)), "not counted", ""}
		if uncounted == nil {
			row[5], row[6] = fmt.Sprint(slices.Min(p.calls)), fmt.Sprintf("%+d", slices.Min(p.calls)-slices.Min(base.calls))
		}
		rows = append(rows, row)
	}
	table(rows)

	us := all(programs[1])
	want(us <= 60, "importing the package adds at most 60 µs of initializers to a start: %.0f", us)
	if uncounted != nil {
		fmt.Printf("System calls cannot be counted here: %v.\n\n", uncounted)
		return
	}
	added := slices.Min(programs[1].calls) - slices.Min(base.calls)
	want(added <= 10, "importing the package adds at most 10 system calls to a start: %d", added)
}

// initialization returns the time that the initializers of some packages take.
func (p *program) initialization(some func(path string) bool) (microseconds float64) {
	samples := make([]float64, len(p.initializers))
	for i, packages := range p.initializers {
		for path, us := range packages {
			if some(path) {
				samples[i] += us
			}
		}
	}
	return median(samples)
}

func timeCPU(path string) (microseconds float64) {
	cmd := exec.Command(path)
	cmd.Stderr = os.Stderr
	check(cmd.Run())
	return float64(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()) / float64(time.Microsecond)
}

var initTrace = regexp.MustCompile(`(?m)^init (\S+) @.* ms, (\S+) ms clock,`)

func timeInitializers(path string) map[string]float64 {
	var trace bytes.Buffer
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	cmd.Stderr = &trace
	check(cmd.Run())
	packages := make(map[string]float64)
	for _, match := range initTrace.FindAllStringSubmatch(trace.String(), -1) {
		milliseconds, err := strconv.ParseFloat(match[2], 64)
		check(err)
		packages[match[1]] = 1000 * milliseconds
	}
	return packages
}

// schedulers are the calls that Go's runtime makes for its threads and its memory.
// How many they are depends on time, and they are not counted.
var schedulers = []uint64{unix.SYS_FUTEX, unix.SYS_CLONE, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_YIELD, unix.SYS_NANOSLEEP, unix.SYS_TGKILL}

// countCalls counts the system calls of a program's main thread, where Go runs
// all initializers, by ptrace(2).
func countCalls(path string) (count int64, err error) {
	runtime.LockOSThread() // one thread must make all requests of ptrace
	defer runtime.UnlockOSThread()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer cmd.Process.Release()
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(cmd.Process.Pid, &status, 0, nil); err != nil {
			return 0, err
		}
		if !status.Stopped() {
			return count, nil
		}
		signal := int(status.StopSignal())
		switch signal {
		case int(unix.SIGTRAP): // execve(2)
			signal = 0
			err = unix.PtraceSetOptions(cmd.Process.Pid, unix.PTRACE_O_TRACESYSGOOD)
		case int(unix.SIGTRAP) | 0x80: // PTRACE_O_TRACESYSGOOD
			signal = 0
			var number uint64
			var entered bool
			number, entered, err = callOf(cmd.Process.Pid)
			if entered && !slices.Contains(schedulers, number) {
				count++
			}
		}
		if err != nil {
			return 0, err
		}
		if err := unix.PtraceSyscall(cmd.Process.Pid, signal); err != nil {
			return 0, err
		}
	}
}

// callOf returns the system call that a process is about to make
// (PTRACE_GET_SYSCALL_INFO of ptrace(2)).
func callOf(process int) (number uint64, entered bool, err error) {
	const request, entry = 0x420e, 1 // PTRACE_SYSCALL_INFO_ENTRY
	var info struct {
		op          uint8
		arch        uint32
		instruction uint64
		stack       uint64
		number      uint64
		arguments   [6]uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, request, uintptr(process), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return 0, false, errno
	}
	return info.number, info.op == entry, nil
}
