//go:build linux

package documents_test

import (
	"context"
	"fmt"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-10280e03/daemon/internal/testdaemon"
)

// What the documents show works: each block is checked by what its language
// says, and each link to a file of the repository leads there. docs/CONTRIBUTING.md
// has the rules for those who write them.

// A document is a Markdown file; path is the one in the repository.
type document struct {
	path, text string
}

// A block is what stands between two fences. The test of its language finds
// fault with it by the document's line numbers.
type block struct {
	document string
	line     int // the number of its first line
	language string
	text     string
}

func (b block) String() string {
	return fmt.Sprintf("%s:%d: %s block", b.document, b.line, b.language)
}

// languages are those that a block may be written in, with what checks them.
// The others are for the eye alone.
var languages = map[string]func(t *testing.T, checkout string, blocks []block) (faults []string){
	"go":      checkGo,
	"diff":    checkGo, // what it makes of the program
	"sh":      checkShell,
	"console": checkShell, // the lines with a prompt
	"ini":     checkUnits,
	"upstart": checkUpstart,
	"text":    nil,
	"mermaid": nil,
}

func TestDocumentsShowWhatWorks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs all that the documents show")
	}
	documents := readDocuments(t)
	checkout := copyRepository(t)
	var blocks []block
	for _, d := range documents {
		some, faults := blocksOf(d)
		blocks = append(blocks, some...)
		report(t, faults)
	}
	for language, check := range languages {
		if check == nil {
			continue
		}
		t.Run(language, func(t *testing.T) { report(t, check(t, checkout, only(language, blocks))) })
	}
	t.Run("links", func(t *testing.T) { report(t, checkLinks(documents)) })

	for _, language := range []string{"go", "sh", "ini"} {
		if len(only(language, blocks)) == 0 {
			t.Errorf("no %s block in all documents: are they read at all?", language)
		}
	}
}

// The checks see what they are there for.
func TestDocumentsFaultsAreFound(t *testing.T) {
	if testing.Short() {
		t.Skip("is about the test above")
	}
	checkout := copyRepository(t)
	fence := func(language, text string) string { return "```" + language + "\n" + text + "\n```\n" }
	for _, test := range []struct{ name, text, want string }{
		{"good Go file", fence("go", "package main\n\nfunc main() {}"), ""},
		{"good Go fragment", fence("go", "daemon.Stopping()\nlog.Print(http.StatusOK)"), ""},
		{"good test", fence("go", "package main\n\nimport \"testing\"\n\nfunc TestX(t *testing.T) { t.Log() }"), ""},
		{"good test without imports",
			fence("go", "func TestX(t *testing.T) { daemontest.Service(t, exec.Command(mydaemon)) }"), ""},
		{"good change", fence("diff", "-old.Ready()\n+daemon.Ready()\n \n daemon.Stopping()"), ""},
		{"good shell lines", fence("sh", "go version # any\nsystemctl start mydaemon\ntrue &&\\\n  true"), ""},
		{"tests are compiled, not run", fence("sh", `mkdir test
printf 'package test\nimport "testing"\nfunc TestX(t *testing.T) { t.Fatal() }' >test/x_test.go
go test ./test`), ""},
		{"good console", fence("console", "$ test -e go.mod && echo found\nfound"), ""},
		{"good unit", fence("ini", "[Service]\nType=notify\nExecStart=/no/such/program"), ""},
		{"good drop-in", fence("ini", "[Service]\nWatchdogSec=3"), ""},
		{"good socket", fence("ini", "[Socket]\nListenStream=80"), ""},
		{"good conf", fence("upstart", "expect stop\nexec /no/such/program\npost-start script\n  any\nend script"), ""},
		{"good links", "# A `b`, c!\n[a](go.mod) [b](#a-b-c) [c](https://no.such.host/)" +
			" [y](y.md) [y](y.md#a) `[d](e)` e[^1]\n[^1]: f\n", ""},

		{"Go that does not parse", fence("go", "package main\n\nfunc main() {"), "x.md:4"},
		{"Go that does not compile", fence("go", "package main\n\nfunc main() { daemon.Ready() }"), "x.md:4"},
		{"main without main", fence("go", "package main"), "main is undeclared"},
		{"fragment that does not compile", fence("go", "daemon.Ready()\ndaemon.Wreddy()"), "x.md:3"},
		{"Go that vet finds fault with", fence("go", "log.Printf(\"%d\", \"x\")"), "x.md:2"},
		{"Go that is not formatted", fence("go", "daemon.Ready( )"), "gofmt"},
		{"test that does not compile", fence("go", "package documents_test\n\nfunc TestX(t *testing.T) {}"), "x.md:4"},
		{"test without imports that does not compile",
			fence("go", "func TestX(t *testing.T) {\n\tdaemontest.Servant(t)\n}"), "x.md:3"},
		{"change that does not compile", fence("diff", "-daemon.Ready()\n+daemon.Wreddy()"), "x.md:3"},
		{"shell line that fails", fence("sh", "true\ngo run ./no/such/program\ntrue"), "no/such/program"},
		{"console line that fails", fence("console", "output\n$ exit 3"), "exit status 3"},
		{"unknown setting", fence("ini", "[Service]\nType=notify\nExecStart=/x\nReastrt=always"), "Reastrt"},
		{"unknown setting of a drop-in", fence("ini", "[Service]\nWatchdog=3"), "Watchdog"},
		{"unknown setting of a socket", fence("ini", "[Socket]\nListenStream=80\nAcept=no"), "Acept"},
		{"unknown stanza", fence("upstart", "expects stop"), "expects"},
		{"script without end", fence("upstart", "script\n  any"), "end script"},
		{"unknown language", fence("golang", "x"), "golang"},
		{"no language", fence("", "x"), "language"},
		{"block without end", "```go\npackage x\n", "no end"},
		{"link to no file", "[a](no/such/file)", "no/such/file"},
		{"link to no heading", "# A\n[a](#b)", "#b"},
		{"link to no heading of another document", "# B\n[a](y.md#b)", "y.md#b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := document{"x.md", test.text}
			blocks, faults := blocksOf(d)
			faults = append(faults, checkLinks([]document{d, {"y.md", "# A"}})...)
			for _, b := range blocks {
				if check := languages[b.language]; check != nil {
					faults = append(faults, check(t, checkout, blocks)...)
				}
			}
			got := strings.Join(faults, "\n")
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}

func report(t *testing.T, faults []string) {
	t.Helper()
	for _, fault := range faults {
		t.Error(fault)
	}
}

func readDocuments(t *testing.T) (documents []document) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		documents = append(documents, document{path, string(text)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return documents
}

// copyRepository returns a copy of what is in this directory, for programs
// that write where they run.
func copyRepository(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == ".git" {
			continue
		}
		if out, err := exec.Command("cp", "-r", entry.Name(), dir).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var fenceLine = regexp.MustCompile("^( *)```+ *([^` ]*)$")

func blocksOf(d document) (blocks []block, faults []string) {
	var inside *block
	indent := ""
	for i, line := range strings.Split(d.text, "\n") {
		fence := fenceLine.FindStringSubmatch(line)
		switch {
		case fence != nil && inside == nil:
			indent = fence[1]
			inside = &block{document: d.path, line: i + 2, language: fence[2]}
			if _, known := languages[inside.language]; !known {
				faults = append(faults,
					fmt.Sprintf("%v: no language that a test knows: use one of the test's, or text", inside))
			}
		case fence != nil:
			blocks = append(blocks, *inside)
			inside = nil
		case inside != nil:
			inside.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	if inside != nil {
		faults = append(faults, fmt.Sprintf("%v has no end", inside))
	}
	return blocks, faults
}

func only(language string, blocks []block) []block {
	return slices.DeleteFunc(slices.Clone(blocks), func(b block) bool { return b.language != language })
}

// checkGo compiles and vets each block as a package of its own.
func checkGo(t *testing.T, checkout string, blocks []block) (faults []string) {
	root := filepath.Join(checkout, "documents")
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "documents.go"), "package documents\n") // there may be tests only
	for i, b := range blocks {
		if b.language == "diff" {
			b.text = changed(b.text)
		} else if formatted, err := format.Source([]byte(b.text)); err == nil && string(formatted) != b.text {
			faults = append(faults, fmt.Sprintf("%v is not as gofmt has it", b))
		}
		name, source := goFile(b)
		writeFile(t, filepath.Join(root, strconv.Itoa(i), name), source)
	}
	if len(blocks) == 0 {
		return faults
	}
	for _, verb := range []string{"vet", "build"} {
		if out, err := testdaemon.GoCommand(t, checkout, verb, "./documents/...").CombinedOutput(); err != nil {
			faults = append(faults, fmt.Sprintf("go %s: %v\n%s", verb, err, out))
		}
	}
	return faults
}

// changed returns what a diff makes of its file, with the same line numbers.
func changed(diff string) string {
	lines := strings.SplitAfter(diff, "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "-"):
			lines[i] = "\n"
		case strings.HasPrefix(line, "+"), strings.HasPrefix(line, " "):
			lines[i] = line[1:]
		}
	}
	return strings.Join(lines, "")
}

// goFile makes a Go file of a block. One without a package clause is a test, or
// what stands in a function; what it uses of these packages is imported.
func goFile(b block) (name, source string) {
	position := fmt.Sprintf("//line %s:%d\n", b.document, b.line)
	_, err := parser.ParseFile(token.NewFileSet(), "", b.text, parser.PackageClauseOnly)
	switch {
	case err != nil && isTest.MatchString(b.text):
		return "fragment_test.go", "package fragment\n" + importsOf(b.text) +
			"var mydaemon string // see daemontest\n" + position + b.text
	case err != nil:
		return "fragment.go", "package fragment\n" + importsOf(b.text) + "func _() {\n" + position + b.text + "}\n"
	case isTest.MatchString(b.text):
		return "block_test.go", position + b.text
	}
	return "block.go", position + b.text
}

var isTest = regexp.MustCompile(`(?m)^func Test\w+\(t \*testing\.T\)`)

func importsOf(fragment string) (imports string) {
	for _, path := range []string{
		"context", "errors", "flag", "fmt", "io", "log", "log/slog", "net", "net/http", "os", "os/exec", "os/signal",
		"strconv", "strings", "sync", "syscall", "testing", "time",
		"github.com/seed-10280e03/daemon", "github.com/seed-10280e03/daemon/daemontest",
	} {
		name := filepath.Base(path)
		if regexp.MustCompile(`\b` + name + `\.[A-Z]`).MatchString(fragment) {
			imports += fmt.Sprintf("import %q\n", path)
		}
	}
	return imports
}

// notHere are the shell lines that a test can't run, and why.
var notHere = []struct{ line, why string }{
	{`^(sudo|systemctl|journalctl|initctl|rc-service|rc-update|apt-get|docker|kubectl|ssh)\b`, "act on the reader's machine"},
	{`^(ps|kill)\b`, "are about the reader's process"},
	{`(\.|/path/to)/mydaemon\b`, "is the reader's program; internal/detaching does this with its own"},
	{`/usr/local/sbin/`, "is what the reader has installed; examples/units_test.go does this with its own"},
	{`^go (get|install)\b|\bgo run \S+@|^git\b`, "need the network"},
	{`\.ci/`, "runs this test"},
	{`\bcd bench\b|\./bench\b`, "takes minutes, and modules that are not here"},
}

var goTestLine = regexp.MustCompile(`^((?:\w+=\S+ )*go test\b)(.*)$`)

// checkShell runs each block as one script, in the repository's directory. Of
// `go test` it only sees that the tests compile: this is one of them.
func checkShell(t *testing.T, checkout string, blocks []block) (faults []string) {
	for _, b := range blocks {
		script := "set -eu\n"
		for _, line := range commands(b) {
			if goTestLine.MatchString(line) {
				line = goTestLine.ReplaceAllString(line, "$1$2 -run='^$$' -bench= -fuzz=")
			}
			if strings.Contains(line, "-race") && !testdaemon.HaveCompiler() {
				testdaemon.SkipUnlessForbidden(t, "the race detector needs gcc")
			}
			script += line + "\n"
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
		cmd.Dir, cmd.Env = checkout, testdaemon.CleanEnvironment()
		cmd.WaitDelay = testdaemon.Patience
		if out, err := cmd.CombinedOutput(); err != nil {
			faults = append(faults, fmt.Sprintf("%v: %v\n%s%s", b, err, script, out))
		}
		cancel()
	}
	return faults
}

// commands returns the lines of a block that can run here, each whole.
func commands(b block) (lines []string) {
	text := strings.ReplaceAll(b.text, "\\\n", " ")
next:
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if b.language == "console" {
			command, prompted := strings.CutPrefix(line, "$ ")
			if !prompted {
				continue
			}
			line = command
		}
		for _, n := range notHere {
			if regexp.MustCompile(n.line).MatchString(line) {
				continue next
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// checkUnits has systemd read each block as the unit mydaemon, or, of a service
// that starts nothing, as a drop-in of it.
func checkUnits(t *testing.T, _ string, blocks []block) (faults []string) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		testdaemon.SkipUnlessForbidden(t, err.Error())
	}
	for _, b := range blocks {
		files := unitFiles(b.text)
		dir := t.TempDir()
		args := []string{"verify", "--man=no"}
		for name, text := range files {
			writeFile(t, filepath.Join(dir, name), text)
			if filepath.Ext(name) != ".conf" {
				args = append(args, filepath.Join(dir, name))
			}
		}
		out, err := exec.Command(analyze, args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "mydaemon.") {
			faults = append(faults, fmt.Sprintf("%v: systemd-analyze: %v\n%s", b, err, out))
		}
	}
	return faults
}

// unitFiles returns the files to make of a block, by their names. The program
// is one that every machine has, the type one that every systemd has.
func unitFiles(text string) map[string]string {
	const service = "[Service]\nExecStart=/bin/true\n"
	text = regexp.MustCompile(`(?m)^(Exec\w+=)/\S+`).ReplaceAllString(text, "$1/bin/true")
	text = strings.ReplaceAll(text, "Type=notify-reload", "Type=notify") // 253
	switch {
	case strings.Contains(text, "[Socket]"):
		return map[string]string{"mydaemon.socket": text, "mydaemon.service": service}
	case !strings.Contains(text, "ExecStart="):
		return map[string]string{"mydaemon.service.d/block.conf": text, "mydaemon.service": service}
	}
	return map[string]string{"mydaemon.service": text}
}

// stanzas are those of init(5) that a job may have.
var stanzas = strings.Fields(`author chdir chroot console description emits end env exec expect export instance
	kill limit nice normal oom post-start post-stop pre-start pre-stop reload respawn script setgid setuid
	start stop task umask usage version`)

// checkUpstart knows the stanzas: there is no init-checkconf any more.
func checkUpstart(_ *testing.T, _ string, blocks []block) (faults []string) {
	for _, b := range blocks {
		script := false
		for line := range strings.Lines(b.text) {
			words := strings.Fields(line)
			switch {
			case len(words) == 0 || strings.HasPrefix(words[0], "#"):
			case script:
				script = strings.Join(words, " ") != "end script"
			case !slices.Contains(stanzas, words[0]):
				faults = append(faults, fmt.Sprintf("%v: init(5) has no stanza %s", b, words[0]))
			default:
				script = words[len(words)-1] == "script"
			}
		}
		if script {
			faults = append(faults, fmt.Sprintf("%v: no end script", b))
		}
	}
	return faults
}

var (
	codeText = regexp.MustCompile("(?ms)^ *```.*?^ *```$|`[^`\n]*`")
	linkText = regexp.MustCompile(`(?m)\]\(([^)\s]+)\)|^\[[^]^][^]]*\]: +(\S+)`) // not footnotes
	heading  = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// checkLinks looks for the files, and for the headings of the documents.
func checkLinks(documents []document) (faults []string) {
	headings := map[string][]string{} // of a document, by its path
	for _, d := range documents {
		headings[d.path] = anchors(d)
	}
	for _, d := range documents {
		for _, match := range linkText.FindAllStringSubmatch(codeText.ReplaceAllString(d.text, ""), -1) {
			target := match[1] + match[2]
			if strings.Contains(target, ":") { // another site's
				continue
			}
			path, anchor, _ := strings.Cut(target, "#")
			if path = filepath.Join(filepath.Dir(d.path), path); strings.HasPrefix(target, "#") {
				path = d.path
			}
			known, isDocument := headings[path]
			_, err := os.Stat(path)
			if isDocument && anchor != "" && !slices.Contains(known, anchor) || !isDocument && err != nil {
				faults = append(faults, fmt.Sprintf("%s: the link to %s leads nowhere", d.path, target))
			}
		}
	}
	return faults
}

// anchors are what GitHub calls the headings.
func anchors(d document) (names []string) {
	for _, match := range heading.FindAllStringSubmatch(d.text, -1) {
		name := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(match[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}
