module github.com/seed-10280e03/daemon/examples/upgrade

go 1.25.0

require (
	github.com/cloudflare/tableflip v1.2.3
	github.com/seed-10280e03/daemon v0.0.0
)

require golang.org/x/sys v0.47.0 // indirect

replace github.com/seed-10280e03/daemon => ../..
