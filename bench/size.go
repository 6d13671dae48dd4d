//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func sizes(directory string) {
	size := func(program string) int64 {
		info, err := os.Stat(filepath.Join(directory, program))
		check(err)
		return info.Size()
	}
	base := size("none")
	rows := [][]string{{"program", "bytes", "added"}}
	for _, p := range []struct{ name, program string }{
		{"imports only os", "none"},
		{"**daemon**.Ready", "daemon"},
		{"mdlayher/sdnotify.New, Notify", "mdlayher"},
		{"go-systemd/daemon.SdNotify", "gosystemd"},
	} {
		n := size(p.program)
		rows = append(rows, []string{p.name, fmt.Sprint(n), fmt.Sprintf("%+d", n-base)})
	}
	table(rows)
	own, goSystemd := size("daemon")-base, size("gosystemd")-base
	want(own < goSystemd, "a binary grows by less than with go-systemd's daemon package: %d bytes, and %d there", own, goSystemd)
}
