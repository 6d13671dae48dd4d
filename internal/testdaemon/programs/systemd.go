//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/systemd/keeper"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds programs and orders that talk to systemd, and the two that boot one.
func init() {
	programs["systemd-helper"] = helper
	programs["systemd-web"] = web
	programs["systemd-client"] = client
	programs["systemd-keeper"] = keeper.Keep
	programs["systemd-init"] = keeper.BecomeSystemd

	orders["ready-status"] = func(text string) error { return daemon.Ready(daemon.Status(text)) }
	orders["ready-child"] = func(string) error { return readyForChild() }
	orders["reloading"] = func(text string) error { return daemon.Reloading(daemon.Status(text)) }
	orders["stopping"] = func(text string) error { return daemon.Stopping(daemon.Status(text)) }
	orders["status"] = func(text string) error { return daemon.Notify(daemon.Status(text)) }
	orders["fail"] = func(string) error {
		return daemon.Fail(fmt.Errorf("open the shop: %w", os.NewSyscallError("bind", syscall.EADDRINUSE)))
	}
	orders["extend"] = func(string) error { return daemon.Notify(daemon.ExtendTimeout(time.Hour)) }
	orders["barrier"] = func(string) error { return barrier() }
	orders["helper"] = startHelper
	orders["watchdog"] = startWatchdog
	orders["store"] = store
	orders["remove"] = daemon.RemoveFiles
}

// patience is how long systemd may take to answer.
const patience = 60 * time.Second

// barrier makes sure that systemd has handled what was said so far.
func barrier() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return daemon.Barrier(ctx)
}

// readyForChild makes a child process the one that systemd watches.
func readyForChild() error {
	child := exec.Command("/bin/sleep", "1000")
	if err := child.Start(); err != nil {
		return err
	}
	return daemon.Ready(daemon.MainPID(child.Process.Pid), daemon.Status(strconv.Itoa(child.Process.Pid)))
}

// startWatchdog runs RunWatchdog until its argument, a status, is not empty;
// then the service is unhealthy.
func startWatchdog(sick string) error {
	health.mu.Lock()
	defer health.mu.Unlock()
	if sick != "" {
		health.err = errors.New(sick)
		return nil
	}
	go daemon.RunWatchdog(context.Background(), func() error {
		health.mu.Lock()
		defer health.mu.Unlock()
		return health.err
	})
	return nil
}

var health struct {
	mu  sync.Mutex
	err error
}

// helper is a process of the service that says one thing and ends.
func helper() {
	err := daemon.Notify(daemon.Status(os.Args[1]))
	if err == nil {
		err = barrier()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func startHelper(status string) error {
	cmd := exec.Command("/proc/self/exe", status)
	cmd.Env = append(os.Environ(), agreed.Program+"=systemd-helper")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// store hands systemd a file, "name content", to keep.
func store(argument string) error {
	name, content, _ := strings.Cut(argument, " ")
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if _, err := file.WriteString(content); err != nil {
		return err
	}
	if err := daemon.StoreFiles(name, file); err != nil {
		return err
	}
	return barrier()
}

// web tells everyone who connects its pid. The port is the one that systemd
// passes as "web", or else one of its own, which systemd is then to keep.
func web() {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	listener, err := webListener()
	if err == nil {
		err = daemon.Ready(daemon.Status(listener.Addr().String()))
	}
	if err != nil {
		daemon.Fail(err)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	served := make(chan struct{})
	go func() {
		defer close(served)
		answerPID(listener)
	}()
	<-terminated
	daemon.Stopping()
	listener.Close()
	<-served
}

func webListener() (net.Listener, error) {
	for _, file := range daemon.Files() {
		if file.Name() == "web" {
			return net.FileListener(file)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	return listener, daemon.StoreFiles("web", file)
}

// client connects to its argument again and again, until its standard input
// ends. It prints each change of what it is told and each failure, and at the
// end "end".
func client() {
	done := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	var last string
	for {
		select {
		case <-done:
			fmt.Println("end")
			return
		default:
		}
		answer, err := connect(os.Args[1])
		if err != nil {
			answer = "failed: " + err.Error()
		}
		if answer != last {
			fmt.Println(answer)
		}
		last = answer
	}
}

func connect(address string) (answer string, err error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(conn)
	if err == nil && len(text) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(string(text)), err
}
