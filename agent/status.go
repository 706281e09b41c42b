package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"multus-ip-manager.io/agent/report"
)

// readyCommand is the startup probe of the sidecar. What it prints is what the pod's events show.
func readyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Tell whether the pod's addresses are routed to it: exit code 0, or 1 and which address waits for what",
		Args:  cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		status, err := report.Ask(cmd.Context(), *socket)
		if err != nil {
			return told(cmd.OutOrStdout(), "not ready: "+report.Clean(err.Error()))
		}
		if !status.Ready {
			return told(cmd.OutOrStdout(), status.Sentence())
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), status.Sentence())
		return err
	}
	return cmd
}

// statusCommand is for people and their scripts.
func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the pod's addresses and what each of them waits for",
		Args:  cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	output := cmd.Flags().StringP("output", "o", "table", "form of the output: table, json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		show := map[string]func(io.Writer, report.Status) error{"table": table, "json": document}[*output]
		if show == nil {
			return fmt.Errorf("--output=%q is not valid: allowed: table, json", *output)
		}
		status, err := report.Ask(cmd.Context(), *socket)
		if err != nil {
			return told(cmd.ErrOrStderr(), "agent: "+report.Clean(err.Error()))
		}
		return show(cmd.OutOrStdout(), status)
	}
	return cmd
}

// socketFlag is for tests: two agents of one network namespace need two sockets.
func socketFlag(cmd *cobra.Command) *string {
	socket := cmd.Flags().String("socket", report.Socket, "name of the status socket")
	_ = cmd.Flags().MarkHidden("socket") // fails for a flag that is not there
	return socket
}

// told prints a line and gives the failure that stands for it, of which nothing else is told.
func told(w io.Writer, line string) error {
	_, _ = fmt.Fprintln(w, line)
	return report.Fail(report.GaveUp, "%s", line)
}

func document(w io.Writer, s report.Status) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// table shows who tells, whether it is ready, each address, and what else is waited for.
func table(w io.Writer, s report.Status) error {
	var b strings.Builder
	b.WriteString("agent")
	for _, part := range []string{s.Version, s.Mode} {
		if part != "" {
			b.WriteString(" " + report.Clean(part))
		}
	}
	if s.Pod != "" {
		b.WriteString(", pod " + report.Clean(s.Namespace+"/"+s.Pod))
	}
	b.WriteString(", started " + moment(s.Started) + "\n" + s.Sentence() + "\n")
	if len(s.Addresses) > 0 {
		b.WriteString("\n")
		rows(&b, s.Addresses)
	}
	for i, what := range s.Waiting {
		if i == 0 {
			b.WriteString("\n")
		}
		b.WriteString("waiting: " + report.Clean(what) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func rows(b *strings.Builder, addresses []report.AddressStatus) {
	t := tabwriter.NewWriter(b, 0, 8, 3, ' ', 0)
	line := func(cells ...string) {
		for i, c := range cells {
			if cells[i] = report.Clean(c); cells[i] == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) // into memory
	}
	line("ADDRESS", "INTERFACE", "ENI", "ORIGIN", "STATE", "SINCE", "REASON")
	for _, a := range addresses {
		line(a.Address, a.Interface, a.ENI, a.Origin, a.State, moment(a.Since), a.Explain())
	}
	_ = t.Flush() // into memory
}

// moment is a time as the log has it.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
