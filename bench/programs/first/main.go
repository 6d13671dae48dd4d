//go:build linux

// First prints how many nanoseconds its first notification takes. Its first
// argument says who sends it. With a second, "listen", it has a TCP listener by
// then, so that Go's network poller runs already.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"time"

	gosystemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/mdlayher/sdnotify"
	"github.com/seed-10280e03/daemon"
	"golang.org/x/sys/unix"
)

func main() {
	message := fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", os.Getpid())
	send := map[string]func(message string) error{
		"bare":      bare,
		"daemon":    func(string) error { return daemon.Ready() },
		"mdlayher":  mdlayher,
		"gosystemd": goSystemd,
	}[os.Args[1]]
	if len(os.Args) > 2 {
		_, err := net.Listen("tcp", "127.0.0.1:0")
		check(err)
	}
	start := time.Now()
	err := send(message)
	elapsed := time.Since(start)
	check(err)
	fmt.Println(elapsed.Nanoseconds())
}

func bare(message string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}); err != nil {
		return err
	}
	return unix.Send(fd, []byte(message), unix.MSG_NOSIGNAL)
}

func mdlayher(message string) error {
	notifier, err := sdnotify.New()
	if err != nil {
		return err
	}
	return notifier.Notify(message)
}

func goSystemd(message string) error {
	_, err := gosystemd.SdNotify(false, message)
	return err
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
