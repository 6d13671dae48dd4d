//go:build linux

// Tour shows what a daemon says, and to whom. It starts one four times, as
// systemd would, as s6 and its like would (NOTIFY_FD), as upstart would and as
// a shell would, and prints what happens:
//
//	tour [-as systemd|descriptor|upstart|shell] [-timeout 30s] [-- command arguments…]
//
// The daemon is a small one of its own, or the command: any daemon, in any
// language. If it breaks a promise tour says which, and exits with status 1.
// It needs nothing installed and no rights, and leaves no process behind,
// however it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/seed-10280e03/daemon/daemontest"
)

var (
	as      = flag.String("as", "", "start the daemon only as systemd, descriptor (NOTIFY_FD), upstart or shell would")
	timeout = flag.Duration("timeout", daemontest.Timeout,
		"how long the daemon may take to get ready (under NOTIFY_FD and upstart 30s at most), and to end")
)

// A way is one to start a daemon.
type way struct {
	name, title string
	show        func(*section)
}

var ways = []way{
	{"systemd", "As systemd starts it (Type=notify)", (*section).systemd},
	{"descriptor", "As s6, dinit, finit or OpenRC starts it (NOTIFY_FD)", (*section).descriptor},
	{"upstart", "As upstart starts it (expect stop)", (*section).upstart},
	{"shell", "As a shell starts it (no supervisor)", (*section).shell},
}

func main() {
	if os.Args[0] == demoName {
		demo()
		return
	}
	flag.Usage = usage
	flag.Parse()
	if *as != "" && !slices.ContainsFunc(ways, func(w way) bool { return w.name == *as }) {
		fmt.Fprintf(os.Stderr, "tour: -as %s: it is one of systemd, descriptor, upstart and shell\n", *as)
		os.Exit(2)
	}
	if command := flag.Args(); len(command) > 0 {
		if err := find(command[0]); err != nil {
			fmt.Fprintf(os.Stderr, "tour: %s: %v\n", command[0], err)
			os.Exit(2)
		}
	}
	// Whatever ends it, a closed terminal or a closed pipe too: clean up first.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	os.Exit(tour(ctx, flag.Args()))
}

// find returns why a command is not to be found.
func find(command string) error {
	_, err := exec.LookPath(command)
	var inPath *exec.Error
	if errors.As(err, &inPath) {
		err = inPath.Err
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return err
}

func usage() {
	fmt.Fprint(flag.CommandLine.Output(), "Usage: tour [flags] [-- command arguments…]\n"+
		"Without a command the daemon is a small one of tour's own.\n")
	flag.PrintDefaults()
}

// tour starts the command, or the demo, in each way, and returns the exit
// status.
func tour(ctx context.Context, command []string) int {
	path, name := "", strings.Join(command, " ")
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			fmt.Fprintln(os.Stderr, "tour:", err)
			return 1
		}
		path, name, command = self, "a small one of this program's own", []string{demoName}
	}
	fmt.Printf("The daemon: %s\n", name)
	taken, broken := 0, 0
	for _, way := range ways {
		if *as != "" && *as != way.name || ctx.Err() != nil {
			continue
		}
		fmt.Printf("\n%s\n", way.title)
		s := section{ctx: ctx, path: path, args: command}
		taken++
		if !s.run(way.show) {
			broken++
		}
	}
	switch {
	case ctx.Err() != nil:
		return 130 // as after Ctrl-C
	case broken > 0:
		fmt.Printf("\nBroken in %d of %d sections.\n", broken, taken)
		return 1
	}
	fmt.Println("\nEvery promise kept.")
	return 0
}
