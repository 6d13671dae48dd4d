//go:build !js

package main

import (
	"io"
	"log"
	"os"
)

// openLog opens the -log. The log goes to standard error, too, until logOnly is
// called: a caller at a terminal wants to see why a start fails. Without -log
// it returns nil.
func openLog() (*os.File, error) {
	if *logFile == "" {
		return nil, nil
	}
	file, err := os.OpenFile(*logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	log.SetOutput(io.MultiWriter(file, os.Stderr))
	return file, nil
}

// reopenLog is for logrotate, which has moved the file.
func reopenLog() error {
	file, err := openLog()
	if err != nil {
		return err
	}
	return logOnly(file)
}
