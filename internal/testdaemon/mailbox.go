//go:build linux

package testdaemon

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/daemontest"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// A Mailbox is a notify socket that is read only when the test says so. If
// nothing depends on that, daemontest's is the better listener.
type Mailbox struct {
	T       testing.TB
	Address string
	FD      int
	probe   int // connected to FD
}

// OpenMailbox makes one that is closed, and its path removed, at the end of the
// test.
func OpenMailbox(t testing.TB, address string) *Mailbox {
	t.Helper()
	m := BindMailbox(t, address)
	t.Cleanup(func() {
		m.Close()
		os.Remove(address)
	})
	return m
}

// BindMailbox makes one that the test closes.
func BindMailbox(t testing.TB, address string) *Mailbox {
	t.Helper()
	// Not unix.SockaddrUnix: that refuses the longest abstract name.
	place := &syscall.SockaddrUnix{Name: address}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.Bind(fd, place)
	}
	probe := -1
	if err == nil {
		probe, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	}
	if err == nil {
		err = syscall.Connect(probe, place)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &Mailbox{t, address, fd, probe}
}

// Close leaves the path where it is. It returns when nothing reaches the socket any
// more: for an instant a child that is being started has it, too, or whoever looks
// into /proc/PID/fd.
func (m *Mailbox) Close() {
	m.T.Helper()
	if m.FD >= 0 {
		unix.Close(m.FD)
		WaitUntil(m.T, "the end of "+m.Address, func() bool {
			_, err := unix.Write(m.probe, nil)
			return err == unix.ECONNREFUSED
		})
	}
	unix.Close(m.probe)
	m.FD, m.probe = -1, -1
}

// Take returns what is there already.
func (m *Mailbox) Take() (datagram string, ok bool) {
	m.T.Helper()
	var space [5000]byte
	n, _, err := unix.Recvfrom(m.FD, space[:], unix.MSG_DONTWAIT)
	if err != nil && err != unix.EAGAIN {
		m.T.Fatal(err)
	}
	return string(space[:max(n, 0)]), err == nil
}

// Next waits for a datagram.
func (m *Mailbox) Next() string {
	m.T.Helper()
	m.Wait()
	datagram, _ := m.Take()
	return datagram
}

// Wait waits for one, and leaves it there.
func (m *Mailbox) Wait() {
	m.T.Helper()
	fds := []unix.PollFd{{Fd: int32(m.FD), Events: unix.POLLIN}}
	for deadline := time.Now().Add(daemontest.Timeout); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline)/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			m.T.Fatalf("no datagram: %v", err)
		}
		return
	}
}

// Fill sends datagrams until no sender finds room, and returns how many: each
// may have only so many in a queue.
func (m *Mailbox) Fill() (sent int) {
	m.T.Helper()
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			m.T.Fatal(err)
		}
		defer unix.Close(fd)
		before := sent
		for {
			err := unix.Sendto(fd, []byte("X_FILL=1\n"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: m.Address})
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				m.T.Fatal(err)
			}
			sent++
		}
		if sent == before {
			return sent
		}
	}
}

// Drain takes what Fill has sent.
func (m *Mailbox) Drain(sent int) {
	m.T.Helper()
	for range sent {
		if got, _ := m.Take(); got != "X_FILL=1\n" {
			m.T.Fatalf("%q in the queue", got)
		}
	}
}

// ListenByHand opens one for this process itself.
func ListenByHand(t *testing.T) *Mailbox {
	t.Helper()
	m := OpenMailbox(t, Directory(t)+"/notify")
	t.Setenv("NOTIFY_SOCKET", m.Address)
	return m
}

// TakeBarrier returns the descriptor of a barrier after a while, for a caller that would not wait for the answer.
func (m *Mailbox) TakeBarrier() (fd int) {
	m.T.Helper()
	m.Wait()
	fd, err := agreed.TakeBarrier(m.FD)
	if err != nil {
		m.T.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
	return fd
}

// Hears checks that a child has sent what this process would send as want.
func (m *Mailbox) Hears(c *Child, want string) {
	m.T.Helper()
	want = strings.ReplaceAll(want, agreed.MainPID(os.Getpid()), agreed.MainPID(c.PID()))
	if got := m.Next(); got != want {
		m.T.Errorf("%q, want %q", got, want)
	}
}
