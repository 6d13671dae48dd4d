// Mdlayher says by mdlayher/sdnotify that it is ready, if it has an argument.
package main

import (
	"os"

	"github.com/mdlayher/sdnotify"
)

func main() {
	if len(os.Args) == 1 {
		return
	}
	n, err := sdnotify.New()
	if err != nil {
		os.Exit(1)
	}
	if n.Notify(sdnotify.Ready) != nil {
		os.Exit(1)
	}
}
