//go:build linux

package daemontest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLineSaysThatItIsReady(t *testing.T) {
	t.Parallel() // it does not change the environment
	cmd := shell(`echo $NOTIFY_FD; env | grep -E '^(NOTIFY_SOCKET|UPSTART_JOB)='; ps -o sid= -p $$
		echo READY=1 >&3; exec 3>&-; exec sleep 60`)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=/x", "UPSTART_JOB=x", "NOTIFY_FD=9")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := NotifyFD(t, cmd)
	if s.PID == 0 || s.Ready != "READY=1\n" || s.After <= 0 {
		t.Errorf("%+v", s)
	}
	if err := s.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := s.Wait(t.Context()); status.Signal() != unix.SIGTERM {
		t.Errorf("the command %s", describe(status))
	}
	text, err := io.ReadAll(pipe)
	if want := fmt.Sprintf("3 %d", s.PID); strings.Join(strings.Fields(string(text)), " ") != want || err != nil {
		t.Errorf("descriptor and session %q, %v, want %q", text, err, want)
	}
}

func TestDescriptorFollowsExtraFiles(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := shell(`[ $NOTIFY_FD = 5 ] && readlink /proc/$$/fd/4 >&5; exec 5>&-; exec sleep 60`)
	cmd.ExtraFiles = []*os.File{null, null}
	if s := NotifyFD(t, cmd); s.Ready != "/dev/null\n" {
		t.Errorf("line %q", s.Ready)
	}
}

func TestLineThatDoesNotCome(t *testing.T) {
	quick(t)
	tests := []struct {
		name, script string
		words        []string
	}{
		{"exit", "echo a word; exit 3",
			[]string{"/bin/sh under NOTIFY_FD exited with status 3 after ", "had written nothing to descriptor 3",
				`"a word\n"`}},
		{"child", "sleep 60 & exit 3", []string{"exited with status 3 after ", ", and left process ", "had written nothing"}},
		{"closed", "exec 3>&-; exec sleep 60", []string{"has closed descriptor 3, and written nothing"}},
		{"no newline", "printf READY=1 >&3; exec 3>&-; exec sleep 60",
			[]string{`has written "READY=1" to descriptor 3`, "does not end with a newline"}},
		{"long", "echo READY=1 and what else there is to say >&3; exec 3>&-; exec sleep 60",
			[]string{"finit reads 31 bytes"}},
		{"open", "echo READY=1 >&3; exec sleep 60",
			[]string{`has written "READY=1\n" and not closed descriptor 3: context deadline`, "in state "}},
		{"left open", "echo READY=1 >&3; sleep 60 & exit 0",
			[]string{`has written "READY=1\n" and not closed descriptor 3: the process has ended`, "exited with status 0"}},
		{"nothing", "exec sleep 60",
			[]string{"has written nothing to descriptor 3: context deadline", " when the test ended it; it printed nothing"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			switch test.name {
			case "open":
				ctx = patient(t)
			case "nothing":
				ctx = short(t)
			}
			f := failing(t, func(ft TB) { notifyFD(ctx, ft, shell(test.script)) }, test.words...)
			if len(f.left) > 0 {
				t.Errorf("processes are left at the failure: %v", f.left)
			}
		})
	}
	failing(t, func(ft TB) { NotifyFD(ft, exec.Command("/nonexistent")) }, "under NOTIFY_FD: ", "/nonexistent",
		"no such file")
	failing(t, func(ft TB) { NotifyFD(ft, exec.CommandContext(short(t), "sleep", "60")) }, "was killed by SIGTERM",
		"its context having ended")
	failing(t, func(ft TB) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, "sh", "-c", "echo READY=1 >&3; echo it is written; exec sleep 60")
		cmd.Stdout = cancelWriter(cancel)
		NotifyFD(ft, cmd)
	}, `has written "READY=1\n" and not closed descriptor 3`, "its context having ended")
	failing(t, func(ft TB) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 1, errLate)
		defer cancel()
		notifyFD(ctx, ft, exec.Command("sleep", "60"))
	}, "has written nothing to descriptor 3 within 30s")
	failing(t, func(ft TB) {
		s := NotifyFD(ft, shell("echo a word; echo READY=1 >&3; exec 3>&-; exec sleep 60"))
		eventually(t, "it has printed all", func() bool { return len(s.parent.printed.all()) > 0 })
		s.Wait(short(t))
	}, " of /bin/sh has not ended: context deadline", `it printed "a word\n"`)
	f := failing(t, func(ft TB) {
		cmd := shell("echo a word; exit 3")
		cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
		NotifyFD(ft, cmd)
	})
	if strings.Contains(f.failure, "printed") {
		t.Errorf("what the test has taken is not known: %s", f.failure)
	}
}

// A cancelWriter is called when something is written to it.
type cancelWriter context.CancelFunc

func (cancel cancelWriter) Write(text []byte) (int, error) {
	cancel()
	return len(text), nil
}

func TestNotifyFDLeavesNothing(t *testing.T) {
	leavesNothing(t, func(ft TB) {
		NotifyFD(ft, shell("setsid sleep 60 3>&- & echo >&3; exec 3>&-; exec sleep 60"))
	})
}

// A process that is being started beside it has the descriptor until it executes its
// program: that is not the command's fault.
func TestNotifyFDOfCommandsThatEndBesideOthers(t *testing.T) {
	for i := range 200 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			NotifyFD(t, exec.Command("sh", "-c", "echo READY=1 >&3"))
		})
	}
}
