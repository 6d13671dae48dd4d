//go:build linux

package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
)

// demoName is the argv[0] that makes this program the daemon to be shown.
const demoName = "demo"

func demo() {
	if err := daemon.Detach(); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("demo: getting ready to serve on", listener.Addr())
	time.Sleep(50 * time.Millisecond)

	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	if err := daemon.Ready(daemon.Status(fmt.Sprint("serving on ", listener.Addr()))); err != nil {
		log.Fatal(err)
	}
	<-terminate
	daemon.Stopping()
}
