//go:build linux

// Programs is the command of all daemons that the tests start. Which one it is
// says a variable of its environment, so that its arguments are its own.
package main

import (
	"fmt"
	"os"

	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

// programs are added by the files, each with those of one topic.
var programs = map[string]func(){}

func main() {
	name := os.Getenv(agreed.Program)
	run, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no test program %q\n", name)
		os.Exit(1)
	}
	run()
}

// awaitLine returns when the test says go on.
func awaitLine() {
	var newline [1]byte
	os.Stdin.Read(newline[:])
}

// try ends a program that failed.
func try(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
