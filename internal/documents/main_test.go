//go:build linux

// Package documents tests that what the documents show works.
package documents_test

import (
	"log"
	"os"
	"testing"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// TestMain has the tests begin in the module's directory, where the documents are.
func TestMain(m *testing.M) {
	root, err := testdaemon.Root()
	if err == nil {
		err = os.Chdir(root)
	}
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(testdaemon.Run(m))
}
