//go:build !unix

package daemon

import (
	"context"
	"os"
)

// A system that is no Unix has nobody to notify and nothing to detach from.

const implicit = 0

var notifier struct{ lastStatus Field }

func tellLauncher() error               { return nil }
func stopOnce() error                   { return nil }
func readyFor(string, []Field) *verb    { return nil }
func send(string, *verb, []Field) error { return nil }
func writeReady(string) error           { return nil }
func detach(int) error                  { return nil }
func notify(*verb, []Field) error       { return nil }
func errnoOf(error) int                 { return -1 }

// Barrier returns nil: no supervisor listens on this system.
func Barrier(context.Context) error { return nil }

// Files returns nil: no supervisor passes descriptors on this system.
func Files() []*os.File { return nil }

// StoreFiles returns nil: no supervisor listens on this system.
func StoreFiles(string, ...*os.File) error { return nil }

// RemoveFiles returns nil: no supervisor listens on this system.
func RemoveFiles(string) error { return nil }

// Detach returns nil: there is no detaching on this system.
func Detach() error { return nil }

// Foreground does nothing: there is no detaching on this system.
func Foreground() {}

// Background does nothing: there is no detaching on this system.
func Background() {}
