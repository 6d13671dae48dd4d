// None is the program that the others are compared with.
package main

import "os"

func main() { os.Exit(0) }
