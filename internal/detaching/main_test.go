//go:build linux

// Package detaching tests what a detach makes of a program, and what becomes of
// one that does not succeed.
package detaching_test

import (
	"os"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

func TestMain(m *testing.M) {
	if os.Getenv(tellVariable) != "" {
		tellOfTestBinary()
	}
	os.Exit(testdaemon.Run(m))
}
