// Gosystemd says by go-systemd that it is ready, if it has an argument.
package main

import (
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
)

func main() {
	if len(os.Args) == 1 {
		return
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		os.Exit(1)
	}
}
