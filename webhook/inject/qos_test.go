package inject_test

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

func TestClassOf(t *testing.T) {
	const full = `"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}`
	container := func(resources string) string { return fmt.Sprintf(`{"name":"a","resources":{%s}}`, resources) }
	for name, tt := range map[string]struct {
		init, app, pod string
		want           inject.Class
	}{
		"nothing":                             {app: container(""), want: inject.BestEffort},
		"zero is nothing":                     {app: container(`"requests":{"cpu":"0","memory":0},"limits":{"cpu":"0"}`), want: inject.BestEffort},
		"other resources do not count":        {app: container(`"limits":{"vendor.com/nic":"1"},"requests":{"vendor.com/nic":"1"}`), want: inject.BestEffort},
		"full":                                {app: container(full), want: inject.Guaranteed},
		"full, with other resources":          {app: container(`"requests":{"cpu":"1","memory":"1Gi","vendor.com/nic":"1"},"limits":{"cpu":"1","memory":"1Gi"}`), want: inject.Guaranteed},
		"equal but written otherwise":         {app: container(`"requests":{"cpu":1,"memory":"1024Mi"},"limits":{"cpu":"1000m","memory":1073741824}`), want: inject.Guaranteed},
		"only limits":                         {app: container(`"limits":{"cpu":"1","memory":"1Gi"}`), want: inject.Guaranteed},
		"limits and one request":              {app: container(`"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1"}`), want: inject.Guaranteed},
		"a request of zero is not defaulted":  {app: container(`"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"0"}`), want: inject.Burstable},
		"only requests":                       {app: container(`"requests":{"cpu":"1","memory":"1Gi"}`), want: inject.Burstable},
		"only memory":                         {app: container(`"requests":{"memory":"1Gi"},"limits":{"memory":"1Gi"}`), want: inject.Burstable},
		"only a CPU limit":                    {app: container(`"limits":{"cpu":"1"}`), want: inject.Burstable},
		"request below limit":                 {app: container(`"requests":{"cpu":"999m","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}`), want: inject.Burstable},
		"one container full, another empty":   {app: container(full) + "," + container(""), want: inject.Burstable},
		"init container empty":                {init: container(""), app: container(full), want: inject.Burstable},
		"init container full":                 {init: container(full), app: container(full), want: inject.Guaranteed},
		"only the init container has any":     {init: container(full), app: container(""), want: inject.Burstable},
		"pod level":                           {app: container(full), pod: `"requests":{"cpu":"2"}`, want: inject.PodLevel},
		"empty pod level is none":             {app: container(full), pod: `"requests":{}`, want: inject.Guaranteed},
		"what cannot be parsed equals itself": {app: container(`"limits":{"cpu":"x","memory":"1Gi"},"requests":{"cpu":"x"}`), want: inject.Guaranteed},
	} {
		t.Run(name, func(t *testing.T) {
			raw := fmt.Sprintf(`{"spec":{"initContainers":[%s],"containers":[%s],"resources":{%s}}}`, tt.init, tt.app, tt.pod)
			if got, err := inject.ClassOf([]byte(raw)); err != nil || got != tt.want {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// Our small reader of quantities against that of Kubernetes. One difference is
// meant: a suffix without any digit is zero to Kubernetes and refused here.
func TestQuantityAgreesWithKubernetes(t *testing.T) {
	texts := []string{"0", "1", "+1", "-1", "0.5", ".5", "5.", "1.5Gi", "100m", "100u", "100n", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Ti", "1Pi", "1Ei",
		"1e3", "1E3", "1e-3", "1e+3", "12e6", "0x1", "1_000", "1 ", " 1", "", "1mi", "1KI", "1Kim", "1e", "1ee3", "--1", "1.2.3", "half", "1,5", "1/2", "1i", "0001"}
	var parsed []resource.Quantity
	var ours []settings.Quantity
	for _, s := range texts {
		theirs, theirErr := resource.ParseQuantity(s)
		q, err := settings.ParseQuantity(s)
		if (err == nil) != (theirErr == nil) {
			t.Errorf("%q: we say %v, Kubernetes says %v", s, err, theirErr)
		}
		if err == nil && theirErr == nil {
			parsed, ours = append(parsed, theirs), append(ours, q)
		}
	}
	for i := range ours {
		if ours[i].Sign() != parsed[i].Sign() {
			t.Errorf("%s: sign %d", parsed[i].String(), ours[i].Sign())
		}
		for j := range ours {
			if got, want := ours[i].Cmp(ours[j]), parsed[i].Cmp(parsed[j]); got != want || (ours[i].Key() == ours[j].Key()) != (want == 0) {
				t.Errorf("%s against %s: %d, want %d", parsed[i].String(), parsed[j].String(), got, want)
			}
		}
	}
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"1", "1.5Gi", "100m", "1e3", "-0.1", "1e30", "1e31"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := settings.ParseQuantity(s)
		if err != nil {
			return
		}
		theirs, err := resource.ParseQuantity(s)
		if err != nil {
			t.Fatalf("%q is no quantity to Kubernetes: %v", s, err)
		}
		if q.Sign() != theirs.Sign() {
			t.Fatalf("%q: sign %d, want %d", s, q.Sign(), theirs.Sign())
		}
	})
}
