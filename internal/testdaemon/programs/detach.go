//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

// Orders about the process itself, and what a detach makes of it.
func init() {
	orders["detach"] = func(string) error { return daemon.Detach() }
	orders["ready"] = func(string) error { return daemon.Ready() }
	orders["foreground"] = func(string) error { daemon.Foreground(); return nil }
	orders["ready-at-once"] = func(string) error { return readyAtOnce() }
	orders["ready-exit"] = func(code string) error {
		if err := daemon.Ready(); err != nil {
			return err
		}
		return orders["exit"](code)
	}

	orders["chdir"] = os.Chdir
	orders["setenv"] = func(assignment string) error {
		key, value, _ := strings.Cut(assignment, "=")
		return os.Setenv(key, value)
	}
	orders["unsetenv"] = os.Unsetenv
	// As setproctitle(3) does.
	orders["overwrite-args"] = func(string) error {
		for _, arg := range os.Args[1:] {
			bytes := unsafe.Slice(unsafe.StringData(arg), len(arg))
			for i := range bytes {
				bytes[i] = 'x'
			}
		}
		return nil
	}
	orders["forget-args"] = func(string) error {
		os.Args[0] = "forgotten"
		os.Args = nil
		return nil
	}
	orders["name"] = func(name string) error {
		return os.WriteFile("/proc/self/comm", []byte(name), 0)
	}

	orders["say"] = func(text string) error {
		_, err := fmt.Fprintln(os.Stderr, text)
		return err
	}
	orders["panic"] = func(text string) error { panic(text) }
	orders["log.Fatal"] = func(text string) error {
		log.SetFlags(0)
		log.Fatal(text)
		return nil
	}
	// No Go program any more, and no handler: kill -QUIT $$ is an end by QUIT.
	orders["become"] = func(script string) error {
		return syscall.Exec("/bin/sh", []string{"sh", "-c", script}, os.Environ())
	}

	orders["catch"] = func(names string) error {
		for name := range strings.FieldsSeq(names) {
			signal.Notify(caught, unix.SignalNum("SIG"+name))
		}
		return nil
	}
	orders["ignore"] = func(names string) error {
		for name := range strings.FieldsSeq(names) {
			signal.Ignore(unix.SignalNum("SIG" + name))
		}
		return nil
	}
	questions["signal"] = func() string { return (<-caught).String() }

	orders["close"] = func(numbers string) (err error) {
		for number := range strings.FieldsSeq(numbers) {
			fd, convErr := strconv.Atoi(number)
			err = errors.Join(err, convErr, unix.Close(fd))
		}
		return err
	}
	orders["close-files"] = func(string) (err error) {
		for _, file := range daemon.Files() {
			err = errors.Join(err, file.Close())
		}
		return err
	}
	orders["setsid"] = func(string) error {
		_, err := unix.Setsid()
		return err
	}
	orders["setpgid"] = func(string) error { return unix.Setpgid(0, 0) }
	orders["listen"] = func(address string) error {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			go answerPID(listener)
		}
		return err
	}
	orders["limit-files"] = func(limits string) error {
		var limit unix.Rlimit
		if _, err := fmt.Sscan(limits, &limit.Cur, &limit.Max); err != nil {
			return err
		}
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	orders["profile"] = func(string) error { return pprof.StartCPUProfile(&profile) }
	orders["profiled"] = func(string) error { return mustProfile() }
	orders["timer"] = func(string) error {
		soon := unix.Timeval{Usec: 100}
		_, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Interval: soon, Value: soon})
		return err
	}

	orders["chroot"] = func(dir string) error {
		if err := unix.Chroot(dir); err != nil {
			return err
		}
		return os.Chdir("/")
	}
	orders["setuid"] = func(id string) error {
		uid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		return syscall.Setuid(uid)
	}
	orders["setgid"] = func(id string) error {
		gid, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		return syscall.Setgid(gid)
	}

	questions["args"] = func() string { return toJSON(os.Args) }
	questions["environ"] = func() string { return toJSON(os.Environ()) }
	questions["cwd"] = func() string {
		dir, err := os.Getwd()
		return dir + fmt.Sprint(err)
	}
	questions["child-environ"] = func() string {
		out, err := exec.Command("env").Output()
		if err != nil {
			return err.Error()
		}
		return toJSON(strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"))
	}
	questions["child-limit"] = func() string {
		out, err := exec.Command("sh", "-c", "ulimit -n").Output()
		return strings.TrimSpace(string(out)) + fmt.Sprint(err)
	}
	questions["stdin"] = func() string {
		text, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return text
	}
}

var (
	caught  = make(chan os.Signal, 8)
	profile samples
)

func toJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

// readyAtOnce calls Ready from many goroutines.
func readyAtOnce() error {
	errs := make(chan error)
	for range 50 {
		go func() { errs <- daemon.Ready() }()
	}
	var all error
	for range 50 {
		all = errors.Join(all, <-errs)
	}
	return all
}

func answerPID(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(conn, os.Getpid())
		conn.Close()
	}
}

// samples is a CPU profile that is thrown away, but for its length.
type samples struct{ n atomic.Int64 }

func (s *samples) Write(p []byte) (int, error) {
	s.n.Add(int64(len(p)))
	return len(p), nil
}

// mustProfile returns an error unless the timer of the profile is running.
func mustProfile() error {
	timer, err := unix.Getitimer(unix.ITIMER_PROF)
	if err != nil || timer.Interval.Usec == 0 {
		return fmt.Errorf("the profile's timer is %+v, %v", timer, err)
	}
	return nil
}

func init() {
	programs["closer"] = func() {
		err := error(nil)
		if os.Args[1] == "Detach" {
			err = daemon.Detach()
		}
		if err == nil {
			err = takeAllAndBeReady(os.Args[2])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(4)
		}
	}
}

// takeAllAndBeReady closes all descriptors from 3 up, as old advice has it, and
// opens a file so often that it has every number.
func takeAllAndBeReady(path string) error {
	if err := unix.CloseRange(3, math.MaxInt32, 0); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	for err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	// Time for the runtime to look at its poller, if it has one open: it would
	// throw.
	_ = unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
	if err != unix.EMFILE {
		return err
	}
	return daemon.Ready()
}
