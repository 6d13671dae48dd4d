//go:build unix

package daemon

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// notify sends verb's own assignments and then the caller's fields in one
// datagram, and waits at most limit for room in the supervisor's queue. Where
// none listens it does nothing.
func notify(limit time.Duration, verb, fields []Field) error {
	who, address := supervisor()
	if who != Systemd {
		return nil
	}
	return send(context.Background(), address, limit, verb, fields, nil)
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
	r, w, err := os.Pipe()
	if err != nil {
		return failed("barrier", address, err)
	}
	defer r.Close()
	err = send(ctx, address, unlimited, []Field{{key: "BARRIER", text: "1"}}, nil, []*os.File{w})
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for err == nil { // until the end of file: what a receiver may write says nothing
		_, err = r.Read(make([]byte, 1))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return failed("barrier", address, ctx.Err())
	}
	return nil
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

// unlimited is the limit of a send that only its context ends.
const unlimited time.Duration = 0

// pollInterval is how long a sender waits for room before it looks again: the
// lock is free meanwhile, and another sender may have opened another socket.
const pollInterval = 100 * time.Millisecond

// send sends one datagram, with files attached. It first tries without waiting;
// where the queue is full it waits for room with the lock released, so that
// each caller's limit is its own.
func send(ctx context.Context, address string, limit time.Duration, verb, fields []Field, files []*os.File) error {
	fd, err := trySend(address, verb, fields, files)
	if err == nil {
		return nil
	}
	var deadline time.Time
	if limit != unlimited {
		deadline = time.Now().Add(limit)
	}
	for full(err) {
		if ctx.Err() != nil {
			return failed("send", address, ctx.Err())
		}
		if limit != unlimited && !time.Now().Before(deadline) {
			return failed("send", address, os.ErrDeadlineExceeded)
		}
		waitForRoom(fd, err)
		fd, err = trySend(address, verb, fields, files)
	}
	return err
}

// full tells whether a later try may find room: EAGAIN is a full queue, and so
// is ENOBUFS on a BSD; on Linux it is the kernel's shortage of memory.
func full(err error) bool {
	return err == unix.EAGAIN || err == unix.ENOBUFS
}

func waitForRoom(fd int, err error) {
	if err == unix.ENOBUFS { // poll(2) knows nothing of these
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
	sync.Mutex
	socket   socket
	datagram datagram
}

// trySend encodes and sends without waiting. The error is bare (and fd the
// socket) where the queue is full.
func trySend(address string, verb, fields []Field, files []*os.File) (fd int, err error) {
	notifier.Lock()
	defer notifier.Unlock()
	s, d := &notifier.socket, &notifier.datagram
	if err := validate(fields); err != nil {
		return 0, err
	}
	if !d.encode(verb, fields) {
		return 0, failed("send", address, unix.EMSGSIZE)
	}
	kept := s.open && s.address == address
	if !kept {
		if err := s.reopen(address); err != nil {
			return 0, err
		}
	}
	err = s.send(d.bytes(), files)
	if kept && err != nil && !full(err) { // the receiver is gone, or the descriptor
		if err := s.reopen(address); err != nil {
			return 0, err
		}
		err = s.send(d.bytes(), files)
	}
	if err != nil && !full(err) {
		err = failed("send", address, err)
	}
	return s.fd, err
}

// socket is connected to address while open.
type socket struct {
	open    bool
	fd      int
	id      identity
	address string
}

func (s *socket) reopen(address string) error {
	s.close()
	fd, err := connect(address)
	if err != nil {
		return failed("connect", address, err)
	}
	id, err := identify(fd)
	*s = socket{open: err == nil, fd: fd, id: id, address: address}
	return err
}

// close leaves alone what a program that closed this descriptor may have
// opened in its place.
func (s *socket) close() {
	if id, err := identify(s.fd); s.open && err == nil && id == s.id {
		unix.Close(s.fd)
	}
	s.open = false
}

func (s *socket) send(datagram []byte, files []*os.File) error {
	if len(files) == 0 {
		return sendNow(s.fd, datagram)
	}
	return sendFiles(s.fd, datagram, files)
}

// connect opens a socket to address. It stays out of the way of programs that
// close all descriptors from 3 up: on a high number they are told EBADF here,
// and do not find their next file where this package writes.
func connect(address string) (fd int, err error) {
	if !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") {
		return -1, unix.EAFNOSUPPORT
	}
	if fd, err = highSocket(); err != nil {
		return -1, err
	}
	// The kernel's name has a NUL where there is an @ here.
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: address}); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func highSocket() (int, error) {
	syscall.ForkLock.RLock() // nothing inherits it before it is close-on-exec
	defer syscall.ForkLock.RUnlock()
	low, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(low)
	fd, err := duplicateHigh(low)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	return fd, err
}

// maxDatagram is the most that systemd takes; it drops the whole of a longer
// one (NOTIFY_BUFFER_MAX in its sources).
const maxDatagram = 4096

// datagram is a notification in the making. Status, which is the one field
// that may be cut, stands in front of fields that may not: those are encoded
// first, into rest.
type datagram struct{ head, rest buffer }

func (d *datagram) bytes() []byte { return d.head.data[:d.head.n] }

// encode puts verb's own assignments first, STATUS and MAINPID next, and then
// the other fields in order. Of several with one key the last counts. It tells whether
// all but the end of STATUS fitted.
func (d *datagram) encode(verb, fields []Field) bool {
	d.head.reset()
	d.rest.reset()
	for i := range verb {
		if key := verb[i].key; key != "STATUS" && key != "MAINPID" {
			d.head.assign(last(key, verb, fields))
		}
	}
	if mainPID := last("MAINPID", verb, fields); mainPID != nil {
		d.rest.assign(mainPID)
	}
	for i := range fields {
		f := &fields[i]
		if f.key != "STATUS" && f.key != "MAINPID" && last(f.key, nil, fields) == f && last(f.key, verb, nil) == nil {
			d.rest.assign(f)
		}
	}
	room := maxDatagram - d.rest.n
	if d.head.n > room || d.head.full || d.rest.full {
		return false
	}
	if status := last("STATUS", verb, fields); status != nil {
		d.head.assignText(status, room)
	}
	d.head.n += copy(d.head.data[d.head.n:], d.rest.data[:d.rest.n])
	return true
}

func validate(fields []Field) error {
	for i := range fields {
		if f := &fields[i]; f.invalid || f.key == "" {
			return failed("field", strconv.Quote(f.key), unix.EINVAL)
		}
	}
	return nil
}

// last finds the field that counts for key, the caller's before verb's own.
func last(key string, verb, fields []Field) *Field {
	for i := len(fields) - 1; i >= 0; i-- {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	for i := len(verb) - 1; i >= 0; i-- {
		if verb[i].key == key {
			return &verb[i]
		}
	}
	return nil
}

// buffer is a part of a datagram; full tells that something did not fit.
type buffer struct {
	data [maxDatagram]byte
	n    int
	full bool
}

func (b *buffer) reset() { b.n, b.full = 0, false }

// assign adds one line.
func (b *buffer) assign(f *Field) {
	switch {
	case f.numeric:
		b.add(f.key)
		b.add("=")
		b.addNumber(f.number)
	case f.key == "BUSERROR":
		b.full = !b.assignText(f, maxDatagram) || b.full
		return
	default:
		b.add(f.key)
		b.add("=")
		b.addValue(f.text)
	}
	b.add("\n")
}

// add adds s, or what fits of it.
func (b *buffer) add(s string) {
	n := copy(b.data[b.n:], s)
	b.n += n
	b.full = b.full || n < len(s)
}

func (b *buffer) addNumber(n int64) {
	var digits [20]byte // -9223372036854775808
	s := strconv.AppendInt(digits[:0], n, 10)
	b.full = b.full || copy(b.data[b.n:], s) < len(s)
	b.n = min(b.n+len(s), maxDatagram)
}

// addValue doubles each backslash: systemd reads it as an escape.
func (b *buffer) addValue(value string) {
	for {
		before, after, found := strings.Cut(value, `\`)
		b.add(before)
		if !found {
			return
		}
		b.add(`\\`)
		value = after
	}
}

// assignText adds a line of text for people to read, of which it cuts what goes
// beyond the first end bytes of the buffer; where not even the empty text fits
// it adds nothing. It tells whether all of the text was added.
func (b *buffer) assignText(f *Field, end int) (whole bool) {
	if b.n+len(f.key)+len("=\n") > end {
		return false
	}
	b.add(f.key)
	b.add("=")
	whole = b.addText(f.text, end-len("\n"))
	b.add("\n")
	return whole
}

// addText replaces what must not reach a terminal or the next line and stops
// before end, in front of the first rune that does not fit.
func (b *buffer) addText(text string, end int) (whole bool) {
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
		case r < utf8.RuneSelf:
			encoded[0] = byte(r)
		default:
			size = utf8.EncodeRune(encoded[:], r)
		}
		if b.n+size > end {
			return false
		}
		b.n += copy(b.data[b.n:], encoded[:size])
	}
	return true
}

// noncharacter tells whether r is one of the code points that Unicode sets
// apart for internal use. To systemd they are invalid UTF-8, for which it
// ignores the whole STATUS (unichar_is_valid in its sources).
func noncharacter(r rune) bool {
	return r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef
}
