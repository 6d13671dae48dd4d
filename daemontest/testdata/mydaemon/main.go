// Mydaemon is the daemon of package daemontest's examples: it serves one page.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/seed-10280e03/daemon"
)

var (
	address = flag.String("addr", "127.0.0.1:0", "where to serve, unless a socket named http is passed")
	page    = flag.String("page", "", "the file to serve; it is read again on SIGHUP")
	status  = flag.String("status", "ready", "what to tell the supervisor")
	f       = flag.Bool("f", false, "stay in the foreground")
)

func main() {
	flag.Parse()
	if *f {
		daemon.Foreground()
	}
	if err := daemon.Detach(); err != nil {
		log.Fatal(err)
	}
	var text atomic.Value
	read := func() error {
		content, err := readPage()
		if err == nil {
			text.Store(content)
		}
		return err
	}
	if err := read(); err != nil {
		daemon.Fail(err)
		log.Fatal(err)
	}
	go http.Serve(listen(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(text.Load().([]byte))
	}))
	go daemon.RunWatchdog(context.Background(), func() error {
		_, err := readPage()
		return err
	})

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	if err := daemon.Ready(daemon.Status(*status)); err != nil {
		log.Fatal(err)
	}
	for s := range signals {
		if s == syscall.SIGTERM {
			break
		}
		daemon.Reloading()
		if err := read(); err != nil {
			daemon.Ready(daemon.Status("reload failed: " + err.Error()))
		} else {
			daemon.Ready(daemon.Status(*status))
		}
	}
	daemon.Stopping()
}

func readPage() ([]byte, error) {
	if *page == "" {
		return []byte("hello"), nil
	}
	return os.ReadFile(*page)
}

// listen returns the listener that was passed, or else a new one, which it
// stores, so that a restart refuses nobody.
func listen() net.Listener {
	for _, file := range daemon.Files() {
		if file.Name() == "http" {
			listener, err := net.FileListener(file)
			if err != nil {
				log.Fatal(err)
			}
			return listener
		}
	}
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err == nil {
		err = daemon.StoreFiles("http", file)
	}
	if err != nil {
		log.Print(err)
	}
	return listener
}
