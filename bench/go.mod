module github.com/seed-10280e03/daemon/bench

go 1.25.0

replace github.com/seed-10280e03/daemon => ../

require (
	github.com/coreos/go-systemd/v22 v22.7.0
	github.com/mdlayher/sdnotify v1.0.0
	github.com/seed-10280e03/daemon v0.0.0-00010101000000-000000000000
	golang.org/x/sys v0.47.0
)
