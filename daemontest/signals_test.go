//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	// Becomes the program that it is told, which inherits no signal as it is
	// after a login: each that can be is ignored and blocked.
	programs["deaf"] = func() {
		runtime.LockOSThread()
		ignore := [8]uintptr{uintptr(1)} // SIG_IGN
		for sig := 1; sig <= 64; sig++ {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
		}
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i]--
		}
		unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil)
		os.Setenv(testProgram, os.Args[1])
		must(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	// Starts one command in each way and prints what that finds.
	programs["start all"] = func() {
		t := exitT{&fakeT{}}
		for _, start := range []struct {
			script string
			do     func(*exec.Cmd)
		}{
			{"kill -STOP $$", func(cmd *exec.Cmd) { Upstart(t, cmd) }},
			{"true", func(cmd *exec.Cmd) { Shell(t, cmd) }},
			{"echo >&3", func(cmd *exec.Cmd) { NotifyFD(t, cmd) }},
			{"true", func(cmd *exec.Cmd) { StartService(t, cmd).Wait(context.Background()) }},
		} {
			r, w, err := os.Pipe()
			must(err)
			cmd := shell(`{ grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -dc '[:alnum:]:'; echo; } >&2; ` + start.script)
			cmd.Stderr = w
			start.do(cmd)
			text := make([]byte, 1000)
			n, err := r.Read(text)
			must(err)
			fmt.Printf("%s", text[:n])
		}
		for _, do := range slices.Backward(t.cleanups) {
			do()
		}
		syscall.Exit(0)
	}
}

// An exitT is the test of a program that has none.
type exitT struct{ *fakeT }

func (exitT) Fatalf(format string, args ...any) { must(fmt.Errorf(format, args...)) }

func TestSignalsAreThoseOfALogin(t *testing.T) {
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		t.Skip("the test knows another struct sigaction")
	}
	dir := t.TempDir()
	cmd := program(t, "deaf", "start all")
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	const none = "SigBlk:0000000000000000SigIgn:0000000000000000\n"
	if want := strings.Repeat(none, 4); string(out) != want || err != nil {
		t.Errorf("%v:\n%swant\n%s", err, out, want)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
