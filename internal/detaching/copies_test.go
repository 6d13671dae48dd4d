//go:build linux

package detaching_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// Two copies of this package in one program, such as a fork of it in a library
// that the program uses. The fork's path sorts before or after the package's, and
// so is initialized before or after it.

const copiesMain = `package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/seed-10280e03/daemon"
	fork "%s"
)

var calls = map[string]func() error{
	"Detach":      daemon.Detach,
	"Ready":       func() error { return daemon.Ready() },
	"fork.Detach": fork.Detach,
	"fork.Ready":  func() error { return fork.Ready() },
}

func main() {
	say("main")
	said, _ := os.ReadFile(os.Getenv("SAID"))
	if strings.Count(string(said), "main\n") > 3 {
		os.Exit(66) // it must not go on for ever
	}
	for _, call := range os.Args[1:] {
		err := calls[call]()
		say(fmt.Sprintf("%%s: %%v", call, err))
		if err != nil {
			os.Exit(4)
		}
	}
}

func say(text string) {
	file, err := os.OpenFile(os.Getenv("SAID"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = file.WriteString(text + "\n")
	}
	if err != nil {
		panic(err)
	}
	file.Close()
}
`

// forkedProgram builds it, with the fork under this path.
func forkedProgram(t *testing.T, path string) (program string) {
	t.Helper()
	root, err := testdaemon.Root()
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{
		"go.mod":      buildSources["go.mod"] + "\nrequire " + path + " v0.0.0\n\nreplace " + path + " => ./fork\n",
		"fork/go.mod": strings.Replace(buildSources["go.mod"], "an.example/program", path, 1),
		"main.go":     fmt.Sprintf(copiesMain, path),
	}
	for _, folder := range []string{"", "internal/quiet"} {
		files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal("no files of the package", err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(file, "_test.go") {
				name := filepath.Join("fork", folder, filepath.Base(file))
				sources[name] = strings.ReplaceAll(string(source), `"github.com/seed-10280e03/daemon/`, `"`+path+"/")
			}
		}
	}
	program = filepath.Join(t.TempDir(), "program")
	mustRun(t, testdaemon.GoCommand(t, module(t, sources), "build", "-mod=mod", "-o", program))
	return program
}

func TestTwoCopiesInOneProgramDetachOnce(t *testing.T) {
	t.Parallel()
	const another = "another copy of this package has detached the program"
	for order, path := range map[string]string{
		"fork first": "a.example/daemon",
		"fork last":  "z.example/daemon",
	} {
		program := forkedProgram(t, path)
		for _, test := range []struct {
			calls string
			exit  string
			said  string // by the daemon, which has no launcher any more after the first Ready
		}{
			{"Ready", "exit 0", "Ready: <nil>"},
			{"fork.Ready", "exit 0", "fork.Ready: <nil>"},
			{"Detach Ready", "exit 0", "Detach: <nil>, Ready: <nil>"},
			{"fork.Detach fork.Ready", "exit 0", "fork.Detach: <nil>, fork.Ready: <nil>"},
			{"Ready fork.Ready", "exit 0", "Ready: <nil>, fork.Ready: " + another},
			{"fork.Ready Ready", "exit 0", "fork.Ready: <nil>, Ready: " + another},
			{"Detach fork.Ready Ready", "exit 4", "Detach: <nil>, fork.Ready: " + another},
			{"fork.Detach Ready fork.Ready", "exit 4", "fork.Detach: <nil>, Ready: " + another},
			{"Detach fork.Detach", "exit 4", "Detach: <nil>, fork.Detach: " + another},
			{"fork.Detach Detach", "exit 4", "fork.Detach: <nil>, Detach: " + another},
		} {
			for _, proc := range []string{"", "without proc/"} {
				t.Run(order+"/"+proc+test.calls, func(t *testing.T) {
					l := testdaemon.NewLine(t)
					said := filepath.Join(t.TempDir(), "said")
					cmd := l.Called(exec.Command(program, strings.Fields(test.calls)...))
					cmd.Env = append(append(testdaemon.BareEnvironment(), cmd.Env...), "SAID="+said)
					if proc != "" {
						cmd = testdaemon.InNamespaces(t,
							testdaemon.UnderShell(cmd, `mount -t tmpfs none /proc || exit 9; exec "$@"`), "--mount")
					}
					c := l.Pipe(cmd)
					got := c.Exit()
					l.MustBeOver()
					text, err := os.ReadFile(said)
					if err != nil {
						t.Fatal(err)
					}
					want := "main\nmain\n" + strings.ReplaceAll(test.said, ", ", "\n")
					if got != test.exit || !strings.HasPrefix(withoutPath(string(text), program), want) ||
						strings.Count(string(text), "main\n") != 2 {
						t.Errorf("the caller sees %s, want %s, and %s; said was %s", got, test.exit, c.Printed(), text)
					}
				})
			}
		}
	}
}

// withoutPath removes what an error says before its reason.
func withoutPath(text, program string) string {
	return strings.ReplaceAll(text, "daemon: detach "+program+": ", "")
}
