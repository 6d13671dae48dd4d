// None is the program that the others are compared with.
package main

import "os"

func main() {
	if len(os.Args) > 1 {
		os.Exit(1)
	}
}
