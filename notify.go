//go:build unix

package daemon

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// notify sends verb's own assignments and then the caller's fields in one
// datagram, and waits at most limit, and no longer than until done is closed,
// for room in the supervisor's queue. Where none listens it does nothing.
func notify(done <-chan struct{}, limit time.Duration, v *verb, fields []Field) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	return send(done, limit, address, v, fields)
}

// verb is what a call says by itself.
type verb struct {
	own             []Field // its assignments but for
	status, mainPID *Field  // these two; nil: none

	// For quick, encoded; nil where own changes.
	alone   []byte // all of it
	opening []byte // own, up to the text of STATUS
}

// alwaysTheSame is for a verb of which nothing changes.
func alwaysTheSame(v verb) *verb {
	var d datagram
	alone, _ := d.build("", &v, nil)
	v.alone = slices.Clone(alone)
	v.opening = append(appendOwn(nil, &v, nil), "STATUS="...)
	return &v
}

// Barrier returns when the receiver has let go of the barrier, a descriptor
// sent with BARRIER=1: systemd closes it once it has handled all that this
// service sent before (sd_notify_barrier(3)). A helper process that notifies
// and exits calls it in between, or systemd may no longer know whose the
// notification was. A receiver that ends lets go, too.
//
// Where no supervisor listens it does nothing and returns nil. Where ctx ends
// first the error wraps its Err; without a deadline Barrier may wait for ever.
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
	v := &verb{own: []Field{{key: "BARRIER", text: "1"}}}
	err = deliver(ctx.Done(), unlimited, address, v, nil, []int{w})
	unix.Close(w)
	letGo := false
	for err == nil && !letGo && ctx.Err() == nil {
		if letGo, err = hungUp(r); err != nil {
			err = failed("barrier", address, err)
		}
	}
	if !letGo && ctx.Err() != nil {
		return failed("barrier", address, ctx.Err())
	}
	return err
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

// failed names the operation and what it was for.
func failed(operation, object string, err error) error {
	return &os.PathError{Op: "daemon: " + operation, Path: object, Err: err}
}

// errnoOf returns the error number that err wraps.
func errnoOf(err error) (errno int, ok bool) {
	var number syscall.Errno
	ok = errors.As(err, &number)
	return int(number), ok
}

// unlimited is the limit of a delivery that only done ends.
const unlimited time.Duration = 0

// pollInterval is how long a wait lasts before it looks again: its context may
// have ended, or another sender have connected the socket to another address.
const pollInterval = 100 * time.Millisecond

// send sends one datagram. Where there is nothing unusual about it, that takes
// little more than the system call.
func send(done <-chan struct{}, limit time.Duration, address string, v *verb, fields []Field) error {
	notifier.Lock()
	s := &notifier.socket
	encoded := notifier.datagram.quick(v, fields)
	sent := encoded != nil && s.peer == address && sendNow(s.fd, encoded) == 0
	notifier.Unlock()
	if sent {
		return nil
	}
	return deliver(done, limit, address, v, fields, nil)
}

// deliver sends one datagram, with descriptors attached. It first tries without
// waiting; where the queue is full it waits for room with the lock released, so
// that each caller's limit is its own.
func deliver(done <-chan struct{}, limit time.Duration, address string, v *verb, fields []Field, rights []int) error {
	fd, err := trySend(address, v, fields, rights)
	for begin := time.Now(); full(err); {
		waited := time.Since(begin)
		if limit != unlimited && (waited > limit || waited > brief && removed(address)) {
			return failed("send", address, os.ErrDeadlineExceeded)
		}
		select {
		case <-done:
			return failed("send", address, os.ErrDeadlineExceeded)
		default:
			waitForRoom(fd, err)
		}
		fd, err = trySend(address, v, fields, rights)
	}
	return err
}

// removed tells whether the receiver has removed its socket. OpenRC does that
// after READY=1, and keeps it open, and never reads again. After a chroot the
// path says nothing.
func removed(address string) bool {
	_, err := identifyPath(address)
	root, _ := identifyPath("/")
	return address[0] == '/' && err == unix.ENOENT && root == start.credentials.root
}

// full tells whether a later try may find room: EAGAIN is a full queue, and so
// is ENOBUFS on a BSD; on Linux it is the kernel's shortage of memory.
// ETOOMANYREFS is too many descriptors that nobody has received yet.
func full(err error) bool {
	return err == unix.EAGAIN || err == unix.ENOBUFS || err == unix.ETOOMANYREFS
}

func waitForRoom(fd int, err error) {
	if err != unix.EAGAIN { // poll(2) knows nothing of these
		time.Sleep(pollInterval / 10)
		return
	}
	// On a connected socket POLLOUT tells of the receiver's queue. An error or
	// a descriptor that is closed meanwhile is what the next try finds out.
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	_, _ = unix.Poll(fds[:], int(pollInterval/time.Millisecond))
}

// notifier is the one socket and the one datagram of this process. They are
// there from the start and stay: a notification takes no memory and no
// descriptor that an ailing process may not get.
var notifier struct {
	sync.Mutex // held while a datagram is built and while the socket changes
	socket     socket
	datagram   datagram
}

// trySend sends without waiting. The error is bare (and fd the socket) where
// the queue is full.
func trySend(address string, v *verb, fields []Field, rights []int) (fd int, err error) {
	notifier.Lock()
	defer notifier.Unlock()
	encoded, err := notifier.datagram.build(address, v, fields)
	if err != nil {
		return 0, err
	}
	s := &notifier.socket
	err = s.send(address, encoded, rights)
	return s.fd, err
}

// socket is opened once and connected as often as need be.
type socket struct {
	held
	peer string // whom it is connected to; "": nobody
}

// send connects the socket where it is the first time, or the address is
// another, or the receiver is gone, or the descriptor.
func (s *socket) send(address string, encoded []byte, rights []int) error {
	// A stranger that has the number now, against all odds, gets no descriptor.
	if s.peer == address && (len(rights) == 0 || s.ours()) {
		if err := sendTo(s.fd, encoded, rights); err == nil || full(err) {
			return err
		}
	}
	if err := s.connect(address); err != nil {
		return err
	}
	err := sendTo(s.fd, encoded, rights)
	if err != nil && !full(err) {
		return failed("send", address, err)
	}
	return err
}

func sendTo(fd int, encoded []byte, rights []int) error {
	if len(rights) == 0 {
		if errno := sendNow(fd, encoded); errno != 0 {
			return errno
		}
		return nil
	}
	for {
		err := unix.Sendmsg(fd, encoded, unix.UnixRights(rights...), nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// connect connects the socket to address, for the first time or again.
func (s *socket) connect(address string) error {
	s.peer = ""
	if !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") {
		return failed("connect", address, unix.EAFNOSUPPORT)
	}
	if !s.ours() {
		fd, err := openSocket()
		if err != nil {
			return failed("connect", address, err)
		}
		s.held = hold(fd)
	}
	// An @ stands for a NUL. Not unix.SockaddrUnix: it refuses the longest name.
	err := syscall.Connect(s.fd, &syscall.SockaddrUnix{Name: address})
	for err == syscall.EINTR {
		err = syscall.Connect(s.fd, &syscall.SockaddrUnix{Name: address})
	}
	if err != nil {
		return failed("connect", address, err)
	}
	s.peer = address
	return nil
}

func openSocket() (fd int, err error) {
	syscall.ForkLock.RLock() // nothing inherits it before it is close-on-exec
	defer syscall.ForkLock.RUnlock()
	low, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(low, true); err != nil {
		unix.Close(low)
		return -1, err
	}
	return moveHigh(low)
}

// maxDatagram is the most that systemd takes; it drops the whole of a longer
// one (NOTIFY_BUFFER_MAX in its sources).
const maxDatagram = 4096

// datagram is a notification in the making. Status, which is the one field
// that may be cut, stands in front of fields that may not: those are encoded
// first, into rest.
type datagram struct{ head, rest [maxDatagram]byte }

// quick is build for what nearly every call says: what it always says, or that
// with a plain STATUS and this process's pid. It returns nil for the rest.
func (d *datagram) quick(v *verb, fields []Field) []byte {
	if len(fields) == 0 {
		return v.alone
	}
	status, mainPID := v.status, v.mainPID
	for i := range fields {
		f := &fields[i]
		switch {
		case f.invalid:
			return nil
		case f.key == "STATUS":
			status = f
		case f.key == "MAINPID":
			mainPID = f
		default:
			return nil
		}
	}
	if v.opening == nil || status == nil || len(status.text) > maxDatagram/2 || plain(status.text) < len(status.text) {
		return nil
	}
	b := append(d.head[:0], v.opening...)
	b = append(b, status.text...)
	if mainPID == nil {
		return append(b, '\n')
	}
	if mainPID.number != int64(pid) {
		return nil
	}
	return append(b, afterStatus...)
}

// afterStatus ends the line of STATUS and says this process's pid.
var afterStatus = []byte("\nMAINPID=" + strconv.Itoa(pid) + "\n")

// build encodes the verb's own assignments first, STATUS and MAINPID next, and
// then the other fields in order. Of several with one key the last counts.
// STATUS is cut, if that helps, to make it maxDatagram bytes. Only what is too
// long takes other memory than d.
func (d *datagram) build(address string, v *verb, fields []Field) ([]byte, error) {
	status, mainPID := v.status, v.mainPID
	for i := range fields {
		f := &fields[i]
		if f.invalid || f.key == "" {
			return nil, failed("field", strconv.Quote(f.key), unix.EINVAL)
		}
		switch f.key {
		case "STATUS":
			status = f
		case "MAINPID":
			mainPID = f
		}
	}
	head := appendOwn(d.head[:0], v, fields)
	rest := appendRest(d.rest[:0], mainPID, v, fields)
	if room := maxDatagram - len(rest) - len("\n"); status != nil && len(head)+len("STATUS=") <= room {
		head = append(head, "STATUS="...)
		head = appendText(head, status.text, room)
		head = append(head, '\n')
	}
	head = append(head, rest...)
	if len(head) > maxDatagram {
		return nil, failed("send", address, unix.EMSGSIZE)
	}
	return head, nil
}

// appendOwn appends the verb's own assignments.
func appendOwn(b []byte, v *verb, fields []Field) []byte {
	for i := range v.own {
		f := &v.own[i]
		b = appendField(b, last(f.key, f, fields))
	}
	return b
}

// appendRest appends what follows STATUS: MAINPID, if any, and what has no place
// of its own.
func appendRest(b []byte, mainPID *Field, v *verb, fields []Field) []byte {
	if mainPID != nil {
		b = appendField(b, mainPID)
	}
	for i := range fields {
		f := &fields[i]
		placed := f.key == "STATUS" || f.key == "MAINPID" || last(f.key, nil, v.own) != nil
		if !placed && last(f.key, f, fields[i+1:]) == f {
			b = appendField(b, f)
		}
	}
	return b
}

// last returns the last of fields with this key, or else f.
func last(key string, f *Field, fields []Field) *Field {
	for i := range fields {
		if fields[i].key == key {
			f = &fields[i]
		}
	}
	return f
}

// appendField appends one line.
func appendField(b []byte, f *Field) []byte {
	b = append(b, f.key...)
	b = append(b, '=')
	switch {
	case f.numeric:
		b = strconv.AppendInt(b, f.number, 10)
	case f.key == "BUSERROR":
		b = appendText(b, f.text, math.MaxInt)
	default:
		b = appendValue(b, f.text)
	}
	return append(b, '\n')
}

// appendValue doubles each backslash: systemd reads it as an escape.
func appendValue(b []byte, value string) []byte {
	for i := range len(value) {
		if value[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, value[i])
	}
	return b
}

// appendText replaces what must not reach a terminal or the next line. It stops
// in front of the first rune with which b would be longer than end.
func appendText(b []byte, text string, end int) []byte {
	if n := plain(text); len(b)+n <= end {
		b = append(b, text[:n]...)
		text = text[n:]
	}
	for _, r := range text { // an invalid byte comes as U+FFFD
		var encoded [utf8.UTFMax]byte
		size := 1
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0: // C0, DEL and C1
			encoded[0] = ' '
		case r == '\\':
			size = copy(encoded[:], `\\`)
		case noncharacter(r):
			size = utf8.EncodeRune(encoded[:], utf8.RuneError)
		default:
			size = utf8.EncodeRune(encoded[:], r)
		}
		if len(b)+size > end {
			break
		}
		b = append(b, encoded[:size]...)
	}
	return b
}

// plain is the length of the text in front of the first byte that appendText has
// to look at.
func plain(text string) int {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '\\' {
			return i
		}
	}
	return len(text)
}

// noncharacter tells whether r is one of the code points that Unicode sets
// apart for internal use. To systemd they are invalid UTF-8, for which it
// ignores the whole STATUS (unichar_is_valid in its sources).
func noncharacter(r rune) bool {
	return r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef
}
