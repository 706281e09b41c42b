package inject

import (
	"iter"

	"multus-ip-manager.io/agent/settings"
)

// Class is how a pod's resources are accounted. It decides which resources the
// injected container gets, so that injection does not change what was promised
// to the pod: a Guaranteed pod that turned Burstable would lose its pinned CPUs.
type Class string

// The classes.
const (
	// Guaranteed: every container has limits for CPU and memory, and requests
	// equal to them.
	Guaranteed Class = "Guaranteed"
	// Burstable: something is requested or limited.
	Burstable Class = "Burstable"
	// BestEffort: nothing is.
	BestEffort Class = "BestEffort"
	// PodLevel: the pod has resources of its own (spec.resources); its class and
	// its limits come from them, and containers share them.
	PodLevel Class = "PodLevel"
)

// Classes lists every class.
func Classes() []Class { return []Class{Guaranteed, Burstable, BestEffort, PodLevel} }

// Names of the resources that make the class.
const (
	cpu    = "cpu"
	memory = "memory"
)

// containers gives the resources of all containers but the init container at
// one index; none is at -1.
func (p *podView) containers(but int) iter.Seq[resourceView] {
	return func(yield func(resourceView) bool) {
		for i, c := range p.Spec.InitContainers {
			if i != but && !yield(c.Resources) {
				return
			}
		}
		for _, c := range p.Spec.Containers {
			if !yield(c.Resources) {
				return
			}
		}
	}
}

// class computes the class as Kubernetes does: over all containers and init
// containers, by CPU and memory alone, ignoring zero quantities. One init
// container can be left out: ours must not decide what it gets itself.
func (p *podView) class(but int) Class {
	if len(p.Spec.Resources.Requests)+len(p.Spec.Resources.Limits) > 0 {
		return PodLevel
	}
	guaranteed, anything := true, false
	for r := range p.containers(but) {
		for _, name := range [...]string{cpu, memory} {
			set, equal := r.compare(name)
			anything = anything || set
			guaranteed = guaranteed && equal
			if anything && !guaranteed {
				return Burstable
			}
		}
	}
	if anything {
		return Guaranteed
	}
	return BestEffort
}

// limitsCPU tells whether every container but one has a CPU limit.
func (p *podView) limitsCPU(but int) bool {
	for r := range p.containers(but) {
		if _, limited := positive(r.Limits[cpu]); !limited {
			return false
		}
	}
	return true
}

// compare tells of one resource whether anything of it is requested or limited,
// and whether it is limited and requested in the same amount.
func (r resourceView) compare(name string) (set, equal bool) {
	limit := r.Limits[name]
	request, requested := r.Requests[name]
	if !requested {
		// The API server defaults requests to limits before admission; a file on
		// the command line has not seen it.
		request = limit
	}
	limitKey, limited := positive(limit)
	if request == limit {
		return limited, limited
	}
	requestKey, requested := positive(request)
	return limited || requested, limited && requested && limitKey == requestKey
}

// positive gives the quantity in a comparable form, and whether it is more than
// zero. What cannot be parsed counts as set and equal to nothing but itself.
func positive(q quantity) (string, bool) {
	if q == "" {
		return "", false
	}
	parsed, err := settings.ParseQuantity(string(q))
	if err != nil {
		return "unparsable " + string(q), true
	}
	return parsed.Key(), parsed.Sign() > 0
}

// ClassOf gives the class of a pod in JSON.
func ClassOf(pod []byte) (Class, error) {
	p, err := decodePod(pod)
	if err != nil {
		return "", err
	}
	return p.class(-1), nil
}
