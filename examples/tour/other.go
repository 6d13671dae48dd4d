//go:build !linux

// Tour shows what a daemon says, and to whom. It needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "tour: systemd and upstart, which this program stands in for, are Linux's: run it there")
	os.Exit(1)
}
