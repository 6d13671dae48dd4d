//go:build linux

// Package testdaemon starts the daemons that the tests are about, and talks to
// them. They are the programs of the command in its directory programs, which
// each test process builds once: a test binary neither detaches nor stops.
//
// A package of tests that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }
package testdaemon

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// Patience is how long anything may take that should happen at all. Other work
// may have the processors meanwhile.
const Patience = 60 * time.Second

// Wherever the tests run, they find what most machines have. Other users execute
// what they write. Sockets have short paths, and shells split words: for both a
// TMPDIR may be too much.
func init() {
	if inSessionOfPID1() {
		os.Exit(againInSession())
	}
	unix.Umask(0o022)
	if regexp.MustCompile(`^[\w/.-]{0,40}$`).MatchString(os.TempDir()) {
		return
	}
	if unix.Access("/tmp", unix.W_OK|unix.X_OK) == nil {
		os.Setenv("TMPDIR", "/tmp")
	}
}

// inSessionOfPID1 reports whether all that is started here would stay in the
// foreground: the tests run as the entry point of a container.
func inSessionOfPID1() bool {
	own, err := unix.Getsid(0)
	first, err1 := unix.Getsid(1)
	return err == nil && err1 == nil && own == first
}

// againInSession starts this test binary in a session of its own, passes signals
// on to it, and returns its exit status. A leader of a process group could not
// become a session's leader itself.
func againInSession() int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	go func() {
		for sig := range signals {
			cmd.Process.Signal(sig)
		}
	}()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() < 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// Run runs the tests, and removes what they have built and booted.
func Run(m *testing.M) (code int) {
	flag.Parse()
	if p := flag.Lookup("test.parallel").Value; p.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		p.Set("8") // what they do most is wait for processes
	}
	code = m.Run()
	for _, do := range slices.Backward(atExit.list) {
		do()
	}
	return code
}

var atExit struct {
	sync.Mutex
	list []func()
}

// AtExit has Run call do after all tests, the last that was given first.
func AtExit(do func()) {
	atExit.Lock()
	defer atExit.Unlock()
	atExit.list = append(atExit.list, do)
}

// Program returns the command that runs one of the programs, in an environment
// without a supervisor.
func Program(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(Binary(t), args...)
	cmd.Env = append(BareEnvironment(), agreed.Program+"="+name)
	return cmd
}

// Again returns the command that starts this test binary once more, for one of
// its tests.
func Again(t testing.TB, test string) *exec.Cmd {
	t.Helper()
	Binary(t) // which it need not build again
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+test+"$")
	cmd.Env = append(BareEnvironment(), binaryVariable+"="+os.Getenv(binaryVariable))
	return cmd
}

// Binary returns the path of the file that has all programs.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if errors.Is(err, exec.ErrNotFound) {
		SkipUnlessForbidden(t, "no go command: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// binaryVariable names the file in the environment of a test process that is
// started by another.
const binaryVariable = "DAEMON_TEST_BINARY"

// build makes the file as this test binary was made. Everybody may execute it.
var build = sync.OnceValues(func() (path string, err error) {
	if path = os.Getenv(binaryVariable); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "daemon-test")
	if err != nil {
		return "", err
	}
	AtExit(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "programs")
	args := []string{"build", "-o", path}
	env := append(os.Environ(), "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			switch {
			case setting.Key == "-race" && setting.Value == "true":
				args = append(args, "-race")
			case setting.Key == "CGO_ENABLED":
				env = append(env, setting.Key+"="+setting.Value)
			}
		}
	}
	for _, dir := range []string{"internal", ".."} { // of the root's tests, and of those below internal
		sources, _ := filepath.Glob(filepath.Join(dir, "testdaemon", "programs", "*.go"))
		for _, source := range sources {
			os.Stat(source) // has go test notice that it has changed
		}
	}
	cmd := exec.Command("go", append(args, "github.com/seed-10280e03/daemon/internal/testdaemon/programs")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	os.Setenv(binaryVariable, path)
	return path, errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o755))
})

// BareEnvironment returns this process's environment without what a supervisor
// may have left in it.
func BareEnvironment() []string {
	bare := []string{"GORACE=atexit_sleep_ms=0"} // a second otherwise, at each exit
	for _, key := range []string{"PATH", "HOME", "TMPDIR", "TERM", "LANG", "GOCOVERDIR"} {
		if value, ok := os.LookupEnv(key); ok {
			bare = append(bare, key+"="+value)
		}
	}
	return bare
}

// Rounds returns how often a test does what one time can't prove: with -short
// less often.
func Rounds(n int) int {
	if testing.Short() {
		return n / 5
	}
	return n
}

const noSkip = "DAEMON_TEST_NO_SKIP" // not empty: what can't be tested here fails

// SkipUnlessForbidden skips a test for what this machine lacks.
func SkipUnlessForbidden(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(noSkip) != "" {
		t.Fatalf("%s (%s forbids to skip the test)", reason, noSkip)
	}
	t.Skip(reason)
}

// MustBeRoot skips a test that an ordinary user can't do.
func MustBeRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		SkipUnlessForbidden(t, "needs root")
	}
}

// Directory makes one with a path short enough for a socket.
func Directory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// WriteFile writes a file that can be executed at once: no child which is forked
// meanwhile has it open for writing.
func WriteFile(path, text string, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, []byte(text), mode)
}

// Memory makes a file that is in no directory.
func Memory(t testing.TB, content string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("daemon-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), content)
	t.Cleanup(func() { file.Close() })
	if _, err := file.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return file
}

// WaitUntil waits for a condition that nobody tells of.
func WaitUntil(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
