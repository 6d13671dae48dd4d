//go:build linux

package examples_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// brokenDaemons do what sh cannot do. The test binary is one of them, instead of the
// tests, if brokenDaemon in its environment names it.
var brokenDaemons = map[string]func(){
	"says what systemd drops": func() {
		say(`READY=1\`)
		forever()
	},
	"has a child say it": func() {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), brokenDaemon+"=says it and exits")
		child.Run()
		forever()
	},
	"says it and exits": func() {
		say("READY=1")
		syscall.Exit(0) // os.Exit takes a second in a -race build
	},
	"names another's process": func() {
		say(fmt.Sprintf("READY=1\nMAINPID=%d", os.Getppid()))
		forever()
	},
	"ignores SIGTERM": func() {
		signal.Ignore(syscall.SIGTERM)
		say("READY=1")
		forever()
	},
	"keeps a terminal": keepTerminal,
}

// keepTerminal leaves a daemon behind that has a terminal of its own.
func keepTerminal() {
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0)
	number, err := unix.IoctlGetUint32(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		panic(err)
	}
	line, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		panic(err)
	}
	daemon := exec.Command("sleep", os.Getenv("NAP"))
	daemon.ExtraFiles = []*os.File{line, keyboard}
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	if err := daemon.Start(); err != nil {
		panic(err)
	}
}

const brokenDaemon = "BROKEN_DAEMON"

func say(text string) {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		panic(err)
	}
	c.Write([]byte(text))
}

func forever() { time.Sleep(time.Hour) }

// tour runs the tour, and returns what it printed and its exit status.
func tour(t *testing.T, args ...string) (printed string, code int) {
	t.Helper()
	return tourIn(t, nil, args...)
}

// tourIn adds to the environment.
func tourIn(t *testing.T, environment []string, args ...string) (printed string, code int) {
	t.Helper()
	noticeSources()
	cmd := exec.CommandContext(patient(t), filepath.Join(bin, "tour"), args...)
	cmd.Env = append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestTourOfADaemonThatKeepsItsPromises(t *testing.T) {
	for _, test := range []struct {
		name    string
		command []string
		says    string
	}{
		{"its own", nil, "STATUS=serving on"},
		{"httpd", []string{"--", filepath.Join(bin, "httpd"), "-addr", anyPort}, "descriptors passed: 1\n"},
		{"worker", []string{"--", filepath.Join(bin, "worker"), "-dir", t.TempDir()}, "STATUS=waiting for files"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			printed, code := tour(t, test.command...)
			if code != 0 {
				t.Errorf("exit status %d", code)
			}
			for _, want := range []string{
				"READY=1", "MAINPID=", "STOPPING=1", "says the kernel",
				`has written "READY=1\n" and closed the descriptor`,
				"has stopped itself by SIGSTOP, state T", "sends SIGCONT",
				"exited with status 0: the prompt is back", "its own", "no terminal",
				"descriptor 0 is /dev/null", "descriptor 2 is /dev/null",
				"Every promise kept.", test.says,
			} {
				if !strings.Contains(printed, want) {
					t.Errorf("not printed: %s", want)
				}
			}
			if t.Failed() {
				t.Log(printed)
			}
		})
	}
}

func TestTourNamesTheBrokenPromise(t *testing.T) {
	const (
		ready   = "It says READY=1"
		stops   = "It stops itself by SIGSTOP when it is ready"
		writes  = "It writes a line to the descriptor when it is ready, and closes it"
		goesOn  = "It goes on running"
		ends    = "It ends on SIGTERM"
		session = "The daemon has a session of its own"
		streams = "The daemon's descriptors 0, 1 and 2 have left the terminal"
	)
	const soon, patience = "3s", "60s" // until the promise is broken, or something else happens
	reasons := map[string]string{      // if that is all that happens
		stops + " within " + soon:  `it has not stopped itself within 3s; it printed "a word\n"` + "\n",
		writes + " within " + soon: "it has not done so within 3s; it printed ",
		ends + " within 3s":        "it has not ended within 3s, state ",
	}
	for _, test := range []struct{ as, daemon, promise, timeout string }{
		{"systemd", "exit 0", ready, patience},
		{"systemd", "sleep $NAP", ready, soon},
		{"systemd", "sleep $NAP & exit 0", ready, patience},
		{"systemd", "says what systemd drops", "systemd understands what it says", patience},
		{"systemd", "has a child say it", "What it says comes from its main process", patience},
		{"systemd", "names another's process", "MAINPID is a process of its own", patience},
		{"systemd", "says it and exits", goesOn, patience},
		{"systemd", "ignores SIGTERM", ends, "3s"},

		{"descriptor", "exit 0", writes, patience},
		{"descriptor", "echo a word; sleep $NAP", writes, soon},
		{"descriptor", "echo READY=1 >&3; sleep $NAP", writes, soon},
		{"descriptor", "printf READY=1 >&3; exec 3>&-; sleep $NAP", writes, patience},
		{"descriptor", "echo READY=1 >&3; exec 3>&-", goesOn, patience},
		{"descriptor", "trap '' TERM; echo >&3; exec 3>&-; while :; do sleep $NAP; done", ends, "3s"},

		{"upstart", "exit 0", stops, patience},
		{"upstart", "echo a word; sleep $NAP", stops, soon},
		{"upstart", "kill -STOP $$", goesOn, patience},
		{"upstart", "kill -STOP $$; kill -STOP $$", goesOn, patience},
		{"upstart", "trap '' TERM; kill -STOP $$; while :; do sleep $NAP; done", ends, "3s"},

		{"shell", "exit 3", "The exit status is 0", patience},
		{"shell", "exit 0", "A daemon is left behind", patience},
		{"shell", "sleep $NAP", "The prompt comes back", soon},
		{"shell", "trap '' HUP; sleep $NAP & exit 0", session, patience},
		{"shell", "keeps a terminal", "The daemon has no terminal", patience},
		{"shell", "setsid sleep $NAP & sleep 1", streams, patience},
	} {
		t.Run(test.as+" "+test.daemon, func(t *testing.T) {
			t.Parallel() // what they do most is wait
			nap := newNap()
			environment := []string{"NAP=" + nap}
			args := []string{"-as", test.as, "-timeout", test.timeout, "--", "sh", "-c", test.daemon}
			if brokenDaemons[test.daemon] != nil {
				environment = append(environment, brokenDaemon+"="+test.daemon)
				args = append(args[:5], os.Args[0])
			}
			printed, code := tourIn(t, environment, args...)
			if code != 1 || !strings.Contains(printed, "BROKEN  "+test.promise+".\n") ||
				strings.Count(printed, "BROKEN") != 1 {
				t.Errorf("exit status %d, and not, or not only, broken: %s\n%s", code, test.promise, printed)
			}
			if reason := reasons[test.promise+" within "+test.timeout]; !strings.Contains(printed, "           "+reason) {
				t.Errorf("no %q in\n%s", reason, printed)
			}
			if long := regexp.MustCompile(`\.\d{4,}m?s\b`).FindString(printed); long != "" {
				t.Errorf("too precise to be read: %s in\n%s", long, printed)
			}
			if left := sleepers(nap); len(left) > 0 {
				t.Errorf("processes left behind: %v", left)
			}
		})
	}
}

// newNap returns how long the daemons that sleep do it, in seconds: a number by
// which a test knows its own.
func newNap() string { return strconv.FormatInt(1000*int64(10_000+os.Getpid())+naps.Add(1), 10) }

var naps atomic.Int64

// sleepers are the processes that run "sleep $NAP".
func sleepers(nap string) (pids []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if text, _ := os.ReadFile(path); string(text) == "sleep\x00"+nap+"\x00" {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

func TestTourLeavesNobodyBehindWhenInterrupted(t *testing.T) {
	for _, as := range []string{"systemd", "descriptor", "upstart", "shell"} {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
			t.Run(as+" "+unix.SignalName(sig), func(t *testing.T) {
				t.Parallel()
				nap := newNap()
				cmd := command("tour", "-as", as, "--", "sh", "-c", "sleep $NAP & sleep $NAP; true")
				cmd.Env = append(os.Environ(), "NAP="+nap)
				p := start(t, cmd)
				eventually(t, "they are started", func() bool { return len(sleepers(nap)) == 2 })
				p.signal(sig)
				p.exit(130)
				if left := sleepers(nap); len(left) > 0 {
					t.Errorf("processes left behind: %v", left)
				}
			})
		}
	}
}

func TestTourTellsHowItIsUsed(t *testing.T) {
	printed, code := tour(t, "-h")
	if code != 0 || !strings.Contains(printed, "[-- command arguments…]") || !strings.Contains(printed, "30s at most") {
		t.Errorf("exit status %d: %s", code, printed)
	}
}

func TestTourRefusesAnUnknownWay(t *testing.T) {
	if printed, code := tour(t, "-as", "launchd"); code != 2 ||
		!strings.Contains(printed, "systemd, descriptor, upstart and shell") {
		t.Errorf("exit status %d: %s", code, printed)
	}
}

func TestTourRefusesACommandThatIsNotThere(t *testing.T) {
	for command, why := range map[string]string{
		"./no-such-command": "no such file or directory",
		"no-such-command":   "executable file not found in $PATH",
	} {
		printed, code := tour(t, "--", command)
		if want := fmt.Sprintf("tour: %s: %s\n", command, why); code != 2 || printed != want {
			t.Errorf("exit status %d, printed %q, want %q", code, printed, want)
		}
	}
}

func TestTourNamesACommandThatCannotBeStarted(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/such/shell\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	printed, code := tour(t, "-as", "shell", "--", script)
	if code != 1 || !strings.Contains(printed, "BROKEN  The command can be started.\n") {
		t.Errorf("exit status %d, printed:\n%s", code, printed)
	}
}
