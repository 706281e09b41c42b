// Package settings is the one definition of what can be set: the flags of the
// agent, the labels and annotations of a pod, the rules their values obey, and
// the syntax of Multus's networks annotation.
//
// The agent reads its settings with this package (Load) and the webhook checks
// pods with it (CheckAnnotations) and renders the environment from it (Env),
// so that a value the webhook admits is a value the agent understands. Both
// sides link it, therefore it imports nothing but the standard library and
// performs no I/O: flags and environment are handed in.
package settings

import "fmt"

// Prefix begins every label and annotation that belongs to this product.
const Prefix = "multus-ip-manager.io/"

// Labels and annotations. The comment says where each one is read.
const (
	// LabelInject is a label. On a namespace, InjectEnabled opts the namespace
	// in; on a pod, InjectDisabled opts the pod out.
	LabelInject = Prefix + "inject"
	// KeyMode is a label of a namespace, and a label or an annotation of a pod:
	// the mode in which a pod is managed.
	KeyMode = Prefix + "mode"
	// KeyInterfaces is a pod annotation: manage only these interfaces.
	KeyInterfaces = Prefix + "interfaces"
	// KeyIgnore is a pod annotation: addresses that need no assignment.
	KeyIgnore = Prefix + "ignore"
	// KeyRelease is a pod annotation: give addresses back when the pod ends.
	KeyRelease = Prefix + "release"
	// KeyDeadline is a pod annotation: when to give up on a fault that may pass.
	KeyDeadline = Prefix + "deadline"
	// KeyLogLevel is a pod annotation: the least level that is logged.
	KeyLogLevel = Prefix + "log-level"
	// KeyCPU is a pod annotation: CPU of the injected container.
	KeyCPU = Prefix + "cpu"
	// KeyMemory is a pod annotation: memory of the injected container.
	KeyMemory = Prefix + "memory"
	// KeyStatus is a pod annotation written by the webhook: what was injected.
	KeyStatus = Prefix + "status"
)

// Values of LabelInject.
const (
	// InjectEnabled on a namespace opts it in.
	InjectEnabled = "enabled"
	// InjectDisabled on a pod opts it out.
	InjectDisabled = "disabled"
)

// Annotations of the Network Plumbing Working Group that Multus reads and writes.
const (
	// Networks lists the networks Multus attaches to the pod; see ParseNetworks.
	Networks = "k8s.v1.cni.cncf.io/networks"
	// NetworkStatus is what Multus attached, as JSON. It is in the API before
	// the first container starts, but the kubelet shows it to the pod's first
	// container only after a restart: empty means "first start of this pod".
	NetworkStatus = "k8s.v1.cni.cncf.io/network-status"
)

// Names of containers.
const (
	// ContainerName is the name of the injected container.
	ContainerName = "ip-manager"
	// LegacyContainerName is the container that users of the AWS sample paste
	// into their charts by hand; a pod that has it is left alone.
	LegacyContainerName = "aws-ip-mgmt"
)

// Mode says what manages the addresses of a pod.
type Mode string

const (
	// Init is an init container that assigns the pod's addresses and exits.
	Init Mode = "init"
	// Sidecar is a native sidecar that assigns and then follows changes.
	Sidecar Mode = "sidecar"
	// Node is the node daemon; the pod itself gets only a gate.
	Node Mode = "node"
)

// Modes lists every mode in the order in which documentation names them.
func Modes() []Mode { return []Mode{Init, Sidecar, Node} }

// modesAllowed is the allowed-values text of a mode.
const modesAllowed = "init, sidecar, node"

// ParseMode reads a mode. It is exact: no upper case, no surrounding space.
func ParseMode(s string) (Mode, error) {
	for _, m := range Modes() {
		if s == string(m) {
			return m, nil
		}
	}
	return "", fmt.Errorf("unknown mode %q: use one of %s", Shorten(s), modesAllowed)
}
