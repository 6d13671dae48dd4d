package daemon

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// Supervisor is what started this process and waits to hear from it.
type Supervisor int

const (
	None       Supervisor = iota // nobody: a shell, or a supervisor that waits for nothing
	Upstart                      // upstart's init(8), which waits for a SIGSTOP
	Systemd                      // systemd, or whatever else speaks the protocol of sd_notify(3)
	Descriptor                   // s6, dinit, finit or OpenRC, which wait for a line on NOTIFY_FD
)

// String returns the supervisor's name in lower case.
func (s Supervisor) String() string {
	names := [...]string{"none", "upstart", "systemd", "descriptor"}
	if 0 <= s && int(s) < len(names) {
		return names[s]
	}
	return "Supervisor(" + strconv.Itoa(int(s)) + ")"
}

// Detect returns the supervisor that the environment names: Upstart if
// UPSTART_JOB is set, else Systemd if NOTIFY_SOCKET is, else Descriptor if
// NOTIFY_FD is, else None. An empty variable counts as unset. Detect sends
// nothing and changes nothing; a program may use it to choose where its logs go.
func Detect() Supervisor {
	who, _ := supervisor()
	return who
}

// supervisor returns what Detect does, and the value of the variable that names
// the supervisor.
func supervisor() (who Supervisor, value string) {
	job, _ := syscall.Getenv("UPSTART_JOB")
	value, _ = syscall.Getenv("NOTIFY_SOCKET")
	if job == "" && value != "" && !remembered.any.Load() {
		return Systemd, value // what is most common costs no more calls than that
	}
	value = ""
	keys := [...]string{Upstart: "UPSTART_JOB", Systemd: "NOTIFY_SOCKET", Descriptor: "NOTIFY_FD"}
	for s := Descriptor; s > None; s-- { // all of them: getenv forgets what is set again
		if v := getenv(keys[s]); v != "" {
			who, value = s, v
		}
	}
	return who, value
}

// UnsetEnvironment removes NOTIFY_SOCKET, NOTIFY_FD, UPSTART_JOB, WATCHDOG_USEC,
// WATCHDOG_PID, LISTEN_FDS, LISTEN_PID, LISTEN_PIDFDID and LISTEN_FDNAMES from
// the environment, so that child processes do not inherit them (what
// sd_notify(3) calls unset_environment). This package remembers the values and
// goes on talking to the supervisor. A variable that is set again, even to the
// empty string, replaces the remembered value for good, once a call of this
// package has seen it. UnsetEnvironment does nothing if none is set.
func UnsetEnvironment() {
	unsetenv("NOTIFY_SOCKET", "NOTIFY_FD", "UPSTART_JOB", "WATCHDOG_USEC", "WATCHDOG_PID",
		"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES")
}

// remembered holds the values of the variables that unsetenv removed.
var remembered = struct {
	sync.Mutex
	any    atomic.Bool
	values map[string]string
}{values: map[string]string{}}

// getenv returns the variable's value, or the one that unsetenv removed. It does
// not allocate.
func getenv(key string) string {
	value, _ := syscall.Getenv(key) // first: see unsetenv
	if !remembered.any.Load() {
		return value
	}
	remembered.Lock()
	defer remembered.Unlock()
	value, ok := syscall.Getenv(key)
	if !ok {
		return remembered.values[key]
	}
	// One test's supervisor must not become that of the next.
	delete(remembered.values, key)
	return value
}

func unsetenv(keys ...string) {
	remembered.Lock()
	defer remembered.Unlock()
	for _, key := range keys {
		if value, ok := syscall.Getenv(key); ok {
			remembered.values[key] = value
			remembered.any.Store(true) // before Unsetenv: a getenv that misses the variable looks here next
			os.Unsetenv(key)
		}
	}
}

// pid returns this process's id. A notification takes no system call for it.
var pid = sync.OnceValue(os.Getpid)

// namesPID reports whether a variable's value is this process's id.
func namesPID(value string) bool {
	n, err := strconv.Atoi(value)
	return err == nil && n == pid()
}
