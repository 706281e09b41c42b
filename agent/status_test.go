package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"multus-ip-manager.io/agent/report"
)

// answering serves a status at a socket of this test's own, until the test ends, and gives the socket's name.
func answering(t *testing.T, status report.StatusFunc) string {
	t.Helper()
	name := fmt.Sprintf("@multus-ip-manager-%s-%d", t.Name(), os.Getpid())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		report.Serve(ctx, name, status, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { cancel(); <-done })
	for {
		if conn, err := net.Dial("unix", name); err == nil {
			conn.Close()
			return name
		}
	}
}

func fixed(s report.Status) report.StatusFunc {
	return func(context.Context) (report.Status, error) { return s, nil }
}

// ask runs one of the two commands.
func ask(t *testing.T, cmd *cobra.Command, args ...string) (code report.Code, stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.ExecuteContext(t.Context())
	return report.CodeOf(err), out.String(), errs.String(), err
}

func TestReady(t *testing.T) {
	tests := map[string]struct {
		status report.Status
		code   report.Code
		want   string
	}{
		"ready": {report.Status{Mode: "sidecar", Ready: true}, report.Done, "ready: no address to assign\n"},
		"not ready": {report.Status{Mode: "sidecar", Reason: "10.0.4.80 on net1 waits: throttled"}, report.GaveUp,
			"not ready: 10.0.4.80 on net1 waits: throttled\n"},
		"several lines": {report.Status{Mode: "sidecar", Reason: "one\n\x1b[31mtwo"}, report.GaveUp, "not ready: one ?[31mtwo\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr, _ := ask(t, readyCommand(), "--socket="+answering(t, fixed(tt.status)))
			if code != tt.code || stdout != tt.want || stderr != "" {
				t.Errorf("exit code %d, %q, %q; want %d, %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}

// An agent that cannot answer is not ready, and the probe hears why before the kubelet's patience ends.
func TestReadyWithoutAnswer(t *testing.T) {
	code, stdout, _, err := ask(t, readyCommand(), "--socket=@multus-ip-manager-nobody")
	if code != report.GaveUp || !strings.HasPrefix(stdout, "not ready: no agent answers at @multus-ip-manager-nobody") || strings.Count(stdout, "\n") != 1 {
		t.Errorf("nobody: exit code %d, %q", code, stdout)
	}
	var failed *report.Failure
	if !errors.As(err, &failed) {
		t.Errorf("%v would be told as a usage error", err)
	}
	stuck := answering(t, func(ctx context.Context) (report.Status, error) { <-ctx.Done(); return report.Status{}, ctx.Err() })
	code, stdout, _, _ = ask(t, readyCommand(), "--socket="+stuck)
	// On a busy machine the client may give up before the agent tells that it is stuck.
	if code != report.GaveUp || !strings.Contains(stdout, "stuck") && !strings.Contains(stdout, "does not answer") {
		t.Errorf("stuck: exit code %d, %q", code, stdout)
	}
}

func full() report.Status {
	at := time.Date(2026, 8, 21, 12, 0, 0, 0, time.FixedZone("", 2*3600))
	return report.Status{
		Version: "v1", Mode: "sidecar", Namespace: "telco", Pod: "amf-0", Started: at, Reason: "10.0.4.81 on net1 waits: throttled",
		Addresses: []report.AddressStatus{
			{Address: "10.0.4.80", Interface: "net1", ENI: "eni-1", Origin: report.OriginPod, State: report.StateAssigned, Since: at, Attempts: 1},
			{Address: "10.0.4.81", Interface: "net1", ENI: "eni-1", Origin: report.OriginPod, State: report.StateWaiting, Reason: "throttled\tby EC2", Since: at, Attempts: 7},
			{Address: "2001:db8::9", Interface: "net2", Origin: report.OriginFloating, State: report.StateLost, Holder: "eni-7"},
		},
		Waiting: []string{"metadata: no\x07 answer"},
	}
}

func TestStatusTable(t *testing.T) {
	const want = `agent v1 sidecar, pod telco/amf-0, started 2026-08-21T10:00:00Z
not ready: 10.0.4.81 on net1 waits: throttled

ADDRESS       INTERFACE   ENI     ORIGIN     STATE      SINCE                  REASON
10.0.4.80     net1        eni-1   pod        assigned   2026-08-21T10:00:00Z   -
10.0.4.81     net1        eni-1   pod        waiting    2026-08-21T10:00:00Z   throttled by EC2
2001:db8::9   net2        -       floating   lost       -                      eni-7 holds it

waiting: metadata: no? answer
`
	name := answering(t, fixed(full()))
	for _, args := range [][]string{nil, {"-o", "table"}, {"--output=table"}} {
		code, stdout, stderr, _ := ask(t, statusCommand(), append(args, "--socket="+name)...)
		if code != report.Done || stdout != want || stderr != "" {
			t.Errorf("%v: exit code %d, %q\n%s\nwant\n%s", args, code, stderr, stdout, want)
		}
	}
}

// An agent outside a pod and without addresses has a status too.
func TestStatusTableOfNothing(t *testing.T) {
	at := time.Date(2026, 8, 21, 10, 0, 0, 0, time.UTC)
	name := answering(t, fixed(report.Status{Mode: "sidecar", Started: at, Ready: true}))
	const want = "agent sidecar, started 2026-08-21T10:00:00Z\nready: no address to assign\n"
	if _, stdout, _, _ := ask(t, statusCommand(), "--socket="+name); stdout != want {
		t.Errorf("%q, want %q", stdout, want)
	}
}

func TestStatusJSON(t *testing.T) {
	name := answering(t, fixed(full()))
	code, stdout, _, _ := ask(t, statusCommand(), "-o", "json", "--socket="+name)
	var got struct {
		Mode, Pod, Reason string
		Ready             *bool
		Addresses         []map[string]any
		Waiting           []string
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != report.Done {
		t.Fatalf("exit code %d, %v in %s", code, err, stdout)
	}
	if got.Pod != "amf-0" || got.Ready == nil || *got.Ready || len(got.Addresses) != 3 || len(got.Waiting) != 1 {
		t.Errorf("%+v", got)
	}
	// The names are a contract with scripts.
	for _, key := range []string{"address", "interface", "eni", "origin", "state", "reason", "since", "attempts"} {
		if _, ok := got.Addresses[1][key]; !ok {
			t.Errorf("no %q in %v", key, got.Addresses[1])
		}
	}
}

func TestStatusWithoutAnswer(t *testing.T) {
	for _, form := range []string{"table", "json"} {
		code, stdout, stderr, _ := ask(t, statusCommand(), "-o", form, "--socket=@multus-ip-manager-nobody")
		if code != report.GaveUp || stdout != "" || !strings.HasPrefix(stderr, "agent: no agent answers at @multus-ip-manager-nobody") {
			t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
		}
	}
}

// A usage error is not a failure of the agent, so it is the caller's to print.
func TestStatusUsage(t *testing.T) {
	for name, tt := range map[string]struct {
		cmd  *cobra.Command
		args []string
		say  []string
	}{
		"output":              {statusCommand(), []string{"-o", "yaml"}, []string{"--output", `"yaml"`, "table, json"}},
		"empty output":        {statusCommand(), []string{"-o", ""}, []string{"table, json"}},
		"argument":            {statusCommand(), []string{"net1"}, []string{"net1"}},
		"argument to ready":   {readyCommand(), []string{"net1"}, []string{"net1"}},
		"ready has no output": {readyCommand(), []string{"-o", "json"}, []string{"-o"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, stdout, _, err := ask(t, tt.cmd, tt.args...)
			var failed *report.Failure
			if err == nil || errors.As(err, &failed) || stdout != "" {
				t.Fatalf("error %v, output %q", err, stdout)
			}
			for _, w := range tt.say {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
		})
	}
}

// The socket is the tests' business; users are not to think that there is one to choose.
func TestSocketFlagIsHidden(t *testing.T) {
	for _, cmd := range []*cobra.Command{readyCommand(), statusCommand()} {
		f := cmd.Flags().Lookup("socket")
		if f == nil || !f.Hidden || f.DefValue != "@multus-ip-manager" {
			t.Errorf("%s: %+v", cmd.Name(), f)
		}
	}
}
