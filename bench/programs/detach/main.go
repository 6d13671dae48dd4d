// Detach touches as many megabytes of heap as its second argument says. Its
// first is what it does with its life: "exit" at once, or "Ready", or "Detach"
// before it touches the heap and Ready after. A daemon ends when descriptor 3
// does.
package main

import (
	"log"
	"os"
	"runtime"
	"strconv"

	"github.com/seed-10280e03/daemon"
)

func main() {
	way := os.Args[1]
	megabytes, err := strconv.Atoi(os.Args[2])
	check(err)
	if way == "Detach" {
		check(daemon.Detach())
	}
	heap := make([]byte, megabytes<<20)
	for i := 0; i < len(heap); i += os.Getpagesize() {
		heap[i] = 1
	}
	if way != "exit" {
		check(daemon.Ready())
		_, _ = os.NewFile(3, "life line").Read(make([]byte, 1))
	}
	runtime.KeepAlive(heap)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
