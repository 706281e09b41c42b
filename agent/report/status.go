package report

import "time"

// The states of an address, as status, metrics and messages name them.
const (
	// StatePending: EC2 has not been asked yet, or is being asked.
	StatePending = "pending"
	// StateWaiting: a fault that may pass is waited out; the reason says which.
	StateWaiting = "waiting"
	// StateAssigned: EC2 said that the address is on the ENI.
	StateAssigned = "assigned"
	// StateRouted: the address lies in a prefix delegated to the ENI, the VPC routes it already.
	StateRouted = "routed"
	// StateRefused: the address cannot be on the ENI; the reason says why and what to do.
	StateRefused = "refused"
	// StateElsewhere: the address was found on the interface after a restart while another ENI holds it, and is not taken from there.
	StateElsewhere = "elsewhere"
	// StateLost: another ENI claimed the address after this agent did, and keeps it.
	StateLost = "lost"
)

// FaultFull is the class of the fault that the ENI, or its subnet, has no room for another address.
const FaultFull = "full"

// Where an address is from.
const (
	// OriginPod: the address came with the pod.
	OriginPod = "pod"
	// OriginFloating: the address was added to the interface later.
	OriginFloating = "floating"
)

// AddressStatus is what an agent tells about one address.
type AddressStatus struct {
	// Address is the address, without a prefix length.
	Address string `json:"address"`
	// Interface is the name of the interface that has it.
	Interface string `json:"interface"`
	// ENI is the network interface that is to hold it, Subnet that ENI's subnet; both are empty until they are known.
	ENI    string `json:"eni,omitempty"`
	Subnet string `json:"subnet,omitempty"`
	// Origin is one of the Origin constants.
	Origin string `json:"origin"`
	// State is one of the State constants.
	State string `json:"state"`
	// Reason says in one sentence why the address is not routed to the pod.
	Reason string `json:"reason,omitempty"`
	// Fault is the class of the fault that is waited out, as package apply names it, [FaultFull] among them; empty in other states.
	Fault string `json:"fault,omitempty"`
	// Holder is the other ENI that holds the address, when it is lost or elsewhere.
	Holder string `json:"holder,omitempty"`
	// Since is when the state was entered.
	Since time.Time `json:"since"`
	// Attempts is how often EC2 was asked for the present claim of the address.
	Attempts int `json:"attempts,omitempty"`
}

// Status is what an agent tells about itself.
type Status struct {
	// Version is the agent's, Mode its mode.
	Version string `json:"version,omitempty"`
	Mode    string `json:"mode"`
	// Namespace and Pod name the pod; empty outside one.
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Started is when the agent started.
	Started time.Time `json:"started"`
	// Goroutines is how many goroutines the agent has, which at rest must not grow.
	Goroutines int `json:"goroutines,omitempty"`
	// Ready tells whether every address that came with the pod is routed to it, and none waits.
	Ready bool `json:"ready"`
	// Reason says in one sentence why the agent is not ready.
	Reason string `json:"reason,omitempty"`
	// Addresses are the pod's addresses, by interface and address.
	Addresses []AddressStatus `json:"addresses"`
	// Waiting lists what else is waited for: metadata, the AWS configuration, an interface that is missing.
	Waiting []string `json:"waiting,omitempty"`
}
