//go:build linux

// Bench measures this package beside its peers: how long the first notification
// of a process takes, what importing the package adds to a start, what a
// notification costs over the bare system call, what the package adds to a
// binary, and how long a detach takes. It prints Markdown tables, and then which
// of the project's figures it met on this machine. See README.md for how to read
// them.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

type measurement struct {
	name, title string
	print       func(directory string)
}

var measurements = []measurement{
	{"first", "First notification", firsts},
	{"start", "Start", starts},
	{"notify", "Notifications", notifications},
	{"size", "Size", sizes},
	{"detach", "Detaching", detaches},
}

func main() {
	only := flag.String("only", "", "print just this `table`: first, start, notify, size or detach")
	flag.Parse()
	if *only != "" && !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == *only }) {
		flag.Usage()
		os.Exit(2)
	}
	// No supervisor is told anything, only this program's own receivers.
	for _, key := range []string{"UPSTART_JOB", "NOTIFY_SOCKET", "NOTIFY_FD", "SYSTEMD_EXEC_PID"} {
		os.Unsetenv(key)
	}
	directory, err := os.MkdirTemp("", "bench")
	check(err)
	defer os.RemoveAll(directory)
	build(directory)

	fmt.Printf("%s.\n\n", machine())
	for _, m := range measurements {
		if *only == "" || *only == m.name {
			fmt.Printf("**%s**\n\n", m.title)
			m.print(directory)
		}
	}
	printVerdicts()
}

// build compiles the programs as they would be shipped: static and stripped.
func build(directory string) {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", directory, "./programs/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	check(cmd.Run())
}

func machine() string {
	var name unix.Utsname
	check(unix.Uname(&name))
	cpus, err := os.ReadFile("/proc/cpuinfo")
	check(err)
	_, model, _ := strings.Cut(string(cpus), "model name\t: ") // absent on some architectures
	model, _, _ = strings.Cut(model, "\n")
	return fmt.Sprintf("%s, %d CPUs used; Linux %s; %s %s/%s", model, runtime.NumCPU(),
		unix.ByteSliceToString(name.Release[:]), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// table prints rows, the first of which is the header, in Markdown that is
// aligned for a terminal.
func table(rows [][]string) {
	rule := slices.Repeat([]string{"---:"}, len(rows[0]))
	rule[0] = "---"
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	for _, row := range slices.Insert(rows, 1, rule) {
		fmt.Fprintf(w, "| %s\t|\n", strings.Join(row, "\t| "))
	}
	check(w.Flush())
	fmt.Println()
}

var verdicts []string

// want notes whether a figure has been reached; the exit status stays 0, since
// a busy machine proves nothing.
func want(met bool, format string, args ...any) {
	word := "met"
	if !met {
		word = "MISSED"
	}
	verdicts = append(verdicts, "- "+word+": "+fmt.Sprintf(format, args...))
}

func printVerdicts() {
	for _, verdict := range verdicts {
		fmt.Println(verdict)
	}
}

func median[T float64 | int64](samples []T) T { return quantile(samples, 0.5) }

// quantile returns the sample that the fraction q of the samples is below.
func quantile[T float64 | int64](samples []T, q float64) T {
	return slices.Sorted(slices.Values(samples))[int(q*float64(len(samples)))]
}

// check panics, so that what main has deferred is done.
func check(err error) {
	if err != nil {
		panic(err)
	}
}
