package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"multus-ip-manager.io/webhook/inject"
	"multus-ip-manager.io/webhook/offline"
)

// Values of inject's --output.
const (
	outputYAML    = "yaml"
	outputDiff    = "diff"
	outputExplain = "explain"
)

// injectOptions are the flags of the command inject.
type injectOptions struct {
	injection     options // the part that says what is injected
	files         []string
	output        string
	namespace     string
	namespaceMode string
}

func injectCommand(getenv func(string) string) *cobra.Command {
	o := &injectOptions{injection: *defaultOptions(getenv)}
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Show what the webhook would do to manifests, without a cluster",
		Long: `Show what the webhook would do to manifests, without a cluster.

Reads YAML or JSON with any number of documents and prints all of it, with the container in each pod, and in the template
of each Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob, ReplicationController and PodTemplate (lists too),
where the webhook would inject it. It decides with the code of the server. What does not change stays the same byte for
byte, and what does keeps its comments, but for documents in forms that people rarely write; those are named. Where a merge
key (<<) and an override of what it brings meet, the later one counts, as it does to kubectl.

What is decided about each object, and why, goes to standard error, with the warnings that the API server would show. If
anything is denied, nothing is printed and the exit code is 1.

A manifest does not say what its namespace is labelled. A Namespace that is part of the input speaks for itself; all others
count as labelled multus-ip-manager.io/inject=enabled, and multus-ip-manager.io/mode as --namespace-mode says. What else
the installation decides (image, default mode, settings) comes from --config or the flags, which are those of serve: use the
values that the chart gives to the webhook, or the output differs from what the cluster does.

A pod that was injected here is left alone by the webhook. --mode and --image are short for --default-mode and --agent-image.`,
		Example: `  webhook inject -f deployment.yaml -o diff
  helm template my-chart | webhook inject -f - --image registry.example.com/multus-ip-agent:v1.0.0 | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *injectOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file to read, - for standard input; may be repeated")
	f.StringVarP(&o.output, "output", "o", outputYAML, "what to print: yaml (the whole input, injected), diff, or explain (the decisions alone)")
	f.StringVarP(&o.namespace, "namespace", "n", "default", "namespace of objects that name none")
	f.StringVar(&o.namespaceMode, "namespace-mode", "", "value of the namespaces' label multus-ip-manager.io/mode; empty: no such label")
	o.injection.addInjectionFlags(f)
	// The names of serve, shorter where there is nothing to mistake them for.
	short := map[string]string{"mode": "default-mode", "image": "agent-image"}
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if long, ok := short[name]; ok {
			name = long
		}
		return pflag.NormalizedName(name)
	})
}

func (o *injectOptions) run(stdin io.Reader, stdout, stderr io.Writer) error {
	switch o.output {
	case outputYAML, outputDiff, outputExplain:
	default:
		return fmt.Errorf("--output=%s: allowed: %s, %s, %s", o.output, outputYAML, outputDiff, outputExplain)
	}
	config, err := o.injection.injection()
	if err != nil {
		return err
	}
	injector, err := inject.New(config)
	if err != nil {
		return err
	}
	inputs, err := readInputs(o.files, stdin)
	if err != nil {
		return err
	}
	result, err := offline.Run(offline.Options{Injector: injector, Namespace: o.namespace, ModeLabel: o.namespaceMode}, inputs)
	if err != nil {
		return err
	}
	if o.output == outputExplain {
		if err := explain(stdout, result.Reports); err != nil {
			return err
		}
	} else {
		tell(stderr, result.Reports)
	}
	if n := denied(result.Reports); n > 0 {
		return fmt.Errorf("%d of %d objects with pods would be denied", n, len(result.Reports))
	}
	switch o.output {
	case outputYAML:
		return printFiles(stdout, result.Outputs)
	case outputDiff:
		return printDiffs(stdout, inputs, result.Outputs)
	}
	return nil
}

func readInputs(files []string, stdin io.Reader) ([]offline.Input, error) {
	if len(files) == 0 {
		return nil, fmt.Errorf("-f FILE is needed (- for standard input)")
	}
	var inputs []offline.Input
	for _, file := range files {
		name, read := file, func() ([]byte, error) { return os.ReadFile(file) }
		if file == "-" {
			name, read = "stdin", func() ([]byte, error) { return io.ReadAll(stdin) }
		}
		data, err := read()
		if err != nil {
			return nil, fmt.Errorf("--filename: %w", err)
		}
		inputs = append(inputs, offline.Input{Name: name, Data: data})
	}
	return inputs, nil
}

func denied(reports []offline.Report) int {
	n := 0
	for _, r := range reports {
		if r.Decision.Action == inject.ActionDeny {
			n++
		}
	}
	return n
}

// tell writes a line for each decision and each warning.
func tell(w io.Writer, reports []offline.Report) {
	for _, r := range reports {
		d := r.Decision
		mode := ""
		if d.Mode != "" {
			mode = ", mode " + string(d.Mode)
		}
		_, _ = fmt.Fprintf(w, "%s: %s: %s (%s%s): %s\n", r.Input, r.Object, d.Action, d.Reason, mode, d.Message)
		for _, warning := range d.Warnings {
			_, _ = fmt.Fprintf(w, "%s: %s: warning: %s\n", r.Input, r.Object, warning)
		}
		if r.Rewritten {
			_, _ = fmt.Fprintf(w, "%s: %s: the document had to be written anew: comments, or the order of its keys, are lost\n", r.Input, r.Object)
		}
	}
}

// explain prints the decisions as a table.
func explain(w io.Writer, reports []offline.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "INPUT\tOBJECT\tDECISION\tMODE\tREASON\tMESSAGE")
	for _, r := range reports {
		d := r.Decision
		mode := string(d.Mode)
		if mode == "" {
			mode = "-"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Input, r.Object, d.Action, mode, d.Reason, d.Message)
		for _, warning := range d.Warnings {
			_, _ = fmt.Fprintf(t, "%s\t%s\twarning\t-\t-\t%s\n", r.Input, r.Object, warning)
		}
	}
	return t.Flush()
}

// printFiles prints files as one stream of documents.
func printFiles(w io.Writer, files [][]byte) error {
	for i, data := range files {
		if i > 0 {
			if _, err := io.WriteString(w, separator(files[i-1], data)); err != nil {
				return err
			}
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// separator is what must stand between two files so that their documents stay apart.
func separator(before, after []byte) string {
	mark := ""
	if len(before) > 0 && before[len(before)-1] != '\n' {
		mark = "\n"
	}
	if len(after) < 3 || string(after[:3]) != "---" {
		mark += "---\n"
	}
	return mark
}

func printDiffs(w io.Writer, inputs []offline.Input, outputs [][]byte) error {
	for i, input := range inputs {
		diff, err := offline.Diff(input.Name, input.Data, outputs[i])
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, diff); err != nil {
			return err
		}
	}
	return nil
}
