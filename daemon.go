// Package daemon tells whatever started a program that the program is ready.
package daemon

import (
	"context"
	"os"
	"strings"
	"time"
)

// How long a notification waits for room in the supervisor's queue.
const (
	// patient is systemd's default limit for a start (DefaultTimeoutStartSec=):
	// a PID 1 that is busy for a while must not cost the service its life.
	patient = 90 * time.Second
	brief   = 5 * time.Second
)

// pid is this process's id, read once: MAINPID= needs no system call.
var pid = os.Getpid()

// Ready tells whatever started this process that it is ready to serve; call it
// once initialization is over.
//
//   - With UPSTART_JOB set it stops the process by SIGSTOP (init(5)'s `expect
//     stop`) and returns once upstart has continued it. A later Ready does
//     nothing.
//   - With NOTIFY_SOCKET set it sends READY=1, STATUS=ready and MAINPID=, with
//     the fields given in place of or after those. A later Ready sends again:
//     that is the end of a reload, also of a failed one (see [Reloading]). It
//     waits at most 90 seconds for a supervisor that does not read.
//   - With neither it detaches: the program is started again in the background,
//     and the caller's shell gets its prompt back, with exit status 0, once
//     that daemon in turn calls Ready. See [Detach]. A later Ready does nothing.
//     A process that something holds on to stays in the foreground instead: one
//     that is or was started by PID 1, that systemd itself executed
//     (SYSTEMD_EXEC_PID), or that has called [Foreground].
//
// A supervisor that is there but cannot be told is an error, never a reason to
// detach; so is a detach in a `go test` run, in a setuid program, or where user,
// group or root directory have changed. Errors name the operation and the
// address and wrap the error number, for [errors.Is]; no room in the
// supervisor's queue wraps [os.ErrDeadlineExceeded]. On a system that is no Unix
// Ready returns nil.
func Ready(fields ...Field) error {
	if err := tellLauncher(); err != nil {
		return err
	}
	switch who, address := supervisor(); who {
	case Upstart:
		return stopOnce()
	case Systemd:
		return send(context.Background(), address, patient, []Field{
			{key: "READY", text: "1"},
			{key: "STATUS", text: "ready"},
			{key: "MAINPID", number: int64(pid), numeric: true},
		}, fields, nil)
	}
	return detach("Ready")
}

// Reloading tells the supervisor that the program reloads its configuration
// (RELOADING=1, and MONOTONIC_USEC for Type=notify-reload). [Ready] must follow,
// also when the reload failed. Where the supervisor does not listen it does
// nothing and returns nil; it waits at most 90 seconds for one that does not
// read.
func Reloading(fields ...Field) error {
	verb := []Field{{key: "RELOADING", text: "1"}}
	if usec, ok := monotonic(); ok {
		verb = append(verb, Field{key: "MONOTONIC_USEC", number: usec, numeric: true})
	}
	return notify(patient, verb, fields)
}

// Stopping tells the supervisor that the program begins to shut down
// (STOPPING=1). Where the supervisor does not listen it does nothing and
// returns nil; it waits at most 90 seconds for one that does not read.
func Stopping(fields ...Field) error {
	return notify(patient, []Field{{key: "STOPPING", text: "1"}}, fields)
}

// Fail tells the supervisor why the program is about to fail: STATUS is the
// error's text and, where err wraps a [syscall.Errno], ERRNO its number. It
// does not exit. For a nil err, and where the supervisor does not listen, it
// does nothing and returns nil; it waits at most 5 seconds for one that does
// not read.
func Fail(err error) error {
	if err == nil || Detect() != Systemd {
		return nil
	}
	fields := []Field{Status(err.Error())}
	if errno, ok := errnoOf(err); ok {
		fields = append(fields, Errno(errno))
	}
	return Notify(fields...)
}

// Notify sends just these fields, or nothing where there is none. Where the
// supervisor does not listen it does nothing and returns nil; it waits at most
// 5 seconds for one that does not read.
func Notify(fields ...Field) error {
	if len(fields) == 0 {
		return nil
	}
	return notify(brief, nil, fields)
}

// Field is one assignment of a notification, as sd_notify(3) lists them. Of
// several fields with one key the last counts. A field that cannot be sent
// makes the call that it is given to an error which wraps [syscall.EINVAL] and
// names the key.
type Field struct {
	key     string
	text    string
	number  int64
	numeric bool // the value is number, not text
	invalid bool
}

// Status is what the supervisor shows people of the service (STATUS), in one
// line; an empty text clears it. Control characters become spaces, and invalid
// UTF-8 becomes U+FFFD. It is cut where the notification would exceed 4096
// bytes.
func Status(text string) Field { return Field{key: "STATUS", text: text} }

// MainPID is the id of the process that the supervisor is to watch (MAINPID).
// A pid below 1 is invalid.
func MainPID(pid int) Field {
	return Field{key: "MAINPID", number: int64(pid), numeric: true, invalid: pid < 1}
}

// Errno is the error number, see errno(3), because of which the service fails
// (ERRNO). A negative one is invalid.
func Errno(errno int) Field {
	return Field{key: "ERRNO", number: int64(errno), numeric: true, invalid: errno < 0}
}

// BusError is the D-Bus error name because of which the service fails
// (BUSERROR). Its text is made safe as that of [Status] is, but never cut.
func BusError(name string) Field { return Field{key: "BUSERROR", text: name} }

// ExtendTimeout has the supervisor's current time limit, for start, run or
// stop, end no sooner than d from now (EXTEND_TIMEOUT_USEC, in whole
// microseconds). A negative d is invalid.
func ExtendTimeout(d time.Duration) Field {
	return Field{key: "EXTEND_TIMEOUT_USEC", number: d.Microseconds(), numeric: true, invalid: d < 0}
}

// Set is any other assignment. The key is made of A to Z, 0 to 9 and _, does
// not begin with a digit, and is neither BARRIER (see [Barrier]) nor FDSTORE
// (see [StoreFiles]); the value holds no newline, carriage return or NUL. Any
// other key or value is invalid.
func Set(key, value string) Field {
	return Field{key: key, text: value, invalid: !validKey(key) || strings.ContainsAny(value, "\n\r\x00")}
}

func validKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		if c != '_' && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return key != "" && key != "BARRIER" && key != "FDSTORE"
}
