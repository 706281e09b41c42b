// Command cluster brings a real Kubernetes cluster in an emulated VPC up and down: see package cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"multus-ip-manager.io/test/cluster"
)

const usage = `usage: cluster up | down | status | during COMMAND... | image FILE
  up      bring the cluster up, or say that it is; needs root
  down    end it and remove everything
  status  tell whether it is up; exit code 1 if not
  during  run the tests' command with a cluster up, the one of KUBECONFIG if that is set, and end what was not up before
  image   write the image of the tests' application, for a cluster of one's own`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "init" {
		return cluster.Init(args[1])
	}
	if len(args) == 2 && args[0] == "image" {
		return cluster.WriteAppImage(ctx, args[1])
	}
	during := len(args) > 1 && args[0] == "during"
	if len(args) != 1 && !during {
		return errors.New(usage)
	}
	if args[0] == "core" {
		return cluster.Core(ctx, cluster.Dir(os.Getenv("MIM_CLUSTER")))
	}
	d, err := cluster.DefaultDir()
	if err != nil {
		return err
	}
	switch args[0] {
	case "during":
		if !during {
			return errors.New(usage)
		}
		return cluster.During(ctx, d, args[1:])
	case "up":
		return cluster.Up(ctx, d, os.Stdout)
	case "down":
		return cluster.Down(d)
	case "supervise":
		return cluster.Supervise(d)
	case "status":
		if !d.Running() {
			return errors.New("no cluster runs: make cluster-up")
		}
		fmt.Printf("up; export KUBECONFIG=%s\n", d.Kubeconfig())
		return nil
	}
	return errors.New(usage)
}
