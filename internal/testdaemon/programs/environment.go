//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// init adds programs that read what a supervisor has left them.
func init() {
	programs["env-orders"] = obeyOrders
	programs["env-inherit"] = tellInherited
	programs["env-race"] = notifyWhileUnsetting
	programs["files-passed"] = tellFiles
	questions["files"] = files
}

// obeyOrders changes its environment by KEY=value, -KEY and "unset"
// (UnsetEnvironment), and tells after all others how it sees it.
func obeyOrders() {
	for _, order := range os.Args[1:] {
		key, value, assignment := strings.Cut(order, "=")
		removed, removal := strings.CutPrefix(order, "-")
		switch {
		case assignment:
			try(os.Setenv(key, value))
		case removal:
			try(os.Unsetenv(removed))
		case order == "unset":
			daemon.UnsetEnvironment()
		default:
			timeout, err := daemon.WatchdogTimeout()
			try(err)
			try(daemon.Notify(daemon.Status(order)))
			fmt.Println(order, daemon.Detect(), timeout)
		}
	}
}

// tellInherited tells what itself and a child have of the environment.
func tellInherited() {
	for _, variable := range agreed.SupervisorVariables {
		try(os.Setenv(variable, "1"))
	}
	daemon.UnsetEnvironment()
	inherited, err := exec.Command("env").Output()
	try(err)
	for _, variable := range agreed.SupervisorVariables {
		_, here := os.LookupEnv(variable)
		fmt.Println(variable, here, strings.Contains(string(inherited), variable))
	}
	fmt.Println(strings.Contains(string(inherited), "PATH="))
}

// notifyWhileUnsetting has NOTIFY_SOCKET remembered as empty each time before.
func notifyWhileUnsetting() {
	address := os.Getenv("NOTIFY_SOCKET")
	for range agreed.UnsetRounds {
		os.Setenv("NOTIFY_SOCKET", "")
		daemon.UnsetEnvironment()
		os.Setenv("NOTIFY_SOCKET", address)
		var both sync.WaitGroup
		both.Go(func() { try(daemon.Heartbeat()) })
		both.Go(daemon.UnsetEnvironment)
		both.Wait()
	}
}

// tellFiles tells what Files returns. Its arguments are what happens before:
// "unset" (UnsetEnvironment), "nonblock", the mode of the first, "mark" (close-on-exec)
// of the second, or "open", files of its own after them.
func tellFiles() {
	if slices.Contains(os.Args, "open") {
		for number := 5; number < 8; number++ {
			null, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // not close-on-exec
			try(err)
			try(moveTo(null, number))
		}
	}
	if slices.Contains(os.Args, "nonblock") {
		try(unix.SetNonblock(3, true))
	}
	if slices.Contains(os.Args, "mark") {
		unix.CloseOnExec(4)
	}
	if slices.Contains(os.Args, "unset") {
		daemon.UnsetEnvironment()
	}
	files := daemon.Files()
	for _, file := range files {
		flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0)
		try(err)
		content, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
		try(err)
		fmt.Printf("%d %q holds %q, close-on-exec %d\n", file.Fd(), file.Name(), content, flags)
	}
	daemon.UnsetEnvironment()
	again := daemon.Files()
	fmt.Println(files != nil, slices.Equal(files, again))
	for _, file := range files {
		try(file.Close())
	}
	if len(files) > 0 {
		again[0] = nil // in the caller's own list
		fmt.Println(daemon.Files()[0] == files[0] && files[0] != nil)
	}
}

// files tells the names and contents of what systemd has passed, sorted.
func files() string {
	var list []string
	for _, file := range daemon.Files() {
		content, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
		if err != nil {
			content = []byte("not a regular file")
		}
		list = append(list, file.Name()+"="+string(content))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
