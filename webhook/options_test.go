package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

func parse(t *testing.T, args ...string) *options {
	t.Helper()
	o := defaultOptions(func(name string) string { return map[string]string{"POD_NAMESPACE": "from-env"}[name] })
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestNamespaceComesFromThePod(t *testing.T) {
	if got := parse(t).namespace; got != "from-env" {
		t.Errorf("namespace %q", got)
	}
	if got := parse(t, "--namespace=flag").namespace; got != "flag" {
		t.Errorf("namespace %q, want the flag's", got)
	}
}

func TestInjection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(`{"image":"file:1","imagePullPolicy":"Never","agent":{"deadline":"5m"},"env":[{"name":"A","value":"file"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		want func(*inject.Config)
	}{
		"nothing": {nil, func(*inject.Config) {}},
		"flags": {[]string{"--default-mode=init", "--agent-image=i:1", "--agent-pull-policy=Always", "--agent-arg=deadline=10m", "--agent-arg=--allow-primary-eni",
			"--agent-arg=vpc-cni-subnets=a,b", "--agent-env=A=b=c,d", "--agent-env=B="}, func(c *inject.Config) {
			c.Mode, c.Image, c.ImagePullPolicy = settings.Init, "i:1", "Always"
			c.Agent = map[string]string{"deadline": "10m", "allow-primary-eni": "true", "vpc-cni-subnets": "a,b"}
			c.Env = []inject.EnvVar{{Name: "A", Value: "b=c,d"}, {Name: "B"}}
		}},
		"file": {[]string{"--config=" + file}, func(c *inject.Config) {
			c.Image, c.ImagePullPolicy = "file:1", "Never"
			c.Agent, c.Env = map[string]string{"deadline": "5m"}, []inject.EnvVar{{Name: "A", Value: "file"}}
		}},
		"flags win over the file": {[]string{"--config=" + file, "--agent-image=i:1", "--agent-arg=deadline=1m", "--agent-env=A=flag", "--agent-env=B=flag"}, func(c *inject.Config) {
			c.Image, c.ImagePullPolicy = "i:1", "Never"
			c.Agent, c.Env = map[string]string{"deadline": "1m"}, []inject.EnvVar{{Name: "A", Value: "flag"}, {Name: "B", Value: "flag"}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(t, tc.args...).injection()
			if err != nil {
				t.Fatal(err)
			}
			want := inject.DefaultConfig()
			want.Version = version
			tc.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	unused := []string{"--cert-source=secret", "--webhook-configuration=", "--cert-dir=" + dir}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no command":            {nil, "serve, check, inject or version"},
		"unknown command":       {[]string{"sevre"}, "sevre"},
		"unknown flag":          {[]string{"serve", "--prot=1"}, "--prot"},
		"log level":             {[]string{"serve", "--log-level=loud"}, "allowed: debug, info, warn, error"},
		"log format":            {[]string{"serve", "--log-format=xml"}, "allowed: json, text"},
		"certificate source":    {[]string{"serve", "--cert-source=me"}, "allowed: self, cert-manager, secret"},
		"no certificate folder": {[]string{"serve", "--cert-source=cert-manager"}, "needs --cert-dir"},
		"outside a cluster":     {[]string{"serve"}, "--kubeconfig"},
		"no kubeconfig there":   {[]string{"serve", "--kubeconfig=" + dir + "/none"}, dir + "/none"},
		"check outside":         {[]string{"check"}, "--kubeconfig"},
		"check with a word":     {[]string{"check", "all"}, "all"},
		"check in no time":      {[]string{"check", "--kubeconfig=" + kubeconfig(t), "--timeout=1ns"}, "no attempt came to an end"},
		"no names":              {[]string{"serve", "--kubeconfig=" + kubeconfig(t)}, "--dns-names"},
		"agent environment":     {append([]string{"serve", "--agent-env=A"}, unused...), "NAME=VALUE"},
		"agent setting":         {append([]string{"serve", "--agent-arg=deadlin=1m"}, unused...), "deadlin"},
		"agent value":           {append([]string{"serve", "--agent-arg=deadline=soon"}, unused...), "soon"},
		"mode":                  {append([]string{"serve", "--default-mode=daemon"}, unused...), "--default-mode"},
		"no config file there":  {append([]string{"serve", "--config=" + dir + "/none"}, unused...), dir + "/none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			err := execute(t.Context(), tc.args, nil, &bytes.Buffer{}, &bytes.Buffer{}, func(string) string { return "" })
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if err := execute(t.Context(), []string{"version"}, nil, &out, &bytes.Buffer{}, os.Getenv); err != nil || !strings.HasPrefix(out.String(), "webhook "+version+" go") {
		t.Errorf("%q %v", &out, err)
	}
}

func TestLibrariesLogAsWeDo(t *testing.T) {
	var buf bytes.Buffer
	logger, err := newLogger(&buf, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	before := slog.Default()
	t.Cleanup(func() { routeLogs(before) })
	routeLogs(logger)
	log.Print("from the standard library")
	klog.InfoS("from client-go", "key", "value")
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), &buf)
	}
	for i, want := range []string{"from the standard library", "from client-go"} {
		var line struct{ Msg string }
		if err := json.Unmarshal([]byte(lines[i]), &line); err != nil || line.Msg != want {
			t.Errorf("%s: %v", lines[i], err)
		}
	}
}

func kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	const text = `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],` +
		`"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyPair makes a directory with a self-signed certificate.
func keyPair(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"webhook"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
