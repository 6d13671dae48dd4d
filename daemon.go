// Package daemon tells whatever started a program that the program is ready:
// systemd, upstart, s6 and other supervisors, or a shell that waits for its prompt.
//
// A daemon's main calls [Ready] once, when initialization is over and it can
// serve. The environment decides what that does:
//
//   - UPSTART_JOB is set: the process stops itself, and goes on when upstart
//     continues it (`expect stop` of init(5)).
//   - NOTIFY_SOCKET is set: Ready sends READY=1, a status and the process id to
//     systemd, or whatever else speaks the protocol of sd_notify(3).
//   - NOTIFY_FD is set: Ready writes READY=1 and a newline to that descriptor, a
//     pipe or a socket on which s6, dinit, finit or OpenRC wait, and closes it.
//   - None is set: the program detaches from its terminal, and the command returns
//     to the shell with exit status 0 once the program is ready (daemon(7)).
//
// A supervisor that is there but cannot be told is an error.
//
// [Reloading], [Stopping], [Fail], [RunWatchdog], [Barrier], [StoreFiles],
// [RemoveFiles] and [Notify] tell the rest of a service's life, by the protocol of
// sd_notify(3). If NOTIFY_SOCKET is not set they do nothing and return nil, so a
// program need not ask. If the supervisor does not read, Ready, Reloading and Stopping
// wait for at most 90 seconds, the others for 5, and Barrier until its context ends.
//
// # Detaching
//
// Go cannot fork without exec, so a detach starts the program again. To the program
// it is a crash and a restart, while the old process id still exists: the kernel
// undoes what main did before, and the daemon does it once more. Call [Detach] first
// in main, when there is nothing to undo yet, if the program
//
//   - reads a passphrase from standard input,
//   - checks a pid file for a live process,
//   - drops privileges, or changes its root directory, umask, limits, priority or
//     namespaces,
//   - listens on an ephemeral port, or on a Unix socket path that it does not
//     remove first,
//   - opens descriptors without close-on-exec, closes what [Files] returned, or
//     starts helper processes,
//   - reads its own output, having put a pipe on 1 or 2,
//   - catches a signal that may come before Ready,
//   - or takes long to initialize.
//
// A detach executes the program three times, in two processes. Initializers of
// other packages may run each time: they must not take locks, ports or passed
// descriptors, nor change the directory, os.Args or the standard descriptors.
//
// If the daemon ends before it is ready, the shell sees its exit status or its
// signal. Until then SIGTERM to the whole process group reaches the daemon twice, and
// SIGINT to the process that the shell waits for does not reach it. Helper processes
// that it starts until then stay in the caller's session, and get SIGHUP if its
// terminal ends.
//
// The daemon leads a session of its own, so it opens terminals with O_NOCTTY. Its
// standard descriptors are on /dev/null, unless main has put a log file there: a
// shell's `> log` ends at Ready. It keeps its caller's working directory and umask;
// chdir("/") and umask(0) are up to the program. A goroutine that reads the terminal
// goes on reading after Ready. If a thread other than that of Ready has asked for a
// signal when its parent dies (PR_SET_PDEATHSIG of prctl(2)), the daemon gets the
// signal after Ready.
//
// # The foreground
//
// A process stays in the foreground if something holds on to it, so that leaving
// would look like its death: it is PID 1, or in PID 1's session; PID 1 has started
// it, or a process outside its PID namespace; systemd has executed it; or its
// parent is runsv, s6-supervise, supervise, supervisord, supervise-daemon or dinit.
// A wrapper between them, such as sudo or a script that does not exec, hides the
// supervisor: have a -f flag that calls [Foreground]. [Background] is the opposite.
//
// # Errors
//
// Errors name the operation and the address, and wrap the cause for [errors.Is]:
// an errno such as [syscall.ECONNREFUSED], [syscall.EINVAL] for a bad field,
// [syscall.EMSGSIZE] for fields that exceed 4096 bytes in sum,
// [syscall.EAFNOSUPPORT] for an address that is neither a path nor abstract, and
// [os.ErrDeadlineExceeded] if the supervisor does not read.
//
// All functions may be called from any goroutine at any time. After the first call,
// a notification allocates heap memory only to wait for room, and opens no
// descriptor; but [StoreFiles] and [Fail] allocate, and [Barrier] also opens a pipe.
//
// The environment variable _DAEMON_DETACH is this package's own.
package daemon

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ready tells whatever started this process that it is ready to serve. Call it
// once initialization is over. What it does is up to the environment, as the
// package documentation says; on systems other than Unix it returns nil.
//
// To systemd Ready sends READY=1, STATUS and MAINPID, and then the fields. A field
// takes the place of one with its key. STATUS is that of the Ready before, or
// "ready". MAINPID is left out for PID 1, and behind a wrapper: SYSTEMD_EXEC_PID names
// another process, or sudo or env -i has removed it. A later Ready sends again, which
// ends a reload (see [Reloading]). In all other cases a later Ready does nothing.
//
// In a test binary, and in a library that a foreign program has loaded, Ready returns
// an error instead of detaching or stopping. Instead of detaching it also returns one
// in a setuid program, if user, group or root directory have changed, if a
// descriptor that the supervisor passed is closed, if /proc hides the parent process
// (hidepid of proc(5)), or if the program has removed its supervisor's variables other
// than by [UnsetEnvironment].
func Ready(fields ...Field) error {
	if err := tellLauncher(); err != nil {
		return err
	}
	switch who, value := supervisor(); who {
	case Upstart:
		return stopOnce()
	case Systemd:
		return send(value, readyFor(value, fields), fields)
	case Descriptor:
		return writeReady(value)
	}
	return detach(implicit)
}

// Reloading tells the supervisor that the program reloads its configuration
// (RELOADING=1, and MONOTONIC_USEC for Type=notify-reload). Call [Ready] at the end,
// even of a reload that failed.
func Reloading(fields ...Field) error { return notify(&reloading, fields) }

// Stopping tells the supervisor that the program begins to shut down (STOPPING=1).
func Stopping(fields ...Field) error { return notify(&stopping, fields) }

// Fail tells the supervisor why the program is about to fail: STATUS is the
// error's text and, if err wraps a [syscall.Errno], ERRNO is its number. Fail does
// not exit. It does nothing for a nil err.
func Fail(err error) error {
	if err == nil || Detect() != Systemd {
		return nil
	}
	fields := []Field{Status(err.Error())}
	if errno := Errno(errnoOf(err)); errno.key != "" {
		fields = append(fields, errno)
	}
	return Notify(fields...)
}

// Notify sends the supervisor just these fields, or nothing if there are none.
func Notify(fields ...Field) error {
	if len(fields) == 0 {
		return nil
	}
	return notify(&notification, fields)
}

// verb is what a call says by itself, and how it is sent.
type verb struct {
	own             []Field         // said first
	status, mainPID *Field          // said next, unless the caller gives one; nil: none
	complaint       bool            // the status is a failing health check's: do not repeat it
	rights          []int           // descriptors to attach
	patience        time.Duration   // how long to wait for room in the supervisor's queue
	ctx             context.Context // ends that wait early; nil: nothing does
}

const (
	// patient is systemd's default limit for a start (DefaultTimeoutStartSec=):
	// a PID 1 that is busy for a while must not cost the service its life.
	patient = 90 * time.Second
	brief   = 5 * time.Second
)

var (
	reloading = verb{patience: patient,
		own: []Field{{key: "RELOADING", text: "1"}, {key: "MONOTONIC_USEC", form: clock}}}
	stopping     = verb{patience: patient, own: []Field{{key: "STOPPING", text: "1"}}}
	notification = verb{patience: brief}
)

// Field is one assignment of a notification, as sd_notify(3) lists them. Of several
// fields with one key the last counts. If a field is invalid, the call that it is
// given to sends nothing, and returns an error that names the field, says what is
// wrong with it and wraps [syscall.EINVAL].
type Field struct {
	key    string // none: the field cannot be sent; text says what it is, and why
	text   string
	number int64 // the value in place of text, if it is not 0
	form   form
}

// form says how a Field is encoded. STATUS and MAINPID have forms of their own, by
// which the encoder finds their place.
type form uint8

const (
	plainText  form = iota // each backslash of text is doubled
	safeText               // as plainText, with control characters replaced
	statusText             // as safeText, and cut if the notification is too long
	pidText                // as plainText
	clock                  // the value is the time at which the notification is encoded
	wholeLine              // text is the line as it is sent, encoded before: READY=1 and MAINPID
)

// Status returns the field with the line by which the supervisor describes the
// service's state to people (STATUS); an empty text clears it. Control characters
// become spaces; invalid UTF-8 and noncharacters, for which systemd would ignore it,
// become U+FFFD. It is cut if the notification would exceed 4096 bytes.
func Status(text string) Field { return Field{key: "STATUS", text: text, form: statusText} }

// MainPID returns the field with the id of the process that the supervisor is to
// watch (MAINPID). A pid below 1 is invalid.
func MainPID(pid int) Field {
	return integer("MAINPID", pidText, int64(pid), pid >= 1, "a process id is at least 1")
}

// Errno returns the field with the number of the error that makes the service fail
// (ERRNO, see errno(3)). A number outside of 0 to 4095, which systemd would ignore, is
// invalid.
func Errno(errno int) Field {
	ok := 0 <= errno && errno <= 4095 // MAX_ERRNO of Linux
	return integer("ERRNO", plainText, int64(errno), ok, "an error number is 0 to 4095")
}

// BusError returns the field with the name of the D-Bus error that makes the service
// fail (BUSERROR), such as org.freedesktop.DBus.Error.TimedOut. Its text is made safe
// as that of [Status] is, but never cut. systemd 257 and later ignores a name with
// quotes, backslashes or anything but ASCII.
func BusError(name string) Field { return Field{key: "BUSERROR", text: name, form: safeText} }

// ExtendTimeout returns the field that asks the supervisor to end its current time
// limit, for start, run or stop, no sooner than d from now (EXTEND_TIMEOUT_USEC, in
// whole microseconds). A negative d is invalid.
func ExtendTimeout(d time.Duration) Field {
	return integer("EXTEND_TIMEOUT_USEC", plainText, d.Microseconds(), d >= 0, "a duration is not negative")
}

func integer(key string, form form, value int64, ok bool, rule string) Field {
	switch {
	case !ok:
		return Field{text: key + "=" + strconv.FormatInt(value, 10) + ": " + rule}
	case value == 0:
		return Field{key: key, text: "0"}
	}
	return Field{key: key, number: value, form: form}
}

// Set returns the field with any other assignment. The key is made of A to Z, 0 to
// 9 and _, and does not begin with a digit. It is not BARRIER, FDSTORE or
// MAINPIDFD, which need a descriptor: see [Barrier] and [StoreFiles]. The value
// holds no newline, carriage return or NUL. Any other key or value is invalid.
//
// Say only one of READY, RELOADING and STOPPING in a notification: of several, systemd up
// to 252 hears the last, and later versions the one that they prefer.
func Set(key, value string) Field {
	rule, form := "", plainText
	switch key {
	case "BARRIER", "FDSTORE", "MAINPIDFD":
		rule = "this assignment needs a descriptor"
	case "STATUS":
		form = statusText
	case "BUSERROR":
		form = safeText
	case "MAINPID":
		form = pidText
	}
	switch {
	case key == "", '0' <= key[0] && key[0] <= '9', strings.Trim(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "":
		rule = "a key is made of A to Z, 0 to 9 and _, and does not begin with a digit"
	case strings.ContainsAny(value, "\n\r\x00"):
		rule = "a value holds no newline, carriage return or NUL"
	}
	if rule != "" {
		return Field{text: strconv.Quote(key) + "=" + strconv.Quote(value) + ": " + rule}
	}
	return Field{key: key, text: value, form: form}
}

// opError returns an error that names the operation and what it was for.
func opError(operation, object string, err error) error {
	return &os.PathError{Op: "daemon: " + operation, Path: object, Err: err}
}
