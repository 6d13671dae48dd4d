//go:build linux

package testdaemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a puppet as the test sees it.
type Process struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// NewProcess returns the one at the other end.
func NewProcess(t testing.TB, conn net.Conn) *Process {
	return &Process{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// Ask returns the answer to a question, or to an order.
func (p *Process) Ask(question string) (answer string) {
	p.t.Helper()
	p.Send(question)
	return p.Hear()
}

// Do gives the puppet an order that it must carry out.
func (p *Process) Do(order string) {
	p.t.Helper()
	if answer := p.Ask(order); answer != "ok" {
		p.t.Fatalf("%s: %s", order, answer)
	}
}

// Send gives an order whose answer is heard later, or never.
func (p *Process) Send(order string) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.conn, "%q\n", order); err != nil {
		p.t.Fatalf("%s: %v", order, err)
	}
}

// Hear returns what the puppet says next.
func (p *Process) Hear() string {
	p.t.Helper()
	text, err := p.Read()
	if err != nil {
		p.t.Fatalf("the service's process says nothing: %v", err)
	}
	return text
}

// Read is Hear, with the error.
func (p *Process) Read() (string, error) {
	p.conn.SetReadDeadline(time.Now().Add(Patience))
	quoted, err := p.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	return strconv.Unquote(strings.TrimSuffix(quoted, "\n"))
}

// MustHear checks what the puppet says next.
func (p *Process) MustHear(want string) {
	p.t.Helper()
	if got := p.Hear(); got != want {
		p.t.Fatalf("the service's process says %q, want %q", got, want)
	}
}

// Ends waits for the end of the process.
func (p *Process) Ends() {
	p.t.Helper()
	for {
		_, err := p.Read()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return
		}
		if err != nil {
			p.t.Fatalf("the service's process lives: %v", err)
		}
	}
}

// A Puppet is one that has called a line.
type Puppet struct {
	*Process
	PID  int // as seen from here
	line *Line
}

// peer is the pid of the process that has connected.
func peer(t testing.TB, conn net.Conn) (pid int) {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if credentials, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				pid = int(credentials.Pid)
			}
		})
	}
	if err != nil || pid == 0 {
		t.Fatalf("pid of the peer: %d, %v", pid, err)
	}
	return pid
}

// Marker returns the variable that made a launcher or a daemon of the process.
func (p *Puppet) Marker() string {
	p.t.Helper()
	var environ []byte
	var err error
	WaitUntil(p.t, "rights to see the environment", func() bool { // a launcher gives none at first
		environ, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
		return !errors.Is(err, os.ErrPermission)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(environ), "\x00_DAEMON_DETACH=")
	if !ok {
		p.t.Fatalf("no marker in %q", environ)
	}
	value, _, _ := strings.Cut(rest, "\x00")
	return value
}

// MustLive fails the test if the process has ended.
func (p *Puppet) MustLive() {
	p.t.Helper()
	if s := p.Stat(); s.State == "Z" {
		p.t.Errorf("process %d has ended", p.PID)
	}
}

// Leaves gives an order that the process does not survive.
func (p *Puppet) Leaves(order string) {
	p.t.Helper()
	p.Send(order)
	if answer, err := p.Read(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		p.t.Fatalf("%s: %s, %v", order, answer, err)
	}
}

// Detaches has the first process call Ready or Detach, and returns the process
// in which main begins again.
func (p *Puppet) Detaches(order string) *Puppet {
	p.t.Helper()
	p.Leaves(order)
	return p.line.Process()
}

// Refuses gives an order that must fail with this text in its error.
func (p *Puppet) Refuses(order string, texts ...string) {
	p.t.Helper()
	answer := p.Ask(order)
	for _, text := range texts {
		if !strings.Contains(answer, text) {
			p.t.Errorf("%s: %q, want %q in it", order, answer, text)
		}
	}
}

// A Stat is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type Stat struct {
	State                            string
	Parent, Group, Session, Terminal int
}

// ReadStat reads it.
func ReadStat(pid int) (s Stat, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		_, rest, _ := strings.Cut(string(text), ") ")
		_, err = fmt.Sscan(rest, &s.State, &s.Parent, &s.Group, &s.Session, &s.Terminal)
	}
	return s, err
}

// Stat returns that of the puppet.
func (p *Puppet) Stat() Stat {
	p.t.Helper()
	s, err := ReadStat(p.PID)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// Status returns a field of /proc/PID/status.
func (p *Puppet) Status(key string) string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + key + `:\s*(.*)$`).FindSubmatch(text)
	if match == nil {
		p.t.Fatalf("no %s in %s", key, text)
	}
	return string(match[1])
}

// Standard returns the files behind descriptors 0 to 2.
func (p *Puppet) Standard() (files [3]string) {
	for fd := range files {
		files[fd] = p.FileOf(fd)
	}
	return files
}

// FileOf returns the file behind a descriptor, or nothing if that is closed.
func (p *Puppet) FileOf(fd int) string {
	file, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.PID, fd))
	return file
}

// MustBeDetached fails the test unless the process is a daemon now.
func (p *Puppet) MustBeDetached() {
	p.t.Helper()
	s := p.Stat()
	if s.Session != p.PID || s.Group != p.PID || s.Terminal != 0 {
		p.t.Errorf("process %d has session %d, group %d, terminal %d", p.PID, s.Session, s.Group, s.Terminal)
	}
	for fd, file := range p.Standard() {
		info, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, fd))
		if !strings.HasSuffix(file, "/dev/null") || // it may have another root directory
			!regexp.MustCompile(`flags:\s*0[0-7]*2\n`).Match(info) {
			p.t.Errorf("descriptor %d is %s, %s", fd, file, info)
		}
	}
}

// Descriptors returns what the process has open from 3 up, sorted.
func (p *Puppet) Descriptors() string {
	p.t.Helper()
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID))
	var open []string
	for _, path := range paths {
		if fd, _ := strconv.Atoi(filepath.Base(path)); fd > 2 {
			target, _ := os.Readlink(path)
			kind, _, _ := strings.Cut(target, ":[") // another socket has another number
			open = append(open, kind)
		}
	}
	slices.Sort(open)
	return strings.Join(open, " ")
}
