//go:build linux

package detaching_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// shells are those that start services and type commands on most machines.
var shells = map[string][]string{
	"dash":    {"dash"},
	"bash":    {"bash"},
	"busybox": {"busybox", "sh"},
}

// scripts start a program, and print its exit status once it is ready or has failed.
var scripts = map[string]string{
	"command":      `"$@"; echo "status $?"`,
	"subshell":     `("$@"); echo "status $?"`,
	"job":          `"$@" & wait $!; echo "status $?"`,
	"nohup":        `nohup "$@" </dev/null; echo "status $?"`,
	"list":         `"$@" && echo "status 0" || echo "status $?"`,
	"ignores":      `trap '' HUP INT; "$@"; echo "status $?"`,
	"substitution": `out=$("$@"); echo "status $?"`,
}

// A substitution also waits for the end of the pipe, which the daemon must let go.
func TestEachShellSeesWhatBecomesOfTheProgram(t *testing.T) {
	t.Parallel()
	for name, shell := range shells {
		for kind, script := range scripts {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				if _, err := exec.LookPath(shell[0]); err != nil {
					testdaemon.SkipUnlessForbidden(t, err.Error())
				}
				start := func() (*testdaemon.Line, testdaemon.Caller) {
					l := testdaemon.NewLine(t)
					argv := append(append([]string{}, shell...), "-c", script, "sh")
					return l, l.Pipe(testdaemon.Wrap(l.Command(), argv...))
				}
				sees := func(c testdaemon.Caller, want string) {
					t.Helper()
					if got := c.Exit(); got != "exit 0" || !strings.HasSuffix(c.Printed(), want) {
						t.Errorf("the shell ends with %s and prints %q, want %q", got, c.Printed(), want)
					}
				}
				for _, verb := range []string{"ready", "detach"} {
					l, c := start()
					second := l.Process().Detaches(verb)
					second.Do("ready")
					sees(c, "status 0\n")
					second.MustBeDetached()

					l, c = start()
					l.Process().Detaches(verb).Leaves("exit 3")
					sees(c, "status 3\n")
				}
			})
		}
	}
}
