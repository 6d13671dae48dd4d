// Package daemon tells whatever started a program that the program is ready:
// systemd, upstart, or a shell that waits for its prompt.
//
// # What do I call, and where?
//
// A daemon's main calls [Ready] once, when initialization is over and it can
// serve. What that does is up to the environment:
//
//   - UPSTART_JOB is set: the process stops itself, and goes on when upstart
//     continues it (`expect stop` of init(5)).
//   - NOTIFY_SOCKET is set: systemd, or whatever else speaks its protocol, is
//     sent READY=1, a status and the process id (sd_notify(3)).
//   - Neither: the program detaches from its terminal, and the command returns
//     to the shell with exit status 0 once it is ready (daemon(7)).
//
// A supervisor that is there but cannot be told is an error.
//
// # What else can I tell?
//
// [Reloading] and Ready enclose a reload, [Stopping] begins the shutdown, [Fail]
// says why the program is about to fail, [Notify] sends any other [Field].
// [RunWatchdog] sends heartbeats for as long as the program is healthy. [Barrier]
// waits until all that was sent has been handled. [Files] are the descriptors
// that the supervisor passes in, by socket activation or from before a restart
// ([StoreFiles]).
//
// # What if nobody is there?
//
// Every call but [Ready] and [Detach] then does nothing and returns nil, so a
// program need not ask. [Detect] tells who is there, for instance to choose where
// logs go. The environment is read at each call: a test may set NOTIFY_SOCKET.
//
// # What must I know about detaching?
//
// Go cannot fork without exec, so a detach starts the program again: to the
// program it is a crash and a restart, while the old process id still exists. All
// that main did before is undone by the kernel and done again in the daemon.
// Where that will not do, call [Detach] first in main. That is so for a program
// that
//
//   - reads a passphrase from standard input,
//   - checks a pid file for a live process,
//   - drops privileges or changes its root directory,
//   - listens on an ephemeral port, or on a Unix socket path that it does not
//     remove first,
//   - opens descriptors without close-on-exec, closes what [Files] returned, or
//     starts helper processes,
//   - or takes long to initialize.
//
// Initializers of other packages may run in each of the processes of a detach:
// they must not take locks or ports. The daemon leads its own session: it opens
// terminals with O_NOCTTY. Its working directory and umask are the caller's: call
// chdir("/") and umask(0) where they must not be. Its standard descriptors are on
// /dev/null: a shell's `> log` ends at Ready. A daemon that ends before it is
// ready hands its exit status, or its signal, on to the shell.
//
// # What if it must stay in the foreground?
//
// A process that is PID 1, or was started by it or from outside its PID
// namespace, or that systemd executed itself, does not detach. For s6, runit and
// supervisord, which leave no trace, and for people, have a -f flag that calls
// [Foreground]. Type=forking is not served: the cure is Type=notify.
//
// # Errors
//
// They name the operation and the address and wrap the cause for [errors.Is]:
// an errno such as [syscall.ECONNREFUSED], [syscall.EINVAL] for a bad field,
// [syscall.EMSGSIZE] for fields that exceed 4096 bytes in sum,
// [syscall.EAFNOSUPPORT] for an address that is neither a path nor abstract, and
// [os.ErrDeadlineExceeded] where the supervisor did not read.
//
// All functions may be called from any goroutine at any time. After the first
// one, no notification takes heap memory or a descriptor; [Barrier], [StoreFiles]
// and [Fail] do.
//
// The environment variable _DAEMON_DETACH is this package's own.
package daemon

import (
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

var (
	readyVerb = verb{
		own:     []Field{{key: "READY", text: "1"}},
		status:  &notifier.socket.ready,
		isReady: true,
		id:      idReady,
	}
	stoppingVerb = verb{own: []Field{{key: "STOPPING", text: "1"}}}
	notifyVerb   = verb{}
)

// Ready tells whatever started this process that it is ready to serve; call it
// once initialization is over.
//
//   - With UPSTART_JOB set it stops the process by SIGSTOP (init(5)'s `expect
//     stop`) and returns once upstart has continued it. A later Ready does
//     nothing.
//   - With NOTIFY_SOCKET set it sends READY=1, STATUS=ready and MAINPID=; a
//     field that is given takes the place of the one with its key, others
//     follow. A later Ready sends again: that is the end of a reload, also of a
//     failed one (see [Reloading]). It waits at most 90 seconds for a supervisor
//     that does not read.
//   - With neither it detaches: the program is started again in the background,
//     and the caller's shell gets its prompt back, with exit status 0, once
//     that daemon in turn calls Ready. See [Detach]. A later Ready does nothing.
//     A process that something holds on to stays in the foreground instead: one
//     that is PID 1, or was started by it or from outside its PID namespace (a
//     container), one that systemd itself executed (SYSTEMD_EXEC_PID), or one
//     that has called [Foreground].
//
// A supervisor that is there but cannot be told is an error, never a reason to
// detach; so is a detach in a `go test` run, in a setuid program, where user,
// group or root directory have changed, where one of [Files] is closed, or where
// the program has removed its supervisor's variables other than by
// [UnsetEnvironment]. Errors name the operation and the address and wrap the
// error number, for [errors.Is]; no room in the supervisor's queue wraps
// [os.ErrDeadlineExceeded]. On systems other than Unix Ready returns nil.
func Ready(fields ...Field) error {
	if err := tellLauncher(); err != nil {
		return err
	}
	switch who, value := supervisor(); who {
	case Upstart:
		return stopOnce()
	case Systemd:
		return sendReady(value, fields)
	case Descriptor:
		return writeReady(value)
	}
	return detach("Ready")
}

// Reloading tells the supervisor that the program reloads its configuration
// (RELOADING=1, and MONOTONIC_USEC for Type=notify-reload). [Ready] must follow,
// also when the reload failed. Where the supervisor does not listen it does
// nothing and returns nil; it waits at most 90 seconds for one that does not
// read.
func Reloading(fields ...Field) error {
	usec, ok := monotonic()
	own := []Field{
		{key: "RELOADING", text: "1"},
		{key: "MONOTONIC_USEC", number: usec, numeric: true},
	}
	if !ok {
		own = own[:1]
	}
	return notify(nil, patient, &verb{own: own}, fields)
}

// Stopping tells the supervisor that the program begins to shut down
// (STOPPING=1). Where the supervisor does not listen it does nothing and
// returns nil; it waits at most 90 seconds for one that does not read.
func Stopping(fields ...Field) error {
	return notify(nil, patient, &stoppingVerb, fields)
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
	if errno, ok := errnoOf(err); ok && errno <= maxErrno {
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
	return notify(nil, brief, &notifyVerb, fields)
}

// Field is one assignment of a notification, as sd_notify(3) lists them. Of
// several fields with one key the last counts. A field that cannot be sent makes
// the call that it is given to return an error, which names the field, says what
// is wrong with it and wraps [syscall.EINVAL].
type Field struct {
	key     string
	text    string
	number  int64
	numeric bool // the value is number, not text
	broken  rule // 0: none
}

// rule is one that a field may break.
type rule uint8

const (
	rulePID rule = 1 + iota
	ruleErrno
	ruleDuration
	ruleKey
	ruleDescriptor
	ruleValue
)

var rules = [...]string{
	"a Field is made by a function of this package",
	rulePID:        "a process id is at least 1",
	ruleErrno:      "an error number is 0 to 4095",
	ruleDuration:   "a duration is not negative",
	ruleKey:        "a key is made of A to Z, 0 to 9 and _, and does not begin with a digit",
	ruleDescriptor: "this assignment needs a descriptor",
	ruleValue:      "a value holds no newline, carriage return or NUL",
}

// Status is what the supervisor shows people of the service (STATUS), in one
// line; an empty text clears it. Control characters become spaces; invalid UTF-8
// and noncharacters, for which systemd would ignore it, become U+FFFD. It is cut
// if the notification would exceed 4096 bytes.
func Status(text string) Field { return Field{key: "STATUS", text: text} }

// MainPID is the id of the process that the supervisor is to watch (MAINPID).
// A pid below 1 is invalid.
func MainPID(pid int) Field {
	return integer("MAINPID", int64(pid), pid >= 1, rulePID)
}

// Errno is the error number, see errno(3), because of which the service fails
// (ERRNO). systemd ignores one outside of 0 to 4095, so that is invalid.
func Errno(errno int) Field {
	return integer("ERRNO", int64(errno), 0 <= errno && errno <= maxErrno, ruleErrno)
}

const maxErrno = 4095 // MAX_ERRNO of Linux

// BusError is the D-Bus error name because of which the service fails
// (BUSERROR), such as org.freedesktop.DBus.Error.TimedOut. Its text is made safe
// as that of [Status] is, but never cut. systemd 257 and later ignores a name
// with quotes, backslashes or anything but ASCII.
func BusError(name string) Field { return Field{key: "BUSERROR", text: name} }

// ExtendTimeout asks the supervisor to end its current time limit, for start, run
// or stop, no sooner than d from now (EXTEND_TIMEOUT_USEC, in whole
// microseconds). A negative d is invalid.
func ExtendTimeout(d time.Duration) Field {
	return integer("EXTEND_TIMEOUT_USEC", d.Microseconds(), d >= 0, ruleDuration)
}

func integer(key string, value int64, ok bool, r rule) Field {
	if ok {
		r = 0
	}
	return Field{key: key, number: value, numeric: true, broken: r}
}

// Set is any other assignment. The key is made of A to Z, 0 to 9 and _, and does
// not begin with a digit. It is not BARRIER, FDSTORE or MAINPIDFD, which need a
// descriptor: see [Barrier] and [StoreFiles]. The value holds no newline,
// carriage return or NUL. Any other key or value is invalid.
func Set(key, value string) Field {
	f := Field{key: key, text: value}
	switch {
	case !validKey(key):
		f.broken = ruleKey
	case key == "BARRIER" || key == "FDSTORE" || key == "MAINPIDFD":
		f.broken = ruleDescriptor
	case strings.ContainsAny(value, "\n\r\x00"):
		f.broken = ruleValue
	}
	return f
}

func validKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		if c != '_' && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return key != ""
}
