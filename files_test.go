//go:build linux

package daemon_test

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/seed-10280e03/daemon"
	"github.com/seed-10280e03/daemon/daemontest"
	"golang.org/x/sys/unix"
)

func init() {
	programs["files-passed"] = tellFiles
}

// tellFiles tells what Files returns. Its arguments are what happens before:
// "unset" (UnsetEnvironment), or "nonblock", the mode of the first.
func tellFiles() {
	if slices.Contains(os.Args, "nonblock") {
		try(unix.SetNonblock(3, true))
	}
	if slices.Contains(os.Args, "unset") {
		daemon.UnsetEnvironment()
	}
	files := daemon.Files()
	for _, file := range files {
		flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0)
		try(err)
		content, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
		try(err)
		fmt.Printf("%d %q holds %q, close-on-exec %d\n", file.Fd(), file.Name(), content, flags)
	}
	daemon.UnsetEnvironment()
	again := daemon.Files()
	fmt.Println(files != nil, slices.Equal(files, again))
	for _, file := range files {
		try(file.Close())
	}
	if len(files) > 0 {
		again[0] = nil // in the caller's own list
		fmt.Println(daemon.Files()[0] == files[0] && files[0] != nil)
	}
}

func TestFilesArePassed(t *testing.T) {
	const own = "$$" // the shell's pid becomes the program's
	for _, test := range []struct {
		name, pid, count, names, before string
		want                            []string // none: no file
	}{
		{"two", own, "2", "web:db", "", []string{"web", "db"}},
		{"one of two", own, "1", "web", "", []string{"web"}},
		{"same name", own, "2", "web:web", "", []string{"web", "web"}},
		{"no names", own, "2", "", "", []string{"unknown", "unknown"}},
		{"fewer names", own, "2", "web", "", []string{"web", "unknown"}},
		{"more names", own, "2", "web:db:x", "", []string{"web", "db"}},
		{"environment unset before", own, "2", "web:db", "unset", []string{"web", "db"}},
		{"non-blocking", own, "2", "web:db", "nonblock", []string{"web", "db"}},
		{"fewer open than promised", own, "5", "web:db", "", []string{"web", "db"}},
		{"fewer open than promised, non-blocking", own, "5", "web:db", "nonblock", []string{"web", "db"}},
		{"many more promised", own, "2000000000", "web:db", "", []string{"web", "db"}},

		{"no pid", "", "2", "web:db", "", nil},
		{"other pid", "$PPID", "2", "web:db", "", nil},
		{"other pid, unset", "$PPID", "2", "web:db", "unset", nil},
		{"none", own, "0", "", "", nil},
		{"no number", own, "", "web:db", "", nil},
		{"negative", own, "-1", "web:db", "", nil},
		{"not a number", own, "x", "web:db", "", nil},
		{"too great", own, "9223372036854775807", "web:db", "", nil},
		{"far too great", own, "18446744073709551617", "web:db", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := inShell(program(t, "files-passed", test.before), `export LISTEN_PID=`+test.pid+`; exec "$0" "$@"`,
				"LISTEN_FDS="+test.count, "LISTEN_FDNAMES="+test.names)
			cmd.ExtraFiles = []*os.File{memory(t, "first"), memory(t, "second")}
			c := startCommand(t, cmd)
			for i, name := range test.want {
				c.says(fmt.Sprintf("%d %q holds %q, close-on-exec %d", 3+i, name, []string{"first", "second"}[i], unix.FD_CLOEXEC))
			}
			c.says(fmt.Sprint(len(test.want) > 0, true))
			if len(test.want) > 0 {
				c.says("true")
			}
			c.exits(0)
		})
	}
}

// memory is a file of its own.
func memory(t testing.TB, content string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("daemon-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), content)
	t.Cleanup(func() { file.Close() })
	if _, err := file.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestStoreFilesSendsEachFileOnce(t *testing.T) {
	systemd := daemontest.Systemd(t)
	var files []*os.File
	for i := range 507 {
		files = append(files, memory(t, fmt.Sprint(i)))
	}
	long := strings.Repeat("n", 255)
	for _, test := range []struct {
		name, as, raw string
		files         int
		messages      []int
	}{
		{"one", "a", "a", 1, []int{1}},
		{"all characters", ` !"~\`, ` !"~\\`, 2, []int{2}},
		{"longest name", long, long, 1, []int{1}},
		{"253", "a", "a", 253, []int{253}},
		{"254", "a", "a", 254, []int{253, 1}},
		{"507", "a", "a", 507, []int{253, 253, 1}},
		{"none", "a", "a", 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := daemon.StoreFiles(test.as, files[:test.files]...); err != nil {
				t.Fatal(err)
			}
			next := 0
			heard := notifications(t, systemd)
			for i, n := range heard {
				if want := "FDSTORE=1\nFDNAME=" + test.raw + "\n"; string(n.Raw) != want || len(n.Files) != test.messages[i] {
					t.Fatalf("%v, want %q with %d files", n, want, test.messages[i])
				}
				for _, file := range n.Files {
					content, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
					if want := fmt.Sprint(next); string(content) != want || err != nil {
						t.Errorf("%q, %v, want %s", content, err, want)
					}
					file.Close()
					next++
				}
			}
			if next != test.files || len(heard) != len(test.messages) {
				t.Errorf("%d files in %d messages", next, len(heard))
			}
			means(t, systemd, daemon.RemoveFiles(test.as), "FDSTOREREMOVE=1", "FDNAME="+test.as)
		})
	}
}

func TestStoreFilesLeavesTheCallersFileAsItIs(t *testing.T) {
	systemd := daemontest.Systemd(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := daemon.StoreFiles("a", r); err != nil {
		t.Fatal(err)
	}
	var flags int
	conn, err := r.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { flags, _ = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	}
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x (%v): a read could not be ended any more", flags, err)
	}
	r.Close()
	kept := systemd.Next(t.Context()).Files[0]
	if _, err := w.WriteString("hello"); err != nil {
		t.Error(err)
	}
	w.Close()
	if got, err := io.ReadAll(kept); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStoreFilesRefuses(t *testing.T) {
	systemd := daemontest.Systemd(t)
	open, closed := memory(t, "open"), memory(t, "closed")
	closed.Close()
	many := slices.Repeat([]*os.File{open}, 300)
	for _, test := range []struct {
		name, as string
		files    []*os.File
		want     error
	}{
		{"no name", "", many[:1], unix.EINVAL},
		{"no name and no files", "", nil, unix.EINVAL},
		{"long name", strings.Repeat("n", 256), many[:1], unix.EINVAL},
		{"colon", "a:b", many[:1], unix.EINVAL},
		{"newline", "a\nFDPOLL=0", many[:1], unix.EINVAL},
		{"control character", "a\x1b", many[:1], unix.EINVAL},
		{"DEL", "\x7f", many[:1], unix.EINVAL},
		{"not ASCII", "é", many[:1], unix.EINVAL},
		{"closed file", "a", []*os.File{open, closed}, os.ErrClosed},
		{"closed file behind many", "a", append(many, closed), os.ErrClosed},
		{"nil", "a", []*os.File{open, nil}, os.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			refuses(t, systemd, daemon.StoreFiles(test.as, test.files...), test.want)
			if test.want == unix.EINVAL {
				refuses(t, systemd, daemon.RemoveFiles(test.as), test.want)
			}
		})
	}
}
