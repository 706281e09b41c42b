package settings

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// Pod is the identity of the pod the agent runs in.
type Pod struct {
	Namespace, Name, UID string
	// IPs are the pod's own addresses (status.podIPs), given by the cluster's
	// network plugin. They are never ours to touch.
	IPs []netip.Addr
}

// Agent is everything an agent can be told, already checked.
type Agent struct {
	// Mode is the mode the settings were loaded for.
	Mode Mode
	// Pod is the pod's identity; empty outside a pod.
	Pod Pod
	// Networks is the networks annotation, parsed; empty with NetworksErr set
	// when it cannot be parsed (Multus, not we, owns that syntax).
	Networks []Network
	// NetworksErr says why the networks annotation cannot be parsed.
	NetworksErr error
	// NetworkStatus is the raw network-status JSON, "" on the pod's first start.
	NetworkStatus string
	// Interfaces are the links to manage; nil means all.
	Interfaces []string
	// Ignore are addresses that need no assignment.
	Ignore []netip.Prefix
	// Release says whether addresses are given back at the pod's end.
	Release bool
	// Deadline is when to give up on a fault that may pass; 0 means never.
	Deadline time.Duration
	// LogLevel is the least level that is logged.
	LogLevel slog.Level
	// LogFormat is "json" or "text".
	LogFormat string
	// AllowPrimaryENI permits ENIs with device index 0.
	AllowPrimaryENI bool
	// VPCCNISubnets are subnet ids, besides that of device 0, from which the VPC
	// CNI draws the addresses of pods.
	VPCCNISubnets []string
	// MapBySubnet maps a link with a foreign MAC (macvlan) by subnet.
	MapBySubnet bool
	// MetricsPort is the TCP port at which a sidecar serves metrics; 0 means that
	// it serves none.
	MetricsPort int
	// TerminationLog is the file for the termination message, "" for none.
	TerminationLog string
}

// EnvVar is one variable that the kubelet fills in from the pod (downward API).
type EnvVar struct {
	// Name is the variable's name, FieldPath the field of the pod it shows.
	Name, FieldPath string
}

// Variables that carry the pod's identity and Multus's annotations.
const (
	envPodName       = "MIM_POD_NAME"
	envPodNamespace  = "MIM_POD_NAMESPACE"
	envPodUID        = "MIM_POD_UID"
	envPodIPs        = "MIM_POD_IPS"
	envNetworks      = "MIM_NETWORKS"
	envNetworkStatus = "MIM_NETWORK_STATUS"
)

// Env lists the downward-API variables the injected container needs. The
// webhook renders them and Load reads them, in every mode the same.
func Env() []EnvVar {
	vars := []EnvVar{
		{envPodName, "metadata.name"},
		{envPodNamespace, "metadata.namespace"},
		{envPodUID, "metadata.uid"},
		{envPodIPs, "status.podIPs"},
		{envNetworks, annotationPath(Networks)},
		{envNetworkStatus, annotationPath(NetworkStatus)},
	}
	for _, r := range Table() {
		if r.Env != "" {
			vars = append(vars, EnvVar{r.Env, annotationPath(r.Annotation)})
		}
	}
	return vars
}

func annotationPath(key string) string { return "metadata.annotations['" + key + "']" }

// maxArgStrlen is Linux's MAX_ARG_STRLEN with 4 KiB pages: the longest single
// string of an environment, "NAME=value" with its terminating NUL. A longer one
// makes execve fail, so that the container could never start.
const maxArgStrlen = 32 * 4096

// MaxEnvValue is the longest value, in bytes, that the variable name can carry.
func MaxEnvValue(name string) int { return maxArgStrlen - len(name) - len("=") - len("\x00") }

// MaxNetworks is the longest networks annotation, in bytes, that reaches the
// agent through its environment variable.
const MaxNetworks = maxArgStrlen - len(envNetworks) - len("=") - len("\x00")

// FlagSource gives the value of a flag (name without dashes) and whether it was
// set. Register makes one; tests can use a function literal; nil means no flags.
type FlagSource func(name string) (value string, set bool)

// FlagSet is the part of flag.FlagSet and pflag.FlagSet that Register needs.
type FlagSet interface {
	String(name, value, usage string) *string
	Bool(name string, value bool, usage string) *bool
}

// Register defines the flags of a mode on fs with their defaults, and gives the
// source from which Load reads them after fs has been parsed.
func Register(fs FlagSet, mode Mode) FlagSource {
	read := map[string]func() string{}
	for _, r := range Table() {
		switch usage := r.Doc + " (" + r.Allowed + ")"; {
		case r.Flag == "":
		case r.Bool:
			p := fs.Bool(r.Flag, r.Default(mode) == "true", usage)
			read[r.Flag] = func() string { return fmt.Sprint(*p) }
		default:
			p := fs.String(r.Flag, r.Default(mode), usage)
			read[r.Flag] = func() string { return *p }
		}
	}
	return func(name string) (string, bool) {
		if value, ok := read[name]; ok {
			return value(), true
		}
		return "", false
	}
}

// Load resolves the settings of one mode: the pod's annotation (an environment
// variable) wins over the flag, the flag over the default; an empty variable
// counts as unset. An error is a usage error of type *UsageError that lists
// every problem with its key, value and allowed values.
func Load(mode Mode, flags FlagSource, getenv func(string) string) (Agent, error) {
	a := Agent{Mode: mode}
	var problems []Problem
	for _, r := range Table() {
		if r.apply == nil {
			continue
		}
		if p, ok := r.load(&a, flags, getenv); !ok {
			problems = append(problems, p)
		}
	}
	a.Pod = Pod{Namespace: getenv(envPodNamespace), Name: getenv(envPodName), UID: getenv(envPodUID)}
	var p Problem
	var ok bool
	if a.Pod.IPs, p, ok = podIPs(getenv(envPodIPs)); !ok {
		problems = append(problems, p)
	}
	a.Networks, a.NetworksErr = ParseNetworks(getenv(envNetworks), a.Pod.Namespace)
	a.NetworkStatus = getenv(envNetworkStatus)
	if len(problems) > 0 {
		return Agent{}, &UsageError{Problems: problems}
	}
	return a, nil
}

// load sets one row's field from where its value comes from.
func (r Row) load(a *Agent, flags FlagSource, getenv func(string) string) (Problem, bool) {
	key, value := r.Annotation, ""
	check := r.Check
	if r.Env != "" {
		value = getenv(r.Env)
	}
	if value == "" && flags != nil && r.Flag != "" {
		if v, set := flags(r.Flag); set {
			key, value, check = "--"+r.Flag, v, r.CheckFlag
		}
	}
	if value == "" {
		key, value, check = "--"+r.Flag, r.Default(a.Mode), r.CheckFlag
	}
	if value == "" {
		return Problem{}, true
	}
	err := check(value)
	if err == nil {
		err = r.apply(a, value)
	}
	if err != nil {
		return Problem{Key: key, Value: value, Allowed: r.Allowed, Err: err}, false
	}
	return Problem{}, true
}

// podIPs reads status.podIPs as the kubelet renders it: joined by commas.
func podIPs(s string) ([]netip.Addr, Problem, bool) {
	if s == "" {
		return nil, Problem{}, true
	}
	var ips []netip.Addr
	for item := range strings.SplitSeq(s, ",") {
		ip, err := netip.ParseAddr(strings.TrimSpace(item))
		if err != nil {
			return nil, Problem{Key: envPodIPs, Value: s, Allowed: "addresses joined by commas, as in status.podIPs", Err: err}, false
		}
		ips = append(ips, ip.Unmap())
	}
	return ips, Problem{}, true
}

// Args renders the installation's settings (flag name without dashes → value)
// as arguments of the agent in one mode: in the table's order, and only those
// that differ from the default, so that the injected container stays small and
// a changed default reaches every pod. An error is a *UsageError.
func Args(mode Mode, values map[string]string) ([]string, error) {
	var args []string
	var problems []Problem
	known := map[string]bool{}
	for _, r := range Table() {
		known[r.Flag] = r.Flag != ""
		value := values[r.Flag]
		switch {
		case r.Flag == "" || value == "":
		case r.CheckFlag(value) != nil:
			problems = append(problems, Problem{Key: "--" + r.Flag, Value: value, Allowed: r.Allowed, Err: r.CheckFlag(value)})
		case value != r.Default(mode):
			args = append(args, "--"+r.Flag+"="+value)
		}
	}
	for _, key := range sortedKeys(values) {
		if !known[key] {
			problems = append(problems, Problem{Key: "--" + key, Value: values[key], Allowed: "no such setting; known are " + flagNames()})
		}
	}
	if len(problems) > 0 {
		return nil, &UsageError{Problems: problems}
	}
	return args, nil
}
