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
	status, process, others := v.status, v.mainPID, false
	for i := range fields {
		switch f := &fields[i]; f.form {
		case statusText:
			status = f
		case pidText:
			if f.number == 0 || process == nil || process.number != f.number { // or else the line at hand says the same
				process = f
			}
		default:
			if f.key == "" {
				return opError("field", cmp.Or(f.text, `"": a Field is made by a function of this package`), unix.EINVAL)
			}
			others = true
		}
	}
	b := d.buffer[:0]
	for i := range v.own {
		f := &v.own[i]
		if others {
			f = last(f, fields)
		}
		b = appendField(b, f)
	}
	begin := len(b)
	if d.hasStatus = status != nil; d.hasStatus {
		d.status = status.text
		b = appendStatus(b, d.status, maxDatagram)
	}
	end := len(b)
	if process != nil {
		b = appendField(b, process)
	}
	for i := 0; others && i < len(fields); i++ {
		f := &fields[i]
		placed := f.form == statusText || f.form == pidText || last(f, v.own) != f
		if !placed && last(f, fields[i+1:]) == f {
			b = appendField(b, f)
		}
	}
	if excess := len(b) - maxDatagram; excess > 0 && d.hasStatus {
		b = append(appendStatus(b[:begin], d.status, end-excess), b[end:]...)
	}
	if len(b) > maxDatagram {
		return opError("send", notifier.peer.Name, unix.EMSGSIZE)
	}
	d.encoded = b
	if len(fields) == 0 && v != &reloading {
		d.said = v
	}
	return nil
}

// last returns the last of fields with the key of f, or else f.
func last(f *Field, fields []Field) *Field {
	for i := range fields {
		if fields[i].key == f.key {
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
	number := f.number
	switch f.form {
	case wholeLine:
		return append(b, f.text...)
	case clock:
		var ok bool
		if number, ok = monotonic(); !ok {
			return b
		}
	}
	b = append(b, f.key...)
	b = append(b, '=')
	switch {
	case number != 0:
		b = strconv.AppendInt(b, number, 10)
	case f.form == safeText:
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
	n, room := 0, text[:min(len(text), end-len(b))] // most texts are plain, and copied at once
	for n < len(room) && ' ' <= room[n] && room[n] <= '~' && room[n] != '\\' {
		n++
	}
	b = append(b, room[:n]...)
	for _, r := range text[n:] { // an invalid byte comes as U+FFFD
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0: // C0, DEL and C1
			r = ' '
		case r&0xfffe == 0xfffe, r >= 0xfdd0 && r <= 0xfdef:
			// A noncharacter: to systemd it is invalid UTF-8, for which it ignores the
			// whole STATUS (unichar_is_valid in its sources).
			r = utf8.RuneError
		}
		before := len(b)
		if r == '\\' {
			b = append(b, '\\')
		}
		if b = utf8.AppendRune(b, r); len(b) > end {
			return b[:before]
		}
	}
	return b
}
