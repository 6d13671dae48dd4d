//go:build linux

package detaching_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// In these tests the process's surroundings are not what they were at its start,
// or hide what a detach looks for.

// A shell by the name of runsv is the supervisor. An orphan that has not called
// Ready before detaches, and so would the other.
func TestWhatHasStayedStaysWhenItsSupervisorIsGone(t *testing.T) {
	t.Parallel()
	for name, stayed := range map[string]bool{"stayed": true, "orphan from the start": false} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				dir := t.TempDir()
				fifo, supervisor := filepath.Join(dir, "fifo"), filepath.Join(dir, "runsv")
				if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink("/bin/sh", supervisor)); err != nil {
					t.Fatal(err)
				}
				l := testdaemon.NewLine(t)
				cmd := testdaemon.Wrap(l.Command(), supervisor, "-c", `"$@" & read -r _ <'`+fifo+`'; exit 0`, "sh")
				cmd.Args[0] = "sh"
				c := l.Pipe(cmd)
				p := l.Process()
				if stayed {
					p.Do(verb)
				}
				before, standard := p.Stat(), p.Standard()
				if before.Parent != cmd.Process.Pid {
					t.Fatalf("the parent is %d, want %d", before.Parent, cmd.Process.Pid)
				}
				holdUp(t, fifo)()
				testdaemon.WaitUntil(t, "the supervisor's end", func() bool { return p.Stat().Parent != before.Parent })
				if !stayed {
					p.Detaches(verb).Do("ready")
					c.Exit()
					return
				}
				for _, order := range []string{"reload", "ready", "detach", "ready-at-once"} {
					p.Do(order)
				}
				if after := p.Stat(); after.Session != before.Session || p.Standard() != standard {
					t.Errorf("it was %+v %q, and is %+v %q", before, standard, after, p.Standard())
				}
				p.Leaves("exit 7")
				if got := c.Exit(); got != "exit 0" || c.Printed() != "" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

// asNobody is the command with which a script of root's runs another as a user
// who owns nothing.
func asNobody(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("setpriv"); err != nil {
		testdaemon.SkipUnlessForbidden(t, err.Error())
	}
	return fmt.Sprintf("setpriv --reuid %[1]d --regid %[1]d --clear-groups", testdaemon.Nobody)
}

// The parent, a shell of root's, may be a supervisor.
func TestParentThatProcHidesIsAReasonNotToDetach(t *testing.T) {
	t.Parallel()
	testdaemon.MustBeRoot(t)
	for _, test := range []struct {
		hidepid int
		order   string // before the verb
		then    string
	}{
		{2, "", "refuses"},
		{2, "foreground", "stays"},
		{2, "background", "detaches"},
		{0, "", "detaches"},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(fmt.Sprintf("hidepid=%d/%s/%s", test.hidepid, test.order, verb), func(t *testing.T) {
				fifo := filepath.Join(t.TempDir(), "fifo")
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
				l := testdaemon.NewLine(t)
				// The outer shell is PID 1, whose end would be the daemon's.
				cmd := testdaemon.UnderShell(l.Command(), fmt.Sprintf(
					`mount -t proc -o hidepid=%d none /proc || exit 9
				setsid sh -c '%s "$@"; exit $?' "$0" "$@"; code=$?; read -r _ <'%s'; exit $code`,
					test.hidepid, asNobody(t), fifo))
				c := l.Pipe(testdaemon.InNamespaces(t, cmd, "--mount", "--pid", "--fork", "--kill-child"))
				p := l.Process()
				if test.order != "" {
					p.Do(test.order)
				}
				want := "exit 7"
				switch test.then {
				case "refuses":
					for range 2 {
						p.Refuses(verb, "daemon: detach ", "hidepid", "daemon.Foreground", "daemon.Background")
					}
					p.Leaves("exit 7")
				case "stays":
					p.Do(verb)
					p.Do("ready")
					p.Leaves("exit 7")
				case "detaches":
					p = p.Detaches(verb)
					p.Do("ready")
					p.MustBeDetached()
					p.Leaves("exit 0")
					want = "exit 0"
				}
				l.MustBeSilent()
				holdUp(t, fifo)()
				if got := c.Exit(); got != want || c.Printed() != "" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

// As after `cd /root; setpriv --reuid USER d`.
func TestStartDirectoryThatMayNotBeSearched(t *testing.T) {
	t.Parallel()
	for _, left := range []bool{false, true} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(fmt.Sprintf("left %v/%s", left, verb), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "start")
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				script := `cd '` + dir + `' && chmod 0 . && exec "$@"`
				if os.Geteuid() == 0 {
					script = `cd '` + dir + `' && exec ` + asNobody(t) + ` "$@"`
				}
				l := testdaemon.NewLine(t)
				c := l.Pipe(testdaemon.UnderShell(l.Command(), script))
				p := l.Process()
				if left {
					p.Do("chdir /")
					for range 2 {
						p.Refuses(verb, "daemon: detach", dir, "permission denied")
					}
					if got := p.Ask("cwd"); got != "/<nil>" {
						t.Errorf("it is in %s then", got)
					}
					p.Leaves("exit 0")
				} else {
					p = p.Detaches(verb)
					p.Do("ready")
					p.MustBeDetached()
					if got, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.PID)); got != dir {
						t.Errorf("it runs in %s (%v), and was started in %s", got, err, dir)
					}
				}
				if got := c.Exit(); got != "exit 0" || c.Printed() != "" {
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
			})
		}
	}
}

// Without /proc only the path is left to start the program by.
func TestOtherProgramIsNotStartedWithoutProc(t *testing.T) {
	t.Parallel()
	replace := func(path string) error {
		other := path + ".new"
		return errors.Join(testdaemon.WriteFile(other, "#!/bin/sh\necho OTHER\n", 0o755), os.Rename(other, path))
	}
	for _, test := range []struct {
		name, script string
		change       func(path string) error
		refusal      string
	}{
		{"replaced", `mount -t tmpfs none /proc || exit 9; exec "$@"`, replace, "stale"},
		{"removed", `mount -t tmpfs none /proc || exit 9; exec "$@"`, os.Remove, "no such file"},
		{"replaced, in a chroot", `mount --rbind / ROOT && mount -t tmpfs none ROOT/proc || exit 9
			exec chroot ROOT "$@"`, replace, "stale"},
	} {
		for _, verb := range []string{"ready", "detach"} {
			t.Run(test.name+"/"+verb, func(t *testing.T) {
				l := testdaemon.NewLine(t)
				cmd := l.Command()
				cmd.Path = copyOf(t, cmd.Path)
				path := cmd.Path
				script := strings.ReplaceAll(test.script, "ROOT", "'"+t.TempDir()+"'")
				c := l.Pipe(testdaemon.InNamespaces(t, testdaemon.UnderShell(cmd, script), "--mount"))
				p := l.Process()
				if err := test.change(path); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					p.Refuses(verb, "daemon: detach", path, test.refusal)
				}
				p.Leaves("exit 7")
				if got := c.Exit(); got != "exit 7" || strings.Contains(c.Printed(), "OTHER") { // -race misses /proc, too
					t.Errorf("the caller sees %s and %s", got, c.Printed())
				}
				l.MustBeOver()
				l.MustBeSilent()
			})
		}
	}
}

func TestFilesAreThoseThatWerePassed(t *testing.T) {
	t.Parallel()
	for fd, want := range map[string]string{"3": "", "4": "one=one", "5": "one=one two=two"} {
		t.Run(fd, func(t *testing.T) {
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.ExtraFiles = []*os.File{testdaemon.Memory(t, "one"), testdaemon.Memory(t, "two")}
			l.Pipe(testdaemon.UnderShell(cmd, `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=one:two exec "$@"`))
			p := l.Process()
			own := filepath.Join(t.TempDir(), "own")
			if fd != "5" { // which was free
				p.Do("log " + fd + " " + own)
				if got := p.FileOf(int(fd[0] - '0')); got != own {
					t.Fatalf("descriptor %s is %s", fd, got)
				}
			}
			for range 2 {
				if got := p.Ask("files"); got != want {
					t.Errorf("Files returns %q, want %q", got, want)
				}
				p.Do("unset")
			}
		})
	}
}

func TestReadyKnowsWhomSystemdHasExecutedWithoutAnEnvironment(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		script string
		own    bool // MAINPID is the process's
	}{
		{`exec "$@"`, true},
		{`SYSTEMD_EXEC_PID=$$ exec "$@"`, true},
		{`SYSTEMD_EXEC_PID=$$ "$@"; exit $?`, false},
	} {
		t.Run(test.script, func(t *testing.T) {
			mailbox := testdaemon.OpenMailbox(t, filepath.Join(testdaemon.Directory(t), "notify"))
			l := testdaemon.NewLine(t)
			cmd := l.Command()
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+mailbox.Address)
			l.Pipe(testdaemon.UnderShell(cmd, test.script))
			p := l.Process()
			want := "READY=1\nSTATUS=ready\n"
			if test.own {
				want += agreed.MainPID(p.PID)
			}
			for _, order := range []string{"unset", "clearenv"} {
				p.Do(order)
				p.Do("ready")
				if got := mailbox.Next(); got != want {
					t.Errorf("after %s Ready sends %q, want %q", order, got, want)
				}
			}
		})
	}
}

// A call from there comes back to it if it fails.
func TestDetachFromADirectoryThatMayOnlyBeEntered(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ready", "detach"} {
		dir := testdaemon.Directory(t)
		l := testdaemon.NewLine(t)
		cmd := l.Command()
		mode := os.FileMode(0o311)
		if os.Geteuid() == 0 {
			cmd, mode = testdaemon.AsNobody(t, cmd), 0o711
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		c := l.Pipe(cmd)
		p := l.Process()
		p.Do("chdir " + dir)
		p = p.Detaches(verb)
		p.Do("ready")
		p.MustBeDetached()
		if got := c.Exit(); got != "exit 0" || c.Printed() != "" {
			t.Errorf("the caller sees %s and %s", got, c.Printed())
		}
	}
}
