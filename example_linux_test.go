package daemon_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
)

// The body of a test, TestServes(t *testing.T), of a daemon that runs in the
// test's own process. Package daemontest has examples for a daemon that is a
// program.
func Example_test() {
	systemd := daemontest.Systemd(t)
	go daemon.Ready(daemon.Status("serving")) // the daemon
	ready := systemd.Wait(t.Context(), "READY=1")
	if status, _ := ready.Get("STATUS"); status != "serving" {
		t.Errorf("STATUS=%s", status)
	}
}

func TestExampleOfATest(test *testing.T) {
	t = test
	Example_test()
}

// The examples of a main and of a watchdog, in one program. Its slow page takes
// until after the SIGTERM.
func init() {
	programs["examples"] = func() {
		http.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
			time.Sleep(500 * time.Millisecond)
			io.WriteString(w, "whole")
		})
		http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the database is gone", http.StatusServiceUnavailable)
		})
		go ExampleRunWatchdog()
		Example()
	}
}

func TestExamplesOfADaemon(t *testing.T) {
	port, err := net.Listen("tcp", "localhost:8080")
	if err != nil {
		t.Skip("the examples' port is another's: ", err)
	}
	port.Close()
	systemd := daemontest.Systemd(t)
	cmd := program(t, "examples")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+systemd.Addr(), "WATCHDOG_USEC=200000")
	var printed strings.Builder
	cmd.Stderr = &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	systemd.Wait(t.Context(), "READY=1")
	systemd.Wait(t.Context(), "STATUS=health: 503 Service Unavailable")

	client := http.Client{Timeout: patience}
	response, err := client.Get("http://localhost:8080/slow")
	if err != nil {
		t.Fatalf("the request under way is cut: %v", err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); string(text) != "whole" {
		t.Errorf("the request under way gets %q, %v", text, err)
	}
	systemd.Wait(t.Context(), "STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, printed.String())
	}
}
