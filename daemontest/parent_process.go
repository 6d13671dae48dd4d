//go:build linux

package daemontest

import (
	"cmp"
	"encoding/gob"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The argv[0] that make the test binary a parent process, or a child, which is
// what the command's process is until it executes the command.
const (
	parentName = "daemontest-parent"
	childName  = "daemontest-child"
)

// The descriptors of a parent process, after the command's standard streams.
// The command's further descriptors follow them.
const (
	ordersFD   = 3 + iota
	reportsFD  // the last, if the parent is neither a shell nor systemd
	terminalFD // a shell's

	filesFD = terminalFD // systemd's: a socket by which a service's files arrive
)

func init() {
	// syscall.Exit, because os.Exit takes a second under the race detector.
	switch {
	case len(os.Args) == 1 && os.Args[0] == parentName:
		syscall.Exit(runParent())
	case len(os.Args) > 4 && os.Args[0] == childName:
		syscall.Exit(runChild())
	}
}

// runParent is the main function of the parent process. It returns when there
// is no process left below it, and never will be.
func runParent() int {
	orders := gob.NewDecoder(os.NewFile(ordersFD, "orders"))
	f := family{
		reports: gob.NewEncoder(os.NewFile(reportsFD, "reports")),
		told:    map[int]bool{},
		wake:    make(chan struct{}, 1),
	}
	if orders.Decode(&f.task) != nil {
		return 1
	}
	if f.task.Role == asSystemd {
		f.passed = receiveFiles(f.task.Files)
	}
	go f.obey(orders)
	for started := f.start(0); started; started = f.startAgain() {
		f.watch()
	}
	return 0
}

// A family is the command and all that comes of it, as the parent sees them.
type family struct {
	task    task
	reports *gob.Encoder
	passed  []uintptr     // asSystemd: the command's descriptors from 3 on
	wake    chan struct{} // asSystemd: again or over has become true

	// mu is held to wait for a process and to signal one, so that no signal
	// goes to a pid whose process is gone and which may be another's now.
	mu       sync.Mutex
	command  int // its pid
	started  time.Time
	gone     bool           // the command has ended
	answered bool           // asInit: its SIGSTOP
	again    bool           // it is to be started once more
	over     bool           // it is not
	ending   syscall.Signal // not 0: nobody is to live on, and this tells them so
	told     map[int]bool   // who has had the SIGTERM
}

// start starts the command, in the place of the old process if there was one,
// and reports whether it could.
func (f *family) start(old int) bool {
	if err := f.forkCommand(); err != nil {
		f.report(report{Event: hasNotStarted, Old: old, Err: err.Error()})
		return false
	}
	f.report(report{Event: hasStarted, Old: old, PID: f.command, At: monotonic() - time.Since(f.started).Nanoseconds()})
	return true
}

func (f *family) forkCommand() (err error) {
	// Adopt what the command leaves behind, as init does.
	if err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if err = closeOnExec(); err != nil {
		return err
	}
	files := f.files()
	if err = f.fork(files); err != nil {
		return err
	}
	switch f.task.Role {
	case asShell:
		f.ignoreKeys()
		f.letGo(files)
	case asDescriptor:
		f.letGo(files)
	}
	return nil // and keep the files, to start it again
}

// hasStarted takes notice of the command's process.
func (f *family) hasStarted(pid int, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.command, f.started = pid, at
	f.gone, f.answered, f.again = false, false, false
	if !f.over {
		f.ending = 0
	}
	f.tell()
}

// startAgain starts the command again, if it is to be: it and all that it has
// left behind are gone. A service may be started again at any time.
func (f *family) startAgain() bool {
	for {
		f.mu.Lock()
		again, over, old := f.again, f.over, f.command
		f.mu.Unlock()
		switch {
		case over:
			return false
		case again:
			return f.start(old)
		case f.task.Role != asSystemd:
			return false
		}
		<-f.wake
	}
}

// files are the descriptors that become the command's 0, 1, 2 and so on.
func (f *family) files() []uintptr {
	files := []uintptr{0, 1, 2}
	next := terminalFD
	switch f.task.Role {
	case asSystemd:
		return append(files, f.passed...)
	case asShell:
		next++
	}
	for i := range f.task.Files {
		files = append(files, uintptr(next+i))
	}
	return files
}

// closeOnExec keeps from the command what it is not given: the descriptors
// between parent and test, and those that the test was started with.
func closeOnExec() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// letGo closes the command's descriptors here, so that a reader of its output
// sees the end of it.
func (f *family) letGo(files []uintptr) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	for _, fd := range files {
		if fd > 2 || err != nil {
			unix.Close(int(fd))
		} else {
			unix.Dup3(int(null.Fd()), int(fd), unix.O_CLOEXEC)
		}
	}
}

func (f *family) report(r report) {
	f.reports.Encode(r) // an error: no one listens, and the orders have ended
}

// obey carries out orders until they end: because the test has, in whatever
// way.
func (f *family) obey(orders *gob.Decoder) {
	for {
		var o order
		if orders.Decode(&o) != nil {
			break
		}
		f.report(report{Event: hasObeyed, Order: o.Number, Errno: f.carryOut(o)})
	}
	f.end(unix.SIGTERM)
	time.Sleep(f.task.Grace) // the process exits as soon as it has no children
	f.end(unix.SIGKILL)
	time.Sleep(Timeout)
	f.report(report{Event: hasFailed, Err: fmt.Sprintf("these processes could not be killed: %v", descendants(os.Getpid()))})
	syscall.Exit(1)
}

func (f *family) carryOut(o order) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch o.Do {
	case toContinue:
		return f.resume()
	case toSignal:
		return signalBelow(o.PID, o.Signal)
	case toSignalAll:
		signalBelow(o.PID, o.Signal)
		for _, pid := range descendants(os.Getpid()) {
			if pid != o.PID {
				signalBelow(pid, o.Signal)
			}
		}
	case toKill:
		f.ending = unix.SIGKILL
		f.tell()
		unix.Write(f.task.PromptFD, f.task.Prompt)
	case toStart:
		return f.replace(o)
	}
	return 0
}

// replace kills all that there is of the command, which is then started again.
func (f *family) replace(o order) syscall.Errno {
	if o.PID != f.command || f.gone && f.task.Role != asSystemd {
		return unix.ESRCH
	}
	if f.task.Role == asSystemd {
		closeFDs(f.passed)
		f.passed, f.task.Env = receiveFiles(o.Files), o.Env
	}
	f.again, f.ending = true, unix.SIGKILL
	f.tell()
	f.awake()
	return 0
}

// awake has startAgain look once more.
func (f *family) awake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// signalBelow sends a signal to a process below this one. It does so by a
// descriptor of the process, since a pid may be another's by then, if the kernel
// has that (5.3).
func signalBelow(pid int, sig syscall.Signal) syscall.Errno {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	if err == unix.ESRCH || !isBelow(pid, os.Getpid()) {
		return unix.ESRCH
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	} else {
		err = unix.Kill(pid, sig)
	}
	errno, _ := err.(syscall.Errno)
	return errno
}

// watch sees processes stop and end until none is left.
func (f *family) watch() {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT, nil)
		if err == unix.ECHILD {
			return
		}
		f.look()
	}
}

// look takes notice of what watch has seen.
func (f *family) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WUNTRACED, nil)
	if err != nil || pid == 0 {
		return
	}
	r := report{PID: pid, Status: syscall.WaitStatus(status), After: time.Since(f.started)}
	switch {
	case !status.Stopped():
		f.hasEnded(r)
	case pid == f.command:
		f.hasStopped(r)
	}
}

// hasStopped answers the command's stop as the parent's role demands.
func (f *family) hasStopped(r report) {
	r.Event = hasStopped
	if p, err := readProcess(r.PID); err == nil {
		r.State = p.state
	}
	switch f.task.Role {
	case asInit:
		// Once: `expect stop` is over then.
		r.Answered = r.Status.StopSignal() == unix.SIGSTOP && !f.answered
		if r.Answered {
			f.answered = true
			unix.Kill(r.PID, unix.SIGCONT)
		}
	case asShell:
		f.foreground(os.Getpid())
	}
	f.report(r)
}

// hasEnded takes notice of a child's end.
func (f *family) hasEnded(r report) {
	r.Event = hasEnded
	delete(f.told, r.PID)
	if r.PID == f.command {
		f.gone = true
		r.Left, r.Again = f.left(), f.again
		if f.task.Role == asShell {
			f.foreground(os.Getpid())
			unix.Write(f.task.PromptFD, f.task.Prompt)
		}
	}
	f.report(r)
	if f.task.Role == asInit && r.PID == f.command {
		f.ending = unix.SIGKILL // a job is its main process
	}
	f.tell()
}

// left are the children that remain of the command: those that lead a session
// first, as a daemon does, and then the oldest.
func (f *family) left() (pids []int) {
	all := children(os.Getpid())
	slices.SortFunc(all, func(a, b process) int {
		if leads := a.session == a.pid; leads != (b.session == b.pid) {
			if leads {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.start, b.start)
	})
	for _, p := range all {
		pids = append(pids, p.pid)
	}
	return pids
}

// end has every process end: by a SIGTERM, or by a SIGKILL, which stays.
func (f *family) end(sig syscall.Signal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.awake()
	if f.ending != unix.SIGKILL {
		f.ending = sig
	}
	f.tell()
}

// tell has each child end, if that is due. What a child leaves behind is a
// child too, once it has ended, and then it is told.
func (f *family) tell() {
	if f.ending == 0 {
		return
	}
	for _, p := range children(os.Getpid()) {
		switch {
		case f.ending == unix.SIGKILL:
			unix.Kill(p.pid, unix.SIGKILL)
		case !f.told[p.pid]:
			f.told[p.pid] = true
			unix.Kill(p.pid, unix.SIGTERM)
			unix.Kill(p.pid, unix.SIGCONT)
		}
	}
}
