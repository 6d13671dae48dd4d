//go:build unix

package daemon

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// marker is the environment variable that makes a launcher, or a daemon, of the
// process that it names. It is gone before main runs.
const marker = "_DAEMON_DETACH"

// mark is the marker's value: COPY:ROLE:LAUNCHER:DESCRIPTOR:HOW:REPLACED:NAME.
type mark struct {
	copy     string // of this package, in one program
	role     string
	launcher int    // its pid
	fd       int    // the launcher: see muteStderr; the daemon: the pipe to the launcher
	how      int    // implicit, by Ready, or explicit
	replaced int    // see replacedStandard
	name     string // what ps(1) shows; it may hold anything
}

const (
	launcherRole = "launcher"
	daemonRole   = "daemon"
)

const (
	implicit = iota
	explicit
)

func (m *mark) numbers() [4]*int { return [4]*int{&m.launcher, &m.fd, &m.how, &m.replaced} }

func (m *mark) String() string {
	text := marker + "=" + m.copy + ":" + m.role
	for _, n := range m.numbers() {
		text += ":" + strconv.Itoa(*n)
	}
	return text + ":" + m.name
}

func parseMark(value string) (m mark, ok bool) {
	fields := strings.SplitN(value, ":", 7)
	if len(fields) < 7 || fields[1] != launcherRole && fields[1] != daemonRole {
		return mark{}, false
	}
	m = mark{copy: fields[0], role: fields[1], name: fields[6]}
	for i, n := range m.numbers() {
		var err error
		if *n, err = strconv.Atoi(fields[2+i]); err != nil {
			return mark{}, false
		}
	}
	return m, true
}

// takeMarker removes the marker from the environment and returns what it says to
// this copy of the package. What is for another copy stays for that one's init. A
// setuid program takes no orders from its caller's environment.
func takeMarker() mark {
	value, marked := os.LookupEnv(marker)
	m, ok := parseMark(value)
	if !marked || ok && m.copy != packagePath() {
		return mark{}
	}
	os.Unsetenv(marker)
	if secure() {
		return mark{}
	}
	return m
}

// detachedByCopy reports whether another copy has made a daemon of this process.
// The launcher has put the marker behind all other variables.
func detachedByCopy() bool {
	value, marked := strings.CutPrefix(lastVariable(), marker+"=")
	m, _ := parseMark(value)
	return marked && m.role == daemonRole && m.copy != packagePath()
}

// packagePath tells one copy of this package in a program from another, such as
// a fork of it or its next major version.
func packagePath() string {
	pc, _, _, _ := runtime.Caller(0)
	return strings.TrimSuffix(runtime.FuncForPC(pc).Name(), ".packagePath")
}
