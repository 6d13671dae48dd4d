// Gosystemd says by go-systemd that it is ready.
package main

import (
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
)

func main() {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		os.Exit(1)
	}
}
