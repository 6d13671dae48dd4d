//go:build !js

package main

import (
	"bytes"
	"html/template"
	"log"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/seed-10280e03/daemon"
)

// A site is one page. It may be loaded again while it is served.
type site struct {
	page atomic.Pointer[template.Template]
}

// defaultPage is served without a -page.
const defaultPage = `<!DOCTYPE html>
<title>httpd</title>
<p>Process {{.PID}} serves this page. It was started by: {{.Supervisor}}.
`

// load reads the page. A page that cannot be served is an error, and the one
// before it stays.
func (s *site) load() error {
	text := []byte(defaultPage)
	if *pageFile != "" {
		var err error
		if text, err = os.ReadFile(*pageFile); err != nil {
			return err
		}
	}
	page, err := template.New("page").Parse(string(text))
	if err != nil {
		return err
	}
	if _, err := render(page); err != nil {
		return err
	}
	s.page.Store(page)
	return nil
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	html, err := render(s.page.Load())
	if err != nil {
		log.Print(err)
		http.Error(w, "cannot render the page", http.StatusInternalServerError)
		return
	}
	w.Write(html)
}

func render(page *template.Template) ([]byte, error) {
	var html bytes.Buffer
	err := page.Execute(&html, map[string]any{
		"PID":        os.Getpid(),
		"Supervisor": daemon.Detect(),
	})
	return html.Bytes(), err
}
