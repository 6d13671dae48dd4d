// Daemon says that it is ready, if it has an argument.
package main

import (
	"os"

	"github.com/seed-10280e03/daemon"
)

func main() {
	if len(os.Args) > 1 && daemon.Ready() != nil {
		os.Exit(1)
	}
}
