//go:build linux

package testdaemon

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"
)

// HaveCompiler tells whether the race detector and cgo can be used.
func HaveCompiler() bool {
	_, err := exec.LookPath("gcc")
	return err == nil
}

// GoCommand returns one that asks nobody but this machine.
func GoCommand(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		SkipUnlessForbidden(t, "no go command: "+err.Error())
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, CleanEnvironment()
	return cmd
}

// CleanEnvironment is a user's, with no supervisor in it, no network for the
// go command, and this machine's own architecture.
func CleanEnvironment() []string {
	foreign := regexp.MustCompile(`^(NOTIFY_SOCKET|NOTIFY_FD|UPSTART_JOB|WATCHDOG_\w+|LISTEN_\w+|DAEMON_TEST_\w+|GOARCH|CGO_ENABLED)=`)
	environment := slices.DeleteFunc(os.Environ(), foreign.MatchString)
	return append(environment, "GOPROXY=off", "GOWORK=off")
}
