//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

// init adds orders to change what the program was started with.
func init() {
	orders["chdir"] = os.Chdir
	orders["setenv"] = func(assignment string) error {
		key, value, _ := strings.Cut(assignment, "=")
		return os.Setenv(key, value)
	}
	orders["unsetenv"] = os.Unsetenv
	orders["clearenv"] = func(string) error { os.Clearenv(); return nil }
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
	orders["die-with-parent"] = func(string) error {
		runtime.LockOSThread() // for Ready, too
		return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	}
	orders["name"] = func(name string) error {
		return os.WriteFile("/proc/self/comm", []byte(name), 0)
	}
}

// init adds orders about signals.
func init() {
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
}

var caught = make(chan os.Signal, 8)

// init adds orders about descriptors, and about how many there may be.
func init() {
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
}

// answerPID tells everyone who connects its pid.
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

// init adds orders to lead a session or group, and to give up rights.
func init() {
	orders["setsid"] = func(string) error {
		_, err := unix.Setsid()
		return err
	}
	orders["setpgid"] = func(string) error { return unix.Setpgid(0, 0) }
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
}

// init adds orders to run timers, which survive an execve.
func init() {
	orders["profile"] = func(string) error { return pprof.StartCPUProfile(&profile) }
	orders["profiled"] = func(string) error { return mustProfile() }
	orders["timer"] = func(string) error {
		soon := unix.Timeval{Usec: 100}
		_, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Interval: soon, Value: soon})
		return err
	}
}

var profile samples

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

// init adds what a process can be asked of itself.
func init() {
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

func toJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}
