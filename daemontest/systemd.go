//go:build linux

package daemontest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-10280e03/daemon"
)

const (
	maxPath  = 107      // bytes of a socket's path, unix(7)
	maxFiles = 253      // descriptors in one message, SCM_MAX_FD in the kernel
	maxKept  = 64 << 10 // bytes of a datagram that Notification.Raw holds
)

// A Notification is a datagram that has arrived at the notify socket.
type Notification struct {
	// Assignments are what systemd reads in it, as Decode returns them:
	// "READY=1", "STATUS=ready" and so on. There are none if systemd drops the
	// whole datagram.
	Assignments []string

	// Err says why systemd drops the datagram. It is nil if systemd does not.
	Err error

	// Raw is the datagram as it was sent, or the first 64 KiB of a longer one.
	Raw []byte

	// PID, UID and GID are the sender's, which the kernel vouches for
	// (SCM_CREDENTIALS in unix(7)).
	PID, UID, GID int

	// Files are the descriptors that were passed with it. The test may use and
	// close them; those still open when it ends are closed then. There are none
	// if systemd drops the datagram: they are closed at once, as systemd does.
	Files []*os.File

	// Received is when it was taken from the socket.
	Received time.Time
}

// Get returns the value that is assigned to key, such as "ready" for STATUS if
// there is "STATUS=ready", and reports whether there is an assignment. Its value
// may be empty.
func (n Notification) Get(key string) (value string, ok bool) {
	for _, assignment := range n.Assignments {
		if value, ok = strings.CutPrefix(assignment, key+"="); ok {
			return value, true
		}
	}
	return "", false
}

// String returns the notification in one line, for messages.
func (n Notification) String() string {
	text := fmt.Sprintf("%q from pid %d", n.Raw, n.PID)
	if len(n.Files) > 0 {
		text += fmt.Sprintf(" with %d files", len(n.Files))
	}
	if n.Err != nil {
		text += fmt.Sprintf(" (%v)", n.Err)
	}
	return text
}

// drop makes n a notification that systemd drops.
func (n *Notification) drop(why error) {
	n.Err, n.Assignments = why, nil
	closeAll(n.Files)
	n.Files = nil
}

// A Supervisor is a notify socket in systemd's place.
type Supervisor struct {
	t        TB
	address  string
	socket   *os.File
	opened   time.Time
	arrived  record[Notification]
	read     chan struct{} // closed when the reading goroutine has ended
	nextRead int           // of arrived; guarded by its lock
	service  *service      // whose socket it is; nil: nobody's
}

// Systemd opens a notify socket and sets NOTIFY_SOCKET to it for the length
// of the test; like [testing.T.Setenv], which it calls, it is not for parallel
// tests. The other variables that a supervisor sets (UPSTART_JOB,
// WATCHDOG_USEC, LISTEN_FDS, SYSTEMD_EXEC_PID and their like) are empty
// meanwhile, which counts as unset. What the daemon of this test has remembered
// of them ([daemon.UnsetEnvironment]) is forgotten when the test ends.
//
// The socket lies in a directory of its own, with a path short enough for any
// sender whatever the name of the test, and any user may write to it. What is
// sent to it is kept until the test asks for it, so a sender never waits for
// the test. A barrier (sd_notify_barrier(3)) is answered as soon as all that
// was sent before it can be had from Next, and is no notification itself.
//
// Systemd fails the test if the socket cannot be made.
func Systemd(t TB) *Supervisor {
	t.Helper()
	s, err := newSupervisor(t, nil)
	if err != nil {
		t.Fatalf("daemontest: notify socket: %v", err)
		return nil
	}
	for _, name := range supervisorVariables {
		t.Setenv(name, "")
	}
	t.Setenv("NOTIFY_SOCKET", s.address)
	t.Cleanup(forget) // before the variables are set to what they were
	return s
}

// newSupervisor opens a notify socket for the length of the test.
func newSupervisor(t TB, of *service) (*Supervisor, error) {
	s := &Supervisor{t: t, opened: time.Now(), read: make(chan struct{}), service: of}
	if err := s.listen(); err != nil {
		return nil, err
	}
	go s.receive()
	t.Cleanup(s.close)
	return s, nil
}

// forget has this process's daemon forget its supervisor: a remembered value
// counts until the variable is set again.
func forget() {
	for _, name := range supervisorVariables {
		os.Setenv(name, "")
	}
	daemon.UnsetEnvironment()
}

// Addr returns the socket's address, which NOTIFY_SOCKET holds: for a process that
// is given an environment of its own.
func (s *Supervisor) Addr() string { return s.address }

// Next returns the next notification, in the order of arrival, those that
// systemd drops included. If ctx ends before there is one, or Timeout passes
// and ctx has no deadline, it fails the test with all that did arrive. The
// socket of a [Unit] fails as soon as the service has ended.
func (s *Supervisor) Next(ctx context.Context) Notification {
	s.t.Helper()
	return s.find(ctx, "notification", func(Notification) bool { return true })
}

// Wait returns the next notification that holds assignment, such as
// "READY=1", and skips those before it. It fails as Next does.
func (s *Supervisor) Wait(ctx context.Context, assignment string) Notification {
	s.t.Helper()
	if !strings.Contains(assignment, "=") {
		s.t.Fatalf("daemontest: wait for %q: want KEY=VALUE", assignment)
		return Notification{}
	}
	return s.find(ctx, assignment, func(n Notification) bool {
		return slices.Contains(n.Assignments, assignment)
	})
}

// skip has Next and Wait begin with the notification of this number, or a later one.
func (s *Supervisor) skip(number int) {
	s.arrived.mu.Lock()
	defer s.arrived.mu.Unlock()
	s.nextRead = max(s.nextRead, number)
}

// All returns all notifications so far, in the order of arrival.
func (s *Supervisor) All() []Notification {
	s.catchUp()
	return s.arrived.all()
}

// catchUp waits until what has been sent is in the record, by a barrier. It waits in
// the kernel alone: in a bubble of testing/synctest no time passes meanwhile.
func (s *Supervisor) catchUp() {
	var barrier [2]int
	if unix.Pipe2(barrier[:], unix.O_CLOEXEC) != nil {
		return
	}
	defer unix.Close(barrier[0])
	err := say(s.address, "BARRIER=1", time.Second, barrier[1])
	unix.Close(barrier[1])
	if err != nil {
		return // the test has ended, or others keep the socket full
	}
	err = unix.EINTR
	for err == unix.EINTR {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(barrier[0])}}, int(Timeout.Milliseconds()))
	}
}

func (s *Supervisor) find(ctx context.Context, what string, match func(Notification) bool) Notification {
	s.t.Helper()
	ctx, cancel := bounded(ctx)
	defer cancel()
	var found Notification
	err := s.arrived.wait(ctx, func(all []Notification) bool {
		for s.nextRead < len(all) {
			found = all[s.nextRead]
			s.nextRead++
			if match(found) {
				return true
			}
		}
		return false
	})
	if err != nil {
		s.fail("no " + what + because(err) + s.ignored())
		return Notification{}
	}
	return found
}

// ignored says why systemd drops the last of the notifications that it drops, if
// there is one.
func (s *Supervisor) ignored() (text string) {
	for _, n := range s.arrived.all() {
		if n.Err != nil {
			text = fmt.Sprintf(" (a notification was %v)", n.Err)
		}
	}
	return text
}

// fail fails the test, with all that has arrived.
func (s *Supervisor) fail(what string) {
	s.t.Helper()
	received := s.received()
	if s.service != nil {
		s.service.fail(what, received)
		return
	}
	s.t.Fatalf("daemontest: %s; %s", what, received)
}

// since returns what times in failures are counted from: the service's last
// start, as with the time of its end, or else when the socket was opened.
func (s *Supervisor) since() time.Time {
	if s.service == nil {
		return s.opened
	}
	s.service.mu.Lock()
	defer s.service.mu.Unlock()
	return s.service.began
}

// received lists all that has arrived. A notification that has come several
// times running is listed once.
func (s *Supervisor) received() string {
	all, since := s.arrived.all(), s.since()
	if len(all) == 0 {
		return "received so far: nothing"
	}
	text := "received so far:"
	for i := 0; i < len(all); {
		next := i + 1
		for next < len(all) && all[next].String() == all[i].String() {
			next++
		}
		when := "before this start"
		if after := all[i].Received.Sub(since); after >= 0 {
			when = fmt.Sprintf("after %v", rounded(after))
		}
		text += fmt.Sprintf("\n\t%s: %v", when, all[i])
		if next > i+1 {
			text += fmt.Sprintf(" (×%d, the last %v ago)", next-i, rounded(time.Since(all[next-1].Received)))
		}
		i = next
	}
	return text
}

// listen makes the socket.
func (s *Supervisor) listen() error {
	dir, err := shortDir()
	if err != nil {
		return err
	}
	s.address = filepath.Join(dir, "notify")
	s.socket, err = bind(s.address)
	if err != nil {
		os.RemoveAll(dir)
	}
	return err
}

// shortDir makes a directory, open to all users, in which a socket's path is
// short enough: in $TMPDIR if that is short, else in /tmp.
func shortDir() (string, error) {
	base, err := filepath.Abs(os.TempDir()) // a relative address is none
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(base, "daemontest")
	if err == nil && len(dir)+len("/notify") > maxPath {
		os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", "daemontest")
	}
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// bind opens the socket at path and lets every user write to it.
func bind(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), path)
	// Before bind: what arrives earlier would have no sender.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		err = os.NewSyscallError("setsockopt", err)
	} else if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		err = os.NewSyscallError("bind "+path, err)
	} else {
		err = os.Chmod(path, 0o777)
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// receive takes notifications from the socket until that is closed.
func (s *Supervisor) receive() {
	defer close(s.read)
	defer s.arrived.end(errEnded)
	conn, err := s.socket.SyscallConn()
	if err != nil {
		return
	}
	in := receiver{
		conn:    conn,
		data:    make([]byte, maxKept),
		control: make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxFiles)),
	}
	for {
		n, err := in.next()
		if err != nil {
			return
		}
		if slices.Contains(n.Assignments, "BARRIER=1") {
			closeAll(n.Files) // all before it is in the record: that is the answer
			continue
		}
		if s.service == nil || s.service.heard(&n) {
			s.arrived.add(n)
		}
	}
}

// A receiver is a socket and the room for what it receives.
type receiver struct {
	conn          syscall.RawConn
	data, control []byte
}

// next waits for a datagram. It returns an error when the socket is closed.
func (r *receiver) next() (n Notification, err error) {
	var size, controlSize, flags int
	var recvErr error
	err = r.conn.Read(func(fd uintptr) (done bool) {
		recvErr = unix.EINTR
		for recvErr == unix.EINTR {
			size, controlSize, flags, _, recvErr = unix.Recvmsg(int(fd), r.data, r.control, unix.MSG_CMSG_CLOEXEC)
		}
		return recvErr != unix.EAGAIN
	})
	if err = errors.Join(err, recvErr); err != nil {
		return n, err
	}
	n.Received = time.Now()
	n.Raw = bytes.Clone(r.data[:size])
	n.readControl(r.control[:controlSize])
	n.decode(flags)
	return n, nil
}

// readControl takes the sender's credentials and the files from the control
// messages of a datagram.
func (n *Notification) readControl(control []byte) {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		if sender, err := unix.ParseUnixCredentials(&m); err == nil {
			n.PID, n.UID, n.GID = int(sender.Pid), int(sender.Uid), int(sender.Gid)
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				n.Files = append(n.Files, os.NewFile(uintptr(fd), fmt.Sprintf("passed by pid %d", n.PID)))
			}
		}
	}
}

// decode sets Assignments or Err, from the datagram and from the flags of its
// recvmsg.
func (n *Notification) decode(flags int) {
	n.Assignments, n.Err = Decode(n.Raw)
	switch {
	case n.Err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		n.Err = errors.New("dropped by systemd: not all descriptors could be received")
	case n.PID == 0:
		n.Err = errors.New("dropped by systemd: its sender cannot be seen from this pid namespace")
	case slices.Contains(n.Assignments, "BARRIER=1") && len(n.Files) != 1:
		n.Err = fmt.Errorf("dropped by systemd: BARRIER=1 with %d descriptors, not 1", len(n.Files))
	}
	if n.Err != nil {
		n.drop(n.Err)
	}
}

// close ends the reading, closes what was passed and removes the socket.
func (s *Supervisor) close() {
	s.socket.Close()
	<-s.read
	for _, n := range s.arrived.all() {
		closeAll(n.Files)
	}
	os.RemoveAll(filepath.Dir(s.address))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
