//go:build linux

package daemontest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDatagram is the longest notification that systemd reads, in bytes
// (NOTIFY_BUFFER_MAX in its src/core/manager.c).
const maxDatagram = 4096

// switches are the assignments that systemd looks for as a whole: unlike
// those it looks for by their key, they count wherever they stand.
var switches = []string{"READY=1", "RELOADING=1", "STOPPING=1", "FDSTORE=1", "FDSTOREREMOVE=1", "FDPOLL=0"}

// Decode returns what systemd reads in a notification, by the rules of its
// manager (systemd 252, src/core/manager.c and service.c):
//
//   - Fields are separated by newlines or carriage returns. A backslash is an
//     escape: it is removed and the byte after it taken as it is, a newline
//     too. Empty fields are skipped, and so are those without a '='.
//   - The first assignment of a key wins. READY=1, RELOADING=1, STOPPING=1,
//     FDSTORE=1, FDSTOREREMOVE=1 and FDPOLL=0 win wherever they stand.
//   - A STATUS that is not UTF-8 is left out, the other assignments stay. To
//     systemd the noncharacters U+FDD0 to U+FDEF and U+xxFFFE and U+xxFFFF
//     are not UTF-8 either.
//
// The assignments are in the order in which they were sent, and there may be
// none. The error says why systemd drops the datagram as a whole: because it
// has more than 4096 bytes, a NUL before its end, a backslash as its last
// byte, or BARRIER=1 beside another field. Whether the one descriptor came
// with a BARRIER=1 that stands alone is for the caller to check.
func Decode(datagram []byte) ([]string, error) {
	if len(datagram) > maxDatagram {
		return nil, fmt.Errorf("dropped by systemd: longer than %d bytes", maxDatagram)
	}
	text := bytes.TrimSuffix(datagram, []byte{0}) // systemd permits one there
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, errors.New("dropped by systemd: it holds a NUL")
	}
	fields, err := split(text)
	if err != nil {
		return nil, err
	}
	if len(fields) > 1 && slices.Contains(fields, "BARRIER=1") {
		return nil, errors.New("dropped by systemd: BARRIER=1 must be alone")
	}
	return winners(fields), nil
}

// split cuts text at each newline and carriage return that is not escaped,
// and removes the escapes. No field is empty.
func split(text []byte) ([]string, error) {
	var fields []string
	var field []byte
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\n', '\r':
			fields = append(fields, string(field))
			field = nil
			continue
		case '\\':
			i++
			if i == len(text) {
				return nil, errors.New("dropped by systemd: it ends with a backslash")
			}
		}
		field = append(field, text[i])
	}
	fields = append(fields, string(field))
	return slices.DeleteFunc(fields, func(f string) bool { return f == "" }), nil
}

// winners keeps the assignment of each key that systemd acts upon.
func winners(fields []string) []string {
	var kept []string
	place := map[string]int{} // of a key's assignment in kept
	for _, field := range fields {
		key, _, ok := strings.Cut(field, "=")
		if !ok {
			continue
		}
		at, again := place[key]
		switch {
		case !again:
			place[key] = len(kept)
			kept = append(kept, field)
		case slices.Contains(switches, field):
			kept[at] = field
		}
	}
	return slices.DeleteFunc(kept, func(field string) bool {
		status, ok := strings.CutPrefix(field, "STATUS=")
		return ok && !validStatus(status)
	})
}

// validStatus reports whether systemd takes text for UTF-8 (utf8_is_valid in
// its src/basic/utf8.c).
func validStatus(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE
	})
}
