//go:build unix

// Upgrade is a web server that replaces itself without a pause. On SIGHUP it
// starts its own file again, which may be another version by then, and ends when
// that serves. See docs/upgrade.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"

	"github.com/seed-10280e03/daemon"
)

var (
	addr       = flag.String("addr", "localhost:8080", "`address` to listen on")
	foreground = flag.Bool("f", false, "stay in the foreground, and do not upgrade")
)

func main() {
	flag.Parse()
	upgrader, err := tableflip.New(tableflip.Options{})
	if err != nil {
		log.Fatal(err)
	}
	s, err := start(upgrader)
	if err != nil {
		if !upgrader.HasParent() { // or the service goes on without this process
			daemon.Fail(err)
		}
		log.Fatal(err)
	}
	if err := s.run(); err != nil {
		daemon.Fail(err)
		log.Fatal(err)
	}
}

// A service is a server that can hand its work over.
type service struct {
	*server
	upgrader *tableflip.Upgrader
	ready    []daemon.Field // what this process says when it is ready
	hangup   chan os.Signal
	ctx      context.Context // ends at SIGTERM
	stop     func()
}

// start returns when this process serves and everybody knows it.
func start(upgrader *tableflip.Upgrader) (*service, error) {
	if upgrader.HasParent() {
		daemon.Foreground()         // the old process has started this one, and waits
		os.Unsetenv("WATCHDOG_PID") // it names the old process
	}
	if *foreground {
		daemon.Foreground()
	}
	if err := daemon.Detach(); err != nil {
		return nil, err
	}
	if daemon.Detect() == daemon.Systemd {
		log.SetFlags(0) // the journal has the time
	}
	listener, err := upgrader.Listen("tcp", *addr) // the old process's, if there is one
	if err != nil {
		return nil, err
	}
	s := &service{server: serve(listener, http.HandlerFunc(page)), upgrader: upgrader, hangup: make(chan os.Signal, 1)}
	signal.Notify(s.hangup, syscall.SIGHUP)
	s.ctx, s.stop = signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	s.ready = []daemon.Field{daemon.Status("serving on " + listener.Addr().String())}
	if upgrader.HasParent() {
		s.ready = append(s.ready, daemon.MainPID(os.Getpid()))
	}
	return s, s.tell()
}

// tell tells whoever waits that this process serves. systemd has to know that
// before the old process does: it takes the end of the main process for the end
// of the service.
func (s *service) tell() error {
	if err := daemon.Ready(s.ready...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	if err := daemon.Barrier(ctx); err != nil {
		return err
	}
	return s.upgrader.Ready() // the old process ends
}

// run serves until the service is to end, or this process.
func (s *service) run() error {
	go s.watch()
	handedOver := make(chan struct{})
	go func() {
		for range s.hangup {
			if s.upgrade() {
				close(handedOver)
				return
			}
		}
	}()
	select {
	case err := <-s.ended:
		return err
	case <-handedOver: // no Stopping, which would be the service's
	case <-s.ctx.Done():
		if err := daemon.Stopping(); err != nil {
			log.Print(err)
		}
		s.upgrader.Stop() // ends a new process that is not ready yet
	}
	s.stop() // the heartbeat; a second SIGTERM ends the process at once
	return s.shutdown()
}

// upgrade starts a new process. It returns true when that serves.
func (s *service) upgrade() (handedOver bool) {
	if who := daemon.Detect(); *foreground || who != daemon.Systemd && who != daemon.None {
		log.Print("no upgrade: the end of this process would be the end of the service")
		return false
	}
	if err := daemon.Reloading(daemon.Status("upgrading")); err != nil {
		log.Print(err)
	}
	err := s.upgrader.WaitForParent(s.ctx) // while that answers its last requests
	if err == nil {
		err = s.upgrader.Upgrade()
	}
	if err == nil || s.ctx.Err() != nil {
		return err == nil
	}
	log.Print("upgrade: ", err)
	// This ends the reload, and this process is the main one again if the new
	// one has said that it were.
	fields := append(s.ready, daemon.MainPID(os.Getpid()), daemon.Status("upgrade failed: "+err.Error()))
	if err := daemon.Ready(fields...); err != nil {
		log.Print(err)
	}
	return false
}

func page(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "Process %d serves this page.\n", os.Getpid())
}

// watch keeps systemd's watchdog calm for as long as the server answers.
func (s *service) watch() {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	err := daemon.RunWatchdog(s.ctx, func() error {
		response, err := client.Get("http://" + s.listener.Addr().String())
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	if err != nil {
		log.Print(err)
	}
}
