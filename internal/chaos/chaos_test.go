//go:build linux

package chaos_test

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
	"golang.org/x/sys/unix"
)

// Whoever is killed at whatever instant of a detach: the caller is told no lie,
// and nothing is left behind.

var (
	chaosRounds = flag.Int("chaos.rounds", 500, "how many detaches the chaos test disturbs")
	chaosSeed   = flag.Uint64("chaos.seed", 0, "repeats the choices of a chaos test that printed it; 0: new ones")
)

const (
	chaosAtOnce   = 6
	chaosMaxDelay = 300 * time.Millisecond
)

func TestDetachTellsNoLieWhoeverIsKilled(t *testing.T) {
	testdaemon.Alone(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	rounds := testdaemon.Rounds(*chaosRounds)
	t.Logf("to repeat it: -chaos.rounds=%d -chaos.seed=%d", rounds, seed)

	// Orphans become this process's children: it can tell then, wherever it
	// runs, for whom a launcher has not waited.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

	tally := chaosTally{count: map[string]map[string]int{}}
	numbers := make(chan int)
	var players sync.WaitGroup
	for range chaosAtOnce {
		players.Go(func() {
			for number := range numbers {
				r := newChaosRound(t, seed, number)
				r.play()
				tally.add(r)
			}
		})
	}
	for number := 0; number < rounds && !t.Failed(); number++ {
		numbers <- number
	}
	close(numbers)
	players.Wait()
	tally.mustEndSoon(t)
	t.Log(&tally)
	if rounds >= 500 && !t.Failed() {
		tally.mustHave(t, "launcher, waiting", "SIGKILL: failure", "SIGTERM: failure")
		tally.mustHave(t, "daemon, before its init", "SIGKILL: failure")
		tally.mustHave(t, "daemon, in main", "SIGKILL: failure", "SIGTERM: failure")
		tally.mustHave(t, "daemon, after Ready", "SIGKILL: success", "SIGTERM: success")
	}
}

// A chaosRound is one start of the daemon that is disturbed.
type chaosRound struct {
	t      *testing.T
	random *rand.Rand
	number int
	mark   string // in the environment of its processes
	dir    string // where they might leave files

	verb     string // how the daemon detaches
	delay    time.Duration
	atDaemon bool // goes the signal, or at the launcher
	signal   syscall.Signal

	command *exec.Cmd     // the first process, and then the launcher
	exited  chan struct{} // closed when that has been waited for,
	exitAt  int64         // and when that was
	ended   chan struct{} // closed when no process has the pipe any more
	inMain  chan struct{} // closed when the daemon is in main,
	calling chan struct{} // and when it calls Ready

	mu            sync.Mutex
	first, daemon chaosVoice

	hit    string // who was hit, and how far that was; empty: nobody
	hitAt  int64
	result string
	took   time.Duration // from the hit to the end of the last process
}

// A chaosVoice is a process that is heard on the pipe.
type chaosVoice struct {
	pid     int
	stage   string // the last it has come to
	calling int64  // when it called Ready; 0: not yet
}

func newChaosRound(t *testing.T, seed uint64, number int) *chaosRound {
	random := rand.New(rand.NewPCG(seed, uint64(number)))
	return &chaosRound{
		t: t, random: random, number: number, dir: t.TempDir(),
		mark:     fmt.Sprintf("%s=%d.%d.%d", agreed.ChaosMark, os.Getpid(), seed, number),
		verb:     []string{"Ready", "Detach"}[random.IntN(2)],
		delay:    time.Duration(random.Float64() * random.Float64() * float64(chaosMaxDelay)),
		atDaemon: random.IntN(2) == 1,
		signal:   []syscall.Signal{unix.SIGKILL, unix.SIGTERM}[random.IntN(2)],
		exited:   make(chan struct{}), ended: make(chan struct{}),
		inMain: make(chan struct{}), calling: make(chan struct{}),
	}
}

func (r *chaosRound) play() {
	if err := r.start(); err != nil {
		r.t.Error(err)
		return
	}
	defer r.clear()
	r.awaitInstant()
	r.strike()
	if r.await("the command returns", func() bool { return isClosed(r.exited) }) {
		r.judge()
	}
	if r.hit != "" && isClosed(r.ended) {
		r.took = time.Duration(agreed.Clock() - r.hitAt)
	}
}

func (r *chaosRound) errorf(format string, args ...any) {
	r.t.Helper()
	first, daemon := r.heard()
	status := "running"
	if isClosed(r.exited) {
		status = fmt.Sprint(r.command.ProcessState, " at ", r.exitAt)
	}
	r.t.Errorf("round %d (%s, ready after %v; %v to the daemon: %v; hit %q at %d): %s\nlauncher: %s; %+v %+v",
		r.number, r.verb, r.delay, r.signal, r.atDaemon, r.hit, r.hitAt, fmt.Sprintf(format, args...),
		status, first, daemon)
}

// await waits for something, and says whether it came.
func (r *chaosRound) await(what string, done func() bool) bool {
	r.t.Helper()
	for deadline := time.Now().Add(testdaemon.Patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.errorf("not within %v: %s", testdaemon.Patience, what)
			return false
		}
	}
	return true
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (r *chaosRound) start() error {
	pipe, others, err := os.Pipe()
	if err != nil {
		return err
	}
	defer others.Close()
	r.command = testdaemon.Program(r.t, "chaos", r.verb, r.delay.String())
	r.command.Env = append(r.command.Env, r.mark, "HOME="+r.dir, "TMPDIR="+r.dir)
	r.command.Dir, r.command.Stderr, r.command.ExtraFiles = r.dir, others, []*os.File{others}
	r.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.command.Start(); err != nil {
		return err
	}
	r.first.pid = r.command.Process.Pid
	go r.listen(pipe)
	go func() {
		_ = r.command.Wait()
		r.exitAt = agreed.Clock()
		close(r.exited)
	}()
	return nil
}

func (r *chaosRound) listen(pipe *os.File) {
	defer close(r.ended)
	defer pipe.Close()
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		var stage string
		var pid int
		var at int64
		if n, _ := fmt.Sscan(lines.Text(), &stage, &pid, &at); n == 3 {
			r.hear(stage, pid, at)
		} else {
			r.t.Errorf("round %d: on standard error: %s", r.number, lines.Text())
		}
	}
}

func (r *chaosRound) hear(stage string, pid int, at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid == r.first.pid {
		r.first.stage = stage
		return
	}
	if r.daemon.pid != 0 && r.daemon.pid != pid {
		r.t.Errorf("round %d: process %d is a second daemon, after %d", r.number, pid, r.daemon.pid)
		return
	}
	r.daemon.pid, r.daemon.stage = pid, stage
	switch stage {
	case "main":
		close(r.inMain)
	case "calling":
		r.daemon.calling = at
		close(r.calling)
	}
}

func (r *chaosRound) heard() (first, daemon chaosVoice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first, r.daemon
}

// awaitInstant waits for a while after the start, while the processes start or
// beyond that; after the beginning of the daemon's main; or after its call of
// Ready.
func (r *chaosRound) awaitInstant() {
	span := 40 * time.Millisecond
	switch r.random.IntN(4) {
	case 1:
		span = 100*time.Millisecond + r.delay
		if r.verb == "Ready" { // the first process waits as long
			span += r.delay
		}
	case 2:
		span = r.delay
		r.awaitStage(r.inMain)
	case 3:
		span = 500 * time.Microsecond
		r.awaitStage(r.calling)
	}
	instant := time.Now().Add(time.Duration(r.random.Float64() * float64(span)))
	if span > time.Millisecond {
		time.Sleep(time.Until(instant))
	}
	for time.Now().Before(instant) { // a sleep is too coarse
	}
}

func (r *chaosRound) awaitStage(stage <-chan struct{}) {
	select {
	case <-stage:
	case <-r.ended:
	case <-time.After(testdaemon.Patience):
		r.errorf("no daemon within %v", testdaemon.Patience)
	}
}

// strike sends the signal, if there is somebody whom it can hit.
func (r *chaosRound) strike() {
	victim := r.command.Process
	if r.atDaemon {
		if victim = r.awaitDaemon(); victim == nil {
			return
		}
		defer victim.Release()
	}
	hit := r.where(victim.Pid)
	r.hitAt = agreed.Clock()
	if victim.Signal(r.signal) == nil {
		r.hit = hit
	}
}

// awaitDaemon returns nil if there is no daemon any more.
func (r *chaosRound) awaitDaemon() *os.Process {
	for deadline := time.Now().Add(testdaemon.Patience); time.Now().Before(deadline); {
		over := isClosed(r.exited)
		_, daemon := r.heard()
		pids := []int{daemon.pid}
		if daemon.pid == 0 {
			pids = r.processes()
		}
		for _, pid := range pids {
			// The handle is a pidfd: what it stands for does not change.
			victim, err := os.FindProcess(pid)
			if err == nil && pid != r.first.pid && r.owns(pid) {
				return victim
			}
		}
		if over {
			return nil
		}
	}
	r.errorf("no daemon within %v", testdaemon.Patience)
	return nil
}

// launcherMarker is in the environment of a launcher.
var launcherMarker = regexp.MustCompile("_DAEMON_DETACH=[^:\x00]*:launcher:")

// where says what a process of the round is doing.
func (r *chaosRound) where(pid int) string {
	first, daemon := r.heard()
	launcher := launcherMarker.MatchString(procRead(pid, "environ"))
	switch {
	case pid == first.pid && isZombie(pid):
		return "launcher, ended" // or a thread of the first process in its execve
	case pid == first.pid && launcher && (daemon.pid != 0 || len(r.processes()) > 1):
		return "launcher, waiting"
	case pid == first.pid && launcher:
		return "launcher, starting"
	case pid == first.pid:
		return "first process, " + chaosStages[first.stage]
	case launcher:
		return "daemon, before its execve"
	case daemon.stage == "" && procRead(pid, "comm") == "exe\n":
		return "daemon, before its init"
	}
	return "daemon, " + chaosStages[daemon.stage]
}

func isZombie(pid int) bool {
	s, err := testdaemon.ReadStat(pid)
	return err == nil && s.State == "Z"
}

// chaosStages are the stages' names in the order of chaosDaemon.
var chaosStages = map[string]string{
	"":        "in init",
	"begun":   "after init",
	"main":    "in main",
	"calling": "in Ready",
	"ready":   "after Ready",
}

// judge compares what the caller is told with what there is.
func (r *chaosRound) judge() {
	status := r.command.ProcessState.Sys().(syscall.WaitStatus)
	passedOn := r.hit != "" && (r.atDaemon || r.signal == unix.SIGTERM)
	switch {
	case status.Exited() && status.ExitStatus() == 0:
		r.result = "success"
		r.await("the daemon calls Ready, as the status says", func() bool { return isClosed(r.calling) })
		if _, daemon := r.heard(); daemon.calling > r.exitAt {
			r.errorf("the status was there before the daemon called Ready")
		}
		if !passedOn {
			r.mustLive()
		} else if r.atDaemon {
			r.mustBeGone()
		}
	case r.hit == "" || !status.Signaled() || status.Signal() != r.signal:
		r.errorf("a status that nobody caused")
	case passedOn:
		r.result = "failure"
		if r.orphans(unix.WNOWAIT) != unix.ECHILD {
			r.errorf("the launcher has not waited for the daemon")
		}
		r.mustBeGone()
		if _, daemon := r.heard(); daemon.stage == "ready" {
			r.errorf("the launcher has not listened to the daemon")
		}
	default:
		r.result = "failure"
		r.judgeOrphan()
	}
}

// judgeOrphan is for a daemon whose launcher has been killed.
func (r *chaosRound) judgeOrphan() {
	ready := func() bool { _, daemon := r.heard(); return daemon.stage == "ready" }
	r.await("the daemon ends or has been in time", func() bool { return isClosed(r.ended) || ready() })
	if !ready() {
		r.mustBeGone()
		return
	}
	r.result = "failure, with the word on its way"
	if _, daemon := r.heard(); daemon.calling > r.exitAt {
		r.errorf("a Ready called after the launcher's end returned nil")
	}
	r.mustLive()
}

// mustLive is for a daemon that has told its launcher.
func (r *chaosRound) mustLive() {
	ready := func() bool { _, daemon := r.heard(); return daemon.stage == "ready" || isClosed(r.ended) }
	if !r.await("Ready returns", ready) {
		return
	}
	_, daemon := r.heard()
	if daemon.stage != "ready" || isClosed(r.ended) || !r.owns(daemon.pid) {
		r.errorf("the daemon has ended")
	}
	for _, pipe := range chaosPipes(daemon.pid) {
		if !slices.Contains(chaosPipes(os.Getpid()), pipe) { // not the caller's
			r.errorf("the daemon still has a pipe of its own, %s", pipe)
		}
	}
}

// chaosPipes are the pipes that a process has open.
func chaosPipes(pid int) (pipes []string) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.HasPrefix(target, "pipe:") {
			pipes = append(pipes, target)
		}
	}
	return pipes
}

// mustBeGone waits until no process is left, not even one to be waited for.
func (r *chaosRound) mustBeGone() {
	r.await("all processes end", func() bool { return isClosed(r.exited) && isClosed(r.ended) })
	r.await("the orphans end", func() bool { return r.orphans(0) == unix.ECHILD })
	left := r.processes()
	for _, pid := range procPIDs() {
		if r.owns(pid) {
			left = append(left, pid)
		}
	}
	if len(left) > 0 {
		r.errorf("left processes: %v", left)
	}
}

// clear ends what the round was to leave, and looks for what it was not.
func (r *chaosRound) clear() {
	for _, pid := range r.processes() {
		if r.owns(pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	r.mustBeGone()
	if files, err := os.ReadDir(r.dir); err != nil || len(files) > 0 {
		r.errorf("left files: %v (%v)", files, err)
	}
}

// orphans waits for a child that the launcher has left behind and that has
// ended, if any has. The error is ECHILD if none is left.
func (r *chaosRound) orphans(options int) error {
	_, daemon := r.heard()
	options |= unix.WEXITED | unix.WNOHANG
	err := unix.Waitid(unix.P_PGID, r.command.Process.Pid, nil, options, nil)
	if err == unix.ECHILD && daemon.pid != 0 { // and a group of its own
		err = unix.Waitid(unix.P_PID, daemon.pid, nil, options, nil)
	}
	return err
}

// processes are those of the round: the launcher's group, and the daemon that
// leaves it.
func (r *chaosRound) processes() (pids []int) {
	first, daemon := r.heard()
	for _, pid := range procPIDs() {
		s, err := testdaemon.ReadStat(pid)
		if err == nil && (s.Group == first.pid || pid == daemon.pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// owns tells whether a process runs that is the round's.
func (r *chaosRound) owns(pid int) bool {
	return strings.Contains(procRead(pid, "environ"), r.mark+"\x00")
}

func procPIDs() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// procRead reads a file about a process, which is empty if that has ended.
func procRead(pid int, file string) string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return string(content)
}

// A chaosTally counts whom the signals hit, and what the caller was told.
type chaosTally struct {
	mu    sync.Mutex
	count map[string]map[string]int
	took  []time.Duration // from a hit to the end of all processes
}

func (c *chaosTally) add(r *chaosRound) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hit := r.hit
	if hit == "" {
		hit = "nobody any more"
	}
	if c.count[hit] == nil {
		c.count[hit] = map[string]int{}
	}
	c.count[hit][unix.SignalName(r.signal)+": "+r.result]++
	if r.took > 0 {
		c.took = append(c.took, r.took)
	}
}

// soon is how long the processes of a round have to end, of which the daemon
// may take 300 ms to call Ready.
const soon = 2 * time.Second

// mustEndSoon allows for a busy machine: some of the rounds may take longer.
func (c *chaosTally) mustEndSoon(t *testing.T) {
	t.Helper()
	slices.Sort(c.took)
	if n := len(c.took); n > 0 && c.took[n*9/10] > soon {
		t.Errorf("one end of all processes in ten took more than %v", c.took[n*9/10])
	}
}

// mustHave fails if one of the results never came: a signal that is lost, for instance,
// looks as if it had come too late.
func (c *chaosTally) mustHave(t *testing.T, hit string, results ...string) {
	t.Helper()
	for _, result := range results {
		if c.count[hit][result] == 0 {
			t.Errorf("%s: never %s", hit, result)
		}
	}
}

func (c *chaosTally) String() string {
	text := "who was hit, by what, and what the caller was told:\n"
	for _, hit := range slices.Sorted(maps.Keys(c.count)) {
		total := 0
		results := ""
		for _, result := range slices.Sorted(maps.Keys(c.count[hit])) {
			total += c.count[hit][result]
			results += fmt.Sprintf("; %s %d", result, c.count[hit][result])
		}
		text += fmt.Sprintf("%5d %s%s\n", total, hit, results)
	}
	if n := len(c.took); n > 0 {
		text += fmt.Sprintf("the end of all processes came %v after the signal (median), at the latest %v",
			c.took[n/2], c.took[n-1])
	}
	return text
}
