//go:build linux

package daemontest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// A process is what /proc/PID/stat tells of one (proc_pid_stat(5)).
type process struct {
	pid, parent, session int
	state                string // "R", "S", "T" and so on
	start                uint64 // clock ticks after boot
}

// readProcess returns an error if there is no such process.
func readProcess(pid int) (p process, err error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	// The second field is the command's name in parentheses, and may hold
	// spaces and parentheses itself.
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	number := func(field int) uint64 {
		n, parseErr := strconv.ParseUint(string(fields[field-3]), 10, 64)
		if parseErr != nil {
			err = parseErr
		}
		return n
	}
	p.pid = pid
	p.state = string(fields[0])
	p.parent, p.session, p.start = int(number(4)), int(number(6)), number(22)
	return p, err
}

// ended reports whether a process only waits to be waited for. The leader of
// threads that have not ended all may do so, and has its children until then.
func (p process) ended() bool { return p.state == "Z" || p.state == "X" }

// processes returns all that there are, in the order of their pids. One that
// starts or ends meanwhile may be missing.
func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var all []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// children returns the processes whose parent is pid, apart from those that have
// ended.
func children(pid int) []process {
	var found []process
	for _, p := range processes() {
		if p.parent == pid && !p.ended() {
			found = append(found, p)
		}
	}
	return found
}

// descendants returns the pids of the children of pid, of their children and so
// on, parents first, apart from those that have ended.
func descendants(pid int) (pids []int) {
	all := processes()
	found := []process{{pid: pid}}
	for i := 0; i < len(found); i++ {
		for _, p := range all {
			if p.parent != found[i].pid {
				continue
			}
			if found = append(found, p); !p.ended() {
				pids = append(pids, p.pid)
			}
		}
	}
	return pids
}

// isBelow reports whether a process descends from another, also when one in
// between ends meanwhile.
func isBelow(pid, ancestor int) bool {
	for range 100 {
		p, err := readProcess(pid)
		if err != nil {
			return false
		}
		for err == nil && p.parent != ancestor && p.parent > 1 {
			p, err = readProcess(p.parent)
		}
		if err == nil {
			return p.parent == ancestor
		}
	}
	return false
}
