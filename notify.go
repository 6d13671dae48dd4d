//go:build unix

package daemon

import (
	"context"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notifier is the one socket and the one datagram of this process. They are never
// released: a process that is out of memory or descriptors can still notify.
var notifier struct {
	sync.Mutex // held while a datagram is built and sent, never while anyone waits
	socket

	mainPID     Field // this process
	readyStatus Field // what this supervisor was told by the last Ready
	lastStatus  Field // what it was told last

	// Last, so that all fields in front of its buffer share a page of memory with the
	// buffer's first bytes: the first call touches one page less.
	datagram
}

// notify tells the supervisor what the verb says and then the caller's fields, in
// one datagram. It does nothing if no supervisor listens.
func notify(v *verb, fields []Field) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	return send(address, v, fields)
}

// send sends to address. If the queue is full it waits for room with the lock
// released, so that each caller's patience is its own. It is one function on purpose:
// after a system call the processor mispredicts the return of each function that led
// there, which costs a hundredth of a send.
func send(address string, v *verb, fields []Field) error {
	n := &notifier
	var deadline time.Time
	for {
		n.Lock()
		if n.peer.Name != address { // another supervisor, which nobody has told anything yet
			n.peer, n.connected, n.said = syscall.SockaddrUnix{Name: address}, false, nil
			n.mainPID = mainPIDLine()
			if onlyParentTells(address) {
				systemdIsParent() // now, while there are memory and a descriptor
			}
			n.readyStatus, n.lastStatus = Status("ready"), Status("")
		}
		err := n.encode(v, fields)
		if err == nil && (!n.connected || v.rights != nil || sendNow(n.fd, n.encoded) != 0) {
			err = n.connectAndSend(n.encoded, v.rights)
		}
		if err == nil && n.hasStatus && !v.complaint {
			n.lastStatus.text = n.status
			if v.status == &n.readyStatus {
				n.readyStatus.text = n.status
			}
		}
		fd := n.fd
		n.Unlock()
		if err == nil || !full(err) {
			return err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(patience(v, address))
		}
		if time.Now().After(deadline) || v.ctx != nil && v.ctx.Err() != nil {
			return opError("send", address, os.ErrDeadlineExceeded)
		}
		waitForRoom(fd, err)
	}
}

var mainPIDLine = sync.OnceValue(func() Field {
	return Field{key: "MAINPID", number: int64(pid()), text: "MAINPID=" + strconv.Itoa(pid()) + "\n", form: wholeLine}
})

// socket is opened once, and connected as often as need be.
type socket struct {
	checkedFD
	connected bool
	peer      syscall.SockaddrUnix // the supervisor's address
}

// connectAndSend connects the socket the first time, and again if the receiver or
// the descriptor is gone.
func (s *socket) connectAndSend(encoded []byte, rights []int) error {
	// Only a descriptor that is ours gets others attached.
	if s.connected && (rights == nil || s.valid()) {
		if err := s.sendOnce(encoded, rights); err == nil || full(err) {
			return err
		}
	}
	if err := s.connect(); err != nil {
		return opError("connect", s.peer.Name, err)
	}
	err := s.sendOnce(encoded, rights)
	if err != nil && !full(err) {
		return opError("send", s.peer.Name, err)
	}
	return err
}

func (s *socket) sendOnce(encoded []byte, rights []int) error {
	if rights == nil {
		if errno := sendNow(s.fd, encoded); errno != 0 {
			return errno
		}
		return nil
	}
	return uninterrupted(func() error {
		return unix.Sendmsg(s.fd, encoded, unix.UnixRights(rights...), nil, unix.MSG_NOSIGNAL)
	})
}

func (s *socket) connect() error {
	s.connected = false
	if kind := s.peer.Name[0]; kind != '/' && kind != '@' {
		return unix.EAFNOSUPPORT
	}
	if !s.valid() {
		fd, err := moveHigh(openSocket())
		if err != nil {
			return err
		}
		s.checkedFD = checked(fd)
	}
	// An @ stands for a NUL. Not unix.SockaddrUnix: it refuses the longest name.
	err := uninterrupted(func() error { return syscall.Connect(s.fd, &s.peer) })
	s.connected = err == nil
	return err
}

// patience returns how long to wait for room. After READY=1 OpenRC removes its
// socket, leaves it open and never reads again: if the path is gone, only a call with a
// context of its own waits for long. After a chroot the path says nothing.
func patience(v *verb, address string) time.Duration {
	_, err := identifyPath(address)
	root, _ := identifyPath("/")
	if v.ctx == nil && address[0] == '/' && err == unix.ENOENT && root == atStart.root {
		return min(v.patience, brief)
	}
	return v.patience
}

// pollInterval is how long a wait lasts before it looks again: its context may
// have ended, or another sender have connected the socket to another address.
const pollInterval = 100 * time.Millisecond

// waiting is locked while one call waits for room, for all: each on its own would
// hold a thread, of which a process may have few.
var waiting sync.RWMutex

// waitForRoom waits a while after a try that ended with err.
func waitForRoom(fd int, err error) {
	if !waiting.TryLock() {
		waiting.RLock() // until that wait is over
		defer waiting.RUnlock()
		return
	}
	defer waiting.Unlock()
	if err == unix.EAGAIN { // poll(2) knows nothing of the others
		// On a connected socket POLLOUT tells of the receiver's queue. An error, or
		// a descriptor that is closed meanwhile, shows at the next try.
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds[:], int(pollInterval/time.Millisecond)); err != unix.EINVAL { // RLIMIT_NOFILE is 0
			return
		}
	}
	// Not time.Sleep: the runtime opens its poller for that, and throws if it can't.
	_, _ = unix.Poll(nil, int(pollInterval/10/time.Millisecond))
}

// full reports whether a later try may find room: EAGAIN is a full queue, and so
// is ENOBUFS on a BSD; on Linux it is the kernel's shortage of memory.
// ETOOMANYREFS is too many descriptors that nobody has received yet.
func full(err error) bool {
	return err == unix.EAGAIN || err == unix.ENOBUFS || err == unix.ETOOMANYREFS
}

var (
	readyField   = []Field{{key: "READY", text: "READY=1\n", form: wholeLine}}
	wrappedReady = verb{own: readyField, status: &notifier.readyStatus, patience: patient}
	readyVerb    = verb{own: readyField, status: &notifier.readyStatus, patience: patient, mainPID: &notifier.mainPID}
)

// readyFor returns what Ready says. MAINPID names this process if that is the one
// which the supervisor started, as far as it tells. Behind a wrapper systemd would
// stop watching the wrapper, which is its child, for a process that is not, and
// lose the exit status. In another PID namespace the number is a stranger's.
func readyFor(address string, fields []Field) *verb {
	for i := range fields {
		if fields[i].form == pidText {
			return &readyVerb
		}
	}
	executed := executedPID()
	if pid() == 1 || executed != "" && !namesPID(executed) || onlyParentTells(address) && !systemdIsParent() {
		return &wrappedReady
	}
	return &readyVerb
}

// onlyParentTells reports whether systemd's own socket is there without
// SYSTEMD_EXEC_PID: systemd is older than 248, or env -i or sudo have removed the
// variable.
func onlyParentTells(address string) bool {
	return strings.HasSuffix(address, "/systemd/notify") && executedPID() == ""
}

// systemdIsParent is startedBySystemd at the first call, which allocates memory.
var systemdIsParent = sync.OnceValue(startedBySystemd)

// Barrier returns when the receiver has let go of the barrier, a descriptor
// sent with BARRIER=1: systemd closes it once it has handled all that this
// service sent before (sd_notify_barrier(3)). A helper process that notifies
// and exits calls it in between, or systemd may no longer know whose the
// notification was. A receiver that ends lets go, too.
//
// If ctx ends first, the error wraps its Err. Without a deadline Barrier may wait
// for ever.
func Barrier(ctx context.Context) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	r, w, err := openPipe()
	if err != nil {
		return opError("barrier", address, err)
	}
	defer unix.Close(r)
	barrier := []Field{{key: "BARRIER", text: "1"}}
	err = send(address, &verb{own: barrier, rights: []int{w}, patience: math.MaxInt64, ctx: ctx}, nil)
	unix.Close(w)
	if err != nil && ctx.Err() == nil {
		return err
	}
	for ctx.Err() == nil {
		fds := [1]unix.PollFd{{Fd: int32(r)}} // POLLHUP comes unasked; what a receiver may write says nothing
		_, err := unix.Poll(fds[:], int(pollInterval/time.Millisecond))
		switch {
		case err != nil && err != unix.EINTR:
			return opError("barrier", address, err)
		case fds[0].Revents&unix.POLLNVAL != 0: // the program has closed all descriptors
			return opError("barrier", address, unix.EBADF)
		case fds[0].Revents != 0:
			return nil
		}
	}
	return opError("barrier", address, ctx.Err())
}

// errnoOf returns the error number that err wraps, or -1.
func errnoOf(err error) int {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return -1
	}
	return int(errno)
}
