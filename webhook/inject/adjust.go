package inject

import (
	"encoding/json"
	"fmt"

	"multus-ip-manager.io/agent/settings"
)

// adjust gives the patch that makes the resources of our container, which was
// injected before, fit the pod as it is now; nil if they do. A webhook that was
// called after us may have given resources to the user's containers (autoscalers
// do): the pod must have the class that it would have without us, and what a
// quota counts of every container must not be missing in ours.
//
// Whatever else others have set in our container stays: they may know why.
func (e *examination) adjust(mode settings.Mode) ([]byte, error) {
	class, r, _ := e.wanted(mode)
	if class == PodLevel || !available(mode) {
		return nil, nil
	}
	own := e.pod.own()
	has := e.pod.Spec.InitContainers[own].Resources
	want := resourcesFor(class, e.pod.limitsCPU(own), r)
	if want == nil {
		want = &resources{}
	}
	misfit := e.pod.class(-1) != class
	requests, limits := others(has.Requests), others(has.Limits)
	changed := false
	for _, name := range [...]string{cpu, memory} {
		request, limit := has.Requests[name], has.Limits[name]
		if wanted := want.Limits.of(name); misfit || limit == "" && wanted != "" || request == "" && limit == "" && want.Requests.of(name) != "" {
			request, limit, changed = want.Requests.of(name), wanted, true
		}
		set(requests, name, request)
		set(limits, name, limit)
	}
	if !changed {
		return nil, nil
	}
	path := fmt.Sprintf("/spec/initContainers/%d/resources", own)
	if has.Requests == nil && has.Limits == nil {
		return json.Marshal([]operation{{"add", path, resourceView{requests, limits}}})
	}
	return json.Marshal([]operation{{"add", path + "/requests", requests}, {"add", path + "/limits", limits}})
}

// of gives the amount of one resource, "" if there is none.
func (a *amounts) of(name string) quantity {
	switch {
	case a == nil:
		return ""
	case name == cpu:
		return quantity(a.CPU)
	default:
		return quantity(a.Memory)
	}
}

// others gives the amounts that do not count for the class.
func others(amounts map[string]quantity) map[string]quantity {
	rest := map[string]quantity{}
	for name, amount := range amounts {
		if name != cpu && name != memory {
			rest[name] = amount
		}
	}
	return rest
}

func set(amounts map[string]quantity, name string, amount quantity) {
	if amount != "" {
		amounts[name] = amount
	}
}
