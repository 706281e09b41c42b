package inject_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// A webhook that is called after ours gives the user's containers resources, or takes them away: ours follow, so that the pod has the
// class that it would have without us. What others have set in ours stays where the class allows.
func TestResourcesAreAdjusted(t *testing.T) {
	type list = map[string]any
	same := func(r list) list { return list{"requests": r, "limits": r} }
	full, burstable := same(list{"cpu": "200m", "memory": "128Mi"}), list{"requests": list{"cpu": "1"}}
	asBurstable := list{"requests": list{"cpu": "20m", "memory": "48Mi"}, "limits": list{"memory": "48Mi"}}
	asGuaranteed := same(list{"cpu": "500m", "memory": "48Mi"})
	for name, tt := range map[string]struct {
		app, ours   any
		annotations map[string]string
		want        list // nil: nothing to adjust
		class       inject.Class
	}{
		"best effort, now Guaranteed":        {full, nil, nil, asGuaranteed, inject.Guaranteed},
		"with empty resources":               {full, list{}, nil, asGuaranteed, inject.Guaranteed},
		"burstable, now Guaranteed":          {full, asBurstable, nil, asGuaranteed, inject.Guaranteed},
		"best effort, now Burstable":         {burstable, nil, nil, asBurstable, inject.Burstable},
		"burstable, now all limit CPU":       {list{"limits": list{"cpu": "1"}}, asBurstable, nil, list{"requests": asBurstable["requests"], "limits": list{"cpu": "500m", "memory": "48Mi"}}, inject.Burstable},
		"burstable, now best effort":         {nil, asBurstable, nil, list{"requests": list{}, "limits": list{}}, inject.BestEffort},
		"best effort":                        {nil, nil, nil, nil, inject.BestEffort},
		"burstable":                          {burstable, asBurstable, nil, nil, inject.Burstable},
		"guaranteed":                         {full, asGuaranteed, nil, nil, inject.Guaranteed},
		"guaranteed, now Burstable":          {burstable, asGuaranteed, nil, nil, inject.Burstable},
		"guaranteed, ours is somebody's":     {full, same(list{"cpu": "1m", "memory": "1Gi"}), nil, nil, inject.Guaranteed},
		"burstable, ours is somebody's":      {burstable, list{"limits": list{"cpu": "1", "memory": "1Gi"}}, nil, nil, inject.Burstable},
		"other resources stay":               {full, list{"limits": list{"ephemeral-storage": "1Gi"}}, nil, list{"requests": list{"cpu": "500m", "memory": "48Mi"}, "limits": list{"cpu": "500m", "memory": "48Mi", "ephemeral-storage": "1Gi"}}, inject.Guaranteed},
		"the user decides, Guaranteed":       {full, nil, map[string]string{settings.KeyCPU: "30m"}, same(list{"cpu": "30m", "memory": "48Mi"}), inject.Guaranteed},
		"the user decides, best effort":      {nil, asBurstable, map[string]string{settings.KeyMemory: "48Mi"}, nil, inject.Burstable},
		"the user decided, still Guaranteed": {full, same(list{"cpu": "30m", "memory": "48Mi"}), map[string]string{settings.KeyCPU: "30m"}, nil, inject.Guaranteed},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{settings.Networks: "n3", settings.KeyStatus: `{"mode":"init","version":"v1"}`}
			for key, value := range tt.annotations {
				annotations[key] = value
			}
			ours := list{"name": settings.ContainerName, "image": "y"}
			if tt.ours != nil {
				ours["resources"] = tt.ours
			}
			raw := podWith(annotations, list{
				"containers":     []any{list{"name": "app", "image": "x", "resources": tt.app}},
				"initContainers": []any{list{"name": "mesh", "image": "z", "resources": tt.app}, ours}, // index 1
			})
			r := inject.Request{Namespace: "x", Pod: raw}
			d := injector(t, testConfig()).Decide(r)
			if adjusted := d.Reason == inject.ClassChanged; adjusted != (tt.want != nil) || adjusted != (d.Patch != nil) {
				t.Fatalf("%s (%s): %s", d.Action, d.Reason, d.Patch)
			}
			if d.Patch != nil {
				checkAdjusted(t, injector(t, testConfig()), r, d)
				raw = apply(t, raw, d.Patch)
				var pod struct {
					Spec struct{ InitContainers []struct{ Resources list } }
				}
				if err := json.Unmarshal(raw, &pod); err != nil {
					t.Fatal(err)
				}
				if got, want := fmt.Sprint(pod.Spec.InitContainers[1].Resources), fmt.Sprint(tt.want); got != want {
					t.Errorf("ours has %s, want %s", got, want)
				}
			}
			if got, err := inject.ClassOf(raw); err != nil || got != tt.class {
				t.Errorf("the pod is %s, %v; want %s", got, err, tt.class)
			}
		})
	}
}

// A webhook of a later version may have injected in a mode that this one does not know how to.
func TestOtherModesAreNotAdjusted(t *testing.T) {
	pod := podWith(map[string]string{settings.Networks: "n3", settings.KeyStatus: `{"mode":"node","version":"v9"}`}, map[string]any{
		"containers":     []any{map[string]any{"name": "app", "resources": map[string]any{"requests": map[string]any{"cpu": "1"}}}},
		"initContainers": []any{map[string]any{"name": settings.ContainerName}},
	})
	if d := injector(t, testConfig()).Decide(inject.Request{Pod: pod}); d.Reason != inject.AlreadyInjected {
		t.Errorf("%s: %s", d.Reason, d.Patch)
	}
}
