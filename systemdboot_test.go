//go:build linux

package daemon_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of systemd_test.go talk to a systemd of their own, which runs as
// PID 1 of fresh namespaces, on a copy-on-write view of this machine's root
// tree or of the one that DAEMON_TEST_ROOT names (.ci/mkroot makes such trees).
// One boot serves all tests of a run. Three processes, each this test binary:
//
//	the tests     ask for the boot, hold the keeper's standard input
//	the keeper    makes the cgroup, starts PID 1, and ends and removes both when
//	              its standard input ends: however the tests end
//	PID 1         builds its root tree and becomes systemd; dies with the keeper
//
// All mounts and all other processes live in the namespaces and end with
// PID 1. A keeper that is killed leaves the cgroup, with nothing in it that runs,
// and the next one removes it.
const (
	testRoot   = "DAEMON_TEST_ROOT"    // the root tree to boot; default: /
	testNoSkip = "DAEMON_TEST_NO_SKIP" // not empty: where systemd can't be booted, fail

	bootTarget = "daemon-test.target"
	// Inside, this binary and a directory that every service can see.
	insideBinary = "/usr/local/bin/daemon.test"
	insideDir    = "/run/daemon-test"
)

// patience is how long anything may take that should happen at all. Other
// work may have the processors meanwhile.
const patience = 60 * time.Second

func init() {
	programs["systemd-keeper"] = keepSystemd
	programs["systemd-init"] = becomeSystemd
	programs["systemd-tests"] = bootAndWait
	stopSystemd = func() { theMachine.stop() }
}

// A machine is a systemd that was booted for the tests.
type machine struct {
	once    sync.Once
	skip    error // why this machine can't boot one
	err     error // why the boot failed
	keeper  *exec.Cmd
	hold    io.Closer // the keeper's standard input
	pid     int       // systemd's, as seen from here
	version int       // of systemd
	console console
	made    atomic.Int64 // units, for their names
}

var theMachine machine

// bootSystemd returns the machine with the booted systemd. Where there can be
// none it skips the test, or fails it if DAEMON_TEST_NO_SKIP is set.
func bootSystemd(t *testing.T) *machine {
	t.Helper()
	m := &theMachine
	m.once.Do(func() {
		start := time.Now()
		if m.skip = cannotBoot(); m.skip != nil {
			return
		}
		if m.skip, m.err = m.boot(); m.skip == nil && m.err == nil {
			t.Logf("systemd %d booted in %v", m.version, time.Since(start).Round(time.Millisecond))
		}
	})
	if m.skip != nil {
		skipUnlessForbidden(t, m.skip.Error())
	}
	if m.err != nil {
		t.Fatalf("booting systemd: %v\nits console:\n%s", m.err, m.console.String())
	}
	return m
}

func skipUnlessForbidden(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv(testNoSkip) != "" {
		t.Fatalf("%s (%s forbids to skip the test)", reason, testNoSkip)
	}
	t.Skip(reason)
}

// cannotBoot tells what this machine lacks.
func cannotBoot() error {
	if os.Geteuid() != 0 {
		return errors.New("booting systemd needs root")
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		return fmt.Errorf("no nsenter (util-linux): %w", err)
	}
	if _, err := systemdBinary(rootTree()); err != nil {
		return err
	}
	_, err := cgroup2()
	return err
}

func rootTree() string {
	if root := os.Getenv(testRoot); root != "" {
		return root
	}
	return "/"
}

// systemdBinary returns systemd's path inside the root tree.
func systemdBinary(root string) (string, error) {
	for _, path := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if info, err := os.Stat(filepath.Join(root, path)); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no systemd in %s", root)
}

// cgroup2 returns where the unified hierarchy is mounted: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified on a hybrid machine.
func cgroup2() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("no cgroup2 mounted")
}

// boot starts the keeper and waits until systemd has reached its target.
func (m *machine) boot() (skip, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m.keeper = exec.Command(exe)
	m.keeper.Env = append(bareEnvironment(), testProgram+"=systemd-keeper", testRoot+"="+rootTree())
	m.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for the keeper
	m.keeper.Stderr = &m.console
	if m.hold, err = m.keeper.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.keeper.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.keeper.Start(); err != nil {
		return nil, err
	}

	stdout.(*os.File).SetReadDeadline(time.Now().Add(patience))
	word, readErr := bufio.NewReader(stdout).ReadString('\n')
	if readErr != nil {
		m.keeper.Process.Kill() // it may not see its standard input end
		return nil, fmt.Errorf("the keeper said %q: %w", word, readErr)
	}
	word = strings.TrimSuffix(word, "\n")
	if reason, ok := strings.CutPrefix(word, "can't "); ok {
		return errors.New("can't " + reason), nil
	}
	if m.pid, err = strconv.Atoi(word); err != nil {
		return nil, fmt.Errorf("the keeper said %q", word)
	}

	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := m.command("systemctl", "is-active", bootTarget).CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s is not active after %v: %v: %s", bootTarget, patience, err, out)
		}
		if err := unix.Kill(m.pid, 0); err != nil {
			return nil, errors.New("systemd ended")
		}
	}
	out, err := m.command("systemctl", "--version").Output()
	if err != nil {
		return nil, err
	}
	_, err = fmt.Sscanf(string(out), "systemd %d", &m.version)
	return nil, err
}

// stop ends systemd, if it was booted, and returns when nothing of it is left.
func (m *machine) stop() {
	if m.keeper == nil || m.keeper.Process == nil {
		return
	}
	m.hold.Close()
	guard := time.AfterFunc(patience, func() { m.keeper.Process.Kill() })
	defer guard.Stop()
	if err := m.keeper.Wait(); err != nil {
		fmt.Fprintf(os.Stderr, "the keeper of the booted systemd: %v\n%s", err, m.console.String())
	}
}

// command returns one that runs as root inside the machine.
func (m *machine) command(name string, args ...string) *exec.Cmd {
	args = append([]string{"-t", strconv.Itoa(m.pid), "-m", "-u", "-i", "-n", "-p", "--", name}, args...)
	cmd := exec.Command("nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return cmd
}

// outside returns the path by which this process reaches a file inside.
func (m *machine) outside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.pid, path)
}

// console keeps the end of what was written to it.
type console struct {
	mu   sync.Mutex
	text []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if most := 16 << 10; len(c.text) > 2*most {
		c.text = append(c.text[:0], c.text[len(c.text)-most:]...)
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(string(c.text), "\r\n", "\n")
}

// keepSystemd is the keeper. It prints systemd's pid, or what it can't do.
func keepSystemd() {
	runtime.LockOSThread() // PID 1 dies with the thread that started it
	ended := make(chan os.Signal, 8)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // a test that is gone no longer reads
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended <- unix.SIGHUP
	}()

	mount, err := cgroup2()
	if err != nil {
		keeperCant("boot systemd", err)
	}
	removeStaleCgroups(mount)
	cgroup := filepath.Join(mount, cgroupName(os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		keeperCant("make a cgroup", err)
	}
	pid1, err := startPID1(cgroup)
	if err != nil {
		removeCgroup(cgroup)
		keeperCant("boot systemd", err)
	}

	gone := make(chan struct{})
	go func() {
		pid1.Wait() // for every process of its namespace, too
		close(gone)
	}()
	fmt.Println(pid1.Process.Pid)
	select {
	case <-ended:
	case <-gone:
	}
	pid1.Process.Kill()
	<-gone
	if err := removeCgroup(cgroup); err != nil {
		fmt.Fprintln(os.Stderr, "systemd-keeper:", err)
		os.Exit(1)
	}
}

func keeperCant(what string, err error) {
	fmt.Printf("can't %s: %v\n", what, err)
	os.Exit(0)
}

// cgroupName names a keeper's cgroup after its pid and the time it started,
// so that a later process with that pid is not taken for it.
func cgroupName(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if fields[0] == "Z" { // dead, and whoever adopted it has not waited for it
		return ""
	}
	return fmt.Sprintf("daemon-test.%d.%s", pid, fields[19]) // starttime, proc(5)
}

// removeStaleCgroups removes what keepers left that were killed.
func removeStaleCgroups(mount string) {
	dirs, _ := filepath.Glob(filepath.Join(mount, "daemon-test.*.*"))
	for _, dir := range dirs {
		var pid int
		fmt.Sscanf(filepath.Base(dir), "daemon-test.%d.", &pid)
		events, _ := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if cgroupName(pid) != filepath.Base(dir) && bytes.Contains(events, []byte("populated 0")) {
			removeCgroup(dir)
		}
	}
}

// removeCgroup removes a cgroup and those below it. The kernel takes a moment
// to count the processes out.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := removeDirectories(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
}

func removeDirectories(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.IsDir() {
			removeDirectories(filepath.Join(dir, entry.Name()))
		}
	}
	return unix.Rmdir(dir)
}

// startPID1 starts becomeSystemd in the cgroup and in new namespaces, and
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
	cmd.Env = append(bareEnvironment(), testProgram+"=systemd-init", testRoot+"="+rootTree())
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
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
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

// becomeSystemd is PID 1 of the new namespaces.
func becomeSystemd() {
	runtime.LockOSThread() // the cgroup namespace is the thread's, execve takes it along
	trouble := os.NewFile(3, "trouble")
	unix.CloseOnExec(3)
	if n, _ := os.Stdin.Read(make([]byte, 1)); n != 1 {
		os.Exit(1) // the keeper is dead
	}
	fmt.Fprint(trouble, becomeSystemdIn(rootTree()))
	os.Exit(1)
}

func becomeSystemdIn(tree string) error {
	systemd, err := systemdBinary(tree)
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
		systemd, "--system", "--unit=" + bootTarget, "--log-target=console", "--show-status=no",
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
		b.write(filepath.Join(dir, bootTarget), "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n")
	}
	b.mkdir(root + insideDir)
	b.do(func() error { return os.Chmod(root+insideDir, 0o777) })
	// Without one, systemd takes this for the first boot of a new machine.
	b.write(root+"/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	b.mkdir(root + filepath.Dir(insideBinary))
	b.bindFile(magic(binary), root+insideBinary)
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

// bootAndWait is what the tests are to the keeper, with one service.
func bootAndWait() {
	if skip, err := theMachine.boot(); skip != nil || err != nil {
		fmt.Println(skip, err)
		os.Exit(1)
	}
	if out, err := theMachine.command("systemd-run", "sleep", "1000").CombinedOutput(); err != nil {
		fmt.Println(err, string(out))
		os.Exit(1)
	}
	fmt.Println(theMachine.keeper.Process.Pid, theMachine.pid)
	os.Stdin.Read(make([]byte, 1))
	panic("as a test may")
}

func TestSystemdLeavesNothingBehindHoweverTheTestsEnd(t *testing.T) {
	bootSystemd(t) // where that can be done
	mount, err := cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		end    string
		signal syscall.Signal
	}{
		{"panic", 0},
		{"interrupt", unix.SIGINT},
		{"termination", unix.SIGTERM},
		{"quit", unix.SIGQUIT},
		{"kill", unix.SIGKILL},
		{"kill of the keeper", unix.SIGKILL},
	} {
		t.Run(test.end, func(t *testing.T) {
			tests := program(t, "systemd-tests")
			tests.Env = append(tests.Env, testRoot+"="+rootTree())
			stdin, err := tests.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := tests.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := tests.Start(); err != nil {
				t.Fatal(err)
			}
			defer tests.Wait()
			defer tests.Process.Kill()
			stdout.(*os.File).SetReadDeadline(time.Now().Add(2 * patience))
			var keeper, systemd int
			if _, err := fmt.Fscan(stdout, &keeper, &systemd); err != nil {
				t.Fatalf("it has booted no systemd: %v", err)
			}
			namespace, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", systemd))
			cgroup := filepath.Join(mount, cgroupName(keeper))
			if found := left(namespace, cgroup); len(found) < 3 || cgroup == mount {
				t.Fatalf("with systemd and a service there are only %q", found)
			}

			switch test.end {
			case "panic":
				stdin.Close()
			case "kill of the keeper":
				unix.Kill(keeper, test.signal)
				tests.Process.Kill()
			default:
				tests.Process.Signal(test.signal)
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				found := left(namespace, cgroup)
				if test.end == "kill of the keeper" && slices.Equal(found, []string{cgroup}) {
					removeStaleCgroups(mount) // as the next boot does
					found = left(namespace, cgroup)
				}
				if len(found) == 0 && cgroupName(keeper) != filepath.Base(cgroup) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left are %q, and the keeper is %q", found, cgroupName(keeper))
				}
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || bytes.Contains(mounts, []byte(" /tmp/root")) {
				t.Errorf("mounted are, %v:\n%s", err, mounts)
			}
		})
	}
}

// left is what runs in the PID namespace, and the cgroup if it is there.
func left(namespace, cgroup string) (found []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == namespace {
			found = append(found, link)
		}
	}
	if _, err := os.Stat(cgroup); err == nil {
		found = append(found, cgroup)
	}
	return found
}
