// Command webhook is the mutating admission webhook of multus-ip-manager: it adds the ip-manager container to pods that
// have Multus networks, in namespaces that ask for it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// garbage is GOGC unless the environment sets it: half of Go's own. The heap is a few MiB that most requests only pass
// through; this saves 3 MiB of a resident set of 40, for some 7 % of the CPU time of an admission.
const garbage = 50

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "webhook:", err)
		os.Exit(1)
	}
}

// execute runs one command line until it is done or ctx ends.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) error {
	root := &cobra.Command{
		Use:           "webhook",
		Short:         "Adds the ip-manager container to pods with Multus networks",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("a command is needed: serve, check, inject or version (webhook --help tells more)")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(serveCommand(stderr, getenv), checkCommand(), injectCommand(getenv), versionCommand())
	return root.ExecuteContext(ctx)
}

func serveCommand(stderr io.Writer, getenv func(string) string) *cobra.Command {
	o := defaultOptions(getenv)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve admission requests until SIGTERM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(stderr, o.logLevel, o.logFormat)
			if err != nil {
				return err
			}
			routeLogs(log)
			if getenv("GOGC") == "" {
				debug.SetGCPercent(garbage)
			}
			return serve(cmd.Context(), o, log)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "webhook %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
