package settings

import (
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// env makes a getenv from pairs.
func env(pairs ...string) func(string) string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return m[name] }
}

// flags makes a FlagSource from pairs.
func flags(pairs ...string) FlagSource {
	get := env(pairs...)
	return func(name string) (string, bool) { v := get(name); return v, v != "" }
}

func compare(t *testing.T, got, want any) {
	t.Helper()
	opts := cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if d := cmp.Diff(want, got, opts); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range Modes() {
		if got, err := ParseMode(string(m)); err != nil || got != m {
			t.Errorf("ParseMode(%q) = %q, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "Init", " init", "daemon"} {
		if _, err := ParseMode(s); err == nil || !strings.Contains(err.Error(), "init, sidecar, node") {
			t.Errorf("ParseMode(%q): %v does not name the modes", s, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	base := Agent{LogFormat: "json", TerminationLog: "/dev/termination-log"}
	initMode, sidecar := base, base
	initMode.Mode, initMode.Deadline = Init, DefaultInitDeadline
	sidecar.Mode, sidecar.Release = Sidecar, true
	for _, want := range []Agent{initMode, sidecar} {
		got, err := Load(want.Mode, nil, env())
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, want)
	}
}

func TestLoadEverything(t *testing.T) {
	got, err := Load(Init, flags(
		"log-format", "text", "allow-primary-eni", "true", "vpc-cni-subnets", "subnet-0a, subnet-0b",
		"map-by-subnet", "true", "metrics-port", "9464", "termination-log", "-",
	), env(
		"MIM_POD_NAME", "upf-0", "MIM_POD_NAMESPACE", "telco", "MIM_POD_UID", "u-1", "MIM_POD_IPS", "10.0.1.7,2001:db8::7",
		"MIM_NETWORKS", "n3,other/n4@n4", "MIM_NETWORK_STATUS", "[]",
		"MIM_INTERFACES", "net1, net3", "MIM_IGNORE", "10.0.9.5/24,2001:db8::5", "MIM_RELEASE", "true",
		"MIM_DEADLINE", "90s", "MIM_LOG_LEVEL", "debug",
	))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, Agent{
		Mode: Init,
		Pod: Pod{Namespace: "telco", Name: "upf-0", UID: "u-1",
			IPs: []netip.Addr{netip.MustParseAddr("10.0.1.7"), netip.MustParseAddr("2001:db8::7")}},
		Networks:      []Network{{Namespace: "telco", Name: "n3"}, {Namespace: "other", Name: "n4", Interface: "n4"}},
		NetworkStatus: "[]",
		Interfaces:    []string{"net1", "net3"},
		Ignore:        []netip.Prefix{netip.MustParsePrefix("10.0.9.0/24"), netip.MustParsePrefix("2001:db8::5/128")},
		Release:       true, Deadline: 90 * time.Second, LogLevel: slog.LevelDebug, LogFormat: "text",
		AllowPrimaryENI: true, VPCCNISubnets: []string{"subnet-0a", "subnet-0b"}, MapBySubnet: true, MetricsPort: 9464,
	})
}

func TestPrecedence(t *testing.T) {
	for name, tt := range map[string]struct {
		flag, env string
		want      time.Duration
	}{
		"default":                      {"", "", DefaultInitDeadline},
		"flag over default":            {"2m", "", 2 * time.Minute},
		"annotation over flag":         {"2m", "3m", 3 * time.Minute},
		"zero means never, as a flag":  {"0", "", 0},
		"zero seconds, as a flag":      {"0s", "", 0},
		"annotation over a zero flag":  {"0", "3m", 3 * time.Minute},
		"smallest and largest allowed": {"24h", "1s", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Load(Init, flags("deadline", tt.flag), env("MIM_DEADLINE", tt.env))
			if err != nil || a.Deadline != tt.want {
				t.Errorf("got %v, %v; want %v", a.Deadline, err, tt.want)
			}
		})
	}
}

func TestUnparsableNetworksAreNotAUsageError(t *testing.T) {
	a, err := Load(Init, nil, env("MIM_NETWORKS", "[null]"))
	if err != nil || a.NetworksErr == nil || a.Networks != nil {
		t.Errorf("got %v, %v, %v", a.Networks, a.NetworksErr, err)
	}
}

func TestLoadNamesEveryProblem(t *testing.T) {
	_, err := Load(Init, flags("log-format", "xml", "deadline", "-1s"),
		env("MIM_RELEASE", "yes", "MIM_POD_IPS", "10.0.0.300", "MIM_INTERFACES", "net1,,net2"))
	var usage *UsageError
	if !errors.As(err, &usage) {
		t.Fatalf("%T is not a usage error", err)
	}
	for _, want := range []string{
		`--log-format="xml" is not valid: allowed: json, text`,
		`--deadline="-1s" is not valid: allowed: a duration from 1s to 24h`,
		`multus-ip-manager.io/release="yes" is not valid: allowed: true, false`,
		`multus-ip-manager.io/interfaces="net1,,net2" is not valid`,
		`MIM_POD_IPS="10.0.0.300"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if len(usage.Problems) != 5 {
		t.Errorf("%d problems", len(usage.Problems))
	}
}

// Every row that a pod can set: what is accepted and what is not.
func TestAnnotationRules(t *testing.T) {
	long := strings.Repeat("10.0.0.0/8,", 20000)
	for key, tt := range map[string]struct{ good, bad []string }{
		KeyMode: {[]string{"init", "sidecar", "node"}, []string{"Init", "none", "init "}},
		KeyInterfaces: {[]string{"net1", "net1,net3", " n3 , n4 ", "eth0.100", "Net_1", "net1,net1", "abcdefghijklmno"},
			[]string{",", "net1,", "a/b", "a:1", "a b", ".", "..", "abcdefghijklmnop", "net1;net2\x00", "à"}},
		KeyIgnore: {[]string{"10.0.0.1", "10.0.0.0/8", "10.0.0.9/8, 2001:db8::/32", "::1"},
			[]string{"10.0.0", "10.0.0.0/33", "fe80::1%eth0", "net1", ",", "::ffff:10.0.0.1", "10.0.0.1-10.0.0.9", long}},
		KeyRelease:  {[]string{"true", "false"}, []string{"yes", "True", "1", " "}},
		KeyDeadline: {[]string{"1s", "90s", "1h30m", "24h"}, []string{"0", "0s", "999ms", "24h1s", "5", "5 minutes", "-5m", "1d"}},
		KeyLogLevel: {[]string{"debug", "info", "warn", "error"}, []string{"INFO", "trace", "info+2", "4"}},
		KeyCPU:      {[]string{"1m", "20m", "0.5", "1", "64", "5e-1", "1000000u"}, []string{"0", "65", "0.5m", "-1", "500n", "half", "1 ", "1e999999999"}},
		KeyMemory:   {[]string{"16Mi", "64Mi", "1Gi", "100M", "1e9", "64Gi"}, []string{"15Mi", "65Gi", "48", "48mb", "0", "-1Gi", "16777216.5", "Mi"}},
	} {
		for _, v := range tt.good {
			if p := CheckAnnotations(map[string]string{key: v}); p != nil {
				t.Errorf("%s=%q refused: %v", key, v, p)
			}
		}
		for _, v := range tt.bad {
			p := CheckAnnotations(map[string]string{key: v})
			if len(p) != 1 || p[0].Key != key || p[0].Value != v || p[0].Allowed == "" || p[0].Err == nil {
				t.Errorf("%s=%q: problems %v", key, Shorten(v), p)
			}
			if len(Join(p)) > 256 {
				t.Errorf("%s: message of %d bytes", key, len(Join(p)))
			}
		}
	}
}

// Every flag that no annotation overrides, and the values that only a flag may have.
func TestFlagRules(t *testing.T) {
	for flag, tt := range map[string]struct{ good, bad []string }{
		"deadline":          {[]string{"0", "0s", "1s", "24h"}, []string{"-1s", "25h", "00", "0m"}},
		"log-format":        {[]string{"json", "text"}, []string{"JSON", "xml"}},
		"allow-primary-eni": {[]string{"true", "false"}, []string{"yes", "1"}},
		"map-by-subnet":     {[]string{"true", "false"}, []string{"yes", "1"}},
		"vpc-cni-subnets":   {[]string{"subnet-0a", "subnet-0a,subnet-0b"}, []string{"subnet-", "eni-0a", "subnet-0a,", "subnet-0A"}},
		"metrics-port":      {[]string{"0", "1024", "9464", "65535"}, []string{"1", "80", "1023", "65536", "-1", "+9464", "09464", "9464 ", "http", "0x2400", "00"}},
	} {
		for _, v := range tt.good {
			if _, err := Load(Sidecar, flags(flag, v), env()); err != nil {
				t.Errorf("--%s=%s refused: %v", flag, v, err)
			}
		}
		for _, v := range tt.bad {
			var usage *UsageError
			_, err := Load(Sidecar, flags(flag, v), env())
			if !errors.As(err, &usage) || len(usage.Problems) != 1 || usage.Problems[0].Key != "--"+flag {
				t.Errorf("--%s=%s: %v", flag, v, err)
			}
			if _, err := Args(Sidecar, map[string]string{flag: v}); err == nil {
				t.Errorf("the installation renders --%s=%s", flag, v)
			}
		}
	}
}

func TestEmptyAnnotationsAreUnset(t *testing.T) {
	m := map[string]string{}
	for _, key := range Annotations() {
		m[key] = ""
	}
	if p := CheckAnnotations(m); p != nil {
		t.Error(p)
	}
}

func TestUnknownAnnotations(t *testing.T) {
	compare(t, UnknownAnnotations(map[string]string{"a": "b", KeyStatus: "{}", KeyMode: "init"}), []string(nil))
	compare(t, UnknownAnnotations(map[string]string{Prefix + "interface": "net1", Prefix + "cpus": "1", KeyCPU: "1"}),
		[]string{Prefix + "cpus", Prefix + "interface"})
}

// What the webhook admits, the agent must accept, and the other way round.
func TestWebhookAndAgentAgree(t *testing.T) {
	values := []string{"", " ", "0", "1", "true", "false", "init", "net1", "net1,net2", "10.0.0.0/8", "::1", "1s", "25h", "debug", "json", "[]", "1m", "64Mi", "a b"}
	for _, r := range podRows() {
		for _, v := range values {
			if r.Env == "" {
				continue
			}
			denied := len(CheckAnnotations(map[string]string{r.Annotation: v})) > 0
			_, err := Load(Sidecar, nil, env(r.Env, v))
			if denied != (err != nil) {
				t.Errorf("%s=%q: webhook denies: %v, agent: %v", r.Annotation, v, denied, err)
			}
		}
	}
}

func TestEnv(t *testing.T) {
	vars := Env()
	seen := map[string]bool{}
	for _, v := range vars {
		if seen[v.Name] || !strings.HasPrefix(v.Name, "MIM_") || v.FieldPath == "" {
			t.Errorf("bad variable %+v", v)
		}
		seen[v.Name] = true
	}
	for _, want := range []EnvVar{
		{"MIM_POD_IPS", "status.podIPs"},
		{"MIM_NETWORKS", "metadata.annotations['k8s.v1.cni.cncf.io/networks']"},
		{"MIM_NETWORK_STATUS", "metadata.annotations['k8s.v1.cni.cncf.io/network-status']"},
		{"MIM_DEADLINE", "metadata.annotations['multus-ip-manager.io/deadline']"},
	} {
		if !slices.Contains(vars, want) {
			t.Errorf("no %+v", want)
		}
	}
}

// The table is the one definition, so it must hold together.
func TestTable(t *testing.T) {
	keys := map[string]bool{}
	for _, r := range Table() {
		if keys[r.Key] || r.Allowed == "" || r.Doc == "" || r.check == nil {
			t.Errorf("incomplete or repeated row %q", r.Key)
		}
		keys[r.Key] = true
		if r.Annotation != "" && r.Annotation != Prefix+r.Key {
			t.Errorf("%s: annotation %s", r.Key, r.Annotation)
		}
		if r.Env != "" && r.Env != "MIM_"+strings.ToUpper(strings.ReplaceAll(r.Key, "-", "_")) {
			t.Errorf("%s: variable %s", r.Key, r.Env)
		}
		if (r.Flag != "") != (r.apply != nil) {
			t.Errorf("%s: a flag and a place in Agent go together", r.Key)
		}
		for _, m := range Modes() {
			if d := r.Default(m); d != "" && r.CheckFlag(d) != nil {
				t.Errorf("%s: default %q of %s: %v", r.Key, d, m, r.CheckFlag(d))
			}
		}
	}
}

func TestRegisterReadsWhatWasParsed(t *testing.T) {
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	source := Register(fs, Init)
	if err := fs.Parse([]string{"--deadline=5m", "--map-by-subnet", "--interfaces", "net1"}); err != nil {
		t.Fatal(err)
	}
	a, err := Load(Init, source, env())
	if err != nil || a.Deadline != 5*time.Minute || !a.MapBySubnet || a.Release || len(a.Interfaces) != 1 || a.LogFormat != "json" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, set := source("no-such-flag"); set {
		t.Error("unknown flag is set")
	}
	if f := fs.Lookup("deadline"); f.DefValue != "30m" || !strings.Contains(f.Usage, "1s to 24h") {
		t.Errorf("flag %+v", f)
	}
	if fs.Lookup("cpu") != nil || fs.Lookup("mode") != nil {
		t.Error("settings of the webhook became flags of the agent")
	}
}

func TestArgs(t *testing.T) {
	args, err := Args(Init, map[string]string{
		"vpc-cni-subnets": "subnet-0a", "deadline": "10m", "log-format": "json", "map-by-subnet": "false", "release": "",
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, args, []string{"--deadline=10m", "--vpc-cni-subnets=subnet-0a"})

	_, err = Args(Init, map[string]string{"dedline": "10m", "log-level": "loud", "cpu": "1"})
	for _, want := range []string{"--dedline", "--log-level=\"loud\"", "--cpu", "no such setting"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if args, err := Args(Sidecar, map[string]string{"deadline": "30m"}); err != nil || len(args) != 1 {
		t.Errorf("init's default is not sidecar's: %v, %v", args, err)
	}
}

// Arguments rendered by the installation are read back as the same settings.
func TestArgsRoundTrip(t *testing.T) {
	args, err := Args(Init, map[string]string{"deadline": "0", "allow-primary-eni": "true", "ignore": "10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	source := Register(fs, Init)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	a, err := Load(Init, source, env())
	if err != nil || a.Deadline != 0 || !a.AllowPrimaryENI || len(a.Ignore) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestEnvironmentLimit(t *testing.T) {
	// MAX_ARG_STRLEN counts the name, the equals sign and the NUL.
	if got := len("MIM_NETWORKS=") + MaxNetworks + 1; got != 131072 {
		t.Errorf("longest string is %d bytes", got)
	}
	if MaxEnvValue("MIM_NETWORKS") != MaxNetworks {
		t.Error("the two limits differ")
	}
}

func TestShorten(t *testing.T) {
	if s := Shorten(strings.Repeat("ä", 100)); len(s) > 64 || !strings.HasSuffix(s, "…") || strings.Contains(s, "\ufffd") {
		t.Errorf("%q", s)
	}
}
