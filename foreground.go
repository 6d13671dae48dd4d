//go:build unix

package daemon

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Foreground keeps [Ready] and [Detach] from detaching. Call it before them for the -f
// flag that every daemon should have. A supervisor that the environment names is
// notified all the same. Of Foreground and [Background] the last call counts.
func Foreground() { asked.Store(foreground) }

// Background makes [Ready] and [Detach] detach even if something seems to hold
// on to this process, such as PID 1 or systemd. Call it before them for a
// -daemon flag, which a systemd unit with Type=forking needs, or one of
// Type=oneshot with RemainAfterExit=yes. It changes nothing if UPSTART_JOB,
// NOTIFY_SOCKET or NOTIFY_FD is set.
func Background() { asked.Store(background) }

// asked is what the last of Foreground and Background has asked for.
var asked atomic.Int32

const (
	nothing = iota
	foreground
	background
)

// staysInForeground reports whether something holds on to this very process, so
// that leaving would look like its death.
func staysInForeground() bool {
	if asked.Load() == nothing && mustStay() {
		// As if asked: if the supervisor dies, the Ready that ends a reload must not detach.
		asked.CompareAndSwap(nothing, foreground)
	}
	return asked.Load() == foreground
}

func mustStay() bool {
	if pid() == 1 || inSessionOfPID1() || namesPID(executedPID()) {
		return true
	}
	bySupervisor := startedBySupervisor()
	switch unix.Getppid() { // not before startedBySupervisor, which may wait for another parent
	case 0: // the parent is outside the PID namespace
		return true
	case 1: // which inherits orphans, whatever its name
		return !isOrphan()
	}
	return bySupervisor || startedBySystemd() && !isOrphan()
}

// inSessionOfPID1 reports whether this is a container whose entry point is a
// script, or an init that gives its children no session of their own. systemd
// gives none to mount(8), whose helpers must go into the background.
func inSessionOfPID1() bool {
	own, err := unix.Getsid(0)
	first, err1 := unix.Getsid(1)
	if err != nil || err1 != nil {
		return false
	}
	if self, _ := os.Readlink("/proc/self"); self != strconv.Itoa(pid()) {
		return own == first // /proc is another PID namespace's
	}
	return nameOfProcess("1") != "systemd" && comesFrom(first, own)
}

// comesFrom reports whether a session is the first, or what dumb-init, su or sudo has
// put in its place.
func comesFrom(first, session int) bool {
	if session == first {
		return true
	}
	parent := parentOf(strconv.Itoa(session))
	switch nameOfProcess(parent) {
	case "dumb-init": // it gives its one child a session; orphans come behind it
		return parent == "1" && strings.HasPrefix(readProcess("1", "task/1/children"), strconv.Itoa(session)+" ")
	case "su", "runuser", "sudo": // su -c does, and sudo on a terminal
		number, _ := strconv.Atoi(parent)
		its, err := unix.Getsid(number)
		return err == nil && comesFrom(first, its)
	}
	return false
}

// executedPID returns the process that systemd has executed (SYSTEMD_EXEC_PID of
// systemd.exec(5)), even if main has removed the variable.
func executedPID() string {
	if value, ok := syscall.Getenv("SYSTEMD_EXEC_PID"); ok {
		return value
	}
	return atStart.executedPID
}

// silentSupervisors are those that set no variable to go by, as the kernel
// shows their names: in at most 15 characters.
var silentSupervisors = []string{
	"runsv", "s6-supervise", "supervise", "supervisord", "supervise-daemo", "dinit",
}

// startedBySupervisor reports whether the parent is a supervisor that would start the
// program over and over if it left, or a start-stop-daemon that has noted its pid.
func startedBySupervisor() bool {
	parent := parentOf("self")
	name := nameOfProcess(parent)
	if name == "start-stop-daem" || name == "busybox" {
		line := readProcess(parent, "cmdline")
		if line == "" { // it is ending: this process will have another parent
			waitBriefly(func() bool { return parentOf("self") != parent })
		}
		options, _, _ := strings.Cut(line, "\x00--\x00")
		isApplet := name != "busybox" || strings.Contains(line, "\x00start-stop-daemon\x00")
		return isApplet && slices.ContainsFunc(strings.Split(options, "\x00"), isBackgroundOption)
	}
	return slices.Contains(silentSupervisors, name)
}

// isBackgroundOption recognizes the option with which start-stop-daemon(8) sends
// a program into the background. -Sbm is three options; in -xb, b is the value of -x.
func isBackgroundOption(argument string) bool {
	letters, short := strings.CutPrefix(argument, "-")
	if value := strings.IndexAny(letters, "-acdegknprsuwxINOPR"); value >= 0 {
		letters = letters[:value]
	}
	return argument == "--background" || short && strings.Contains(letters, "b")
}

// startedBySystemd reports whether the parent is systemd, or a user's.
func startedBySystemd() bool { return nameOfProcess(parentOf("self")) == "systemd" }

// isOrphan reports whether an init has inherited this process, as that of
// `sh -c 'd &'`, and not started it. What an init starts leads a session, or is in PID
// 1's. An orphan is in its shell's session and has its terminal or pipes. A child of
// `start-stop-daemon --background` has /dev/null, and stays.
func isOrphan() bool {
	session, err := unix.Getsid(0)
	return err == nil && session != pid() && slices.ContainsFunc([]int{0, 1, 2}, hasOtherEnd)
}

// hasOtherEnd reports whether a descriptor is a terminal, a pipe or a socket, at
// whose other end somebody waits.
func hasOtherEnd(fd int) bool {
	_, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	return err == nil || isKind(fd, unix.S_IFIFO, unix.S_IFSOCK)
}

// parentHidden reports whether proc(5) shows this process and not its parent
// (hidepid=): that may be a supervisor.
func parentHidden() bool {
	parent := parentOf("self")
	isSeen := func(process string) bool { return readProcess(process, "comm") != "" }
	return unix.Getppid() > 1 && isSeen("self") && !isSeen(parent) && parentOf("self") == parent
}

// nameOfProcess returns what ps(1) shows of it, or nothing if it cannot be seen.
func nameOfProcess(process string) string {
	return strings.TrimSuffix(readProcess(process, "comm"), "\n")
}

// parentOf returns the number that proc(5) has for the parent of a process, or none.
func parentOf(process string) string {
	stat := readProcess(process, "stat")
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:]) // the name in front may hold anything
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}

func readProcess(process, file string) string { return readFile("/proc/" + process + "/" + file) }
