// Command soak moves floating addresses at random between pods with sidecars, under random faults of AWS, for as long as told. After
// each round EC2 must have every address where the interfaces have it; at the end the agents must be no bigger than at the beginning.
// Before that, one address comes and goes a thousand times a second for a tenth of the time.
// Where claims came so close that it is not certain which is the last, the address is added once more when the faults are over:
//
//	go run ./test/soak -for 10m -seed 42
//
// A run with the same seed makes the same choices; how they interleave with the agents' work is up to the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/ns"
)

func main() {
	if err := ns.Reexec(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// command runs one command line.
func command(ctx context.Context, args []string, out, errOut io.Writer) error {
	o := options{Out: out}
	fs := flag.NewFlagSet("soak", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.DurationVar(&o.For, "for", 2*time.Minute, "how long")
	fs.DurationVar(&o.Round, "round", 10*time.Second, "how long addresses move before it is checked where they are")
	fs.Uint64Var(&o.Seed, "seed", uint64(time.Now().UnixNano()%1e9), "seed of all that is random") //nolint:gosec // positive
	fs.IntVar(&o.Pods, "pods", 4, "pods, 2 to 8, on two nodes in turn")
	fs.IntVar(&o.VIPs, "addresses", 3, "floating addresses of each family, 1 to 9")
	fs.StringVar(&o.Agent, "agent", "", "the agent's program; by default it is built")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 || o.Pods < 2 || o.Pods > 8 || o.VIPs < 1 || o.VIPs > 9 || o.Round <= 0 {
		return errors.New("bad arguments, see -help")
	}
	if o.Agent == "" {
		dir, err := binaries.Build(ctx, "agent")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		o.Agent = filepath.Join(dir, "agent")
	}
	return soak(ctx, o)
}
