//go:build !unix && !js

package main

import (
	"log"
	"os"
	"runtime/debug"
)

// logOnly has the log and a panic written to the file. A nil file changes
// nothing.
func logOnly(file *os.File) error {
	if file == nil {
		return nil
	}
	log.SetOutput(file)
	return debug.SetCrashOutput(file, debug.CrashOptions{})
}
