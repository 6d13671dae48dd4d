//go:build !js

// Worker is a daemon without a port: it compresses the files that are moved
// into a directory. It is meant to be copied: see ../README.md.
package main

import (
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed-10280e03/daemon"
)

var (
	directory  = flag.String("dir", "/var/spool/worker", "`directory` whose files are to be compressed")
	every      = flag.Duration("every", 10*time.Second, "how long to wait before looking for new files again")
	logFile    = flag.String("log", "", "`file` to append the log to, panics included; SIGHUP has it opened again")
	foreground = flag.Bool("f", false, "stay in the foreground")
)

func main() {
	flag.Parse()
	if err := checkFlags(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		flag.Usage()
		os.Exit(2) // as for a flag that there is not
	}
	if err := run(); err != nil {
		daemon.Fail(err) // systemctl status shows the text, and ERRNO as the error's name
		log.Fatal(err)
	}
}

// checkFlags finds what would otherwise be found by the daemon, which has
// nobody to tell.
func checkFlags() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument: %s", flag.Arg(0))
	}
	if *every <= 0 {
		return fmt.Errorf("-every %v: it must be more than 0", *every)
	}
	return nil
}

func run() error {
	if *foreground {
		daemon.Foreground()
	}
	if err := daemon.Detach(); err != nil { // first of all: what follows happens once
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
	// A start fails if there is nothing to work on. The work itself takes as
	// long as it takes, and nobody should wait for it: it comes after Ready.
	s := spool{dir: *directory}
	if err := s.clean(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	if err := logOnly(output); err != nil {
		return err
	}
	if err := daemon.Ready(daemon.Status(s.String())); err != nil {
		return err
	}
	return work(ctx, &s, hangup)
}

// leaveDirectory leaves the directory of the caller, whose file system could
// not be unmounted otherwise. What will be opened later needs a path from the
// root.
func leaveDirectory() (err error) {
	for _, path := range []*string{directory, logFile} {
		if *path == "" { // not the caller's directory
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return os.Chdir("/")
}

// work is the main loop. The watchdog's question has to get through it: while
// the loop is stuck there is no heartbeat, and systemd restarts the daemon. A
// watchdog beside the loop would only prove that it runs itself.
func work(ctx context.Context, s *spool, hangup <-chan os.Signal) error {
	alive := make(chan struct{})
	watchdog := make(chan error, 1)
	go func() {
		watchdog <- daemon.RunWatchdog(ctx, func() error {
			alive <- struct{}{}
			return nil
		})
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-alive:
		case err := <-watchdog: // nil: there is none to run
			if err != nil {
				return err
			}
			watchdog = nil
		case <-hangup:
			if err := reopenLog(); err != nil {
				log.Print(err) // into the old one
			}
		case <-next.C:
			before := s.String()
			if err := s.pass(ctx); err != nil {
				return err
			}
			if now := s.String(); now != before {
				daemon.Notify(daemon.Status(now))
			}
			next.Reset(*every)
		case <-ctx.Done():
			if err := daemon.Stopping(); err != nil {
				log.Print(err) // it has stopped as it should
			}
			return nil
		}
	}
}

// A spool is a directory, and what has become of the files in it.
type spool struct {
	dir        string
	compressed int
	left       string // which could not be compressed, and why
}

// String is what systemctl status shows.
func (s *spool) String() string {
	text := fmt.Sprintf("waiting for files in %s, %d compressed", s.dir, s.compressed)
	if s.left != "" {
		text += ", left as they are: " + s.left
	}
	return text
}

// unfinished is how the names of files begin that are not complete.
const unfinished = ".worker-"

// clean removes what a worker that was killed has left.
func (s *spool) clean() error {
	entries, err := os.ReadDir(s.dir)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), unfinished) {
			os.Remove(filepath.Join(s.dir, entry.Name())) // if this fails, the file is in nobody's way
		}
	}
	return err
}

// pass compresses the files in the directory, apart from hidden ones. One that
// it cannot compress does not keep it from the others.
func (s *spool) pass(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var left []string
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".gz") {
			continue
		}
		if ctx.Err() != nil { // who stops worker does not wait for all of them
			return nil
		}
		if err := replace(filepath.Join(s.dir, name)); err != nil {
			left = append(left, name+": "+err.Error())
			continue
		}
		s.compressed++
	}
	if now := strings.Join(left, "; "); now != s.left { // not at each pass
		s.left = now
		log.Print(s)
	}
	return nil
}

// replace replaces a file by its compressed form, and no other file. Whenever
// the process is killed, one of the two is complete.
func replace(path string) error {
	if _, err := os.Lstat(path + ".gz"); err == nil { // before the work, not after it
		return fmt.Errorf("%s.gz: %w", path, os.ErrExist)
	}
	tmp := filepath.Join(filepath.Dir(path), unfinished+strconv.Itoa(os.Getpid()))
	defer os.Remove(tmp)
	was, err := compress(path, tmp)
	if err != nil {
		return err
	}
	if is, err := os.Lstat(path); err != nil || !same(is, was) {
		return errors.New("it has changed meanwhile")
	}
	// Link fails if there is a file by now. Rename would overwrite it.
	if err := os.Link(tmp, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// compress returns what the file was when it was opened. Whoever could not read
// that cannot read the compressed one.
func compress(from, to string) (was os.FileInfo, err error) {
	r, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if was, err = r.Stat(); err != nil {
		return nil, err
	}
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	z := gzip.NewWriter(w)
	if _, err := io.Copy(z, r); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if err := w.Chmod(was.Mode().Perm()); err != nil {
		return nil, err
	}
	return was, w.Sync()
}
