//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func detaches(directory string) {
	// Daemons that have detached become children of this process, which reaps
	// them.
	check(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	program := filepath.Join(directory, "detach")
	rows := [][]string{{"heap touched", "bare start, ms", "Ready, ms", "ratio", "Detach first, ms", "ratio"}}
	for _, heap := range []struct {
		name, size string
		rounds     int
		limit      float64 // what Ready may take, in bare starts
	}{
		{"1 MB", "1", 300, 2.7},
		{"1 GB", "1024", 9, 3},
	} {
		ways := []string{"exit", "Ready", "Detach"} // see programs/detach
		samples := make([][]float64, len(ways))
		for range heap.rounds {
			for _, i := range rand.Perm(len(ways)) {
				samples[i] = append(samples[i], timeStart(program, ways[i], heap.size))
			}
		}
		bare, ready, detach := median(samples[0]), median(samples[1]), median(samples[2])
		rows = append(rows, []string{heap.name, fmt.Sprintf("%.2f", bare), fmt.Sprintf("%.2f", ready),
			fmt.Sprintf("%.2f", ready/bare), fmt.Sprintf("%.2f", detach), fmt.Sprintf("%.2f", detach/bare)})
		want(ready <= heap.limit*bare, "a detach with %s touched takes at most %.1f bare starts: %.2f", heap.name, heap.limit, ready/bare)
	}
	table(rows)
}

// timeStart returns the milliseconds from a program's start to the exit of the
// process that was started: what a shell waits for. The daemon that it may
// leave ends with this program's end of the pipe, and has ended on return.
func timeStart(program string, args ...string) (milliseconds float64) {
	r, w, err := os.Pipe()
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{r}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // in PID 1's it would stay in the foreground
	start := time.Now()
	check(cmd.Run())
	elapsed := time.Since(start)

	r.Close()
	w.Close()
	for err = nil; err != unix.ECHILD; {
		_, err = unix.Wait4(-1, nil, 0, nil)
	}
	return float64(elapsed.Microseconds()) / 1000
}
