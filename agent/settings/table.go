package settings

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults that other packages and documentation refer to.
const (
	// DefaultInitDeadline is how long mode init waits for a fault to pass. It is
	// longer than EC2's token bucket needs for 5,000 pods that start at once
	// (980 s), so that a mass start ends by itself.
	DefaultInitDeadline = 30 * time.Minute
	// MinDeadline and MaxDeadline bound the deadline annotation.
	MinDeadline = time.Second
	MaxDeadline = 24 * time.Hour
	// DefaultTerminationLog is where the kubelet mounts the file whose content
	// becomes the container's termination message.
	DefaultTerminationLog = "/dev/termination-log"
)

// Row is one setting: everything there is to know about it, in one place.
type Row struct {
	// Key is the short name: the flag without dashes and the last part of the
	// annotation.
	Key string
	// Flag is the agent's flag without dashes, or "" if it has none.
	Flag string
	// Annotation is the pod annotation, or "" if a pod cannot set it.
	Annotation string
	// Env is the environment variable that carries the annotation to the agent,
	// or "" if the agent does not need it.
	Env string
	// Bool is set for flags that may stand alone and then mean "true".
	Bool bool
	// Allowed says in words which values are accepted.
	Allowed string
	// Doc is one sentence: what the setting does.
	Doc string

	defaults map[Mode]string // a missing mode means the empty string
	check    func(string) error
	apply    func(*Agent, string) error // nil for settings that only the webhook uses
	flagOnly []string                   // values accepted from the flag but not from the annotation
}

// Default is the value in a mode when nothing sets it, in the form a flag takes.
func (r Row) Default(m Mode) string { return r.defaults[m] }

// Check tells whether value is acceptable as the annotation's value. The error
// says what is wrong; what is allowed is in Allowed. Empty means unset and is
// always accepted, because the agent cannot tell an empty variable from none.
func (r Row) Check(value string) error {
	if value == "" {
		return nil
	}
	if r.Env != "" && len(value) > MaxEnvValue(r.Env) {
		return &TooLongError{Bytes: len(value), Most: MaxEnvValue(r.Env)}
	}
	return r.check(value)
}

// CheckFlag tells whether value is acceptable as the flag's value.
func (r Row) CheckFlag(value string) error {
	if slices.Contains(r.flagOnly, value) {
		return nil
	}
	return r.Check(value)
}

// every is the same default in each mode.
func every(value string) map[Mode]string {
	return map[Mode]string{Init: value, Sidecar: value, Node: value}
}

// Table lists every setting, in the order of documentation and of rendered
// arguments. The slice is the caller's own.
func Table() []Row {
	return append(podRows(), clusterRows()...)
}

// podRows are the settings that a pod may override by annotation.
func podRows() []Row {
	return []Row{
		parsed("mode", "", modesAllowed,
			"what manages this pod's addresses", nil, ParseMode, nil).onPod(KeyMode, ""),
		parsed("interfaces", "interfaces", "interface names joined by commas, such as net1,net3 (at most 15 characters each)",
			"manage only these interfaces; empty means all", nil, ParseInterfaces,
			func(a *Agent, v []string) { a.Interfaces = v }).onPod(KeyInterfaces, "MIM_INTERFACES"),
		parsed("ignore", "ignore", "CIDRs or addresses joined by commas, such as 10.0.9.0/24,2001:db8::5",
			"addresses that need no assignment", nil, ParsePrefixes,
			func(a *Agent, v []netip.Prefix) { a.Ignore = v }).onPod(KeyIgnore, "MIM_IGNORE"),
		parsed("release", "release", "true, false",
			"give addresses back when the pod ends",
			map[Mode]string{Init: "false", Sidecar: "true", Node: "true"}, parseBool,
			func(a *Agent, v bool) { a.Release = v }).onPod(KeyRelease, "MIM_RELEASE").boolean(),
		parsed("deadline", "deadline", "a duration from 1s to 24h, such as 90s or 30m",
			"give up on a fault that may pass after this long; 0 (flag only) means never",
			map[Mode]string{Init: "30m", Sidecar: "0", Node: "0"}, parseDeadline,
			func(a *Agent, v time.Duration) { a.Deadline = v }).onPod(KeyDeadline, "MIM_DEADLINE").alsoFlag("0", "0s"),
		parsed("log-level", "log-level", "debug, info, warn, error",
			"the least level that is logged", every("info"), parseLevel,
			func(a *Agent, v slog.Level) { a.LogLevel = v }).onPod(KeyLogLevel, "MIM_LOG_LEVEL"),
		parsed("cpu", "", "a CPU quantity from 1m to 64 in steps of 1m, such as 50m or 0.5",
			"CPU of the injected container: its request, and its limit where it has one", nil,
			ParseCPU, nil).onPod(KeyCPU, ""),
		parsed("memory", "", "a whole number of bytes from 16Mi to 64Gi, such as 64Mi",
			"memory of the injected container: its request and its limit", nil,
			ParseMemory, nil).onPod(KeyMemory, ""),
	}
}

// clusterRows are the settings that only the installation decides.
func clusterRows() []Row {
	return []Row{
		parsed("log-format", "log-format", "json, text",
			"form of the log lines", every("json"), oneOf("json", "text"),
			func(a *Agent, v string) { a.LogFormat = v }),
		parsed("allow-primary-eni", "allow-primary-eni", "true, false",
			"also use network interfaces with device index 0", every("false"), parseBool,
			func(a *Agent, v bool) { a.AllowPrimaryENI = v }).boolean(),
		parsed("vpc-cni-subnets", "vpc-cni-subnets", "subnet ids joined by commas, such as subnet-0a1b2c3d4e5f60718",
			"subnets, besides that of device 0, from which the VPC CNI draws pod addresses", nil, parseSubnets,
			func(a *Agent, v []string) { a.VPCCNISubnets = v }),
		parsed("map-by-subnet", "map-by-subnet", "true, false",
			"map an interface with a MAC of its own (macvlan) to the attached network interface of its subnet", every("false"), parseBool,
			func(a *Agent, v bool) { a.MapBySubnet = v }).boolean(),
		parsed("metrics-port", "metrics-port", "a port from 1024 to 65535, or 0 for none",
			"port at which a sidecar serves Prometheus metrics, on the pod's own addresses (status.podIPs) and not on those of its networks", every("0"), parsePort,
			func(a *Agent, v int) { a.MetricsPort = v }),
		parsed("termination-log", "termination-log", "a file name, or - for none",
			"file that receives the one-line termination message", every(DefaultTerminationLog),
			func(s string) (string, error) { return TerminationLog(s), nil },
			func(a *Agent, v string) { a.TerminationLog = v }),
	}
}

// TerminationLog gives the file that a setting names for the termination message, "" for none.
func TerminationLog(setting string) string {
	if setting == "-" {
		return ""
	}
	return setting
}

// parsed builds a row whose checker and whose way into Agent are one parser.
func parsed[T any](key, flag, allowed, doc string, defaults map[Mode]string, parse func(string) (T, error), set func(*Agent, T)) Row {
	r := Row{Key: key, Flag: flag, Allowed: allowed, Doc: doc, defaults: defaults}
	r.check = func(s string) error { _, err := parse(s); return err }
	if set != nil {
		r.apply = func(a *Agent, s string) error {
			v, err := parse(s)
			if err != nil {
				return err
			}
			set(a, v)
			return nil
		}
	}
	return r
}

func (r Row) onPod(annotation, env string) Row { r.Annotation, r.Env = annotation, env; return r }
func (r Row) boolean() Row                     { r.Bool = true; return r }

// alsoFlag accepts further values from the flag; they leave the field at zero.
func (r Row) alsoFlag(values ...string) Row {
	r.flagOnly = values
	set := r.apply
	r.apply = func(a *Agent, s string) error {
		if slices.Contains(values, s) {
			return nil
		}
		return set(a, s)
	}
	return r
}

func oneOf(values ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if slices.Contains(values, s) {
			return s, nil
		}
		return "", fmt.Errorf("%q is none of %s", Shorten(s), strings.Join(values, ", "))
	}
}

func parseBool(s string) (bool, error) {
	_, err := oneOf("true", "false")(s)
	return s == "true", err
}

func parseLevel(s string) (slog.Level, error) {
	var level slog.Level
	if _, err := oneOf("debug", "info", "warn", "error")(s); err != nil {
		return level, err
	}
	err := level.UnmarshalText([]byte(s))
	return level, err
}

// parsePort reads a port that an unprivileged process can listen at, or 0.
func parsePort(s string) (int, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port != 0 && port < 1024 || s != strconv.FormatUint(port, 10) {
		return 0, fmt.Errorf("%q is neither 0 nor a port from 1024 to 65535", Shorten(s))
	}
	return int(port), nil
}

func parseDeadline(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration", Shorten(s))
	}
	if d < MinDeadline || d > MaxDeadline {
		return 0, fmt.Errorf("%s is not between %s and %s", s, MinDeadline, MaxDeadline)
	}
	return d, nil
}

// items splits a comma list. An empty item is an error: it is a typing mistake,
// and what was meant to stand there would silently be left out.
func items(s string) ([]string, error) {
	var out []string
	for i, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			return nil, fmt.Errorf("item %d is empty", i+1)
		}
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out, nil
}

// ParseInterfaces reads a comma list of Linux interface names.
func ParseInterfaces(s string) ([]string, error) {
	names, err := items(s)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := checkInterface(name); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// checkInterface applies the kernel's rule for the name of a link.
func checkInterface(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not an interface name", name)
	case len(name) > 15:
		return fmt.Errorf("interface name %q is longer than 15 characters", Shorten(name))
	}
	for i := range len(name) {
		// By byte, as the kernel does; 0xa0 is a space to it.
		if c := name[i]; c == '/' || c == ':' || c <= ' ' || c == 0x7f || c == 0xa0 {
			return fmt.Errorf("interface name %q contains a space, '/' or ':'", name)
		}
	}
	return nil
}

// ParsePrefixes reads a comma list of CIDRs and bare addresses; a bare address
// is a prefix of full length, and host bits of a CIDR are cleared.
func ParsePrefixes(s string) ([]netip.Prefix, error) {
	list, err := items(s)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, item := range list {
		p, err := parsePrefix(item)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if !strings.Contains(s, "/") {
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	// An IPv4-mapped prefix would compare equal to no IPv4 address, so that the
	// setting would have no effect.
	if err != nil || !p.IsValid() || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is neither a CIDR nor an address", Shorten(s))
	}
	return p.Masked(), nil
}

func parseSubnets(s string) ([]string, error) {
	ids, err := items(s)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		rest, ok := strings.CutPrefix(id, "subnet-")
		if !ok || rest == "" || strings.ContainsFunc(rest, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
		}) {
			return nil, fmt.Errorf("%q is not a subnet id", Shorten(id))
		}
	}
	return ids, nil
}

// Shorten cuts a value so that it can be shown in a message: a warning of the
// API server should not be longer than 256 characters.
func Shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
