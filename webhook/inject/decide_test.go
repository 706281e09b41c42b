package inject_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// pod builds a pod in JSON with annotations and one container.
func pod(annotations map[string]string) []byte {
	return podWith(annotations, map[string]any{"containers": []any{map[string]any{"name": "app", "image": "x"}}})
}

func podWith(annotations map[string]string, spec map[string]any) []byte {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "p", "annotations": annotations}, "spec": spec})
	if err != nil {
		panic(err)
	}
	return data
}

func networks(value string) map[string]string { return map[string]string{settings.Networks: value} }

func TestRequests(t *testing.T) {
	good := pod(networks("n3"))
	for name, tt := range map[string]struct {
		request inject.Request
		want    inject.Reason
		say     string
	}{
		"a pod":                   {inject.Request{Operation: "CREATE", Resource: "pods", Pod: good}, inject.Injected, ""},
		"from a file":             {inject.Request{Pod: good}, inject.Injected, ""},
		"another resource":        {inject.Request{Operation: "CREATE", Resource: "deployments", Pod: good}, inject.NotAPod, ""},
		"a subresource":           {inject.Request{Operation: "CREATE", Resource: "pods", SubResource: "binding", Pod: good}, inject.NotAPod, ""},
		"an update":               {inject.Request{Operation: "UPDATE", Resource: "pods", Pod: good}, inject.NotCreated, ""},
		"a deletion without body": {inject.Request{Operation: "DELETE", Resource: "pods"}, inject.NotCreated, ""},
		"no body":                 {inject.Request{}, inject.BadRequest, "cannot be decoded"},
		"null":                    {inject.Request{Pod: []byte("null")}, inject.BadRequest, "null"},
		"a list":                  {inject.Request{Pod: []byte("[]")}, inject.BadRequest, "not a list"},
		"cut off":                 {inject.Request{Pod: good[:len(good)-2]}, inject.BadRequest, "unexpected end"},
		"no containers":           {inject.Request{Pod: []byte(`{"spec":{}}`)}, inject.BadRequest, "at least one container"},
		"annotations of another type": {inject.Request{Pod: []byte(`{"metadata":{"annotations":{"a":1}},"spec":{"containers":[{}]}}`)},
			inject.BadRequest, "unexpected number in metadata.annotations"},
	} {
		t.Run(name, func(t *testing.T) {
			d := injector(t, testConfig()).Decide(tt.request)
			if d.Reason != tt.want || !strings.Contains(d.Message, tt.say) {
				t.Errorf("%s: %s; want %s with %q", d.Reason, d.Message, tt.want, tt.say)
			}
			if strings.Contains(d.Message, "podView") {
				t.Errorf("%q names a type of ours", d.Message)
			}
			if d.AuditAnnotations["reason"] != string(tt.want) {
				t.Errorf("audit annotations %v", d.AuditAnnotations)
			}
			for _, r := range inject.Reasons() {
				if r.Reason == tt.want && r.Action != d.Action {
					t.Errorf("%s: %s, want %s", d.Reason, d.Action, r.Action)
				}
			}
		})
	}
}

// Every reason leads to the action that the enumeration says.
func TestReasonsMatchActions(t *testing.T) {
	i := injector(t, testConfig())
	actions := map[inject.Reason]inject.Action{}
	for _, r := range inject.Reasons() {
		if _, twice := actions[r.Reason]; twice || r.Text == "" {
			t.Errorf("%s is listed twice or has no text", r.Reason)
		}
		actions[r.Reason] = r.Action
	}
	for _, f := range fixtures(t) {
		if d := i.Decide(f.request); actions[d.Reason] != d.Action {
			t.Errorf("%s: %s for %s, which means %s", f.name, d.Action, d.Reason, actions[d.Reason])
		}
	}
}

func TestNetworksTooLong(t *testing.T) {
	i := injector(t, testConfig())
	list := strings.Repeat("n,", settings.MaxNetworks)
	for name, tt := range map[string]struct {
		size int
		want inject.Reason
	}{
		"100 KB":              {100_000 + 1, inject.Injected},
		"the longest allowed": {settings.MaxNetworks, inject.Injected},
		"one byte more":       {settings.MaxNetworks + 1, inject.NetworksTooLong},
		"200 KB":              {200_001, inject.NetworksTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			d := i.Decide(inject.Request{Pod: pod(networks(list[:tt.size]))})
			if d.Reason != tt.want {
				t.Errorf("%s: %s", d.Reason, d.Message)
			}
			if tt.want == inject.NetworksTooLong && (!strings.Contains(d.Message, fmt.Sprint(settings.MaxNetworks)) || len(d.Message) > 512) {
				t.Errorf("message %q", d.Message)
			}
			// Networks that were not read are warned of.
			if want := strings.HasSuffix(list[:tt.size], ",") && tt.want == inject.Injected; want != (len(d.Warnings) > 0) {
				t.Errorf("warnings %q", d.Warnings)
			}
		})
	}
}

func TestOwnAnnotationTooLong(t *testing.T) {
	a := networks("n3")
	a[settings.KeyIgnore] = strings.Repeat("10.0.0.0/8,", 20_000) + "10.0.0.0/8"
	d := injector(t, testConfig()).Decide(inject.Request{Pod: pod(a)})
	if d.Reason != inject.InvalidSetting || len(d.Message) > 512 {
		t.Errorf("%s, %d bytes", d.Reason, len(d.Message))
	}
	for _, want := range []string{settings.KeyIgnore + " has 220010 bytes", "at most 131060 fit an environment variable", "shorten"} {
		if !strings.Contains(d.Message, want) {
			t.Errorf("%q lacks %q", d.Message, want)
		}
	}
}

func TestAllProblemsInOneMessage(t *testing.T) {
	a := map[string]string{settings.Networks: strings.Repeat("n,", 100_000), settings.KeyMode: "x", settings.KeyRelease: "y"}
	d := injector(t, testConfig()).Decide(inject.Request{Pod: pod(a)})
	if d.Action != inject.ActionDeny || d.Reason != inject.UnknownMode || d.Warnings != nil {
		t.Fatalf("%+v", d)
	}
	for _, want := range []string{
		settings.KeyMode + `="x"`, "allowed: init, sidecar;", settings.KeyRelease + `="y"`, "true, false", settings.Networks,
	} {
		if !strings.Contains(d.Message, want) {
			t.Errorf("%q lacks %q", d.Message, want)
		}
	}
}

func TestSubject(t *testing.T) {
	i := injector(t, testConfig())
	for _, f := range fixtures(t) {
		want := inject.Subject{Namespace: "telco", Name: strings.SplitN(f.name, "/", 2)[1]}
		if f.request.Resource != "pods" || f.request.Operation != "CREATE" {
			continue
		}
		if f.name == "none/generate-name" {
			want = inject.Subject{Namespace: "telco", Name: "upf-5d4f8c-*", Owner: "ReplicaSet/upf-5d4f8c"}
		}
		if got := i.Decide(f.request).Subject; got != want {
			t.Errorf("%s: %+v", f.name, got)
		}
	}
}

// The namespace of the request is the one in which names are looked up.
func TestNamespaceOfTheRequest(t *testing.T) {
	d := injector(t, testConfig()).Decide(inject.Request{Namespace: "from-request",
		Pod: pod(networks(`[{"name":"n3","default-route":["10.0.0.1"]}]`))})
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "from-request/n3") {
		t.Errorf("%q", d.Warnings)
	}
}

// A name with control characters must not break the header of a warning.
func TestWarningsHaveNoControlCharacters(t *testing.T) {
	i := injector(t, testConfig())
	for _, v := range []string{`[{"name":"n\n3","default-route":[]}]`, "a\nb", "[\n", "a@\x01"} {
		d := i.Decide(inject.Request{Namespace: "x", Pod: pod(networks(v))})
		if len(d.Warnings) == 0 {
			t.Errorf("%q: no warning", v)
		}
		for _, w := range d.Warnings {
			if strings.ContainsAny(w, "\n\r\x01") {
				t.Errorf("%q", w)
			}
		}
	}
}

func TestDefaultMode(t *testing.T) {
	c := testConfig()
	c.Mode = settings.Sidecar
	if d := injector(t, c).Decide(inject.Request{Pod: pod(networks("n3"))}); d.Mode != settings.Sidecar {
		t.Errorf("mode %s by default, want %s", d.Mode, c.Mode)
	}
	for _, mode := range []settings.Mode{settings.Node, "daemon"} {
		c.Mode = mode
		if _, err := inject.New(c); err == nil {
			t.Errorf("default mode %s was accepted", mode)
		}
	}
}

func TestUpdateKeepsTheOldOnError(t *testing.T) {
	i := injector(t, testConfig())
	request := inject.Request{Pod: pod(networks("n3"))}
	before := i.Decide(request).Patch
	bad := testConfig()
	bad.ImagePullPolicy = "Sometimes"
	if err := i.Update(bad); err == nil {
		t.Fatal("accepted")
	}
	if !bytes.Equal(before, i.Decide(request).Patch) {
		t.Error("a refused configuration is in use")
	}
	good := testConfig()
	good.Image = "example.com/other:2"
	if err := i.Update(good); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(i.Decide(request).Patch, []byte("example.com/other:2")) {
		t.Error("the new configuration is not in use")
	}
}

// The caller's maps and slices are not kept: changing them later changes nothing.
func TestConfigurationIsCopied(t *testing.T) {
	c := testConfig()
	i := injector(t, c)
	override := map[string]string{settings.Networks: "n3", settings.KeyCPU: "30m"}
	before := string(i.Decide(inject.Request{Pod: pod(override)}).Patch)
	c.Env[0].Value = "changed"
	c.Agent["log-format"] = "text"
	c.Resources[settings.Init] = inject.Resources{Memory: "99Mi"}
	if after := string(i.Decide(inject.Request{Pod: pod(override)}).Patch); after != before {
		t.Errorf("before %s\nafter %s", before, after)
	}
}

// One pod's overrides must not leak into the next, also when they come at the
// same time and the configuration changes under them.
func TestOverridesDoNotLeak(t *testing.T) {
	i := injector(t, testConfig())
	plain := inject.Request{Pod: podWith(networks("n3"), map[string]any{"containers": []any{
		map[string]any{"name": "app", "resources": map[string]any{"requests": map[string]any{"cpu": "1"}}},
	}})}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			memory := fmt.Sprintf("%dMi", 64+n)
			override := inject.Request{Pod: pod(map[string]string{settings.Networks: "n3", settings.KeyMemory: memory})}
			for range 50 {
				if c := firstInit(t, override.Pod, i.Decide(override).Patch); c.Resources.Limits.Memory().String() != memory {
					t.Errorf("limit %s, want %s", c.Resources.Limits.Memory(), memory)
				}
				if c := firstInit(t, plain.Pod, i.Decide(plain).Patch); c.Resources.Limits.Memory().String() != "48Mi" {
					t.Errorf("limit %s leaked", c.Resources.Limits.Memory())
				}
				if n == 0 {
					if err := i.Update(testConfig()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func firstInit(t testing.TB, raw, patch []byte) corev1.Container {
	t.Helper()
	var p corev1.Pod
	if err := json.Unmarshal(apply(t, raw, patch), &p); err != nil {
		t.Fatal(err)
	}
	return p.Spec.InitContainers[0]
}

func TestResourcesByClass(t *testing.T) {
	amounts := func(cpu, memory any) map[string]any { return map[string]any{"cpu": cpu, "memory": memory} }
	app := func(resources any) map[string]any {
		return map[string]any{"containers": []any{map[string]any{"name": "app", "resources": resources}}}
	}
	guaranteed := app(map[string]any{"limits": amounts("1", "1Gi"), "requests": amounts("1", "1Gi")})
	limited := map[string]any{"name": "other", "resources": map[string]any{"limits": map[string]any{"cpu": "1"}}}
	unlimited := map[string]any{"name": "init", "resources": map[string]any{"limits": map[string]any{"memory": "1Gi"}}}
	oneWithout := map[string]any{"containers": []any{limited, unlimited}}
	initWithout := map[string]any{"containers": []any{limited}, "initContainers": []any{unlimited}}
	podLevel := app(map[string]any{})
	podLevel["resources"] = map[string]any{"limits": amounts("1", "1Gi")}
	for name, tt := range map[string]struct {
		spec        map[string]any
		annotations map[string]string
		want        string // requests cpu/memory, limits cpu/memory
	}{
		"best effort":              {app(nil), nil, "0/0 0/0"},
		"burstable":                {app(map[string]any{"requests": amounts("1", "1Gi")}), nil, "20m/48Mi 0/48Mi"},
		"all have a CPU limit":     {app(map[string]any{"limits": map[string]any{"cpu": "2"}}), nil, "20m/48Mi 500m/48Mi"},
		"a CPU limit of zero":      {app(map[string]any{"limits": amounts("0", "1Gi")}), nil, "20m/48Mi 0/48Mi"},
		"one has no CPU limit":     {oneWithout, nil, "20m/48Mi 0/48Mi"},
		"an init container has no": {initWithout, nil, "20m/48Mi 0/48Mi"},
		"CPU limit, cpu override":  {app(map[string]any{"limits": map[string]any{"cpu": "2"}}), map[string]string{settings.KeyCPU: "100m"}, "100m/48Mi 100m/48Mi"},
		"guaranteed":               {guaranteed, nil, "500m/48Mi 500m/48Mi"},
		"pod level":                {podLevel, nil, "0/0 0/0"},
		"cpu override":             {app(nil), map[string]string{settings.KeyCPU: "0.1"}, "100m/48Mi 0/48Mi"},
		"memory override":          {app(nil), map[string]string{settings.KeyMemory: "64Mi"}, "20m/64Mi 0/64Mi"},
		"both, guaranteed":         {guaranteed, map[string]string{settings.KeyCPU: "1500m", settings.KeyMemory: "64Mi"}, "1500m/64Mi 1500m/64Mi"},
		"override, pod level":      {podLevel, map[string]string{settings.KeyCPU: "1"}, "0/0 0/0"},
		"empty override is no one": {guaranteed, map[string]string{settings.KeyCPU: ""}, "500m/48Mi 500m/48Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := networks("n3")
			for k, v := range tt.annotations {
				annotations[k] = v
			}
			raw := podWith(annotations, tt.spec)
			d := injector(t, testConfig()).Decide(inject.Request{Pod: raw})
			if d.Action != inject.ActionInject {
				t.Fatalf("%s: %s", d.Reason, d.Message)
			}
			r := firstInit(t, raw, d.Patch).Resources
			got := fmt.Sprintf("%s/%s %s/%s", r.Requests.Cpu(), r.Requests.Memory(), r.Limits.Cpu(), r.Limits.Memory())
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	want := []string{"/mutate none", "/mutate/init init", "/mutate/sidecar sidecar", "/mutate/node node", "/mutate/other other"}
	var got []string
	for _, p := range inject.Paths() {
		if p.Doc == "" {
			t.Errorf("%s has no description", p.Path)
		}
		got = append(got, p.Path+" "+string(p.NamespaceMode))
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("%q", got)
	}
}

// FuzzDecide feeds any bytes as a pod. What is injected must apply and must be
// recognised the second time.
func FuzzDecide(f *testing.F) {
	for _, x := range fixtures(f) {
		f.Add(x.request.Pod, string(x.request.NamespaceMode))
	}
	f.Add([]byte(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":"[null]"}},"spec":{"containers":[null]}}`), "none")
	i := injector(f, testConfig())
	f.Fuzz(func(t *testing.T, raw []byte, mode string) {
		r := inject.Request{Namespace: "x", NamespaceMode: inject.NamespaceMode(mode), Pod: raw}
		d := i.Decide(r)
		patched := d.Action == inject.ActionInject || d.Action == inject.ActionAdjust
		if patched != (d.Patch != nil) || d.Message == "" {
			t.Fatalf("%+v", d)
		}
		if !patched {
			return
		}
		r.Pod = apply(t, raw, d.Patch)
		if again := i.Decide(r); again.Reason != inject.AlreadyInjected {
			t.Fatalf("second time %s", again.Reason)
		}
	})
}

// A webhook that is called after ours may add settings; the API server asks us again, and they are checked then.
func TestSettingsAddedAfterInjection(t *testing.T) {
	injected := func(annotations map[string]string) []byte {
		annotations[settings.Networks], annotations[settings.KeyStatus] = "n3", `{"mode":"init","version":"v1"}`
		return podWith(annotations, map[string]any{
			"containers":     []any{map[string]any{"name": "app", "image": "x"}},
			"initContainers": []any{map[string]any{"name": settings.ContainerName, "image": "y"}},
		})
	}
	for name, tt := range map[string]struct {
		annotations map[string]string
		action      inject.Action
		reason      inject.Reason
		say         string
	}{
		"nothing":                           {map[string]string{}, inject.ActionKeep, inject.AlreadyInjected, ""},
		"a setting that is valid":           {map[string]string{settings.KeyDeadline: "5m"}, inject.ActionKeep, inject.AlreadyInjected, ""},
		"a setting that is not":             {map[string]string{settings.KeyDeadline: "soon"}, inject.ActionDeny, inject.InvalidSetting, "soon"},
		"the mode it has":                   {map[string]string{settings.KeyMode: "init"}, inject.ActionKeep, inject.AlreadyInjected, ""},
		"another mode: too late for that":   {map[string]string{settings.KeyMode: "sidecar"}, inject.ActionKeep, inject.AlreadyInjected, "has no effect"},
		"a mode that there is not, neither": {map[string]string{settings.KeyMode: "daemon"}, inject.ActionDeny, inject.UnknownMode, "daemon"},
	} {
		t.Run(name, func(t *testing.T) {
			d := injector(t, testConfig()).Decide(inject.Request{Pod: injected(tt.annotations)})
			told := d.Message + strings.Join(d.Warnings, "")
			if d.Action != tt.action || d.Reason != tt.reason || d.Patch != nil || !strings.Contains(told, tt.say) {
				t.Errorf("%s, %s: %q; want %s, %s with %q", d.Action, d.Reason, told, tt.action, tt.reason, tt.say)
			}
			if tt.say == "" && len(d.Warnings) > 0 {
				t.Errorf("warnings %q", d.Warnings)
			}
		})
	}
}
