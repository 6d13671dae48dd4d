//go:build unix

package daemon

import (
	"cmp"
	"math"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// maxDatagram is the most that systemd takes; it drops the whole of a longer
// one (NOTIFY_BUFFER_MAX in its sources).
const maxDatagram = 4096

// datagram is a notification in the making. There is room for a STATUS that will
// be cut, and for what follows it.
type datagram struct {
	said      *verb // what is encoded, if that is a verb without a caller's fields
	encoded   []byte
	hasStatus bool
	status    string
	buffer    [2 * maxDatagram]byte
}

// encode encodes the verb's own fields first, STATUS and MAINPID next, and then
// the caller's other fields in order. Of several with one key the last counts.
// It allocates memory only if the fields exceed d's buffer.
func (d *datagram) encode(v *verb, fields []Field) error {
	if v == d.said && len(fields) == 0 { // saves a tenth of a send
		return nil
	}
	d.said = nil
	status, pid, others := v.status, v.mainPID, false
	for i := range fields {
		switch f := &fields[i]; f.form {
		case invalid:
			return failed("field", cmp.Or(f.text, `"": a Field is made by a function of this package`), unix.EINVAL)
		case statusText:
			status = f
		case mainPID:
			if f.number == 0 || pid == nil || pid.number != f.number { // or else its line is at hand
				pid = f
			}
		default:
			others = true
		}
	}
	b := d.buffer[:0]
	for i := range v.own {
		f := &v.own[i]
		if others {
			f = last(f.key, f, fields)
		}
		b = appendField(b, f)
	}
	begin := len(b)
	if d.hasStatus = status != nil; d.hasStatus {
		d.status = status.text
		b = appendStatus(b, d.status, maxDatagram)
	}
	end := len(b)
	if pid != nil {
		b = appendField(b, pid)
	}
	for i := 0; others && i < len(fields); i++ {
		f := &fields[i]
		placed := f.form == statusText || f.form == mainPID || last(f.key, nil, v.own) != nil
		if !placed && last(f.key, f, fields[i+1:]) == f {
			b = appendField(b, f)
		}
	}
	if excess := len(b) - maxDatagram; excess > 0 && d.hasStatus {
		b = append(appendStatus(b[:begin], d.status, end-excess), b[end:]...)
	}
	if len(b) > maxDatagram {
		return failed("send", notifier.peer.Name, unix.EMSGSIZE)
	}
	d.encoded = b
	if len(fields) == 0 && v != &reloading {
		d.said = v
	}
	return nil
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

// appendStatus appends the line of STATUS, cut so that b ends at end, or nothing
// if not even an empty one fits.
func appendStatus(b []byte, text string, end int) []byte {
	if len(b)+len("STATUS=\n") > end {
		return b
	}
	b = append(b, "STATUS="...)
	b = appendText(b, text, end-len("\n"))
	return append(b, '\n')
}

func appendField(b []byte, f *Field) []byte {
	value := f.number
	switch f.form {
	case wholeLine:
		return append(b, f.text...)
	case clock:
		var ok bool
		if value, ok = monotonic(); !ok {
			return b
		}
	}
	b = append(b, f.key...)
	b = append(b, '=')
	switch {
	case f.form == safeText:
		b = appendText(b, f.text, math.MaxInt)
	case f.form == plainText, f.form == mainPID && value == 0:
		b = appendValue(b, f.text)
	default:
		b = strconv.AppendInt(b, value, 10)
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
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0: // C0, DEL and C1
			r = ' '
		case noncharacter(r):
			r = utf8.RuneError
		}
		size := utf8.RuneLen(r)
		if r == '\\' {
			size = 2
		}
		if len(b)+size > end {
			break
		}
		if r == '\\' {
			b = append(b, '\\')
		}
		b = utf8.AppendRune(b, r)
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
