//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// stat is a part of proc_pid_stat(5).
type stat struct {
	state   string // R, S, T and so on; empty: there is no such process
	parent  int
	session int
	tty     int // 0: none
}

func read(pid int) (s stat) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s
	}
	// The fields after the name, which may hold anything.
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
	s.state = fields[0]
	s.parent, _ = strconv.Atoi(fields[1])
	s.session, _ = strconv.Atoi(fields[3])
	s.tty, _ = strconv.Atoi(fields[4])
	return s
}

// descriptor is what a process has as its descriptor fd.
func descriptor(pid, fd int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	switch {
	case os.IsNotExist(err):
		return "closed"
	case err != nil:
		return "not to be seen: " + err.Error()
	}
	return path
}
