//go:build linux

// Package notifying tests what becomes of notifications if the receiver or the
// process itself is not well.
package notifying_test

import (
	"os"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }
