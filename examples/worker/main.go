// Worker is a daemon without a port: it compresses the files that are moved
// into a directory. It is meant to be copied: see ../README.md.
package main

import (
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
)

var (
	spool      = flag.String("dir", "/var/spool/worker", "`directory` whose files are to be compressed")
	every      = flag.Duration("every", 10*time.Second, "how often to look for new files")
	foreground = flag.Bool("f", false, "stay in the foreground, for a supervisor that is neither systemd nor upstart")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		daemon.Fail(err) // systemctl status shows the text, and ERRNO as the error's name
		log.Fatal(err)
	}
}

func run() error {
	if *foreground {
		daemon.Foreground()
	}
	if err := daemon.Detach(); err != nil { // first of all: what follows happens once
		return err
	}
	dir, err := filepath.Abs(*spool)
	if err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil { // keep no file system from being unmounted
		return err
	}
	// The first pass belongs to the start: if it fails, the start does.
	if _, err := pass(dir); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := daemon.Ready(daemon.Status("waiting for files in " + dir)); err != nil {
		return err
	}
	return work(ctx, dir)
}

// work is the main loop. The watchdog's question has to get through it: while
// the loop is stuck there is no heartbeat, and systemd restarts the daemon. A
// watchdog beside the loop would only prove that it runs itself.
func work(ctx context.Context, dir string) error {
	alive := make(chan struct{})
	watchdog := make(chan error, 1)
	go func() {
		watchdog <- daemon.RunWatchdog(ctx, func() error {
			alive <- struct{}{}
			return nil
		})
	}()
	ticker := time.NewTicker(*every)
	defer ticker.Stop()
	total := 0
	for {
		select {
		case <-alive:
		case err := <-watchdog: // nil: there is none to run
			if err != nil {
				return err
			}
			watchdog = nil
		case <-ticker.C:
			n, err := pass(dir)
			if err != nil {
				return err
			}
			if total += n; n > 0 {
				daemon.Notify(daemon.Status(fmt.Sprintf("%d files compressed", total)))
			}
		case <-ctx.Done():
			return daemon.Stopping()
		}
	}
}

// pass compresses the files in dir and returns how many they were.
func pass(dir string) (n int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || strings.HasSuffix(name, ".gz") || strings.HasSuffix(name, ".tmp") {
			continue
		}
		if err := replace(filepath.Join(dir, name)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// replace replaces a file by its compressed form. Whenever the process is
// killed, one of the two is complete.
func replace(path string) error {
	if err := compress(path, path+".tmp"); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}

func compress(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	defer w.Close()
	z := gzip.NewWriter(w)
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return w.Sync()
}
