//go:build unix

package daemon

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notifier is the one socket and the one datagram of this process. They stay, so
// that a notification takes no memory and no descriptor which an ailing process
// may not get.
var notifier struct {
	sync.Mutex // held while a datagram is built and sent, never while anyone waits
	socket

	// What this supervisor was told: the status of the last Ready, and the
	// status that was said last.
	readyStatus, lastStatus Field

	// At the end, for the first call's sake: what is in front of the datagram's
	// buffer, and the first bytes of that, are in one page of memory.
	datagram
}

// notify tells the supervisor what the verb says and then the caller's fields, in
// one datagram. It waits at most limit, and no longer than until done is closed,
// for room in the supervisor's queue. It does nothing if no supervisor listens.
func notify(done <-chan struct{}, limit time.Duration, v *verb, fields []Field) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	return send(done, limit, address, v, fields, nil)
}

// sendReady is Ready for systemd. MAINPID names this process if that is the one
// which the supervisor started, as far as it tells (SYSTEMD_EXEC_PID of
// systemd.exec(5), 248 and later). Behind a wrapper systemd would stop watching
// the wrapper, which is its child, for a process that is not, and lose the exit
// status. In another PID namespace the number is a stranger's.
func sendReady(address string, fields []Field) error {
	v := readyVerb
	if last("MAINPID", nil, fields) == nil { // or else the caller says it
		started, own := executedPID(), pid()
		if own != 1 && (started == "" || namesPID(started)) {
			v.mainPID = &Field{key: "MAINPID", number: int64(own), numeric: true}
			v.is = readyMain
		}
	}
	return send(nil, patient, address, &v, fields, nil)
}

// send sends one datagram to address, with descriptors attached. If the queue is
// full it waits for room with the lock released, so that each caller's limit is
// its own.
func send(done <-chan struct{}, limit time.Duration, address string, v *verb, fields []Field, rights []int) error {
	fd, err := trySend(address, v, fields, rights)
	if !full(err) {
		return err
	}
	if leftBehind(address) {
		limit = min(limit, brief)
	}
	for begin := time.Now(); full(err); fd, err = trySend(address, v, fields, rights) {
		if time.Since(begin) > limit || !waitForRoom(done, fd, err) {
			return failed("send", address, os.ErrDeadlineExceeded)
		}
	}
	return err
}

// leftBehind reports whether the receiver has removed its socket, as OpenRC does
// after READY=1: it keeps the socket open and never reads again. After a chroot
// the path says nothing.
func leftBehind(address string) bool {
	_, err := identifyPath(address)
	root, _ := identifyPath("/")
	return address[0] == '/' && err == unix.ENOENT && root == atStart.root
}

// pollInterval is how long a wait lasts before it looks again: its context may
// have ended, or another sender have connected the socket to another address.
const pollInterval = 100 * time.Millisecond

// waitForRoom waits a while after a try that ended with err. It returns false
// once done is closed.
func waitForRoom(done <-chan struct{}, fd int, err error) bool {
	select {
	case <-done:
		return false
	default:
	}
	if err != unix.EAGAIN { // poll(2) knows nothing of the others
		time.Sleep(pollInterval / 10)
		return true
	}
	// On a connected socket POLLOUT tells of the receiver's queue. An error, or
	// a descriptor that is closed meanwhile, shows at the next try.
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	_, _ = unix.Poll(fds[:], int(pollInterval/time.Millisecond))
	return true
}

// full reports whether a later try may find room: EAGAIN is a full queue, and so
// is ENOBUFS on a BSD; on Linux it is the kernel's shortage of memory.
// ETOOMANYREFS is too many descriptors that nobody has received yet.
func full(err error) bool {
	return err == unix.EAGAIN || err == unix.ENOBUFS || err == unix.ETOOMANYREFS
}

// trySend sends without waiting. If there is no room the error is the bare
// errno, and fd the socket.
func trySend(address string, v *verb, fields []Field, rights []int) (fd int, err error) {
	notifier.Lock()
	defer notifier.Unlock()
	s := &notifier.socket
	if s.address != address { // another supervisor, which nobody has told anything yet
		s.address, s.connected = address, false
		notifier.says = otherVerb
		notifier.readyStatus = Field{key: "STATUS", text: "ready"}
		notifier.lastStatus = Field{key: "STATUS"}
	}
	encoded, status, err := notifier.encode(v, fields)
	if err == nil {
		err = s.send(encoded, rights)
	}
	if err != nil {
		if errno, ok := err.(unix.Errno); ok && !full(errno) {
			err = failed("send", address, errno)
		}
		return s.fd, err
	}
	if status != nil && v.is != complaint {
		notifier.lastStatus.text = status.text
	}
	if status != nil && (v.is == ready || v.is == readyMain) {
		notifier.readyStatus.text = status.text
	}
	return s.fd, nil
}

// socket is opened once, and connected as often as need be.
type socket struct {
	checkedFD
	address   string // of the supervisor
	connected bool
}

// send sends to the address. It connects the socket the first time, and again if
// the receiver or the descriptor is gone.
func (s *socket) send(encoded []byte, rights []int) error {
	// Only a descriptor that is ours gets others attached.
	if s.connected && (len(rights) == 0 || s.valid()) {
		if err := sendTo(s.fd, encoded, rights); err == nil || full(err) {
			return err
		}
	}
	if err := s.connect(); err != nil {
		return failed("connect", s.address, err)
	}
	return sendTo(s.fd, encoded, rights)
}

func sendTo(fd int, encoded []byte, rights []int) error {
	if len(rights) == 0 {
		if errno := sendNow(fd, encoded); errno != 0 {
			return errno
		}
		return nil
	}
	return uninterrupted(func() error {
		return unix.Sendmsg(fd, encoded, unix.UnixRights(rights...), nil, unix.MSG_NOSIGNAL)
	})
}

func (s *socket) connect() error {
	s.connected = false
	if !strings.HasPrefix(s.address, "/") && !strings.HasPrefix(s.address, "@") {
		return unix.EAFNOSUPPORT
	}
	if !s.valid() {
		low, err := openSocket()
		if err != nil {
			return err
		}
		fd, err := moveHigh(low)
		if err != nil {
			return err
		}
		s.checkedFD = checkedFD{fd, identify(fd)}
	}
	// An @ stands for a NUL. Not unix.SockaddrUnix: it refuses the longest name.
	err := uninterrupted(func() error { return syscall.Connect(s.fd, &syscall.SockaddrUnix{Name: s.address}) })
	s.connected = err == nil
	return err
}

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
		return failed("barrier", address, err)
	}
	defer unix.Close(r)
	err = send(ctx.Done(), math.MaxInt64, address, &verb{own: []Field{{key: "BARRIER", text: "1"}}}, nil, []int{w})
	unix.Close(w)
	if err != nil && ctx.Err() == nil {
		return err
	}
	for ctx.Err() == nil {
		if hasLetGo, err := hungUp(r); err != nil {
			return failed("barrier", address, err)
		} else if hasLetGo {
			return nil
		}
	}
	return failed("barrier", address, ctx.Err())
}

// hungUp waits a while for the end of what may be read from a pipe. What a
// receiver may write to it says nothing.
func hungUp(pipe int) (bool, error) {
	fds := [1]unix.PollFd{{Fd: int32(pipe)}} // POLLHUP comes unasked
	_, err := unix.Poll(fds[:], int(pollInterval/time.Millisecond))
	switch {
	case err == unix.EINTR:
		return false, nil
	case fds[0].Revents&unix.POLLNVAL != 0: // the program has closed all descriptors
		return false, unix.EBADF
	}
	return fds[0].Revents != 0, err
}

// failed returns an error that names the operation and what it was for.
func failed(operation, object string, err error) error {
	return &os.PathError{Op: "daemon: " + operation, Path: object, Err: err}
}

// errnoOf returns the error number that err wraps.
func errnoOf(err error) (errno int, ok bool) {
	var number syscall.Errno
	ok = errors.As(err, &number)
	return int(number), ok
}
