module github.com/seed-10280e03/daemon

go 1.25.0

require golang.org/x/sys v0.47.0
