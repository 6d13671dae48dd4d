//go:build linux

package detaching_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// In a test binary, and in a library that a program has loaded, this package
// would start again what is not its own program.

func TestTestBinaryThatIsRunByHandDoesNotDetach(t *testing.T) {
	t.Parallel()
	dir := module(t, map[string]string{"main_test.go": `package main

import (
	"os"
	"testing"

	"github.com/seed-10280e03/daemon"
)

func TestReady(t *testing.T) {
	err := daemon.Ready()
	t.Log("Ready: ", err)
	t.Log("Detach: ", daemon.Detach())
	done := make(chan error)
	go func() { done <- daemon.Ready() }()
	t.Log("Ready of a goroutine: ", <-done)
	if os.Getenv("FAIL") != "" {
		t.Error("this test fails")
	}
}
`})
	path := filepath.Join(t.TempDir(), "foo")
	mustRun(t, testdaemon.GoCommand(t, dir, "test", "-mod=mod", "-c", "-o", path))
	for _, test := range []struct {
		env    []string
		args   []string
		exit   string
		errors int
	}{
		{[]string{"FAIL=yes"}, nil, "exit 1", 3},
		{[]string{"FAIL=yes"}, []string{"-test.v"}, "exit 1", 3},
		{nil, []string{"-test.v"}, "exit 0", 3},
		{[]string{"FAIL=yes", "UPSTART_JOB=job"}, nil, "exit 1", 2}, // Detach does nothing in a job
		{[]string{"UPSTART_JOB=job"}, []string{"-test.v"}, "exit 0", 2},
	} {
		l := testdaemon.NewLine(t)
		cmd := l.Called(exec.Command(path, test.args...))
		cmd.Env = append(append(testdaemon.BareEnvironment(), cmd.Env...), test.env...)
		c := l.Pipe(cmd)
		if got := c.Exit(); got != test.exit || strings.Count(c.Printed(), "a test binary does not detach") != test.errors {
			t.Errorf("%q %q: the caller sees %s, want %s, and %s", test.env, test.args, got, test.exit, c.Printed())
		}
		l.MustBeOver()
		l.MustBeSilent()
	}
}

// Bazel gives main another file.
func TestTestBinaryWhoseMainIsInAnotherFileDoesNotDetach(t *testing.T) {
	t.Parallel()
	dir := module(t, map[string]string{"main.go": `package main

import (
	"testing"

	"github.com/seed-10280e03/daemon"
)

func main() {
	match := func(pattern, name string) (bool, error) { return true, nil }
	testing.Main(match, []testing.InternalTest{{Name: "TestReady", F: func(t *testing.T) {
		t.Fatal("Ready: ", daemon.Ready())
	}}}, nil, nil)
}
`})
	path := filepath.Join(t.TempDir(), "foo")
	mustRun(t, testdaemon.GoCommand(t, dir, "build", "-mod=mod", "-o", path))
	l := testdaemon.NewLine(t)
	cmd := l.Called(exec.Command(path))
	cmd.Env = append(testdaemon.BareEnvironment(), cmd.Env...)
	c := l.Pipe(cmd)
	if got := c.Exit(); got != "exit 1" || !strings.Contains(c.Printed(), "a test binary does not detach") {
		t.Errorf("the caller sees %s, and %s", got, c.Printed())
	}
	l.MustBeOver()
}

// tell is what a library exports: what Ready and Detach return there.
const tell = `
func tell() string {
	text := ""
	for _, verb := range []func() error{daemon.Detach, func() error { return daemon.Ready() }, daemon.Detach} {
		if err := verb(); err != nil {
			text += err.Error() + "\n"
		}
	}
	return text
}
`

var librarySources = map[string]string{
	"library/library.go": `package main

import "C"

import "github.com/seed-10280e03/daemon"

//export Tell
func Tell() *C.char { return C.CString(tell()) }

func main() {}
` + tell,
	"early/early.go": `package main

import "C"

import "github.com/seed-10280e03/daemon"

var before = tell()

var meanwhile = make(chan string)

func init() {
	go func() { // until the initializers and what follows them are over
		text := ""
		for range 200 {
			text = tell()
		}
		meanwhile <- text
	}()
}

//export Tell
func Tell() *C.char { return C.CString(before + <-meanwhile) }

func main() {}
` + tell,
	"host.c": `#include <stdio.h>
#ifdef LIBRARY
#include <dlfcn.h>
#else
extern char *Tell(void);
#endif

int main(void) {
	puts("main begins");
	fflush(stdout);
#ifdef LIBRARY
	void *library = dlopen(LIBRARY, RTLD_NOW);
	if (!library) {
		puts(dlerror());
		return 2;
	}
	char *(*Tell)(void) = (char *(*)(void))dlsym(library, "Tell");
#endif
	printf("%s", Tell());
	return 7;
}
`,
	"plugin/plugin.go": `package main

import "github.com/seed-10280e03/daemon"

func Tell() string { return tell() }

func main() {}
` + tell,
	"host/use.go": `//go:build usedaemon

package main

import "github.com/seed-10280e03/daemon"

var _ = daemon.Detect()
`,
	"host/host.go": `package main

import (
	"fmt"
	"os"
	"plugin"
)

func main() {
	fmt.Println("main begins")
	p, err := plugin.Open(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	symbol, err := p.Lookup("Tell")
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	fmt.Print(symbol.(func() string)())
	os.Exit(7)
}
`,
}

func TestLibraryDoesNotStartItsHostAgain(t *testing.T) {
	t.Parallel()
	if !testdaemon.HaveCompiler() {
		testdaemon.SkipUnlessForbidden(t, "no C compiler")
	}
	dir := module(t, librarySources)
	build := func(t *testing.T, args ...string) {
		cmd := testdaemon.GoCommand(t, dir, append([]string{"build", "-mod=mod"}, args...)...)
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
		mustRun(t, cmd)
	}
	compile := func(t *testing.T, args ...string) {
		cmd := exec.Command("gcc", args...)
		cmd.Dir = dir
		mustRun(t, cmd)
	}
	for name, host := range map[string]func(t *testing.T) (command []string){
		"c-archive, and its initializers call": func(t *testing.T) []string {
			build(t, "-buildmode=c-archive", "-o", "early.a", "./early")
			compile(t, "-o", "early-host", "host.c", "early.a", "-lpthread")
			return []string{filepath.Join(dir, "early-host")}
		},
		"c-shared": func(t *testing.T) []string {
			build(t, "-buildmode=c-shared", "-o", "shared.so", "./library")
			compile(t, "-o", "shared-host", `-DLIBRARY="`+filepath.Join(dir, "shared.so")+`"`, "host.c", "-ldl")
			return []string{filepath.Join(dir, "shared-host")}
		},
		"c-archive": func(t *testing.T) []string {
			build(t, "-buildmode=c-archive", "-o", "archive.a", "./library")
			compile(t, "-o", "archive-host", "host.c", "archive.a", "-lpthread")
			return []string{filepath.Join(dir, "archive-host")}
		},
		"plugin, and the host does not use the package": func(t *testing.T) []string {
			build(t, "-buildmode=plugin", "-o", "plugin.so", "./plugin")
			build(t, "-o", "plugin-host", "./host")
			return []string{filepath.Join(dir, "plugin-host"), filepath.Join(dir, "plugin.so")}
		},
		"plugin, and the host uses the package": func(t *testing.T) []string {
			build(t, "-buildmode=plugin", "-o", "plugin.so", "./plugin")
			build(t, "-tags=usedaemon", "-o", "using-host", "./host")
			return []string{filepath.Join(dir, "using-host"), filepath.Join(dir, "plugin.so")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			command := host(t)
			errors := map[string]int{"UPSTART_JOB=": 3, "UPSTART_JOB=job": 1} // Detach does nothing in a job
			for variable, want := range errors {
				l := testdaemon.NewLine(t)
				cmd := l.Called(exec.Command(command[0], command[1:]...))
				cmd.Env = append(append(testdaemon.BareEnvironment(), cmd.Env...), variable)
				c := l.Pipe(cmd)
				got, printed := c.Exit(), c.Printed()
				if strings.Contains(name, "initializers") {
					want *= 2
				}
				cure := map[string]string{"UPSTART_JOB=": "call daemon.Foreground",
					"UPSTART_JOB=job": "unset UPSTART_JOB"}[variable]
				if got != "exit 7" || strings.Count(printed, "main begins") != 1 ||
					strings.Count(printed, "daemon: ") != want || strings.Count(printed, cure) != want {
					t.Errorf("%s: the caller sees %s and %s", variable, got, printed)
				}
				l.MustBeOver()
				l.MustBeSilent()
			}
		})
	}
}
