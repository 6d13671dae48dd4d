//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// firsts measures the first notification of fresh processes, each of which
// times its own: see programs/first.
func firsts(directory string) {
	const rounds = 200
	receiver := listen(filepath.Join(directory, "first.socket"))
	ways := []struct{ name, argument string }{
		{"socket, connect, send of x/sys/unix", "bare"},
		{"**daemon.Ready()**", "daemon"},
		{"mdlayher/sdnotify", "mdlayher"},
		{"go-systemd", "gosystemd"},
	}
	situations := []struct {
		name      string
		arguments []string
	}{
		{"a process that has done nothing yet", nil},
		{"a process that has a TCP listener", []string{"listen"}},
	}
	rows := [][]string{{"what sends it first", "µs", "middle half", "ratio"}}
	for _, s := range situations {
		samples := make([][]float64, len(ways))
		for range rounds {
			for _, i := range rand.Perm(len(ways)) {
				args := append([]string{ways[i].argument}, s.arguments...)
				samples[i] = append(samples[i], receiver.timeFirst(filepath.Join(directory, "first"), args))
			}
		}
		rows = append(rows, []string{"*" + s.name + "*", "", "", ""})
		for i, w := range ways {
			rows = append(rows, []string{w.name, fmt.Sprintf("%.0f", median(samples[i])),
				fmt.Sprintf("%.0f to %.0f", quantile(samples[i], 0.25), quantile(samples[i], 0.75)),
				fmt.Sprintf("%.2f", median(samples[i])/median(samples[0]))})
		}
		own, peer := median(samples[1]), min(median(samples[2]), median(samples[3]))
		want(own <= peer, "the first notification of %s is no slower than the fastest peer's: %.0f µs, and %.0f there", s.name, own, peer)
	}
	table(rows)
}

// timeFirst returns the microseconds that a process's first notification took,
// and panics unless it is the one that all ways send.
func (r *receiver) timeFirst(program string, args []string) (microseconds float64) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+r.address)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	check(err)
	r.expect(args[0], fmt.Sprintf("READY=1\nSTATUS=ready\nMAINPID=%d\n", cmd.Process.Pid))
	nanoseconds, err := strconv.Atoi(strings.TrimSpace(string(output)))
	check(err)
	return float64(nanoseconds) / 1000
}
