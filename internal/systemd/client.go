//go:build linux

package systemd

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"golang.org/x/sys/unix"
)

// A Client asks a web server inside for its page again and again, each time
// on a new connection.
type Client struct {
	t       *testing.T
	address string
	stop    chan struct{}
	done    sync.WaitGroup

	mu       sync.Mutex
	answers  int
	last     string
	failures []string
}

// Client starts one that never pauses until Stop is called.
func (m *Machine) Client(t *testing.T, address string) *Client {
	t.Helper()
	c := &Client{t: t, address: address, stop: make(chan struct{})}
	for range 2 {
		c.done.Go(func() {
			if err := m.enterNetwork(); err != nil {
				c.count("", err)
				return
			}
			for !c.stopped() {
				c.count(ask(address))
			}
		})
	}
	t.Cleanup(func() { c.end() })
	return c
}

// Dial connects to an address inside.
func (m *Machine) Dial(address string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err = m.enterNetwork(); err == nil {
			conn, err = net.DialTimeout("tcp", address, testdaemon.Patience)
		}
	}()
	<-done
	return conn, err
}

// Ask returns the page of a web server inside.
func (m *Machine) Ask(address string) (page string, err error) {
	conn, err := m.Dial(address)
	if err != nil {
		return "", err
	}
	return Get(conn)
}

// enterNetwork has the goroutine that calls it, and no other, open its sockets
// inside. The thread ends with the goroutine.
func (m *Machine) enterNetwork() error {
	runtime.LockOSThread()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid))
	if err != nil {
		return err
	}
	defer namespace.Close()
	return os.NewSyscallError("setns", unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET))
}

func ask(address string) (page string, err error) {
	conn, err := net.DialTimeout("tcp", address, testdaemon.Patience)
	if err != nil {
		return "", err
	}
	return Get(conn)
}

// Get asks for the page over a connection and closes it.
func Get(conn net.Conn) (page string, err error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testdaemon.Patience))
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	head, page, _ := strings.Cut(string(answer), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.0 200 ") {
		return "", fmt.Errorf("the answer is %q", answer)
	}
	return page, nil
}

func (c *Client) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

func (c *Client) count(page string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failures = append(c.failures, err.Error())
		return
	}
	c.answers++
	c.last = page
}

// AwaitPage waits until the page that was served last has the text in it.
func (c *Client) AwaitPage(text string) {
	c.t.Helper()
	testdaemon.WaitUntil(c.t, fmt.Sprintf("a page with %q", text), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.Contains(c.last, text) || len(c.failures) > 100
	})
}

func (c *Client) end() {
	if !c.stopped() {
		close(c.stop)
	}
	c.done.Wait()
}

// MustHaveBeenServed stops the client, and fails the test unless every
// connection was answered.
func (c *Client) MustHaveBeenServed() {
	c.t.Helper()
	c.end()
	if len(c.failures) > 0 || c.answers == 0 {
		some := slices.Compact(c.failures)
		c.t.Fatalf("%d answers, %d failures: %q", c.answers, len(c.failures), some[:min(10, len(some))])
	}
	c.t.Logf("%d answers, no failure", c.answers)
}
