//go:build linux

package daemontest

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	full := "READY=1\nSTATUS=" + strings.Repeat("x", maxDatagram-len("READY=1\nSTATUS="))
	tests := []struct {
		name, datagram string
		want           []string // nil: dropped
	}{
		// read
		{"one", "READY=1", []string{"READY=1"}},
		{"several", "READY=1\nSTATUS=a b\nMAINPID=7\n", []string{"READY=1", "STATUS=a b", "MAINPID=7"}},
		{"empty", "", []string{}},
		{"empty fields", "\n\r\n\nREADY=1\n\n", []string{"READY=1"}},
		{"carriage return", "READY=1\rSTATUS=x\r\n", []string{"READY=1", "STATUS=x"}},
		{"empty value", "STATUS=", []string{"STATUS="}},
		{"equals sign in value", "STATUS=a=b", []string{"STATUS=a=b"}},
		{"no equals sign", "READY\nSTATUS=x", []string{"STATUS=x"}},
		{"quotes", `STATUS='a "b`, []string{`STATUS='a "b`}},
		{"spaces stay", " READY=1\nSTATUS= x ", []string{" READY=1", "STATUS= x "}},
		{"escape", `STATUS=a\tb`, []string{"STATUS=atb"}},
		{"escaped backslash", `STATUS=a\\b\\`, []string{`STATUS=a\b\`}},
		{"escaped newline", "STATUS=a\\\nREADY=1", []string{"STATUS=a\nREADY=1"}},
		{"backslash before the last newline", "STATUS=a\\\n", []string{"STATUS=a\n"}},
		{"escape in key", `RE\ADY=1`, []string{"READY=1"}},
		{"control characters", "STATUS=\x1b[31m\x01", []string{"STATUS=\x1b[31m\x01"}},
		{"NUL at the end", "READY=1\x00", []string{"READY=1"}},
		{"NUL alone", "\x00", []string{}},
		{"4096 bytes", full, []string{"READY=1", full[len("READY=1\n"):]}},
		{"first of a key", "STATUS=a\nMAINPID=1\nSTATUS=b\nMAINPID=2", []string{"STATUS=a", "MAINPID=1"}},
		{"READY=1 after READY=0", "READY=0\nSTATUS=x\nREADY=1", []string{"READY=1", "STATUS=x"}},
		{"READY=0 after READY=1", "READY=1\nREADY=0", []string{"READY=1"}},
		{"STATUS is not UTF-8", "STATUS=\xff\nREADY=1\nSTATUS=b", []string{"READY=1"}},
		{"STATUS is a surrogate", "STATUS=\xed\xa0\x80", []string{}},
		{"STATUS is a noncharacter", "STATUS=\ufdd0\nREADY=1", []string{"READY=1"}},
		{"STATUS is another noncharacter", "STATUS=\U0001fffe\nREADY=1", []string{"READY=1"}},
		{"STATUS is a replacement character", "STATUS=\ufffd", []string{"STATUS=\ufffd"}},
		{"another key is not UTF-8", "X_A=\xff", []string{"X_A=\xff"}},
		{"barrier", "BARRIER=1\n", []string{"BARRIER=1"}},
		{"no barrier", "BARRIER=0\nREADY=1", []string{"BARRIER=0", "READY=1"}},

		// dropped
		{"4097 bytes", full + "x", nil},
		{"NUL", "READY=1\x00\nSTATUS=x", nil},
		{"two NULs at the end", "READY=1\x00\x00", nil},
		{"backslash at the end", "READY=1\nSTATUS=a\\", nil},
		{"three backslashes at the end", `STATUS=a\\\`, nil},
		{"backslash before the NUL at the end", "STATUS=a\\\x00", nil},
		{"barrier and more", "READY=1\nBARRIER=1", nil},
		{"barrier and no assignment", "BARRIER=1\nx", nil},
		{"two barriers", "BARRIER=1\nBARRIER=1", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Decode([]byte(test.datagram))
			if (err != nil) != (test.want == nil) || !slices.Equal(got, test.want) {
				t.Errorf("Decode(%q) = %q, %v; want %q", test.datagram, got, err, test.want)
			}
		})
	}
}

// FuzzDecode checks what holds of every datagram, and that what was escaped
// comes back.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=a\\tb\nMAINPID=7\n"))
	f.Add([]byte("STATUS=\xff\r\rBARRIER=1\\"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		got, err := Decode(datagram)
		if err != nil && got != nil || len(got) > len(datagram) {
			t.Fatalf("%q, %v", got, err)
		}
		seen := map[string]bool{}
		for _, assignment := range got {
			key, _, ok := strings.Cut(assignment, "=")
			if !ok || seen[key] {
				t.Fatalf("%q in %q", assignment, got)
			}
			seen[key] = true
		}

		if len(datagram) > maxDatagram/2-len("X_=") || bytes.IndexByte(datagram, 0) >= 0 {
			return
		}
		var escaped []byte
		for _, b := range datagram {
			escaped = append(escaped, '\\', b)
		}
		want := "X_=" + string(datagram)
		if got, err = Decode(append([]byte("X_="), escaped...)); err != nil || !slices.Equal(got, []string{want}) {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	})
}
