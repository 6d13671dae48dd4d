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
	"io"
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
	logFile    = flag.String("log", "", "`file` to append the log to: once detached, standard error is /dev/null; SIGHUP has it opened again")
	foreground = flag.Bool("f", false, "stay in the foreground, for a supervisor that is neither systemd nor upstart")
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
	if err := openLog(); err != nil {
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
	server := &http.Server{Handler: &s, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	// Before Ready: whoever hears it may send a signal at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)

	serving := "serving on " + listener.Addr().String()
	log.Print(serving) // the last thing that a terminal sees
	if err := daemon.Ready(daemon.Status(serving)); err != nil {
		return err
	}
	go watch(ctx, listener.Addr())
	for {
		select {
		case <-hangup:
			reload(&s, serving)
		case err := <-served:
			return err
		case <-ctx.Done():
			stop() // a second signal ends the process at once
			return shutdown(server, listener)
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

var openedLog *os.File

// openLog adds the -log to standard error, where failures have to be seen until
// httpd is ready. It does so again for logrotate, which has moved the file.
func openLog() error {
	if daemon.Detect() == daemon.Systemd {
		log.SetFlags(0) // the journal has the time
	}
	if *logFile == "" {
		return nil
	}
	file, err := os.OpenFile(*logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	log.SetOutput(io.MultiWriter(file, os.Stderr))
	openedLog.Close() // the first time there is none, which is no harm
	openedLog = file
	return nil
}

// listen takes the socket over that systemd has kept, so that nobody is
// refused while the daemon restarts: httpd.socket's, or the one that the
// daemon before this one has stored. Without those it opens a socket, and
// stores it for the next (FileDescriptorStoreMax= in httpd.service).
func listen() (net.Listener, error) {
	stored := "stored " + strings.ReplaceAll(*addr, ":", " ") // a name there has no colon
	for _, file := range daemon.Files() {
		defer file.Close() // FileListener duplicates it
		if file.Name() == "http" || file.Name() == stored {
			return net.FileListener(file)
		}
		daemon.RemoveFiles(file.Name()) // stored when there was another -addr
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

// reload reads the page and opens the log again. Where that fails the old one
// stays, and Ready ends the reload all the same: systemd waits for it.
func reload(s *site, status string) {
	if err := daemon.Reloading(); err != nil {
		log.Print(err)
	}
	if err := errors.Join(openLog(), s.load()); err != nil {
		log.Print("reload: ", err)
		status = "reload failed, the old one stays: " + err.Error()
	}
	if err := daemon.Ready(daemon.Status(status)); err != nil {
		log.Print(err)
	}
}

// shutdown lets the requests that are under way finish.
func shutdown(server *http.Server, listener net.Listener) error {
	if err := daemon.Stopping(); err != nil {
		log.Print(err)
	}
	// Who connects from now on waits in the socket that systemd keeps. Who has
	// just been accepted gets a moment to send his request: Shutdown alone
	// would close the connection on him.
	listener.Close()
	time.Sleep(100 * time.Millisecond)

	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}
