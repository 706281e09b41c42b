package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// runIt runs the command until it has printed what is wanted, then ends it.
func runIt(t *testing.T, try func(output string), args ...string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, args, w, io.Discard)
		_ = w.Close()
		done <- err
	}()
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), "device 1 of") {
		n, err := r.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	try(got.String())
	cancel()
	return <-done
}

func get(t *testing.T, at string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func endpointIn(t *testing.T, output, variable string) string {
	t.Helper()
	m := regexp.MustCompile(`export ` + variable + `=(\S+)`).FindStringSubmatch(output)
	if m == nil {
		t.Fatalf("no %s in:\n%s", variable, output)
	}
	return m[1]
}

func TestDefaultInstance(t *testing.T) {
	err := runIt(t, func(output string) {
		imds := endpointIn(t, output, "AWS_EC2_METADATA_SERVICE_ENDPOINT")
		macs := strings.Fields(get(t, imds+"latest/meta-data/network/interfaces/macs/"))
		if len(macs) != 2 {
			t.Errorf("interfaces: %v", macs)
		}
		if az := get(t, imds+"latest/meta-data/placement/availability-zone"); az != "eu-west-3a" {
			t.Errorf("zone %s", az)
		}
		if body := get(t, endpointIn(t, output, "AWS_ENDPOINT_URL_EC2")); !strings.Contains(body, "<Code>MissingParameter</Code>") {
			t.Errorf("EC2 answers %s", body)
		}
	}, "-enis", "2", "-region", "eu-west-3", "-quiet")
	if err != nil {
		t.Error(err)
	}
}

func TestConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloud.yaml")
	text := `
vpcs: [{id: vpc-1, ipv4: [10.0.0.0/16]}]
subnets:
- {id: subnet-1, vpcID: vpc-1, ipv4: 10.0.1.0/24, ipv6: ["fd00:1::/64"]}
instances:
- {id: i-1, type: c5.large, tokensRequired: false, hopLimit: 1, policy: {allow: [{actions: ["ec2:Describe*"]}]}}
- {id: i-2, type: own, limits: {enis: 2, ipv4PerENI: 4, ipv6PerENI: 4}}
interfaces:
- {id: eni-1, subnetID: subnet-1, instanceID: i-1, mac: "02:00:00:00:00:01", primary: 10.0.1.10, secondary: [10.0.1.11], elasticIPs: {10.0.1.11: 203.0.113.1}}
- {id: eni-2, subnetID: subnet-1, instanceID: i-2, deviceIndex: 1, prefixes: [10.0.1.32/28]}
users: [{accessKeyId: AKIA1, secretAccessKey: s}]
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	err := runIt(t, func(output string) {
		imds := endpointIn(t, output, "AWS_EC2_METADATA_SERVICE_ENDPOINT")
		if got := get(t, imds+"latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/local-ipv4s"); got != "10.0.1.10\n10.0.1.11" {
			t.Errorf("addresses %q", got)
		}
		imds = regexp.MustCompile(`METADATA_SERVICE_ENDPOINT=(\S+)  # i-2`).FindStringSubmatch(output)[1]
		if got := get(t, imds+"latest/meta-data/instance-id"); got != "i-2" {
			t.Errorf("second instance: %q", got)
		}
	}, "-config", path, "-quiet")
	if err != nil {
		t.Error(err)
	}
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for want, args := range map[string][]string{
		"unexpected argument":  {"now"},
		"unknown field":        {"-config", file("a.yaml", "subnet: []")},
		"no such file":         {"-config", filepath.Join(dir, "none.yaml")},
		"is not in the table":  {"-type", "m1.gigantic"},
		"hop limit 99":         {"-hop-limit", "99"},
		"EC2 endpoint":         {"-listen", "256.0.0.1:1"},
		"STS endpoint":         {"-sts-listen", "256.0.0.1:1"},
		"Pod Identity agent":   {"-pod-identity-listen", "256.0.0.1:1"},
		"want namespace:name":  {"-service-account", "default"},
		"no such file or":      {"-token-dir", filepath.Join(dir, "none")},
		"want trusts":          {"-config", file("e.yaml", "roles: [{name: pods, trusts: [me]}]")},
		"there is no role":     {"-config", file("f.yaml", "associations: {\"telco:app\": pods}")},
		"metadata service of":  {"-imds-listen", "256.0.0.1:1"},
		"flag provided but":    {"-nope"},
		"want a region":        {"-region", ""},
		"-hop-limit 0":         {"-hop-limit", "0"},
		"-enis 0":              {"-enis", "0"},
		"-enis 257":            {"-enis", "257", "-type", "p4d.24xlarge"},
		"-enis -type: these":   {"-type", "c5.large", "-enis", "2", "-config", file("d.yaml", "")},
		"allows 3 interfaces":  {"-enis", "4"},
		"want an id eni":       {"-config", file("b.yaml", "interfaces: [{id: x}]")},
		"does not fall within": {"-config", file("c.yaml", "subnets: [{id: subnet-1, ipv4: 10.0.0.0/24}]\ninterfaces: [{id: eni-1, subnetID: subnet-1, primary: 10.1.0.9}]")},
	} {
		// A mistake that nobody notices would serve for ever.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := run(ctx, args, io.Discard, io.Discard)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want …%s…", args, err, want)
		}
	}
}

// A pod's tokens are good at STS and at the Pod Identity agent.
func TestPodsTokens(t *testing.T) {
	dir := t.TempDir()
	err := runIt(t, func(output string) {
		find := func(variable string) string {
			t.Helper()
			m := regexp.MustCompile(`(?m)^# export.* ?` + variable + `=(\S+)`).FindStringSubmatch(output)
			if m == nil {
				t.Fatalf("no %s in:\n%s", variable, output)
			}
			return m[1]
		}
		read := func(variable string) string {
			t.Helper()
			token, err := os.ReadFile(find(variable))
			if err != nil {
				t.Fatal(err)
			}
			return string(token)
		}
		query := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleSessionName": {"s-1"}, "RoleArn": {find("AWS_ROLE_ARN")},
			"WebIdentityToken": {read("AWS_WEB_IDENTITY_TOKEN_FILE")}}
		if body := get(t, endpointIn(t, output, "AWS_ENDPOINT_URL_STS")+"/?"+query.Encode()); !strings.Contains(body, "<Arn>arn:aws:sts::123456789012:assumed-role/pods/s-1</Arn>") {
			t.Error(body)
		}
		// Without the token in a header there is none; that it is the agent which says so is enough here.
		if body := get(t, find("AWS_CONTAINER_CREDENTIALS_FULL_URI")); body != "Service account token cannot be empty\n" {
			t.Error(body)
		}
		if token := read("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); strings.Count(token, ".") != 2 {
			t.Errorf("%q is no token", token)
		}
	}, "-token-dir", dir, "-service-account", "telco:app", "-quiet")
	if err != nil {
		t.Error(err)
	}
}

// TestHelp: the example in the help text is a cloud that works, and its output names what is not attached.
func TestHelp(t *testing.T) {
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(help.String(), "\n  subnets:")
	example, _, ok := strings.Cut(rest, "\n\n")
	if !ok || !strings.Contains(help.String(), "-hop-limit") {
		t.Fatalf("no example or no flags in:\n%s", help.String())
	}
	example += "\n  - {accessKeyId: AKIA2, secretAccessKey: s}"
	example = strings.Replace(example, "  users:", "  - {id: eni-2, subnetID: subnet-1, instanceID: i-1, deviceIndex: 1}\n  - {id: eni-3, subnetID: subnet-1}\n  users:", 1)
	path := filepath.Join(t.TempDir(), "cloud.yaml")
	if err := os.WriteFile(path, []byte("  subnets:"+example), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.build(options{region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := announce(&out, c, s, urls{ec2: "http://ec2.test"}, tokens{}); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{"without the instance's role": 1, "AWS_ACCESS_KEY_ID=": 2, "device 0 of i-1": 1, "not attached  subnet-1": 1} {
		if got := strings.Count(out.String(), text); got != want {
			t.Errorf("%q is %d times in:\n%s", text, got, out.String())
		}
	}
	if got := c.Settings().MaxClockSkew; got != 5*time.Minute {
		t.Errorf("clocks may differ by %s", got)
	}
}
