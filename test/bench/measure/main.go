// Command measure runs the program that the variable MEASURED names, with its own arguments, and tells on the last line of standard
// error what it took.
//
// It stands between the benchmark and the program for the sake of the memory: Linux counts the memory of the process that executes a
// program into the program's largest resident set, and a benchmark is larger than the agent. This one has less than 3 MiB.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"multus-ip-manager.io/test/bench/measure/measured"
)

func main() {
	code, err := run(os.Getenv(measured.Variable), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(125)
	}
	os.Exit(code)
}

func run(program string, args []string) (int, error) {
	var command []string
	if err := json.Unmarshal([]byte(program), &command); err != nil || len(command) == 0 {
		return 0, fmt.Errorf("%s=%q: want a JSON list, the program and its first arguments", measured.Variable, program)
	}
	// The kernel ties Pdeathsig to the starting thread.
	runtime.LockOSThread()
	cmd := exec.CommandContext(context.Background(), command[0], append(command[1:], args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	state := cmd.ProcessState
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, errors.New("this system tells no resource usage")
	}
	line, err := json.Marshal(measured.Result{Wall: took, CPU: state.UserTime() + state.SystemTime(), MaxRSS: usage.Maxrss})
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(os.Stderr, "\n%s\n", line)
	return state.ExitCode(), nil
}
