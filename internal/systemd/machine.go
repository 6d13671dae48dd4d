//go:build linux

// Package systemd boots a systemd for tests. It runs as PID 1 of fresh
// namespaces, on a copy-on-write view of this machine's root tree or of the one
// that DAEMON_TEST_ROOT names (.ci/mkroot makes such trees). One boot serves all
// tests of a process; see package keeper for how it is done and ends.
//
// Inside, keeper.InsideBinary is the command of all test programs, and
// keeper.InsideDir a directory that every service can see.
package systemd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// A Machine is a systemd that was booted for the tests.
type Machine struct {
	once    sync.Once
	skip    error // why the keeper can't boot one here
	err     error // why the boot failed
	keeper  *exec.Cmd
	hold    io.Closer // the keeper's standard input
	pid     int       // systemd's, as seen from here
	Version int       // of systemd
	Console testdaemon.Console
	made    atomic.Int64 // units, for their names
}

var theMachine Machine

// Boot returns the machine, once systemd has been booted. If that can't be done
// here it skips the test, or fails it if DAEMON_TEST_NO_SKIP is set.
func Boot(t testing.TB) *Machine {
	t.Helper()
	if err := cannotBoot(); err != nil {
		testdaemon.SkipUnlessForbidden(t, err.Error())
	}
	program := testdaemon.Program(t, "systemd-keeper")
	testdaemon.AloneUntilExit(t)
	m := &theMachine
	m.once.Do(func() {
		start := time.Now()
		testdaemon.AtExit(m.stop)
		if m.skip, m.err = m.boot(program); m.skip == nil && m.err == nil {
			t.Logf("systemd %d booted in %v", m.Version, time.Since(start).Round(time.Millisecond))
		}
	})
	if m.skip != nil {
		testdaemon.SkipUnlessForbidden(t, m.skip.Error())
	}
	if m.err != nil {
		t.Fatalf("booting systemd: %v\nits console:\n%s", m.err, m.Console.String())
	}
	return m
}

// cannotBoot tells what this machine lacks.
func cannotBoot() error {
	if os.Geteuid() != 0 {
		return errors.New("booting systemd needs root")
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		return fmt.Errorf("no nsenter (util-linux): %w", err)
	}
	if _, err := keeper.SystemdBinary(keeper.RootTree()); err != nil {
		return err
	}
	_, err := keeper.Cgroup2()
	return err
}

// boot starts the keeper, a program, and waits until systemd has reached its target.
func (m *Machine) boot(program *exec.Cmd) (skip, err error) {
	m.keeper = program
	m.keeper.Env = append(m.keeper.Env, keeper.RootVariable+"="+keeper.RootTree())
	m.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for the keeper
	m.keeper.Stderr = &m.Console
	if m.hold, err = m.keeper.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.keeper.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.keeper.Start(); err != nil {
		return nil, err
	}

	stdout.(*os.File).SetReadDeadline(time.Now().Add(testdaemon.Patience))
	word, readErr := bufio.NewReader(stdout).ReadString('\n')
	if readErr != nil {
		m.keeper.Process.Kill() // it may not see its standard input end
		return nil, fmt.Errorf("the keeper said %q: %w", word, readErr)
	}
	word = strings.TrimSuffix(word, "\n")
	if reason, ok := strings.CutPrefix(word, "can't "); ok {
		return errors.New("can't " + reason), nil
	}
	if m.pid, err = strconv.Atoi(word); err != nil {
		return nil, fmt.Errorf("the keeper said %q", word)
	}

	for deadline := time.Now().Add(testdaemon.Patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := m.Command("systemctl", "is-active", keeper.Target).CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s is not active after %v: %v: %s", keeper.Target, testdaemon.Patience, err, out)
		}
		if err := unix.Kill(m.pid, 0); err != nil {
			return nil, errors.New("systemd ended")
		}
	}
	out, err := m.Command("systemctl", "--version").Output()
	if err != nil {
		return nil, err
	}
	_, err = fmt.Sscanf(string(out), "systemd %d", &m.Version)
	return nil, err
}

// stop ends systemd, if it was booted, and returns when nothing of it is left.
func (m *Machine) stop() {
	if m.keeper == nil || m.keeper.Process == nil {
		return
	}
	m.hold.Close()
	guard := time.AfterFunc(testdaemon.Patience, func() { m.keeper.Process.Kill() })
	defer guard.Stop()
	if err := m.keeper.Wait(); err != nil {
		fmt.Fprintf(os.Stderr, "the keeper of the booted systemd: %v\n%s", err, m.Console.String())
	}
}

// Command returns one that runs as root inside the machine.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	args = append([]string{"-t", strconv.Itoa(m.pid), "-m", "-u", "-i", "-n", "-p", "--", name}, args...)
	cmd := exec.Command("nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return cmd
}

// Outside returns the path by which this process reaches a file inside.
func (m *Machine) Outside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.pid, path)
}
