// Mdlayher says by mdlayher/sdnotify that it is ready.
package main

import (
	"os"

	"github.com/mdlayher/sdnotify"
)

func main() {
	n, err := sdnotify.New()
	if err != nil {
		os.Exit(1)
	}
	if n.Notify(sdnotify.Ready) != nil {
		os.Exit(1)
	}
}
