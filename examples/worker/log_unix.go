//go:build unix

package main

import (
	"errors"
	"log"
	"os"

	"golang.org/x/sys/unix"
)

// logOnly puts the file in the place of standard output and standard error: a
// panic is written to it, too. If that is done before Ready, Ready leaves it
// there. A nil file changes nothing.
func logOnly(file *os.File) error {
	if file == nil {
		return nil
	}
	defer file.Close()
	log.SetOutput(os.Stderr)
	fd := int(file.Fd())
	return errors.Join(unix.Dup2(fd, 1), unix.Dup2(fd, 2))
}
