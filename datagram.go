//go:build unix

package daemon

import (
	"math"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// maxDatagram is the most that systemd takes; it drops the whole of a longer
// one (NOTIFY_BUFFER_MAX in its sources).
const maxDatagram = 4096

// datagram is a notification in the making. STATUS is the one field that may be
// cut, and stands in front of fields that may not: those are encoded first, into
// rest.
type datagram struct{ head, rest [maxDatagram]byte }

// encode encodes the verb's own assignments first, STATUS and MAINPID next, and
// then the other fields in order. Of several with one key the last counts.
// STATUS is cut, if that helps, to make it maxDatagram bytes. encode returns the
// status that was said, or nil. Only what is too long takes other memory than d.
func (d *datagram) encode(v *verb, fields []Field) (encoded []byte, status *Field, err error) {
	status, mainPID := v.status, v.mainPID
	for i := range fields {
		f := &fields[i]
		if f.invalid != "" || f.key == "" {
			return nil, nil, failed("field", f.describe(), unix.EINVAL)
		}
		switch f.key {
		case "STATUS":
			status = f
		case "MAINPID":
			mainPID = f
		}
	}
	head := d.head[:0]
	for i := range v.own {
		f := &v.own[i]
		head = appendField(head, last(f.key, f, fields))
	}
	rest := d.rest[:0]
	if mainPID != nil {
		rest = appendField(rest, mainPID)
	}
	for i := range fields {
		f := &fields[i]
		placed := f.key == "STATUS" || f.key == "MAINPID" || last(f.key, nil, v.own) != nil
		if !placed && last(f.key, f, fields[i+1:]) == f {
			rest = appendField(rest, f)
		}
	}
	if room := maxDatagram - len(rest) - len("\n"); status != nil && len(head)+len("STATUS=") <= room {
		head = append(head, "STATUS="...)
		head = appendText(head, status.text, room)
		head = append(head, '\n')
	}
	head = append(head, rest...)
	if len(head) > maxDatagram {
		return nil, nil, unix.EMSGSIZE
	}
	return head, status, nil
}

// describe says what is wrong with a field.
func (f *Field) describe() string {
	switch {
	case f.invalid == "":
		return `"": a Field is made by a function of this package`
	case f.numeric:
		return f.key + "=" + strconv.FormatInt(f.number, 10) + ": " + f.invalid
	}
	return strconv.Quote(f.key) + "=" + strconv.Quote(f.text) + ": " + f.invalid
}

// last returns the last of fields with this key, or else f.
func last(key string, f *Field, fields []Field) *Field {
	for i := range fields {
		if fields[i].key == key {
			f = &fields[i]
		}
	}
	return f
}

// appendField appends one line.
func appendField(b []byte, f *Field) []byte {
	b = append(b, f.key...)
	b = append(b, '=')
	switch {
	case f.numeric:
		b = strconv.AppendInt(b, f.number, 10)
	case f.key == "BUSERROR":
		b = appendText(b, f.text, math.MaxInt)
	default:
		b = appendValue(b, f.text)
	}
	return append(b, '\n')
}

// appendValue doubles each backslash: systemd reads it as an escape.
func appendValue(b []byte, value string) []byte {
	for i := range len(value) {
		if value[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, value[i])
	}
	return b
}

// appendText replaces what must not reach a terminal or the next line. It stops
// in front of the first rune with which b would be longer than end.
func appendText(b []byte, text string, end int) []byte {
	if n := plain(text); len(b)+n <= end {
		b = append(b, text[:n]...)
		text = text[n:]
	}
	for _, r := range text { // an invalid byte comes as U+FFFD
		var encoded [utf8.UTFMax]byte
		size := 1
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0: // C0, DEL and C1
			encoded[0] = ' '
		case r == '\\':
			size = copy(encoded[:], `\\`)
		case noncharacter(r):
			size = utf8.EncodeRune(encoded[:], utf8.RuneError)
		default:
			size = utf8.EncodeRune(encoded[:], r)
		}
		if len(b)+size > end {
			break
		}
		b = append(b, encoded[:size]...)
	}
	return b
}

// plain returns the length of the text in front of the first byte that
// appendText must look at.
func plain(text string) int {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '\\' {
			return i
		}
	}
	return len(text)
}

// noncharacter reports whether r is one of the code points that Unicode sets
// apart for internal use. To systemd they are invalid UTF-8, for which it
// ignores the whole STATUS (unichar_is_valid in its sources).
func noncharacter(r rune) bool {
	return r&0xfffe == 0xfffe || r >= 0xfdd0 && r <= 0xfdef
}
