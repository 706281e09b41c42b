// Package inject decides what happens to a pod at admission and how: it takes a
// pod as JSON and gives a decision with its reason, warnings and a JSON patch.
//
// It is pure: it reads nothing but its arguments, so that the server, the
// command line and the tests share one implementation. It knows no Kubernetes
// types: only the few fields a decision needs are decoded, and the patch only
// adds, so that fields of newer API versions survive.
package inject

import "multus-ip-manager.io/agent/settings"

// Action is what happens to the pod.
type Action string

// What can happen.
const (
	// ActionInject admits the pod with a patch.
	ActionInject Action = "inject"
	// ActionKeep admits the pod as it is, because it was injected before: the API
	// server asks again after another webhook has changed the pod, and that is
	// neither a new injection nor a pod that goes without.
	ActionKeep Action = "keep"
	// ActionAdjust admits the pod with a patch of the resources of the container
	// that was added before, because another webhook has changed the pod's QoS
	// class since.
	ActionAdjust Action = "adjust"
	// ActionSkip admits the pod unchanged.
	ActionSkip Action = "skip"
	// ActionDeny refuses the pod.
	ActionDeny Action = "deny"
)

// Reason says why. The strings are stable: they are the same in logs, metrics,
// audit annotations, warnings and on the command line.
type Reason string

// Every reason there is; see Reasons for what each one means.
const (
	Injected Reason = "injected"

	AlreadyInjected Reason = "already-injected"
	ClassChanged    Reason = "qos-class-changed"

	NotAPod          Reason = "not-a-pod"
	NotCreated       Reason = "not-created"
	OptedOut         Reason = "opted-out"
	MirrorPod        Reason = "mirror-pod"
	HostNetwork      Reason = "host-network"
	Windows          Reason = "windows"
	ForeignContainer Reason = "foreign-container"
	LegacyContainer  Reason = "legacy-container"
	NoNetworks       Reason = "no-networks"

	BadRequest         Reason = "bad-request"
	UnknownMode        Reason = "unknown-mode"
	ModeNotAvailable   Reason = "mode-not-available"
	InvalidSetting     Reason = "invalid-setting"
	NetworksTooLong    Reason = "networks-too-long"
	InvalidForPodClass Reason = "invalid-for-qos-class"
)

// ReasonInfo describes one reason.
type ReasonInfo struct {
	// Reason is the stable string.
	Reason Reason
	// Action is what happens for this reason.
	Action Action
	// Text is one sentence for people.
	Text string
	// Warn is set where a user who asked for networks should be told.
	Warn bool
}

// Reasons is the one enumeration, in the order in which a pod is examined.
func Reasons() []ReasonInfo {
	return []ReasonInfo{
		{NotAPod, ActionSkip, "the request is not about a pod", false},
		{NotCreated, ActionSkip, "only the creation of a pod is changed", false},
		{BadRequest, ActionDeny, "the pod cannot be decoded", false},
		{OptedOut, ActionSkip, "the pod's label " + settings.LabelInject + " is " + settings.InjectDisabled, false},
		{MirrorPod, ActionSkip, "the pod mirrors a static pod, which only its node can change", false},
		{HostNetwork, ActionSkip, "the pod has hostNetwork: true, where Multus attaches nothing; remove that or the annotation " + settings.Networks, true},
		{Windows, ActionSkip, "the pod is for Windows nodes, where the agent does not run; remove the annotation " + settings.Networks, true},
		{AlreadyInjected, ActionKeep, "the container " + settings.ContainerName + " was added before", false},
		{ClassChanged, ActionAdjust, "the container " + settings.ContainerName + " was added before, and its resources no longer fit the pod's QoS class", false},
		{ForeignContainer, ActionSkip, "the pod has a container " + settings.ContainerName +
			" that this webhook did not write; rename or remove it to have ours injected", true},
		{LegacyContainer, ActionSkip, "the pod has the hand-written container " + settings.LegacyContainerName +
			"; remove it to have " + settings.ContainerName + " injected", true},
		{NoNetworks, ActionSkip, "the pod asks for no network in " + settings.Networks, false},
		{UnknownMode, ActionDeny, "the mode is none of the known ones", false},
		{ModeNotAvailable, ActionDeny, "the mode is not available in this version yet", false},
		{InvalidSetting, ActionDeny, "a setting of the pod is not valid", false},
		{InvalidForPodClass, ActionDeny, "a setting of the pod is not valid for its QoS class", false},
		{NetworksTooLong, ActionDeny, "the networks annotation does not fit an environment variable", false},
		{Injected, ActionInject, "the container " + settings.ContainerName + " was added", false},
	}
}

// info looks a reason up.
func info(reason Reason) ReasonInfo {
	for _, i := range Reasons() {
		if i.Reason == reason {
			return i
		}
	}
	return ReasonInfo{Reason: reason, Action: ActionDeny}
}
