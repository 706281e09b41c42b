package inject_test

import (
	"fmt"
	"strings"
	"testing"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// sizedPod has containers with variables, which is what makes real pods large.
func sizedPod(annotations map[string]string, containers, variables int) []byte {
	var list []any
	for c := range containers {
		var env []any
		for v := range variables {
			env = append(env, map[string]any{"name": fmt.Sprintf("VARIABLE_%d", v), "value": strings.Repeat("v", 40)})
		}
		list = append(list, map[string]any{
			"name": fmt.Sprintf("app-%d", c), "image": "example.com/app:1", "env": env,
			"resources": map[string]any{"requests": map[string]any{"cpu": "100m", "memory": "64Mi"}, "limits": map[string]any{"cpu": "100m", "memory": "64Mi"}},
		})
	}
	return podWith(annotations, map[string]any{"containers": list})
}

// A pod with 2,000 variables costs no more allocations than a small one: what
// is not needed is skipped, not decoded.
func TestLargePodAllocations(t *testing.T) {
	i := injector(t, testConfig())
	allocations := func(variables int) float64 {
		r := inject.Request{Pod: sizedPod(networks("n3"), 1, variables)}
		if d := i.Decide(r); d.Action != inject.ActionInject {
			t.Fatalf("%s: %s", d.Reason, d.Message)
		}
		return testing.AllocsPerRun(20, func() { i.Decide(r) })
	}
	small, large := allocations(1), allocations(2000)
	if large > small+10 {
		t.Errorf("%v allocations with 2,000 variables, %v with one", large, small)
	}
}

func BenchmarkDecide(b *testing.B) {
	override := map[string]string{settings.Networks: "n3", settings.KeyMemory: "64Mi"}
	for _, bb := range []struct {
		name string
		pod  []byte
	}{
		{"small", sizedPod(networks("n3"), 1, 3)},
		{"medium", sizedPod(networks("n3"), 3, 40)},
		{"large", sizedPod(networks("n3"), 3, 380)},
		{"2000variables", sizedPod(networks("n3"), 1, 2000)},
		{"override", sizedPod(override, 1, 3)},
		{"skipped", sizedPod(nil, 1, 3)},
	} {
		b.Run(fmt.Sprintf("%s-%dB", bb.name, len(bb.pod)), func(b *testing.B) {
			i := injector(b, testConfig())
			r := inject.Request{Operation: "CREATE", Resource: "pods", Namespace: "telco", NamespaceMode: inject.NamespaceNone, Pod: bb.pod}
			b.ReportAllocs()
			b.SetBytes(int64(len(bb.pod)))
			for b.Loop() {
				i.Decide(r)
			}
		})
	}
}
