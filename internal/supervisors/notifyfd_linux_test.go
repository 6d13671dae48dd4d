package supervisors_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// Supervisors that wait for a line on a descriptor.

// s6 knows of no variable: the run script names the descriptor.
func TestS6WaitsUntilReady(t *testing.T) {
	supervise := need(t, "s6-supervise", "s6")
	for _, number := range []string{"3", "7", "1"} {
		t.Run(number, func(t *testing.T) {
			t.Parallel()
			s := newService(t, testdaemon.NewLine(t), "export NOTIFY_FD="+number+"; exec PUPPET")
			s.write("notification-fd", number+"\n")
			s.start(supervise, s.dir)
			for range 2 { // the second time after a crash
				p := s.Process()
				testdaemon.WaitUntil(t, "s6 to know of its process", func() bool {
					return s.run1("s6-svstat", "-o", "up", s.dir) == "true\n"
				})
				if got := s.run1("s6-svstat", "-o", "ready", s.dir); got != "false\n" {
					t.Errorf("before Ready it is ready: %s", got)
				}
				waiter := exec.Command("s6-svwait", "-U", "-t",
					strconv.FormatInt(testdaemon.Patience.Milliseconds(), 10), s.dir)
				if err := waiter.Start(); err != nil {
					t.Fatal(err)
				}
				p.Do("ready")
				if err := waiter.Wait(); err != nil {
					t.Fatalf("s6-svwait: %v", err)
				}
				if got := s.run1("s6-svstat", "-o", "up,ready,pid", s.dir); got != fmt.Sprintf("true true %d\n", p.PID) {
					t.Errorf("after Ready it is up, ready: %s", got)
				}
				p.Do("ready") // which is nothing
				mustBeAlone(t, s.Line, p)
				p.Leaves("exit 1")
			}
		})
	}
}

// run1 returns what a command prints.
func (s *service) run1(name string, args ...string) string {
	s.T.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// A descriptor is what the test, in the place of a supervisor, reads from.
type descriptor struct {
	t    *testing.T
	read *os.File
}

// withDescriptor starts a puppet that has the other end of a pipe, or of a
// pair of sockets of a type, as a descriptor of that number.
func withDescriptor(t *testing.T, kind, number int, env ...string) (*testdaemon.Puppet, *testdaemon.Line, *descriptor) {
	t.Helper()
	ours, theirs := channel(t, kind)
	line := testdaemon.NewLine(t)
	p := startWith(t, line, theirs, number, append([]string{"NOTIFY_FD=" + strconv.Itoa(number)}, env...)...)
	return p, line, &descriptor{t, ours}
}

const pipe = 0 // in the place of a socket's type

// channel makes a pipe or a pair of sockets.
func channel(t *testing.T, kind int) (ours, theirs *os.File) {
	t.Helper()
	var fds [2]int
	var err error
	if kind == pipe {
		err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
	} else {
		fds, err = unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// startWith starts a puppet that has the file as a descriptor of that number,
// and closes it here.
func startWith(t *testing.T, line *testdaemon.Line, file *os.File, number int, env ...string) *testdaemon.Puppet {
	t.Helper()
	cmd := line.Command()
	cmd.Env = append(cmd.Env, env...)
	switch number {
	case 0:
		cmd.Stdin = file
	case 1:
		cmd.Stdout = file
	case 2:
		cmd.Stderr = file
	default:
		cmd.ExtraFiles = make([]*os.File, number-2)
		cmd.ExtraFiles[number-3] = file
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if file != nil {
		file.Close()
	}
	return line.Process()
}

// mustBeQuiet fails the test if something has been written, or the other end
// has been closed.
func (d *descriptor) mustBeQuiet() {
	d.t.Helper()
	fds := []unix.PollFd{{Fd: int32(d.read.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
		d.t.Errorf("there is something to read: %d, %v, %#x", n, err, fds[0].Revents)
	}
}

// hears reads as finit does, which wants a newline at the end of 31 bytes, and
// then waits for the end of file, as dinit and OpenRC do.
func (d *descriptor) hears(want string) {
	d.t.Helper()
	fds := []unix.PollFd{{Fd: int32(d.read.Fd()), Events: unix.POLLIN}}
	got := ""
	for deadline := time.Now().Add(testdaemon.Patience); time.Now().Before(deadline); {
		if n, err := unix.Poll(fds, 1000); err == unix.EINTR || n == 0 {
			continue
		}
		var space [31]byte
		n, err := unix.Read(int(d.read.Fd()), space[:])
		if n <= 0 { // nobody has the other end open
			if got != want || err != nil && err != unix.ECONNRESET {
				d.t.Errorf("the descriptor has heard %q, %v, want %q", got, err, want)
			}
			return
		}
		if got != "" {
			d.t.Errorf("it was not one write: %q, and then %q", got, space[:n])
		}
		got += string(space[:n])
	}
	d.t.Errorf("%q, and no end of file", got)
}

func TestReadyWritesALineAndClosesTheDescriptor(t *testing.T) {
	for name, test := range map[string]struct{ kind, number int }{
		"pipe":           {pipe, 3},
		"stream":         {unix.SOCK_STREAM, 3},
		"seqpacket":      {unix.SOCK_SEQPACKET, 3},
		"beyond a table": {pipe, 200},
		"0":              {pipe, 0},
		"1":              {pipe, 1},
		"2":              {pipe, 2},
		"0, a socket":    {unix.SOCK_STREAM, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, line, d := withDescriptor(t, test.kind, test.number)
			passed := p.FileOf(test.number)
			if got := p.Ask("detect"); got != "descriptor" {
				t.Errorf("Detect: %s", got)
			}
			p.Do("detach")
			d.mustBeQuiet()
			if files := p.Ask("child-files"); test.number > 2 && strings.Contains(files, passed) {
				t.Errorf("a child has inherited %s: %s", passed, files)
			}

			p.Do("ready")
			d.hears("READY=1\n")
			p.Do("ready")
			if got := p.FileOf(test.number); test.number <= 2 && got != "/dev/null" {
				t.Errorf("descriptor %d is %q", test.number, got)
			}
			if files := p.Ask("child-files"); strings.Contains(files, passed) {
				t.Errorf("a child has inherited %s: %s", passed, files)
			}
			if environ := p.Ask("child-environ"); strings.Contains(environ, "NOTIFY_FD") {
				t.Errorf("a child has inherited the variable: %s", environ)
			}
			if got := p.Ask("detect"); got != "descriptor" {
				t.Errorf("Detect after Ready: %s", got)
			}
			mustBeAlone(t, line, p)
		})
	}
}

func TestManyReadiesWriteOneLine(t *testing.T) {
	p, line, d := withDescriptor(t, pipe, 3)
	p.Do("ready-at-once")
	d.hears("READY=1\n")
	mustBeAlone(t, line, p)
}

// Whatever else is said is nothing to a supervisor that waits for a line.
func TestDescriptorHearsOfNothingButReady(t *testing.T) {
	p, line, d := withDescriptor(t, pipe, 3)
	for _, order := range []string{"status busy", "reloading", "stopping", "fail", "extend", "foreground", "background"} {
		p.Do(order)
	}
	d.mustBeQuiet()
	p.Do("ready-status all is well")
	d.hears("READY=1\n")
	p.Do("reloading")
	p.Do("ready")
	mustBeAlone(t, line, p)
}

func TestDescriptorIsRememberedWhenItsVariableIsUnset(t *testing.T) {
	p, line, d := withDescriptor(t, pipe, 3)
	p.Do("unset")
	if environ := p.Ask("child-environ"); strings.Contains(environ, "NOTIFY_FD") {
		t.Errorf("a child has inherited the variable: %s", environ)
	}
	if got := p.Ask("detect"); got != "descriptor" {
		t.Errorf("Detect: %s", got)
	}
	p.Do("ready")
	d.hears("READY=1\n")
	mustBeAlone(t, line, p)
}

func TestOtherSupervisorsComeBeforeTheDescriptor(t *testing.T) {
	t.Run("NOTIFY_SOCKET", func(t *testing.T) {
		mailbox := testdaemon.OpenMailbox(t, testdaemon.Directory(t)+"/notify")
		p, line, d := withDescriptor(t, pipe, 3, "NOTIFY_SOCKET="+mailbox.Address)
		p.Do("ready")
		if got := mailbox.Next(); !strings.HasPrefix(got, "READY=1\n") {
			t.Errorf("the socket has %q", got)
		}
		d.mustBeQuiet()
		mustBeAlone(t, line, p)
	})
	t.Run("UPSTART_JOB", func(t *testing.T) {
		p, line, d := withDescriptor(t, pipe, 3, "UPSTART_JOB=test")
		p.Send("ready")
		testdaemon.WaitUntil(t, "its stop", func() bool { return p.Stat().State == "T" })
		unix.Kill(p.PID, unix.SIGCONT)
		p.MustHear("ok")
		d.mustBeQuiet()
		mustBeAlone(t, line, p)
	})
	t.Run("empty NOTIFY_FD", func(t *testing.T) {
		line := testdaemon.NewLine(t)
		becomesDaemon(startWith(t, line, nil, 3, "NOTIFY_FD="), "ready")
	})
}

// dinit and OpenRC take the end of file without a line for a failure.
func TestDescriptorEndsWithAProgramThatFails(t *testing.T) {
	p, _, d := withDescriptor(t, pipe, 3)
	p.Leaves("exit 1")
	d.hears("")
}

// A supervisor that is there but cannot be told is an error.
func TestDescriptorThatCannotBeToldIsAnError(t *testing.T) {
	refuses := func(t *testing.T, line *testdaemon.Line, p *testdaemon.Puppet, value, cause string) {
		t.Helper()
		p.Do("detach")
		p.Refuses("ready", "daemon: ", "NOTIFY_FD", value, cause)
		p.Refuses("ready", "daemon: ", "NOTIFY_FD", value, cause)
		mustBeAlone(t, line, p)
	}
	const invalid, bad, broken = "invalid argument", "bad file descriptor", "broken pipe"

	for value, cause := range map[string]string{
		"9": bad, "3": bad, "200": bad, "2147483647": bad,
		"x": invalid, "-1": invalid, "3x": invalid, " 3": invalid, "0x3": invalid, "3.0": invalid, "/dev/stdout": invalid,
		"99999999999999999999": invalid, "4294967299": invalid, // 3 in 32 bits
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			line := testdaemon.NewLine(t)
			refuses(t, line, startWith(t, line, nil, 3, "NOTIFY_FD="+value), value, cause)
		})
	}

	for name, path := range map[string]string{"regular file": "", "directory": "/", "device": "/dev/zero"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			line := testdaemon.NewLine(t)
			file := emptyFile(t)
			opened := file
			if path != "" {
				var err error
				if opened, err = os.Open(path); err != nil {
					t.Fatal(err)
				}
			}
			refuses(t, line, startWith(t, line, opened, 3, "NOTIFY_FD=3"), "3", bad)
			mustBeEmpty(t, file)
		})
	}

	for name, orders := range map[string][]string{
		"file that is opened later":      {"open 50 PATH"},
		"file in the place of a pipe":    {"close 3", "open 3 PATH"},
		"file that is moved there":       {"open 51 PATH", "move 51 3"},
		"pipe that is moved there":       {"move 4 3"},
		"pipe that was there, elsewhere": {"move 3 50"},
		"socket that is opened later":    {"close 3", "listen 127.0.0.1:0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := emptyFile(t)
			ours, theirs := channel(t, pipe)
			others, another := channel(t, pipe)
			line := testdaemon.NewLine(t)
			cmd := line.Command()
			number := "3"
			if strings.Contains(orders[0], "open 50") {
				number = "50"
			}
			cmd.Env = append(cmd.Env, "NOTIFY_FD="+number)
			cmd.ExtraFiles = []*os.File{theirs, another}
			line.Pipe(cmd)
			theirs.Close()
			another.Close()
			p := line.Process()
			for _, order := range orders {
				p.Do(strings.ReplaceAll(order, "PATH", file.Name()))
			}
			refuses(t, line, p, number, bad)
			mustBeEmpty(t, file)
			p.Leaves("exit 1")
			for _, end := range []*os.File{ours, others} {
				if text, err := io.ReadAll(end); err != nil || len(text) > 0 {
					t.Errorf("a pipe has %q, %v", text, err)
				}
			}
		})
	}

	t.Run("full pipe", func(t *testing.T) { // and Ready does not wait for room
		t.Parallel()
		_, theirs := channel(t, pipe)
		size, err := unix.FcntlInt(theirs.Fd(), unix.F_GETPIPE_SZ, 0)
		if err == nil {
			_, err = theirs.Write(make([]byte, size))
		}
		if err != nil {
			t.Fatal(err)
		}
		line := testdaemon.NewLine(t)
		p := startWith(t, line, theirs, 3, "NOTIFY_FD=3")
		refuses(t, line, p, "3", "resource temporarily unavailable")
	})

	for _, number := range []int{0, 1, 2, 3} {
		t.Run(fmt.Sprintf("nobody reads %d", number), func(t *testing.T) {
			t.Parallel()
			p, line, d := withDescriptor(t, pipe, number)
			closeForAll(t, d.read)
			refuses(t, line, p, strconv.Itoa(number), broken)
		})
		t.Run(fmt.Sprintf("end for reading as %d", number), func(t *testing.T) {
			t.Parallel()
			theirs, ours := channel(t, pipe)
			line := testdaemon.NewLine(t)
			p := startWith(t, line, theirs, number, fmt.Sprintf("NOTIFY_FD=%d", number))
			refuses(t, line, p, strconv.Itoa(number), bad)
			ours.Close()
		})
	}
}

// closeForAll closes the end for reading of a pipe, and waits until nobody has it: a
// child that another test is starting has it for an instant.
func closeForAll(t *testing.T, read *os.File) {
	t.Helper()
	write, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", read.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	read.Close()
	testdaemon.WaitUntil(t, "the end of all readers", func() bool {
		fds := []unix.PollFd{{Fd: int32(write.Fd())}}
		unix.Poll(fds, 0)
		return fds[0].Revents&unix.POLLERR != 0
	})
}

func emptyFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(testdaemon.Directory(t), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func mustBeEmpty(t *testing.T, file *os.File) {
	t.Helper()
	text, err := os.ReadFile(file.Name())
	if err != nil || len(text) > 0 {
		t.Error(errors.Join(fmt.Errorf("the file has %q", text), err))
	}
}
