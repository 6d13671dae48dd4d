//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/seed-10280e03/daemon/internal/testdaemon/agreed"
)

// A puppet is the daemon of most tests. It does what the test tells it, one order
// after the other, through a socket: "status drained" says that status, and the
// answer is ok or the error. It ends when the test hangs up.
func init() {
	programs["puppet"] = func() { obeyAll(call()) }
	programs["systemd-puppet"] = passSignalsOn
}

// passSignalsOn is a puppet that passes on SIGTERM and SIGHUP, as a line between
// two orders.
func passSignalsOn() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	conn := call()
	go func() {
		for signal := range signals {
			fmt.Fprintf(conn, "%q\n", signal)
		}
	}()
	obeyAll(conn)
}

func call() net.Conn {
	conn, err := net.Dial("unix", os.Getenv(agreed.Line))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	return conn
}

func obeyAll(conn net.Conn) {
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		text, err := strconv.Unquote(scanner.Text())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		fmt.Fprintf(conn, "%q\n", obey(text))
	}
}

func obey(text string) (answer string) {
	word, argument, _ := strings.Cut(text, " ")
	if question, ok := questions[word]; ok {
		return question()
	}
	order, ok := orders[word]
	if !ok {
		return fmt.Sprintf("no order %q", word)
	}
	if err := order(argument); err != nil {
		return err.Error()
	}
	return "ok"
}

// orders are what a puppet can do, questions what it can be asked. Each file adds
// its own.
var (
	orders = map[string]func(argument string) error{
		"exit": func(code string) error {
			number, err := strconv.Atoi(code)
			if err == nil {
				os.Exit(number)
			}
			return err
		},
	}
	questions = map[string]func() string{
		"pid": func() string { return strconv.Itoa(os.Getpid()) },
	}
)
