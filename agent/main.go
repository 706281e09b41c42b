// Command agent assigns the secondary addresses of the pod it runs in to the node's ENIs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/quickack"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/run"
	"multus-ip-manager.io/agent/settings"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(int(code))
}

// execute runs one command line and gives the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) report.Code {
	root := &cobra.Command{
		Use:   "agent",
		Short: "Assigns a pod's Multus addresses to the node's ENIs",
		Long: "agent discovers the addresses of the network namespace it runs in and assigns them to the ENIs of this EC2 node,\n" +
			"so that the VPC delivers packets to them.\n\n" +
			"Exit codes: 0 done, 1 gave up on a passing fault, 2 usage, 3 permission, 4 ENI full at the deadline, 5 address refused,\n" +
			"6 interface missing, 7 not an EC2 node or no metadata, 8 no route to AWS before assignment.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("a command is needed: init, sidecar, ready, status or version (agent --help tells more)")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(initCommand(stderr, getenv), sidecarCommand(stderr, getenv), readyCommand(), statusCommand(), versionCommand())
	err := root.ExecuteContext(ctx)
	if err == nil {
		return report.Done
	}
	var failed *report.Failure
	if errors.As(err, &failed) {
		return failed.Code // told already, in the log and the termination message
	}
	// Everything else is about the command line. The kubelet shows the termination message, so it is told there too; but a probe or an
	// operator's command in a container must not write the message of the agent that runs there.
	_, _ = fmt.Fprintln(stderr, "agent:", err)
	if command, _, ferr := root.Find(args); ferr == nil && onlyAsks(command.Name()) {
		return report.Usage
	}
	_ = report.WriteTermination(terminationLog(terminationFlag(args)), report.Usage.String()+": "+err.Error())
	return report.Usage
}

// terminationFlag gives the path of the termination message, "" for none, as a command line says that is wrong elsewhere.
func terminationFlag(args []string) string {
	flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.Usage = func() {}
	path := flags.String("termination-log", settings.DefaultTerminationLog, "")
	_ = flags.Parse(args) // what is wrong has been told
	if *path == "" {
		return settings.DefaultTerminationLog // as for the settings, empty is unset
	}
	return settings.TerminationLog(*path)
}

// onlyAsks tells the commands that ask a running agent, or nobody.
func onlyAsks(command string) bool {
	return command == "ready" || command == "status" || command == "version"
}

// terminationLog gives the path to write to. The default one is made by the kubelet; where it is not there, this is no container
// and nobody wants the file.
func terminationLog(path string) string {
	if _, err := os.Stat(path); err != nil && path == settings.DefaultTerminationLog {
		return ""
	}
	return path
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "agent %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

func initCommand(stderr io.Writer, getenv func(string) string) *cobra.Command {
	cmd := &cobra.Command{
		Use: string(settings.Init),
		// The name of the same mode in the AWS sample, so that its pod templates keep working.
		Aliases: []string{"initContainers"},
		Short:   "Assign the pod's addresses, then exit: for an init container",
		Args:    cobra.NoArgs,
	}
	flags := settings.Register(cmd.Flags(), settings.Init)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := settings.Load(settings.Init, flags, getenv)
		if err != nil {
			return err
		}
		log := logger(stderr, cfg)
		p, err := newParts(log)
		if err == nil {
			err = p.agent(cfg, log).Init(cmd.Context())
		}
		return finish(log, cfg, err)
	}
	return cmd
}

func sidecarCommand(stderr io.Writer, getenv func(string) string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   string(settings.Sidecar),
		Short: "Assign the pod's addresses, follow their changes, release them at the end: for a native sidecar",
		Args:  cobra.NoArgs,
	}
	flags := settings.Register(cmd.Flags(), settings.Sidecar)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := settings.Load(settings.Sidecar, flags, getenv)
		if err != nil {
			return err
		}
		log := logger(stderr, cfg)
		return finish(log, cfg, follow(cmd.Context(), cfg, log))
	}
	return cmd
}

// follow runs a sidecar with what belongs to it: its status socket and its metrics.
func follow(ctx context.Context, cfg settings.Agent, log *slog.Logger) error {
	metrics := report.NewMetrics(version)
	p, err := newParts(log, apply.OnRequest(metrics.EC2Call))
	if err != nil {
		return err
	}
	beside, end := context.WithCancel(context.WithoutCancel(ctx))
	stopMetrics := func() {}
	if cfg.MetricsPort != 0 {
		stopMetrics = metrics.Start(beside, cfg.Pod.IPs, cfg.MetricsPort, log)
	}
	var wg sync.WaitGroup
	sidecar := &run.Sidecar{
		Agent: *p.agent(cfg, log), Follow: observe.Namespace{}, List: p.finder, Meter: metrics,
		Quiet: func() {
			stopMetrics()
			p.client.close()
		},
		Tidy: debug.FreeOSMemory, // every pod's agent rests for most of its life, and what it holds then counts
		Publish: func(status report.StatusFunc) {
			named := func(ctx context.Context) (report.Status, error) {
				s, err := status(ctx)
				s.Version, s.Goroutines = version, runtime.NumGoroutine()
				return s, err
			}
			metrics.Publish(named)
			wg.Go(func() { report.Serve(beside, report.Socket, named, log) })
		},
	}
	err = sidecar.Run(ctx)
	end()
	wg.Wait()
	stopMetrics()
	return err
}

// parts connect the agent to the kernel's routes, to metadata and to EC2.
type parts struct {
	guard  *observe.Guard
	dialer locate.Dialer // for all that goes to AWS
	finder *locate.Finder
	client *client
}

func newParts(log *slog.Logger, options ...apply.Option) (*parts, error) {
	guard := &observe.Guard{}
	dialer := quickack.Dial(guard.DialContext)
	metadata, err := locate.New(dialer)
	if err != nil {
		return nil, report.Fail(report.Usage, "the AWS configuration of the environment is not usable: %w", err)
	}
	p := &parts{guard: guard, dialer: dialer, client: &client{fetch: func(ctx context.Context) (*apply.Client, error) {
		return apply.New(ctx, metadata, dialer, log, "multus-ip-manager-"+version, options...)
	}}}
	p.finder = &locate.Finder{
		Metadata: metadata,
		Connect:  func(ctx context.Context) (locate.Source, error) { return p.client.get(ctx) },
		Log:      log,
	}
	return p, nil
}

func (p *parts) agent(cfg settings.Agent, log *slog.Logger) *run.Agent {
	return &run.Agent{
		Settings: cfg,
		Observe:  observe.Namespace{},
		Locate:   p.finder,
		Connect:  func(ctx context.Context) (apply.EC2, error) { return p.client.get(ctx) },
		Routes:   p.guard,
		Log:      log,
	}
}

// client is the one client of EC2. It is made when it is first needed, which may have to be tried again and again.
type client struct {
	fetch func(context.Context) (*apply.Client, error)
	mu    sync.Mutex
	made  *apply.Client
}

func (c *client) get(ctx context.Context) (*apply.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil {
		return c.made, nil
	}
	made, err := c.fetch(ctx)
	if err != nil {
		return nil, err
	}
	c.made = made
	go made.Warm(ctx)
	return made, nil
}

// close gives up the connections that are kept, if there are any.
func (c *client) close() {
	if c.mu.TryLock() { // a client that is being made has none
		defer c.mu.Unlock()
		if c.made != nil {
			c.made.Close()
		}
	}
}

// lastWords bounds the wait for a log that nobody reads.
const lastWords = time.Second

// finish writes the termination message and logs a failure. Success leaves none: the pod's description stays short.
func finish(log *slog.Logger, cfg settings.Agent, err error) error {
	if err == nil {
		return nil
	}
	terr := report.WriteTermination(terminationLog(cfg.TerminationLog), err.Error())
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		log.Error("failed", "code", int(report.CodeOf(err)), "error", err)
		if terr != nil {
			log.Warn("the termination message is only in this log", "error", terr)
		}
	}()
	select {
	case <-logged:
	case <-time.After(lastWords):
	}
	return err
}

func logger(w io.Writer, cfg settings.Agent) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	var h slog.Handler = slog.NewJSONHandler(w, options)
	if cfg.LogFormat == "text" {
		h = slog.NewTextHandler(w, options)
	}
	log := slog.New(h)
	if cfg.Pod.Name != "" {
		log = log.With("namespace", cfg.Pod.Namespace, "pod", cfg.Pod.Name)
	}
	return log
}
