//go:build linux

package daemon_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// A daemon's main: initialize, say so, serve, and say when that is over.
func Example() {
	listener, err := net.Listen("tcp", "localhost:8080")
	if err != nil {
		log.Fatal(err)
	}
	// Before Ready: whoever hears that may send a SIGTERM at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := daemon.Ready(); err != nil {
		log.Fatal(err)
	}

	var server http.Server
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		log.Fatal(err)
	case <-ctx.Done():
	}
	daemon.Stopping(daemon.Status("finishing requests"))
	if err := server.Shutdown(context.Background()); err != nil { // waits for open connections
		log.Fatal(err)
	}
}

// One call, whoever has started the program. Before it comes all that may fail,
// so that whoever waits is told.
func ExampleReady() {
	listener, err := net.Listen("tcp", "localhost:8080")
	if err != nil {
		daemon.Fail(err) // what systemctl status shows
		log.Fatal(err)   // what a shell prints, with exit status 1
	}
	status := daemon.Status("serving on " + listener.Addr().String())
	if err := daemon.Ready(status); err != nil {
		log.Fatal(err)
	}
	http.Serve(listener, nil)
}

// After Detach all that main does happens once, in the daemon. What it prints
// goes to the caller's terminal until Ready, and a passphrase is read there.
func ExampleDetach() {
	config := flag.String("config", "/etc/mydaemon.conf", "the configuration")
	flag.Parse() // before Detach: -h is for the caller
	if err := daemon.Detach(); err != nil {
		log.Fatal(err)
	}

	lock, err := os.OpenFile(*config+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		log.Fatal(err) // the caller sees it, and exit status 1
	}
	if err := daemon.Ready(); err != nil {
		log.Fatal(err)
	}
}

// Every daemon has a -f flag: for people who want to see its output, for
// containers, and for supervisors that a program does not recognize.
func ExampleForeground() {
	foreground := flag.Bool("f", false, "stay in the foreground")
	flag.Parse()
	if *foreground {
		daemon.Foreground()
	}
	if err := daemon.Ready(); err != nil {
		log.Fatal(err)
	}
}

// A program with users whose units say Type=forking keeps the flag by which it
// has always gone into the background.
func ExampleBackground() {
	background := flag.Bool("daemon", false, "go into the background")
	flag.Parse()
	if *background {
		daemon.Background()
	} else {
		daemon.Foreground()
	}
	if err := daemon.Ready(); err != nil {
		log.Fatal(err)
	}
}

// What goes on after Stopping may take until the supervisor loses patience
// (TimeoutStopSec=).
func ExampleStopping() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var server http.Server
	go server.ListenAndServe()

	<-ctx.Done()
	// An error is no reason to stop in another way.
	if err := daemon.Stopping(daemon.Status("finishing requests")); err != nil {
		log.Print(err)
	}
	server.Shutdown(context.Background())
}

// A listener that is stored is passed to the service's next process: who
// connects during a restart waits and is not refused. The unit needs
// FileDescriptorStoreMax=1.
func ExampleStoreFiles() {
	listener, err := net.Listen("tcp", "localhost:8080")
	if err != nil {
		log.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		log.Fatal(err)
	}
	if err := daemon.StoreFiles("http", file); err != nil {
		log.Print(err) // a restart refuses connections then, no more
	}
	file.Close()
	// The next process finds it as the example of Files does.
}

// With Type=notify-reload, systemd sends SIGHUP and waits for both calls.
func ExampleReloading() {
	reload := func() error { return nil }

	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	for range hangups {
		daemon.Reloading(daemon.Status("reading the configuration"))
		status := daemon.Status("ready")
		if err := reload(); err != nil { // the old configuration stays
			status = daemon.Status("reload failed: " + err.Error())
		}
		daemon.Ready(status)
	}
}

// RunWatchdog returns when its context ends, so it goes well into a group that
// is waited for. This is a sync.WaitGroup, because the module depends on no
// golang.org/x/sync; in an errgroup.Group of that it is
//
//	group.Go(func() error { return daemon.RunWatchdog(ctx, healthy) })
func ExampleRunWatchdog() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	healthy := func() error {
		response, err := http.Get("http://localhost:8080/health")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", response.Status)
		}
		return nil
	}

	var group sync.WaitGroup
	group.Go(func() {
		if err := daemon.RunWatchdog(ctx, healthy); err != nil {
			log.Print(err)
		}
	})
	// Serve until ctx ends.
	group.Wait()
}

// What systemctl status shows of a failed service is what it was told last.
func ExampleFail() {
	_, err := os.ReadFile("/nonexistent/mydaemon.conf")
	if err != nil {
		daemon.Fail(err)
		fmt.Println(err)
	}
	// Output: open /nonexistent/mydaemon.conf: no such file or directory
}

// Under systemd, what goes to standard error ends up in the journal with a
// time of its own.
func ExampleDetect() {
	options := &slog.HandlerOptions{}
	if daemon.Detect() == daemon.Systemd {
		options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, options)))
}

// A long start tells that it goes on; the time that it may take is then counted
// from that word.
func ExampleExtendTimeout() {
	for table := range 3 {
		daemon.Notify(
			daemon.ExtendTimeout(30*time.Second),
			daemon.Status(fmt.Sprintf("migrating table %d of 3", table+1)),
		)
	}
}

// Files by name: those of the .socket unit, or stored before a restart.
func ExampleFiles() {
	var listener net.Listener
	for _, file := range daemon.Files() {
		if file.Name() == "http" {
			listener, _ = net.FileListener(file)
		}
	}
	if listener == nil {
		listener, _ = net.Listen("tcp", "localhost:8080")
	}
	http.Serve(listener, nil)
}

// A helper process must not end before systemd has seen whose word it was.
func ExampleBarrier() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	daemon.Notify(daemon.Status("backup finished"))
	if err := daemon.Barrier(ctx); err != nil {
		log.Fatal(err)
	}
}

// Children do not inherit what is meant for this process, which goes on using it.
func ExampleUnsetEnvironment() {
	os.Setenv("WATCHDOG_USEC", "30000000") // as systemd does for WatchdogSec=30s
	os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	daemon.UnsetEnvironment()
	_, inherited := os.LookupEnv("WATCHDOG_USEC")
	timeout, err := daemon.WatchdogTimeout()
	fmt.Println(inherited, timeout, err)

	os.Setenv("WATCHDOG_USEC", "") // counts for more than what is remembered
	timeout, err = daemon.WatchdogTimeout()
	fmt.Println(timeout, err)
	// Output:
	// false 30s <nil>
	// 0s <nil>
}

// t is what an example that is a test's body has for the test's own.
var t *testing.T

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

// The examples of a main and of a watchdog, in one process: this test once more.
// Its slow page takes until after the SIGTERM.
func runExamples() {
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

func TestExamplesOfADaemon(t *testing.T) {
	const variable = "DAEMON_TEST_EXAMPLES"
	if os.Getenv(variable) != "" {
		runExamples()
		return
	}
	port, err := net.Listen("tcp", "localhost:8080")
	if err != nil {
		testdaemon.SkipUnlessForbidden(t, "the examples' port is another's: "+err.Error())
	}
	port.Close()
	systemd := daemontest.Systemd(t)
	cmd := testdaemon.Again(t, "TestExamplesOfADaemon")
	cmd.Env = append(cmd.Env, variable+"=yes", "NOTIFY_SOCKET="+systemd.Addr(), "WATCHDOG_USEC=200000")
	var printed strings.Builder
	cmd.Stderr = &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	systemd.Wait(t.Context(), "READY=1")
	systemd.Wait(t.Context(), "STATUS=health: 503 Service Unavailable")

	client := http.Client{Timeout: testdaemon.Patience}
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
