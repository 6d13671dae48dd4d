//go:build linux

package detaching_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// A detach starts the program again by what the kernel and the Go runtime make
// of it, which depends on how it was built. This is a program of its own, the
// smallest puppet.
var buildSources = map[string]string{
	"go.mod": `module an.example/program

go 1.25.0

require (
	github.com/seed-10280e03/daemon v0.0.0
	golang.org/x/sys v0.47.0
)

replace github.com/seed-10280e03/daemon => %s
`,
	"main.go": `package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

func main() {
	line, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(line, &unix.SockaddrUnix{Name: os.Getenv("` + agreed.Line + `")})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	conn := os.NewFile(uintptr(line), "line")
	for orders := bufio.NewScanner(conn); orders.Scan(); {
		order, _ := strconv.Unquote(orders.Text())
		answer := "ok"
		switch order {
		case "ready":
			err = daemon.Ready()
		case "detach":
			err = daemon.Detach()
		default:
			os.Exit(len(order))
		}
		if err != nil {
			answer = err.Error()
		}
		fmt.Fprintf(conn, "%q\n", answer)
	}
}
`,
	"cgo.go": `//go:build needcgo

package main

// #include <unistd.h>
import "C"

var _ = C.getpid()
`,
	"main_test.go": `package main

import (
	"testing"

	"github.com/seed-10280e03/daemon"
)

func TestReady(t *testing.T) {
	t.Log("Ready: ", daemon.Ready())
	t.Log("Detach: ", daemon.Detach())
}
`,
}

// module writes the program's sources to a directory, with more, or others.
func module(t *testing.T, more ...map[string]string) (dir string) {
	t.Helper()
	if arch := mustRun(t, testdaemon.GoCommand(t, ".", "env", "GOHOSTARCH")); strings.TrimSpace(arch) != runtime.GOARCH {
		t.Skipf("is built for %s, not for %s", arch, runtime.GOARCH)
	}
	root, err := testdaemon.Root()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	files := map[string]string{"go.sum": string(sum)}
	maps.Copy(files, buildSources)
	for _, sources := range more {
		maps.Copy(files, sources)
	}
	files["go.mod"] = strings.ReplaceAll(files["go.mod"], "%s", root)
	for name, source := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDetachesHoweverItWasBuilt(t *testing.T) {
	t.Parallel()
	dir := module(t)
	for _, test := range []struct {
		name  string
		cgo   string
		flags []string
	}{
		{"static", "0", nil},
		{"cgo", "1", []string{"-tags=needcgo"}},
		{"race", "1", []string{"-race"}},
		{"cover", "0", []string{"-cover"}},
		{"pie", "0", []string{"-buildmode=pie"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			build := testdaemon.GoCommand(t, dir, append([]string{"build", "-mod=mod", "-o", path}, test.flags...)...)
			build.Env = append(build.Env, "CGO_ENABLED="+test.cgo)
			if test.cgo == "1" && !testdaemon.HaveCompiler() {
				testdaemon.SkipUnlessForbidden(t, "no C compiler")
			}
			mustRun(t, build)
			mustDetachAndFail(t, func() *exec.Cmd {
				cmd := exec.Command(path)
				cmd.Env = append(testdaemon.BareEnvironment(), "GOCOVERDIR="+t.TempDir())
				return cmd
			}, "exit 3", "SIGTERM")
		})
	}
}

func TestDetachesFromGoRun(t *testing.T) {
	t.Parallel()
	dir := module(t)
	mustRun(t, testdaemon.GoCommand(t, dir, "build", "-mod=mod", "-o", os.DevNull, ".")) // may take its time
	mustDetachAndFail(t, func() *exec.Cmd { return testdaemon.GoCommand(t, dir, "run", "-mod=mod", ".") }, "exit 1", "exit 1")
}

func mustRun(t *testing.T, cmd *exec.Cmd) (printed string) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// mustDetachAndFail runs the program three times: to a success, to an exit
// status of 3 and to a death by SIGTERM.
func mustDetachAndFail(t *testing.T, command func() *exec.Cmd, status3, terminated string) {
	t.Helper()
	for _, test := range []struct {
		verb, want string
		end        func(second *testdaemon.Puppet)
	}{
		{"ready", "exit 0", func(second *testdaemon.Puppet) { second.Do("ready"); second.MustBeDetached() }},
		{"detach", "exit 0", func(second *testdaemon.Puppet) {
			second.Do("detach")
			second.Do("ready")
			second.MustBeDetached()
		}},
		{"ready", status3, func(second *testdaemon.Puppet) { second.Leaves("123") }},
		{"detach", terminated, func(second *testdaemon.Puppet) { unix.Kill(second.PID, unix.SIGTERM); second.Ends() }},
	} {
		l := testdaemon.NewLine(t)
		c := l.Pipe(l.Called(command()))
		first := l.Process()
		second := first.Detaches(test.verb)
		test.end(second)
		if got := c.Exit(); got != test.want {
			t.Errorf("after %s the caller sees %s and %q, want %s", test.verb, got, c.Printed(), test.want)
		}
	}
}

func TestReadyIsAnErrorInGoTest(t *testing.T) {
	t.Parallel()
	dir := module(t)
	errors := map[string]int{"UPSTART_JOB=": 2, "UPSTART_JOB=job": 1} // Detach does nothing in a job
	for variable, want := range errors {
		test := testdaemon.GoCommand(t, dir, "test", "-mod=mod", "-count=1", "-v", ".")
		test.Env = append(test.Env, variable)
		out := mustRun(t, test)
		if strings.Count(out, "a test binary does not detach") != want ||
			strings.Count(out, "use package daemontest") != want {
			t.Errorf("%s go test: %s", variable, out)
		}
	}
}
