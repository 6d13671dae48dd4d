//go:build !js

// Httpd is a small web server that systemd, upstart, other init systems and a
// shell can all start, and that tells each of them when it serves. It is meant
// to be copied: see ../README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
)

var (
	addr       = flag.String("addr", "localhost:8080", "`address` to listen on")
	pageFile   = flag.String("page", "", "`file` with the page to serve, a Go HTML template; SIGHUP has it read again")
	logFile    = flag.String("log", "", "`file` to append the log to, panics included; SIGHUP has it opened again")
	foreground = flag.Bool("f", false, "stay in the foreground")
)

func main() {
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "unexpected argument:", flag.Arg(0))
		flag.Usage()
		os.Exit(2) // as for a flag that there is not
	}
	if err := run(); err != nil {
		daemon.Fail(err) // for systemctl status
		log.Fatal(err)   // until Ready also on the terminal, and the shell gets this exit status
	}
}

func run() error {
	if *foreground {
		daemon.Foreground()
	}
	// Before everything else: what follows happens once, in the process that
	// stays. With Ready alone main would run twice up to there.
	if err := daemon.Detach(); err != nil {
		return err
	}
	if err := leaveDirectory(); err != nil {
		return err
	}
	if daemon.Detect() == daemon.Systemd && *logFile == "" {
		log.SetFlags(0) // the journal has the time
	}
	output, err := openLog()
	if err != nil {
		return err
	}
	var s site
	if err := s.load(); err != nil {
		return err
	}
	listener, err := listen()
	if err != nil {
		return err
	}
	server := serve(listener, &s)

	// Before Ready: whoever hears it may send a signal at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)

	serving := "serving on " + listener.Addr().String()
	log.Print(serving) // the last thing that a terminal sees
	if err := logOnly(output); err != nil {
		return err
	}
	if err := daemon.Ready(daemon.Status(serving)); err != nil {
		return err
	}
	go watch(ctx, listener.Addr())
	for {
		select {
		case <-hangup:
			reload(&s, serving)
		case err := <-server.ended:
			return err
		case <-ctx.Done():
			stop() // a second signal ends the process at once
			if err := daemon.Stopping(); err != nil {
				log.Print(err)
			}
			return server.shutdown()
		}
	}
}

// leaveDirectory leaves the directory of the caller, whose file system could
// not be unmounted otherwise. What will be opened later needs a path from the
// root.
func leaveDirectory() (err error) {
	for _, path := range []*string{pageFile, logFile} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return os.Chdir("/")
}

// listen takes the socket over that systemd has kept, so that nobody is
// refused while the daemon restarts: httpd.socket's, or the one that the
// daemon before this one has stored. Without those it opens a socket, and
// stores it for the next (FileDescriptorStoreMax= in httpd.service).
func listen() (net.Listener, error) {
	stored := "stored " + strings.ReplaceAll(*addr, ":", " ") // a name there has no colon
	for _, file := range daemon.Files() {
		defer file.Close() // FileListener duplicates it
		switch name := file.Name(); {
		case name == "http", name == stored:
			return net.FileListener(file)
		case strings.HasPrefix(name, "stored "): // with another -addr
			daemon.RemoveFiles(name)
		default:
			return nil, fmt.Errorf("passed a socket named %s, want http (FileDescriptorName= in the socket unit)", name)
		}
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return nil, err
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := daemon.StoreFiles(stored, file); err != nil {
		log.Print(err) // a restart will refuse connections: no reason not to serve
	}
	return listener, nil
}

// watch keeps systemd's watchdog calm for as long as the server answers.
func watch(ctx context.Context, server net.Addr) {
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true, // be a new client each time
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, server.Network(), server.String())
			},
		},
	}
	err := daemon.RunWatchdog(ctx, func() error {
		response, err := client.Get("http://localhost/")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("health check: %s", response.Status)
		}
		return nil
	})
	if err != nil {
		log.Print(err)
	}
}

// reload reads the page and opens the log again. If that fails the old one
// stays, and Ready ends the reload all the same: systemd waits for it.
func reload(s *site, status string) {
	if err := daemon.Reloading(); err != nil {
		log.Print(err)
	}
	if err := errors.Join(reopenLog(), s.load()); err != nil {
		log.Print("reload: ", err)
		status = "reload failed, the old one stays: " + err.Error()
	}
	if err := daemon.Ready(daemon.Status(status)); err != nil {
		log.Print(err)
	}
}
