//go:build linux

package testdaemon

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
)

// Wrap has another program run the command, which is added to its arguments.
func Wrap(cmd *exec.Cmd, argv ...string) *exec.Cmd {
	wrapped := exec.Command(argv[0], slices.Concat(argv[1:], []string{cmd.Path}, cmd.Args[1:])...)
	wrapped.Env, wrapped.Dir, wrapped.ExtraFiles = cmd.Env, cmd.Dir, cmd.ExtraFiles
	return wrapped
}

// UnderShell has a shell run a script, where "$@" is the command.
func UnderShell(cmd *exec.Cmd, script string) *exec.Cmd { return Wrap(cmd, "sh", "-c", script, "sh") }

// InNamespaces has unshare(1) run the command, with rights to do so.
func InNamespaces(t testing.TB, cmd *exec.Cmd, flags ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		flags = append([]string{"--user", "--map-root-user"}, flags...)
	}
	if out, err := exec.Command("unshare", append(flags, "true")...).CombinedOutput(); err != nil {
		SkipUnlessForbidden(t, fmt.Sprintf("unshare %v: %v: %s", flags, err, out))
	}
	return Wrap(cmd, append([]string{"unshare"}, flags...)...)
}

// Nobody is the id of a user who owns nothing.
const Nobody = 65534

// AsNobody has that user run the command, even if the file is in a directory
// that only root may enter: it is passed as the first descriptor after those
// that the command is to have. daemontest executes this test binary so, whatever
// the umask was when it was built.
func AsNobody(t testing.TB, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err == nil {
		err = os.Chmod(exe, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", 3+len(cmd.ExtraFiles))
	cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	return cmd
}
