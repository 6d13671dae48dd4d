//go:build linux

package daemontest_test

import (
	"flag"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/seed-10280e03/daemon"
)

// What the examples take for granted. It is not in their file, or pkg.go.dev
// would show it with each of them.
var (
	t        *testing.T
	mydaemon string // a path
)

// TestExamples runs the examples as what they are, bodies of tests.
func TestExamples(test *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		test.Fatal(err)
	}
	mydaemon = filepath.Join(test.TempDir(), "mydaemon")
	if err := os.Symlink(exe, mydaemon); err != nil {
		test.Fatal(err)
	}
	for name, example := range map[string]func(){
		"Systemd":       ExampleSystemd,
		"Upstart":       ExampleUpstart,
		"Shell":         ExampleShell,
		"Shell_failure": ExampleShell_failure,
	} {
		test.Run(name, func(test *testing.T) {
			t = test
			example()
		})
	}
}

// By this name the test binary is mydaemon.
func init() {
	if filepath.Base(os.Args[0]) == "mydaemon" {
		serve()
		syscall.Exit(0) // os.Exit takes a second under the race detector
	}
}

// serve is mydaemon's main.
func serve() {
	status := flag.String("status", "ready", "what to tell systemd")
	flag.CommandLine.Parse(os.Args[1:])
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	if err := daemon.Ready(daemon.Status(*status)); err != nil {
		log.Fatal(err)
	}
	<-terminate
	daemon.Stopping()
}
