//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	// A Go program with spinning goroutines that stops itself as raise(3) does.
	programs["busy"] = func() {
		var spins atomic.Int64
		for range 4 {
			go func() {
				for {
					spins.Add(1)
				}
			}()
		}
		runtime.LockOSThread()
		unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
		fmt.Println("continued")
	}
}

func TestJobStopsAndIsContinued(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/x")
	t.Setenv("SYSTEMD_EXEC_PID", "1")
	var out bytes.Buffer
	cmd := shell(`kill -STOP $$; echo continued; ps -o sid= -p $$; exec env`)
	cmd.Stdout = &out
	j := Upstart(t, cmd)
	if j.PID == 0 || j.Ready.Signal != unix.SIGSTOP || j.Ready.State != "T" || !j.Ready.Answered || j.Ready.After <= 0 {
		t.Errorf("pid %d, %+v", j.PID, j.Ready)
	}
	if status := j.Wait(t.Context()); status != 0 {
		t.Errorf("the job %s", describe(status))
	}
	printed := out.String()
	for _, want := range []string{"continued\n", "UPSTART_JOB=sh\n", "UPSTART_INSTANCE=\n"} {
		if !strings.Contains(printed, want) {
			t.Errorf("no %q in %q", want, printed)
		}
	}
	if strings.Contains(printed, "NOTIFY_SOCKET") || strings.Contains(printed, "SYSTEMD_EXEC_PID") {
		t.Errorf("another supervisor's variables: %q", printed)
	}
	if sid := strings.Fields(printed)[1]; sid != strconv.Itoa(j.PID) {
		t.Errorf("pid %d, session %s", j.PID, sid)
	}
	if stops := j.Stops(); len(stops) != 1 || stops[0] != j.Ready {
		t.Errorf("stops: %+v", stops)
	}
}

func TestBusyJobStops(t *testing.T) {
	for range 5 {
		if j := Upstart(t, program(t, "busy")); j.Ready.State != "T" {
			t.Errorf("%+v", j.Ready)
		}
	}
}

func TestJobThatDoesNotStop(t *testing.T) {
	tests := []struct {
		name  string
		cmd   *exec.Cmd
		words []string
	}{
		{"exit", shell("head -c 200000 /dev/zero; echo a word >&2; exit 3"),
			[]string{"/bin/sh exited with status 3 after", "had not stopped", "a word"}},
		{"success", shell("exit 0"), []string{"exited with status 0"}},
		{"killed", shell("kill -KILL $$"), []string{"was killed by SIGKILL"}},
		{"missing", exec.Command("/nonexistent"), []string{"/nonexistent", "no such file"}},
		{"not found", exec.Command("no-such-command"), []string{"no-such-command", "not found"}},
		{"no directory", &exec.Cmd{Path: "/bin/sh", Dir: "/nonexistent"}, []string{"/nonexistent", "no such file"}},
		{"fork", shell("sleep 60 & exit 0"),
			[]string{"exited with status 0", "left process", "the process that was started"}},
		{"stop of a child", shell("sh -c 'kill -STOP $$' & sleep 0.1; exit 7"), []string{"exited with status 7"}},
		// A session of its own has no job control: the kernel discards SIGTSTP
		// there, and so it does with the real upstart.
		{"discarded stop", shell("kill -TSTP $$; exit 6"), []string{"exited with status 6"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			failing(t, func(t TB) { Upstart(t, test.cmd) }, test.words...)
		})
	}
	t.Run("other signal", func(t *testing.T) {
		cmd := shell("echo a word; kill -TSTP $$")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		failing(t, func(t TB) { Upstart(t, cmd) }, "was stopped by SIGTSTP", "is about SIGSTOP", "a word")
	})
	t.Run("nothing", func(t *testing.T) {
		f := failing(t, func(ft TB) { upstart(patient(t), ft, shell("echo $$; sleep 60 & exec sleep 60")) },
			"has not stopped itself", "deadline", "in state ", `\n`)
		if len(f.left) > 0 {
			t.Errorf("processes are left at the failure: %v", f.left)
		}
	})
	t.Run("stop in its place", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			eventually(t, "a process has stopped", func() bool {
				return slices.ContainsFunc(descendants(os.Getpid()), func(pid int) bool {
					p, err := readProcess(pid)
					return err == nil && p.state == "T"
				})
			})
		}()
		failing(t, func(ft TB) { upstart(ctx, ft, shell("sh -c 'kill -STOP $$'; exit 7")) },
			"has not stopped itself: context canceled, but process ",
			" below it has: `expect stop` is about the process that was started")
	})
	t.Run("context", func(t *testing.T) {
		cmd := exec.CommandContext(short(t), "sleep", "60")
		failing(t, func(ft TB) { Upstart(ft, cmd) }, "was killed by SIGTERM", "its context having ended")
	})
}

func TestSecondStopIsNotAnswered(t *testing.T) {
	f := inTest(t, func(ft TB) {
		j := Upstart(ft, shell("kill -STOP $$; kill -STOP $$; kill -STOP $$; exit 4"))
		for n := 2; n <= 3; n++ {
			eventually(t, "the job is stopped again", func() bool { return len(j.Stops()) == n })
			again := j.Stops()[n-1]
			if again.Signal != unix.SIGSTOP || again.State != "T" || again.Answered || again.After < j.Ready.After {
				t.Errorf("stop %d: %+v", n, again)
			}
			if p, err := readProcess(j.PID); err != nil || p.state != "T" {
				t.Errorf("process: %+v, %v", p, err)
			}
			failing(t, func(ft TB) {
				j.parent.t, ft = ft, j.parent.t
				defer func() { j.parent.t = ft }()
				j.Wait(short(t))
			}, "has not ended", "was stopped by SIGSTOP after", "and was continued", "in state T")
			if err := j.Signal(unix.SIGCONT); err != nil {
				t.Error(err)
			}
		}
		if status := j.Wait(t.Context()); status.ExitStatus() != 4 {
			t.Errorf("the job %s", describe(status))
		}
	})
	if f.failure != "" || len(f.logs) != 2 || !strings.Contains(f.logs[0], "SIGSTOP") {
		t.Errorf("%q, logged %q", f.failure, f.logs)
	}
}

func TestJobsStreamsAreThoseOfOSExec(t *testing.T) {
	const script = "kill -STOP $$; read line; echo $line; echo err >&2; echo extra >&3; sleep 0.01; echo last"
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	t.Run("buffers", func(t *testing.T) {
		var out, errs bytes.Buffer
		cmd := shell(script)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = strings.NewReader("in\n"), &out, &errs, []*os.File{file}
		Upstart(t, cmd).Wait(t.Context())
		extra, err := os.ReadFile(file.Name())
		if out.String() != "in\nlast\n" || errs.String() != "err\n" || string(extra) != "extra\n" || err != nil {
			t.Errorf("%q, %q, %q, %v", out.String(), errs.String(), extra, err)
		}
	})
	t.Run("one for both", func(t *testing.T) {
		var out bytes.Buffer
		cmd := shell(script)
		cmd.Stdout, cmd.Stderr = &out, &out
		Upstart(t, cmd).Wait(t.Context())
		if !strings.HasPrefix(out.String(), "\nerr\n") || !strings.HasSuffix(out.String(), "last\n") {
			t.Errorf("%q", out.String())
		}
	})
	t.Run("file", func(t *testing.T) {
		file, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := shell(script)
		cmd.Stdout = file
		Upstart(t, cmd).Wait(t.Context())
		if out, err := os.ReadFile(file.Name()); err != nil || string(out) != "\nlast\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("pipe", func(t *testing.T) {
		cmd := shell(script)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		j := Upstart(t, cmd)
		if out, err := io.ReadAll(pipe); err != nil || string(out) != "\nlast\n" {
			t.Errorf("%q, %v", out, err)
		}
		j.Wait(t.Context())
	})
	t.Run("slow writer", func(t *testing.T) {
		var out slowWriter
		cmd := shell("kill -STOP $$; head -c 1000000 /dev/zero")
		cmd.Stdout = &out
		Upstart(t, cmd).Wait(t.Context())
		if out.n != 1000000 {
			t.Errorf("%d bytes", out.n)
		}
	})
}

// A slowWriter counts what is written to it, and is still at it when the
// writer has ended.
type slowWriter struct{ n int }

func (w *slowWriter) Write(text []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	w.n += len(text)
	return len(text), nil
}

func TestJobIsEndedWithTheTest(t *testing.T) {
	tests := []struct {
		name, script, said string
		stops              int
	}{
		{"gentle", `trap 'echo "got TERM" >&3; exit' TERM; kill -STOP $$
			while :; do sleep 0.01; done`, "got TERM\n", 1},
		{"stopped", `trap 'echo "got TERM" >&3; exit' TERM; kill -STOP $$; kill -STOP $$
			while :; do sleep 0.01; done`, "got TERM\n", 2},
		{"deaf", `trap '' TERM; kill -STOP $$; while :; do sleep 0.01; done`, "", 1},
		{"with children", `(trap '' TERM; sleep 60) & setsid sleep 60 & kill -STOP $$; exec sleep 60`, "", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.said == "" {
				quick(t)
			}
			file, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var pids []int
			passing(t, func(ft TB) {
				cmd := shell(test.script)
				cmd.ExtraFiles = []*os.File{file}
				j := Upstart(ft, cmd)
				eventually(t, "it is stopped", func() bool { return len(j.Stops()) == test.stops })
				pids = j.parent.processes()
			})
			if len(pids) == 0 {
				t.Error("no processes")
			}
			for _, pid := range pids {
				if exists(pid) {
					t.Errorf("process %d is left", pid)
				}
			}
			if said, err := os.ReadFile(file.Name()); string(said) != test.said || err != nil {
				t.Errorf("it said %q, %v", said, err)
			}
		})
	}
}

func TestJobIsRespawned(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left")
	var out bytes.Buffer
	cmd := shell(`read line; echo "$line $UPSTART_JOB"
		[ ! -e "$1" ] || ! kill -0 $(cat "$1") 2>/dev/null || echo "something is left"
		(trap '' TERM; exec setsid sleep 60) & echo $! >"$1"
		kill -STOP $$; exec sleep 60`, left)
	cmd.Stdin, cmd.Stdout = strings.NewReader("1\n2\n3\n4\n5\n"), &out
	j := Upstart(t, cmd)
	for range 4 {
		before := time.Now()
		again := j.Respawn(t.Context())
		took := time.Since(before)
		if again.PID == 0 || again.PID == j.PID || exists(j.PID) {
			t.Errorf("process %d after %d", again.PID, j.PID)
		}
		if again.Ready.State != "T" || !again.Ready.Answered || again.Ready.After <= 0 || again.Ready.After > took {
			t.Errorf("%+v, and Respawn took %v", again.Ready, took)
		}
		for _, job := range []*Job{j, again} {
			if stops := job.Stops(); len(stops) != 1 || stops[0] != job.Ready {
				t.Errorf("stops %+v, ready %+v", stops, job.Ready)
			}
		}
		if status := j.Wait(over()); status.Signal() != unix.SIGKILL {
			t.Errorf("the old process %s", describe(status))
		}
		if err := j.Signal(unix.SIGCONT); err != unix.ESRCH {
			t.Errorf("signal to the old process: %v", err)
		}
		j = again
	}
	if err := j.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := j.Wait(t.Context()); status.Signal() != unix.SIGTERM {
		t.Errorf("the job %s", describe(status))
	}
	if want := "1 sh\n2 sh\n3 sh\n4 sh\n5 sh\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestRespawnedJobsSecondStopIsNotAnswered(t *testing.T) {
	f := inTest(t, func(ft TB) {
		first := Upstart(ft, shell("kill -STOP $$; kill -STOP $$"))
		eventually(t, "it is stopped again", func() bool { return len(first.Stops()) == 2 })
		second := first.Respawn(t.Context())
		eventually(t, "it is stopped again", func() bool { return len(second.Stops()) == 2 })
		if stops := second.Stops(); !stops[0].Answered || stops[1].Answered || len(first.Stops()) != 2 {
			t.Errorf("stops %+v, and before %+v", stops, first.Stops())
		}
	})
	if f.failure != "" || len(f.logs) != 2 || f.logs[0] == f.logs[1] {
		t.Errorf("%q, logged %q", f.failure, f.logs)
	}
}

func TestRespawnedJobIsEndedGently(t *testing.T) {
	var out bytes.Buffer
	passing(t, func(ft TB) {
		cmd := shell("trap 'echo got TERM; exit' TERM; kill -STOP $$; while :; do sleep 0.01; done")
		cmd.Stdout = &out
		Upstart(ft, cmd).Respawn(t.Context())
	})
	if out.String() != "got TERM\n" {
		t.Errorf("it said %q", out.String())
	}
}

func TestJobThatIsNotRespawned(t *testing.T) {
	// What stops only at its first run, and then does something else.
	once := func(then string) *exec.Cmd {
		return shell("[ -e \"$1\" ] || { echo >\"$1\"; kill -STOP $$; exec sleep 60; }; echo a word; "+then,
			filepath.Join(t.TempDir(), "ran"))
	}
	for _, test := range []struct {
		name  string
		cmd   *exec.Cmd
		words []string
	}{
		{"exit", once("exit 3"), []string{"/bin/sh exited with status 3 after", "had not stopped", "a word"}},
		{"killed", once("kill -KILL $$"), []string{"was killed by SIGKILL", "a word"}},
		{"fork", once("sleep 60 & exit 0"), []string{"exited with status 0", "left process"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			failing(t, func(ft TB) { Upstart(ft, test.cmd).Respawn(t.Context()) }, test.words...)
		})
	}
	t.Run("nothing", func(t *testing.T) {
		f := failing(t, func(ft TB) {
			j := Upstart(ft, once("sleep 60 & exec sleep 60"))
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer cancel()
				j.parent.printed.wait(t.Context(), func(text []byte) bool { return bytes.Contains(text, []byte("a word")) })
				j.parent.find(t.Context(), func(r report) bool { return r.Old == j.PID && r.Event == hasStarted })
			}()
			j.Respawn(ctx)
		}, "has not stopped itself", "canceled", "in state", "a word")
		if len(f.left) > 0 {
			t.Errorf("processes are left at the failure: %v", f.left)
		}
	})
	t.Run("missing", func(t *testing.T) {
		path := script(t, "kill -STOP $$; exec sleep 60")
		failing(t, func(ft TB) {
			j := Upstart(ft, exec.Command(path))
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
			j.Respawn(t.Context())
		}, "has not been respawned", path, "no such file")
	})
	t.Run("ended", func(t *testing.T) {
		failing(t, func(ft TB) {
			j := Upstart(ft, shell("kill -STOP $$; echo a word; exit 3"))
			j.Wait(t.Context())
			j.Respawn(t.Context())
		}, "has not been respawned", "exited with status 3", "a word")
	})
	t.Run("old", func(t *testing.T) {
		failing(t, func(ft TB) {
			j := Upstart(ft, shell("kill -STOP $$; exec sleep 60"))
			j.Respawn(t.Context())
			j.Respawn(t.Context())
		}, "has not been respawned", "was killed by SIGKILL")
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		failing(t, func(ft TB) {
			cmd := once("exec sleep 60")
			j := Upstart(ft, exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...))
			time.AfterFunc(100*time.Millisecond, cancel)
			j.Respawn(t.Context())
		}, "its context having ended")
	})
}

func TestWhatAJobLeavesBehindEndsWithIt(t *testing.T) {
	cmd := shell("(trap '' TERM; sleep 60) & setsid sleep 60 & kill -STOP $$; read x")
	stdin := untilClosed(t, cmd)
	j := Upstart(t, cmd)
	pids := j.parent.processes()
	if len(pids) < 3 {
		t.Errorf("processes %v", pids)
	}
	stdin.Close()
	for _, pid := range pids {
		eventually(t, "it has ended", func() bool { return !exists(pid) })
	}
}

func TestContextEndsJob(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	j := Upstart(t, exec.CommandContext(ctx, "/bin/sh", "-c", "kill -STOP $$; exec sleep 60"))
	cancel()
	if status := j.Wait(t.Context()); status.Signal() != unix.SIGTERM {
		t.Errorf("the job %s", describe(status))
	}
}

func TestSignalToWhoIsGone(t *testing.T) {
	j := Upstart(t, shell("kill -STOP $$; exec sleep 60"))
	stranger := Process{PID: os.Getpid(), parent: j.parent}
	if err := stranger.Signal(0); err != unix.ESRCH {
		t.Errorf("a process that is not below the parent: %v", err)
	}
	if err := j.Signal(unix.SIGINT); err != nil {
		t.Error(err)
	}
	if status := j.Wait(t.Context()); status.Signal() != unix.SIGINT {
		t.Errorf("the job %s", describe(status))
	}
	if err := j.Signal(unix.SIGINT); err != unix.ESRCH {
		t.Error(err)
	}
}

func TestUpstartLeavesNothing(t *testing.T) {
	leavesNothing(t, func(ft TB) {
		var out bytes.Buffer
		cmd := shell("kill -STOP $$; sleep 60 & exec sleep 60")
		cmd.Stdin, cmd.Stdout = strings.NewReader("x"), &out
		Upstart(ft, cmd).Respawn(t.Context())
	})
}
