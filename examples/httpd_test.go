//go:build linux

package examples_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon/daemontest"
)

const anyPort = "127.0.0.1:0"

// serving returns the address in a status or a log.
func serving(t *testing.T, text string) string {
	t.Helper()
	found := regexp.MustCompile(`serving on (\S+)`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no address in %q", text)
	}
	return found[1]
}

// get returns the page.
func get(t *testing.T, address string) string {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, response.Status, err)
	}
	return string(text)
}

func status(n daemontest.Notification) string {
	text, _ := n.Get("STATUS")
	return text
}

// page makes a file to be served.
func page(t *testing.T, text string) (path string) {
	path = filepath.Join(t.TempDir(), "page.html")
	write(t, path, text)
	return path
}

func TestHTTPDUnderSystemd(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	path := page(t, "first {{.Supervisor}}")
	p := start(t, command("httpd", "-addr", anyPort, "-page", path))
	ready := systemd.Wait(ctx, "READY=1")
	if pid, _ := ready.Get("MAINPID"); pid != strconv.Itoa(p.pid()) || ready.PID != p.pid() {
		t.Errorf("httpd is process %d: %v", p.pid(), ready)
	}
	address := serving(t, status(ready))
	if text := get(t, address); text != "first systemd" {
		t.Errorf("page %q", text)
	}

	reload := func(text string) daemontest.Notification {
		t.Helper()
		write(t, path, text)
		p.signal(syscall.SIGHUP)
		n := systemd.Next(ctx)
		if _, ok := n.Get("MONOTONIC_USEC"); !ok || n.Assignments[0] != "RELOADING=1" {
			t.Fatalf("SIGHUP: %v", n)
		}
		return systemd.Wait(ctx, "READY=1")
	}
	if n := reload("second"); status(n) != "serving on "+address || get(t, address) != "second" {
		t.Errorf("after the reload: %v, page %q", n, get(t, address))
	}
	if n := reload("{{.Third"); !strings.HasPrefix(status(n), "reload failed") || get(t, address) != "second" {
		t.Errorf("after the failed reload: %v, page %q", n, get(t, address))
	}
	if n := reload("fourth"); status(n) != "serving on "+address || get(t, address) != "fourth" {
		t.Errorf("after the repair: %v, page %q", n, get(t, address))
	}

	p.signal(syscall.SIGTERM)
	systemd.Wait(ctx, "STOPPING=1")
	p.exit(0)
}

// A socket that cannot be had is what the health check is to find.
func TestHTTPDHeartbeat(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	p := start(t, command("httpd", "-addr", anyPort))
	serving := status(systemd.Wait(ctx, "READY=1"))
	for range 3 {
		systemd.Wait(ctx, "WATCHDOG=1")
	}
	var limit unix.Rlimit
	prlimit(t, p.pid(), unix.RLIMIT_NOFILE, nil, &limit)
	prlimit(t, p.pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4, Max: limit.Max}, nil)
	n := systemd.Next(ctx)
	for status(n) == "" { // beats from before
		n = systemd.Next(ctx)
	}
	if !strings.Contains(status(n), "too many open files") {
		t.Errorf("without descriptors: %v", n)
	}
	prlimit(t, p.pid(), unix.RLIMIT_NOFILE, &limit, nil)
	n = systemd.Wait(ctx, "WATCHDOG=1")
	if status(n) != serving {
		t.Errorf("the first beat after the complaint: %v, want the status %q", n, serving)
	}
}

func prlimit(t *testing.T, pid, resource int, now, old *unix.Rlimit) {
	t.Helper()
	if err := unix.Prlimit(pid, resource, now, old); err != nil {
		t.Fatal(err)
	}
}

// Who connects while httpd restarts is served by its successor.
func TestHTTPDRestartRefusesNobody(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	first := start(t, command("httpd", "-addr", anyPort, "-page", page(t, "{{.PID}}")))
	store := systemd.Wait(ctx, "FDSTORE=1")
	name, _ := store.Get("FDNAME")
	if name == "" || strings.Contains(name, ":") || len(store.Files) != 1 {
		t.Fatalf("stored: %v", store)
	}
	address := serving(t, status(systemd.Wait(ctx, "READY=1")))
	first.signal(syscall.SIGTERM)
	first.exit(0)

	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("between the two: %v", err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(client, "GET / HTTP/1.0\r\n\r\n")
	// exec: LISTEN_PID has to be its own process id.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES="$1" exec "$2" -addr "$3" -page "$4"`, "sh",
		"stored other:"+name, filepath.Join(bin, "httpd"), anyPort, page(t, "{{.PID}}"))
	other := listener(t)
	cmd.ExtraFiles = []*os.File{other, store.Files[0]}
	second := start(t, cmd)
	n := systemd.Wait(ctx, "FDSTOREREMOVE=1")
	if name, _ := n.Get("FDNAME"); name != "stored other" {
		t.Errorf("the socket of another -addr: %v", n)
	}
	if n := systemd.Next(ctx); status(n) != "serving on "+address {
		t.Fatalf("the successor: %v", n)
	}
	response, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, _ := io.ReadAll(response.Body); string(text) != strconv.Itoa(second.pid()) {
		t.Errorf("served by process %q, the successor is %d", text, second.pid())
	}
}

// listener returns a listening socket.
func listener(t *testing.T) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestHTTPDTakesItsSocketUnitsPort(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http exec "$1" -addr "$2"`, "sh",
		filepath.Join(bin, "httpd"), "127.0.0.1:1")
	file := listener(t)
	cmd.ExtraFiles = []*os.File{file}
	start(t, cmd)
	n := systemd.Next(ctx)
	if n.Assignments[0] != "READY=1" {
		t.Fatalf("first: %v", n)
	}
	get(t, serving(t, status(n)))
}

// A socket unit that does not name its socket is told so. A socket that httpd
// closed would be in its way when it opens the port itself.
func TestHTTPDRefusesASocketByAnotherName(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=httpd.socket exec "$1" -addr "$2"`, "sh",
		filepath.Join(bin, "httpd"), anyPort)
	cmd.ExtraFiles = []*os.File{listener(t)}
	p := start(t, cmd)
	const want = "passed a socket named httpd.socket, want http"
	if n := systemd.Next(ctx); !strings.HasPrefix(status(n), want) {
		t.Errorf("httpd says %v, want %q", n, want)
	}
	p.exit(1)
	if !strings.Contains(p.stderr.String(), want) {
		t.Errorf("httpd printed %q, want %q", p.stderr.String(), want)
	}
}

// A connection that was accepted before the end is answered, also when its
// request arrives after it.
func TestHTTPDAnswersWhoHasConnected(t *testing.T) {
	systemd, ctx := daemontest.Systemd(t), patient(t)
	p := start(t, command("httpd", "-addr", anyPort, "-page", page(t, "page")))
	for _, file := range systemd.Wait(ctx, "FDSTORE=1").Files {
		file.Close()
	}
	address := serving(t, status(systemd.Wait(ctx, "READY=1")))
	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	get(t, address) // accepted after the client
	p.signal(syscall.SIGTERM)
	systemd.Wait(ctx, "STOPPING=1")
	eventually(t, "it accepts nobody any more", func() bool {
		other, err := net.Dial("tcp", address)
		if err == nil {
			other.Close()
		}
		return err != nil
	})
	fmt.Fprint(client, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); string(text) != "page" {
		t.Errorf("page %q, %v", text, err)
	}
	p.exit(0)
}

func TestHTTPDSaysWhyItFails(t *testing.T) {
	taken, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()

	t.Run("to systemd", func(t *testing.T) {
		systemd, ctx := daemontest.Systemd(t), patient(t)
		p := start(t, command("httpd", "-addr", address))
		n := systemd.Next(ctx)
		if errno, _ := n.Get("ERRNO"); errno != strconv.Itoa(int(syscall.EADDRINUSE)) ||
			!strings.Contains(status(n), "in use") {
			t.Errorf("%v", n)
		}
		p.exit(1)
	})
	t.Run("to a shell", func(t *testing.T) {
		d := daemontest.Shell(t, command("httpd", "-addr", address, "-log", filepath.Join(t.TempDir(), "log")))
		if d.ExitCode() != 1 || !strings.Contains(d.Output, "address already in use") || d.PID != 0 {
			t.Errorf("exit status %d, daemon %d, printed %q", d.ExitCode(), d.PID, d.Output)
		}
	})
}

func TestHTTPDUnderUpstart(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	job := daemontest.Upstart(t, command("httpd", "-addr", anyPort, "-log", log, "-page",
		page(t, "{{.PID}} {{.Supervisor}}")))
	if text := get(t, serving(t, read(t, log))); text != fmt.Sprint(job.PID, " upstart") {
		t.Errorf("the job is process %d, served by %s", job.PID, text)
	}
	if err := job.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := job.Wait(patient(t)); s.ExitStatus() != 0 {
		t.Errorf("ended with wait status %#x", s)
	}
	if len(job.Stops()) != 1 {
		t.Errorf("stopped itself more than once: %v", job.Stops())
	}
}

func TestHTTPDFromAShell(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "page.html"), "{{.PID}} {{.Supervisor}}")
	cmd := command("httpd", "-addr", anyPort, "-log", "log", "-page", "page.html")
	cmd.Dir = dir
	d := daemontest.Shell(t, cmd)
	if d.ExitCode() != 0 || d.PID == 0 || len(d.Processes()) != 1 {
		t.Fatalf("exit status %d, processes %v, printed %q", d.ExitCode(), d.Processes(), d.Output)
	}
	log := filepath.Join(dir, "log")
	address := serving(t, read(t, log))
	if text := get(t, address); text != fmt.Sprint(d.PID, " none") {
		t.Errorf("the daemon is process %d, served by %s", d.PID, text)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", d.PID)); cwd != "/" {
		t.Errorf("its directory is %q, %v", cwd, err)
	}

	// It still finds its files.
	reload := func(text string) {
		t.Helper()
		write(t, filepath.Join(dir, "page.html"), text)
		if err := d.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reload("{{.Broken")
	eventually(t, "the log tells of the reload", func() bool { return strings.Contains(read(t, log), "reload: template") })
	reload("second")
	eventually(t, "the page is the second", func() bool { return get(t, address) == "second" })
	rotate(t, log, d)
	reload("{{.BrokenAgain")
	eventually(t, "the new log tells of the reload",
		func() bool { return strings.Contains(read(t, log), "reload: template") })

	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := d.Wait(patient(t)); s.ExitStatus() != 0 {
		t.Errorf("ended with wait status %#x", s)
	}
}

func TestHTTPDLogHasThePanic(t *testing.T) {
	mustLogPanic(t, "httpd", "-addr", anyPort)
}

// mustLogPanic has a daemon print what a Go program prints when it panics, by
// SIGQUIT, and looks for it in the log.
func mustLogPanic(t *testing.T, example string, args ...string) {
	for _, rotated := range []bool{false, true} {
		t.Run(fmt.Sprint("rotated ", rotated), func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			d := daemontest.Shell(t, command(example, append(args, "-log", log)...))
			if rotated {
				rotate(t, log, d)
			}
			if err := d.Signal(syscall.SIGQUIT); err != nil {
				t.Fatal(err)
			}
			if s := d.Wait(patient(t)); s.ExitStatus() != 2 {
				t.Errorf("ended with wait status %#x", s)
			}
			if text := read(t, log); !strings.Contains(text, "SIGQUIT") || !strings.Contains(text, "main.main()") {
				t.Errorf("the log does not show where it was: %q", text)
			}
		})
	}
}

func TestHTTPDStaysInTheForeground(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p := start(t, command("httpd", "-f", "-addr", anyPort, "-log", log, "-page", page(t, "{{.PID}}")))
	eventually(t, "it serves", func() bool {
		text, _ := os.ReadFile(log)
		return strings.Contains(string(text), "serving on")
	})
	if text := get(t, serving(t, read(t, log))); text != strconv.Itoa(p.pid()) {
		t.Errorf("started process %d, served by %s", p.pid(), text)
	}
	p.signal(syscall.SIGTERM)
	p.exit(0)
}
