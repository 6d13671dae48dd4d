//go:build linux

package detaching_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
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
