package daemon

import (
	"maps"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// Supervisor is what started this process and waits to hear from it.
type Supervisor int

const (
	None    Supervisor = iota // nobody: a shell, or a supervisor that asks for no word
	Upstart                   // upstart's init(8), which waits for a SIGSTOP
	Systemd                   // systemd, or whoever else speaks sd_notify(3)'s protocol
)

// String returns the supervisor's name in lower case.
func (s Supervisor) String() string {
	switch s {
	case None:
		return "none"
	case Upstart:
		return "upstart"
	case Systemd:
		return "systemd"
	}
	return "Supervisor(" + strconv.Itoa(int(s)) + ")"
}

// Detect tells which supervisor the environment names: Upstart where
// UPSTART_JOB is set, else Systemd where NOTIFY_SOCKET is, else None. An empty
// variable counts as unset. It sends nothing and changes nothing; a program
// may use it to choose where its logs go.
func Detect() Supervisor {
	who, _ := supervisor()
	return who
}

// supervisor is Detect, with the address of systemd's socket. Every notification
// comes by here, which is why it does what getenv does without calling it.
func supervisor() (who Supervisor, address string) {
	job, ok := syscall.Getenv("UPSTART_JOB")
	if !ok {
		job = recall("UPSTART_JOB")
	}
	if job != "" {
		return Upstart, ""
	}
	address, ok = syscall.Getenv("NOTIFY_SOCKET")
	if !ok {
		address = recall("NOTIFY_SOCKET")
	}
	if address != "" {
		return Systemd, address
	}
	return None, ""
}

// UnsetEnvironment removes NOTIFY_SOCKET, UPSTART_JOB, WATCHDOG_USEC,
// WATCHDOG_PID, LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES from the
// environment, so that child processes do not inherit them (what sd_notify(3)
// calls unset_environment). This package remembers the values and goes on
// talking to the supervisor; a variable that is set again afterwards, be it to
// the empty string, takes the place of the remembered value. Where none is set
// it does nothing.
func UnsetEnvironment() {
	unsetenv("NOTIFY_SOCKET", "UPSTART_JOB", "WATCHDOG_USEC", "WATCHDOG_PID",
		"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
}

// remembered are the values of the variables that unsetenv removed. The map
// is replaced, never changed.
var (
	remembered   atomic.Pointer[map[string]string]
	rememberedMu sync.Mutex // held while the map is replaced
)

// getenv reads the environment, and what was in it before unsetenv.
func getenv(key string) string {
	if value, ok := syscall.Getenv(key); ok {
		return value
	}
	return recall(key)
}

// recall returns the value that unsetenv has removed.
func recall(key string) string {
	if values := remembered.Load(); values != nil {
		return (*values)[key]
	}
	return ""
}

func unsetenv(keys ...string) {
	rememberedMu.Lock()
	defer rememberedMu.Unlock()
	values := map[string]string{}
	if old := remembered.Load(); old != nil {
		values = maps.Clone(*old)
	}
	for _, key := range keys {
		if value, ok := os.LookupEnv(key); ok {
			values[key] = value
		}
	}
	// Stored before the first is removed: a concurrent getenv finds each value
	// in one place or the other.
	remembered.Store(&values)
	for _, key := range keys {
		os.Unsetenv(key)
	}
}
