//go:build linux

package daemontest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

func TestProcessWithAnyName(t *testing.T) {
	link := filepath.Join(t.TempDir(), "x) Z 1 (y")
	if err := os.Symlink("/bin/sleep", link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	self, err := readProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p, err := readProcess(cmd.Process.Pid)
	if err != nil || p.pid != cmd.Process.Pid || p.parent != os.Getpid() || p.session != self.session ||
		p.start < self.start || len(p.state) != 1 || p.state == "Z" {
		t.Errorf("%+v, %v; its parent: %+v", p, err, self)
	}
	if pids := descendants(os.Getpid()); !slices.Contains(pids, p.pid) {
		t.Errorf("descendants %v", pids)
	}
}

func TestEndedProcessDoesNotCount(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	eventually(t, "it has ended", func() bool {
		p, err := readProcess(cmd.Process.Pid)
		return err == nil && p.state == "Z"
	})
	if all := children(os.Getpid()); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}
