package daemon_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
)

// programs are the daemons that the tests start: this test binary, started
// once more with testProgram in its environment, runs one of them instead of
// the tests. Each test file adds its own in an init function.
var programs = map[string]func(){}

const testProgram = "DAEMON_TEST_PROGRAM"

// stopSystemd ends the systemd that systemdboot_test.go may have booted.
var stopSystemd = func() {}

// t is what an example that is a test's body has for the test's own.
var t *testing.T

func TestMain(m *testing.M) {
	name, ok := os.LookupEnv(testProgram)
	if !ok {
		flag.Parse()
		if p := flag.Lookup("test.parallel").Value; p.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
			p.Set("8") // what they do most is wait for processes
		}
		code := m.Run()
		stopSystemd()
		os.Exit(code)
	}
	run, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no test program %q\n", name)
		os.Exit(1)
	}
	run()
}

// rounds is how often a test does what one time can't prove: with -short less
// often.
func rounds(n int) int {
	if testing.Short() {
		return n / 5
	}
	return n
}

// program returns the command that runs one of programs in a process of its
// own, in an environment without a supervisor.
func program(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, ok := programs[name]; !ok {
		t.Fatalf("no test program %q", name)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(bareEnvironment(), testProgram+"="+name)
	return cmd
}

// bareEnvironment is this process's environment without what a supervisor
// may have left in it.
func bareEnvironment() []string {
	bare := []string{"GORACE=atexit_sleep_ms=0"} // a second otherwise, at each exit
	for _, key := range []string{"PATH", "HOME", "TMPDIR", "TERM", "LANG", "GOCOVERDIR"} {
		if value, ok := os.LookupEnv(key); ok {
			bare = append(bare, key+"="+value)
		}
	}
	return bare
}
