// Daemon says that it is ready.
package main

import (
	"os"

	"github.com/seed-10280e03/daemon"
)

func main() {
	if daemon.Ready() != nil {
		os.Exit(1)
	}
}
