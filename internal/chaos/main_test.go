//go:build linux

// Package chaos kills the processes of detaches at random instants.
package chaos_test

import (
	"os"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

func TestMain(m *testing.M) { os.Exit(testdaemon.Run(m)) }
