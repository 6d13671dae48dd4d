//go:build linux

package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// startPID1 starts BecomeSystemd in the cgroup and in new namespaces, and
// returns once it has become systemd.
func startPID1(cgroup string) (*exec.Cmd, error) {
	group, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	tty, err := openConsole()
	if err != nil {
		return nil, err
	}
	// PID 1 goes on when it has read from alive: then its keeper has lived to
	// see it, and the parent-death signal is armed. It says on trouble what
	// went wrong; nothing, when it is systemd.
	alive, aliveWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer alive.Close()
	defer aliveWriter.Close()
	trouble, troubleWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer trouble.Close()

	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), agreed.Program+"=systemd-init", RootVariable+"="+RootTree())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = alive, tty, tty
	cmd.ExtraFiles = []*os.File{troubleWriter}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		Pdeathsig:   unix.SIGKILL,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	err = cmd.Start()
	troubleWriter.Close()
	if err != nil {
		return nil, fmt.Errorf("clone into new namespaces: %w", err)
	}
	aliveWriter.Write([]byte{1})
	said, _ := io.ReadAll(trouble)
	if len(said) == 0 {
		return cmd, nil
	}
	cmd.Wait()
	return nil, errors.New(string(said))
}

// openConsole returns the terminal that is to be the machine's /dev/console,
// which systemd writes its log to, and copies what is written there to
// standard error.
func openConsole() (*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, os.NewSyscallError("unlock of /dev/ptmx", err)
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, os.NewSyscallError("number of /dev/ptmx", err)
	}
	// It stays open here, so that reading never ends.
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	go io.Copy(os.Stderr, master)
	return tty, nil
}

// BecomeSystemd is PID 1 of the new namespaces.
func BecomeSystemd() {
	runtime.LockOSThread() // the cgroup namespace is the thread's, execve takes it along
	trouble := os.NewFile(3, "trouble")
	unix.CloseOnExec(3)
	if n, _ := os.Stdin.Read(make([]byte, 1)); n != 1 {
		os.Exit(1) // the keeper is dead
	}
	fmt.Fprint(trouble, becomeSystemdIn(RootTree()))
	os.Exit(1)
}

func becomeSystemdIn(tree string) error {
	systemd, err := SystemdBinary(tree)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return os.NewSyscallError("unshare cgroup", err)
	}
	if err := enterRoot(tree); err != nil {
		return err
	}
	err = unix.Exec(systemd, []string{
		systemd, "--system", "--unit=" + Target, "--log-target=console", "--show-status=no",
	}, []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8", "TERM=dumb", "container=daemon-test",
	})
	return os.NewSyscallError("execve "+systemd, err)
}

// enterRoot makes a copy-on-write view of the tree, with what systemd and the
// tests need, this process's root.
func enterRoot(tree string) error {
	// Held open, for the mounts below hide the paths.
	lower, err := os.Open(tree)
	if err != nil {
		return err
	}
	binary, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	console, err := os.Readlink("/proc/self/fd/1") // by its path, for it was opened outside
	if err != nil {
		return err
	}
	magic := func(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

	// Built on a tmpfs that hides /tmp from this namespace alone.
	const staging, root = "/tmp", "/tmp/root"
	var b builder
	b.mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
	b.mount("tmpfs", staging, "tmpfs", 0, "mode=755")
	b.mkdir(staging+"/upper", staging+"/work", root)
	b.mount("overlay", root, "overlay", 0,
		"lowerdir="+magic(lower)+",upperdir="+staging+"/upper,workdir="+staging+"/work")

	// Without write access to /sys and to those parts of /proc/sys that are not
	// the namespaces' own, systemd can't change this machine's settings.
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	b.mount("proc", root+"/proc", "proc", safe, "")
	b.mount(root+"/proc/sys/net", root+"/proc/sys/net", "", unix.MS_BIND, "")
	b.mount(root+"/proc/sys", root+"/proc/sys", "", unix.MS_BIND|unix.MS_REC, "")
	b.mount("", root+"/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|safe, "")
	b.mount("sysfs", root+"/sys", "sysfs", unix.MS_RDONLY|safe, "")
	b.mount("cgroup2", root+"/sys/fs/cgroup", "cgroup2", safe, "")

	b.mount("tmpfs", root+"/dev", "tmpfs", unix.MS_NOSUID, "mode=755")
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		b.bindFile("/dev/"+device, root+"/dev/"+device)
	}
	b.bindFile(console, root+"/dev/console")
	b.mkdir(root + "/dev/pts")
	b.mount("devpts", root+"/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
	b.symlink("pts/ptmx", root+"/dev/ptmx")

	// No unit, generator or setting of the tree's owner.
	for dir, mode := range map[string]string{
		"/run": "755", "/tmp": "1777", "/etc/systemd": "755", "/usr/lib/systemd/system-generators": "755",
	} {
		b.mkdir(root + dir)
		b.mount("tmpfs", root+dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode="+mode)
	}
	for _, units := range []string{"system", "user"} {
		dir := root + "/etc/systemd/" + units
		b.mkdir(dir)
		b.write(filepath.Join(dir, Target), "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n")
	}
	b.mkdir(root + InsideDir)
	b.do(func() error { return os.Chmod(root+InsideDir, 0o777) })
	// Without one, systemd takes this for the first boot of a new machine.
	b.write(root+"/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	b.mkdir(root + filepath.Dir(InsideBinary))
	b.bindFile(magic(binary), root+InsideBinary)
	if b.err != nil {
		return b.err
	}

	// pivot_root(2): pivot_root(".", "."). A chroot makes systemctl refuse.
	if err := unix.Chdir(root); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount of the old root", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// A builder makes a tree until one step fails, and keeps that error.
type builder struct{ err error }

func (b *builder) do(step func() error) {
	if b.err == nil {
		b.err = step()
	}
}

func (b *builder) mount(source, target, fstype string, flags uintptr, data string) {
	b.do(func() error {
		if err := unix.Mount(source, target, fstype, flags, data); err != nil {
			return fmt.Errorf("mount %s %s on %s: %w", fstype, source, target, err)
		}
		return nil
	})
}

func (b *builder) mkdir(dirs ...string) {
	for _, dir := range dirs {
		b.do(func() error { return os.MkdirAll(dir, 0o755) })
	}
}

func (b *builder) symlink(target, path string) {
	b.do(func() error { return os.Symlink(target, path) })
}

func (b *builder) write(path, text string) {
	b.do(func() error { return os.WriteFile(path, []byte(text), 0o644) })
}

func (b *builder) bindFile(source, target string) {
	b.write(target, "")
	b.mount(source, target, "", unix.MS_BIND, "")
}
