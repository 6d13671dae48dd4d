//go:build linux

package daemontest_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
)

// What the examples take for granted. It is not in their file, or pkg.go.dev
// would show it with each of them.
var (
	t        *testing.T
	mydaemon string // a path
)

// build is what the package documentation has in its TestMain.
func build(test *testing.T) {
	test.Helper()
	mydaemon = filepath.Join(test.TempDir(), "mydaemon")
	os.ReadDir("./testdata/mydaemon") // go test keeps no old result when a file there changes
	out, err := exec.Command("go", "build", "-o", mydaemon, "./testdata/mydaemon").CombinedOutput()
	if err != nil {
		test.Fatalf("go build: %v\n%s", err, out)
	}
}

// freePort returns a TCP port that is free for now.
func freePort() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// TestExamples runs the examples as what they are, bodies of tests.
func TestExamples(test *testing.T) {
	build(test)
	for name, example := range map[string]func(){
		"Service":                  ExampleService,
		"Service_socketActivation": ExampleService_socketActivation,
		"StartService":             ExampleStartService,
		"Unit_Reload":              ExampleUnit_Reload,
		"Unit_Restart":             ExampleUnit_Restart,
		"Unit_MissedBeat":          ExampleUnit_MissedBeat,
		"Systemd":                  ExampleSystemd,
		"NotifyFD":                 ExampleNotifyFD,
		"Upstart":                  ExampleUpstart,
		"Shell":                    ExampleShell,
		"Shell_failure":            ExampleShell_failure,
	} {
		test.Run(name, func(test *testing.T) {
			t = test
			example()
		})
	}
}

// What the daemon of a test has remembered is no later test's supervisor.
func TestSupervisorIsForgottenWithItsTest(test *testing.T) {
	os.Unsetenv("NOTIFY_SOCKET")
	test.Run("first", func(test *testing.T) {
		daemontest.Systemd(test)
		test.Setenv("WATCHDOG_USEC", "1000000")
		daemon.UnsetEnvironment()
		if daemon.Detect() != daemon.Systemd {
			test.Error("it is forgotten too early")
		}
	})
	if who := daemon.Detect(); who != daemon.None {
		test.Errorf("the supervisor is %v", who)
	}
	if timeout, err := daemon.WatchdogTimeout(); timeout != 0 || err != nil {
		test.Errorf("the watchdog is at %v, %v", timeout, err)
	}
	for _, entry := range os.Environ() {
		if strings.HasPrefix(entry, "NOTIFY_") {
			test.Errorf("%s is set", entry)
		}
	}
}
