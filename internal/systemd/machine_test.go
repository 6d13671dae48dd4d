//go:build linux

package systemd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }

// bootAndWait is what the tests are to the keeper, with one service.
func bootAndWait(t *testing.T) {
	if skip, err := theMachine.boot(testdaemon.Program(t, "systemd-keeper")); skip != nil || err != nil {
		fmt.Println(skip, err)
		os.Exit(1)
	}
	if out, err := theMachine.Command("systemd-run", "sleep", "1000").CombinedOutput(); err != nil {
		fmt.Println(err, string(out))
		os.Exit(1)
	}
	fmt.Println(theMachine.keeper.Process.Pid, theMachine.pid)
	os.Stdin.Read(make([]byte, 1))
	panic("as a test may")
}

func TestSystemdLeavesNothingBehindHoweverTheTestsEnd(t *testing.T) {
	const variable = "DAEMON_TEST_BOOT"
	if os.Getenv(variable) != "" {
		bootAndWait(t)
	}
	Boot(t) // or skip the test
	mount, err := keeper.Cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		end    string
		signal syscall.Signal
	}{
		{"panic", 0},
		{"interrupt", unix.SIGINT},
		{"termination", unix.SIGTERM},
		{"quit", unix.SIGQUIT},
		{"kill", unix.SIGKILL},
		{"kill of the keeper", unix.SIGKILL},
	} {
		t.Run(test.end, func(t *testing.T) {
			tests := testdaemon.Again(t, "TestSystemdLeavesNothingBehindHoweverTheTestsEnd")
			tests.Env = append(tests.Env, variable+"=yes", keeper.RootVariable+"="+keeper.RootTree())
			stdin, err := tests.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := tests.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := tests.Start(); err != nil {
				t.Fatal(err)
			}
			defer tests.Wait()
			defer tests.Process.Kill()
			stdout.(*os.File).SetReadDeadline(time.Now().Add(2 * testdaemon.Patience))
			var keeperPID, systemd int
			if _, err := fmt.Fscan(stdout, &keeperPID, &systemd); err != nil {
				t.Fatalf("it has booted no systemd: %v", err)
			}
			namespace, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", systemd))
			cgroup := filepath.Join(mount, keeper.CgroupName(keeperPID))
			if found := left(namespace, cgroup); len(found) < 3 || cgroup == mount {
				t.Fatalf("with systemd and a service there are only %q", found)
			}

			switch test.end {
			case "panic":
				stdin.Close()
			case "kill of the keeper":
				unix.Kill(keeperPID, test.signal)
				tests.Process.Kill()
			default:
				tests.Process.Signal(test.signal)
			}
			for deadline := time.Now().Add(testdaemon.Patience); ; time.Sleep(10 * time.Millisecond) {
				found := left(namespace, cgroup)
				if test.end == "kill of the keeper" && slices.Equal(found, []string{cgroup}) {
					keeper.RemoveStaleCgroups(mount) // as the next boot does
					found = left(namespace, cgroup)
				}
				if len(found) == 0 && keeper.CgroupName(keeperPID) != filepath.Base(cgroup) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left are %q, and the keeper is %q", found, keeper.CgroupName(keeperPID))
				}
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || bytes.Contains(mounts, []byte(" /tmp/root")) {
				t.Errorf("mounted are, %v:\n%s", err, mounts)
			}
		})
	}
}

// left is what runs in the PID namespace, and the cgroup if it is there.
func left(namespace, cgroup string) (found []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == namespace {
			found = append(found, link)
		}
	}
	if _, err := os.Stat(cgroup); err == nil {
		found = append(found, cgroup)
	}
	return found
}
