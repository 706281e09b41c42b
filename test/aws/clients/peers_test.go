package clients

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"multus-ip-manager.io/test/aws"
)

const install = "install them with: apt-get install -y awscli python3-boto3"

// run runs a client with nothing but the emulator in its environment.
func run(t *testing.T, e endpoints, stdin, path string, args ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = e.env(t.TempDir())
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	return out.String(), errOut.String(), err == nil
}

// awsCLI finds Debian's AWS CLI, or whatever else is in the path.
func awsCLI(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"/usr/bin/aws", "aws"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("the AWS CLI is not installed; " + install)
	return ""
}

// TestAWSCLI uses the command line as an operator would; few steps, because each starts an interpreter (TestBoto3 has the rest). Credentials come from the emulated metadata service.
func TestAWSCLI(t *testing.T) {
	cli := awsCLI(t)
	e := start(t)
	steps := []struct {
		name   string
		args   string
		want   string // JSON, or a part of the error
		failed bool
	}{
		{"assign", "assign-private-ip-addresses --network-interface-id " + eni1 + " --private-ip-addresses 10.0.1.20 10.0.1.21 --allow-reassignment",
			`{"NetworkInterfaceId":"` + eni1 + `","AssignedPrivateIpAddresses":[{"PrivateIpAddress":"10.0.1.20"},{"PrivateIpAddress":"10.0.1.21"}]}`, false},
		{"no move", "assign-private-ip-addresses --network-interface-id " + eni2 + " --private-ip-addresses 10.0.1.20 --no-allow-reassignment",
			"An error occurred (InvalidParameterValue) when calling the AssignPrivateIpAddresses operation: [10.0.1.20] assigned, but move is not allowed.", true},
		{"move", "assign-private-ip-addresses --network-interface-id " + eni2 + " --private-ip-addresses 10.0.1.20 --allow-reassignment --query AssignedPrivateIpAddresses[0]",
			`{"PrivateIpAddress":"10.0.1.20"}`, false},
		{"assign 6", "assign-ipv6-addresses --network-interface-id " + eni1 + " --ipv6-addresses fd00:1::20",
			`{"AssignedIpv6Addresses":["fd00:1::20"],"NetworkInterfaceId":"` + eni1 + `"}`, false},
		{"who has it", "describe-network-interfaces --filters Name=ipv6-addresses.ipv6-address,Values=fd00:1::20 Name=vpc-id,Values=* --query NetworkInterfaces[].[NetworkInterfaceId,Status,Ipv6Addresses[0].Ipv6Address]",
			`[["` + eni1 + `","in-use","fd00:1::20"]]`, false},
		{"pages", "describe-network-interfaces --page-size 5 --query NetworkInterfaces[].TagSet[]", `[{"Key":"a b","Value":"c&<d>"}]`, false},
		{"unassign", "unassign-private-ip-addresses --network-interface-id " + eni2 + " --private-ip-addresses 10.0.1.20", ``, false},
		{"unknown", "describe-volumes", "(InvalidAction)", true},
	}
	for _, s := range steps {
		args := append([]string{"--endpoint-url", e.ec2, "--output", "json", "ec2"}, strings.Fields(s.args)...)
		out, errOut, ok := run(t, e, "", cli, args...)
		switch {
		case ok == s.failed:
			t.Fatalf("%s: ok=%t\n%s%s", s.name, ok, out, errOut)
		case s.failed && !strings.Contains(errOut, s.want):
			t.Errorf("%s: %s", s.name, errOut)
		case !s.failed:
			equalJSON(t, s.name, s.want, out)
		}
	}
	if h, held := e.cloud.Holder(netip.MustParseAddr("10.0.1.20")); held {
		t.Errorf("at the end 10.0.1.20 is on %s", h.ENI)
	}
}

func equalJSON(t *testing.T, name, want, got string) {
	t.Helper()
	var w, g any
	if want == "" {
		want = "null"
	}
	if strings.TrimSpace(got) == "" {
		got = "null"
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Errorf("%s: %v in %s", name, err, got)
	}
	if diff := cmp.Diff(w, g); diff != "" {
		t.Errorf("%s:\n%s", name, diff)
	}
}

//go:embed testdata/session.py
var session string

// TestBoto3 runs a Python program: session, waiters, paginators, and what a Python tool would do with the answers.
func TestBoto3(t *testing.T) {
	e := start(t)
	python := pythonWithBoto3(t, e)
	e.cloud.AddUser("AKIALIMITED", "limited", aws.WithPolicy(aws.Policy{Allow: []aws.Statement{{Actions: []string{"ec2:Describe*"}}}}))
	out, errOut, ok := run(t, e, session, python, "-", e.ec2, eni1, eni2)
	if !ok {
		t.Fatalf("%s%s", out, errOut)
	}
	if !strings.HasSuffix(out, "all well\n") {
		t.Error(out)
	}
	for _, c := range e.cloud.Journal() {
		if !strings.HasSuffix(c.Principal, ":assumed-role/node/"+instance) && c.Code == "" && c.Action != "DescribeSubnets" {
			t.Errorf("%v", c)
		}
	}
}
