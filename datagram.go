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
	encoded []byte // what is in buffer
	says    verbID // the verb whose words that is, without a caller's
	buffer  [2 * maxDatagram]byte
}

// encode encodes the verb's own assignments first, STATUS and MAINPID next, and
// then the other fields in order. Of several with one key the last counts. It
// returns the status that was said, or nil. Only what is too long takes other
// memory than d.
func (d *datagram) encode(v *verb, fields []Field) (encoded []byte, status *Field, err error) {
	if v.is != otherVerb && v.is == d.says && len(fields) == 0 { // saves a tenth of a send
		return d.encoded, v.status, nil
	}
	status, mainPID, others := v.status, v.mainPID, false
	for i := range fields {
		switch f := &fields[i]; f.key {
		case "":
			return nil, nil, failed("field", cmp.Or(f.text, `"": a Field is made by a function of this package`), unix.EINVAL)
		case "STATUS":
			status = f
		case "MAINPID":
			mainPID = f
		default:
			others = true
		}
	}
	d.says = otherVerb
	b := d.buffer[:0]
	for i := range v.own {
		b = appendField(b, last(v.own[i].key, &v.own[i], fields))
	}
	begin := len(b)
	b = appendStatus(b, status, maxDatagram)
	end := len(b)
	if mainPID != nil {
		b = appendField(b, mainPID)
	}
	for i := 0; others && i < len(fields); i++ {
		f := &fields[i]
		placed := f.key == "STATUS" || f.key == "MAINPID" || last(f.key, nil, v.own) != nil
		if !placed && last(f.key, f, fields[i+1:]) == f {
			b = appendField(b, f)
		}
	}
	if excess := len(b) - maxDatagram; excess > 0 { // STATUS is what may be cut
		b = append(appendStatus(b[:begin], status, end-excess), b[end:]...)
	}
	if len(b) > maxDatagram {
		return nil, nil, unix.EMSGSIZE
	}
	if len(fields) == 0 {
		d.says, d.encoded = v.is, b
	}
	return b, status, nil
}

// appendStatus appends the line of STATUS, cut so that b ends at end, or nothing
// if not even an empty one fits.
func appendStatus(b []byte, status *Field, end int) []byte {
	if status == nil || len(b)+len("STATUS=\n") > end {
		return b
	}
	b = append(b, "STATUS="...)
	b = appendText(b, status.text, end-len("\n"))
	return append(b, '\n')
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
	if n := plain(value); n == len(value) {
		return append(b, value...)
	}
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
