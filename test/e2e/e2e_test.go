// Package e2e tests the whole product: chart, webhook, API server, injected container, agent, EC2 and the packets that arrive.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/stage"
	"multus-ip-manager.io/test/world"
)

// shared is the one stage of these tests; it takes seconds to start and keeps nothing between pods of different names.
var shared *stage.Stage

type suite struct{ m *testing.M }

func (s suite) Run() int {
	code, err := s.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func (s suite) run() (code int, err error) {
	ctx := context.Background()
	spec, err := world.Load("testdata/world.yaml")
	if err != nil {
		return 1, err
	}
	if shared, err = stage.Start(ctx, stage.Options{World: spec}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.Close()) }()
	if err := shared.Install(ctx, nil); err != nil {
		return 1, err
	}
	return s.m.Run(), nil
}

func TestMain(m *testing.M) { ns.Main(suite{m}) }

// The main job: a Deployment's pods go in through the API, and their addresses answer on the other node.
func TestAPodGoesInARoutableAddressComesOut(t *testing.T) {
	ctx := t.Context()
	apply(t, "manifests/samples/00-namespace.yaml")
	apply(t, "test/e2e/testdata/network.yaml")
	objects, err := shared.ApplyFile(ctx, "manifests/samples/20-deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	deployment, err := stage.Deployment(objects)
	if err != nil {
		t.Fatal(err)
	}
	deployment.Spec.Template.Annotations[settings.Networks] = "n3, n3-v6"
	var pods []*stage.Pod
	for i, node := range shared.World.Nodes() {
		p, err := shared.StartPod(ctx, deployment, i, node.Name())
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, p)
	}
	for i, p := range pods {
		first := p.API.Spec.InitContainers
		if len(first) != 1 || first[0].Name != settings.ContainerName || first[0].Args[0] != "init" {
			t.Fatalf("init containers of %s: %+v", p.API.Name, first)
		}
		if p.API.Annotations[settings.KeyStatus] == "" {
			t.Errorf("%s has no status annotation", p.API.Name)
		}
		for j, a := range pods[1-i].Addresses {
			if err := p.Sandbox.NS().Ping(ctx, a, 300*time.Millisecond); err == nil {
				t.Errorf("address %d of the other pod, %s, answers before anybody assigned it", j, a)
			}
		}
	}
	before := len(shared.World.Cloud().Journal())
	for _, p := range pods {
		r, err := shared.RunInit(ctx, p)
		if err != nil || r.ExitCode != 0 {
			t.Fatalf("%s: exit code %d, %v, %s\n%s", p.API.Name, r.ExitCode, err, r.Message, r.Output)
		}
	}
	for i, p := range pods {
		for _, a := range pods[1-i].Addresses {
			if err := p.Sandbox.NS().Ping(ctx, a, 5*time.Second); err != nil {
				t.Errorf("%s does not answer %s: %v", a, p.API.Name, err)
			}
		}
	}
	var actions []string
	for _, c := range shared.World.Cloud().Journal()[before:] {
		actions = append(actions, c.Action)
	}
	slices.Sort(actions)
	if want := []string{"AssignIpv6Addresses", "AssignIpv6Addresses", "AssignPrivateIpAddresses", "AssignPrivateIpAddresses"}; !slices.Equal(actions, want) {
		t.Errorf("EC2 calls %v, want one per ENI and address family: %v", actions, want)
	}
}

// A pod that cannot start says why where its owner looks.
func TestAPodThatCannotStartSaysWhy(t *testing.T) {
	namespace := makeNamespace(t, map[string]string{settings.LabelInject: "enabled"})
	p := pod(namespace, map[string]string{settings.Networks: "n3"}, nil)
	p.Spec.NodeName = "worker-a"
	if _, err := create(t, p); err != nil {
		t.Fatal(err)
	}
	sandbox, err := shared.World.AddPod(world.PodSpec{Name: p.Name, Namespace: namespace, Node: "worker-a"}) // Multus made nothing
	if err != nil {
		t.Fatal(err)
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: sandbox.IPs()[0].String()}}
	r, err := shared.RunInit(t.Context(), &stage.Pod{API: p, Sandbox: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 6 || !strings.Contains(r.Message, "delete the pod") {
		t.Errorf("exit code %d, message %q; want 6 and what to do", r.ExitCode, r.Message)
	}
}

func apply(t *testing.T, path string) {
	t.Helper()
	if _, err := shared.ApplyFile(t.Context(), path); err != nil {
		t.Fatal(err)
	}
}

// makeNamespace makes a namespace of the test's own.
func makeNamespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	return shared.Plane.CreateNamespace(t, "e2e", labels)
}

// pod is an ordinary pod that asks for what the annotations say.
func pod(namespace string, annotations, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "app-", Annotations: annotations, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
}

// create creates the pod as a user who sees warnings.
func create(t *testing.T, p *corev1.Pod) (warnings []string, err error) {
	t.Helper()
	config := rest.CopyConfig(shared.Plane.Config)
	w := &warned{}
	config.WarningHandlerWithContext = w
	c, err := client.New(config, client.Options{Scheme: shared.Plane.Client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Create(t.Context(), p)
	return w.texts, err
}

type warned struct {
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (w *warned) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

// What the API server, the chart's configuration and the webhook do together.
func TestAdmission(t *testing.T) {
	enabled := map[string]string{settings.LabelInject: "enabled"}
	net := map[string]string{settings.Networks: "n3"}
	with := func(more map[string]string) map[string]string {
		all := map[string]string{settings.Networks: "n3"}
		for k, v := range more {
			all[k] = v
		}
		return all
	}
	for name, test := range map[string]struct {
		namespace   map[string]string
		annotations map[string]string
		labels      map[string]string
		change      func(*corev1.Pod)
		injected    bool
		denied      []string
		warnings    []string
	}{
		"asked for":                    {namespace: enabled, annotations: net, injected: true},
		"the namespace did not opt in": {annotations: net},
		"no networks":                  {namespace: enabled},
		"opted out":                    {namespace: enabled, annotations: net, labels: map[string]string{settings.LabelInject: "disabled"}},
		"the host's network":           {namespace: enabled, annotations: net, change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }, warnings: []string{"host-network"}},
		"restricted": {namespace: map[string]string{settings.LabelInject: "enabled", "pod-security.kubernetes.io/enforce": "restricted"}, annotations: net, injected: true,
			change: func(p *corev1.Pod) {
				yes, no := true, false
				p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
			}},
		"the namespace's mode":           {namespace: map[string]string{settings.LabelInject: "enabled", settings.KeyMode: "init"}, annotations: net, injected: true},
		"an unknown mode of the pod":     {namespace: enabled, annotations: with(map[string]string{settings.KeyMode: "turbo"}), denied: []string{settings.KeyMode, "turbo", "init, sidecar"}},
		"an unknown mode by label":       {namespace: enabled, annotations: net, labels: map[string]string{settings.KeyMode: "turbo"}, denied: []string{settings.KeyMode, "turbo", "init, sidecar"}},
		"an unknown mode by namespace":   {namespace: map[string]string{settings.LabelInject: "enabled", settings.KeyMode: "turbo"}, annotations: net, denied: []string{settings.KeyMode, "init, sidecar"}},
		"a mode that is not there yet":   {namespace: enabled, annotations: with(map[string]string{settings.KeyMode: "node"}), denied: []string{"node", "not available"}},
		"annotation and label differ":    {namespace: enabled, annotations: with(map[string]string{settings.KeyMode: "init"}), labels: map[string]string{settings.KeyMode: "sidecar"}, injected: true, warnings: []string{"wins over"}},
		"an invalid setting":             {namespace: enabled, annotations: with(map[string]string{settings.KeyDeadline: "soon"}), denied: []string{settings.KeyDeadline, "soon", "1s to 24h"}},
		"null in the networks":           {namespace: enabled, annotations: map[string]string{settings.Networks: "[null]"}, injected: true, warnings: []string{"cannot be parsed"}},
		"a trailing comma":               {namespace: enabled, annotations: map[string]string{settings.Networks: "n3,"}, injected: true, warnings: []string{"cannot be parsed"}},
		"an object":                      {namespace: enabled, annotations: map[string]string{settings.Networks: `{"name":"n3"}`}, injected: true, warnings: []string{"cannot be parsed"}},
		"100 KB of networks":             {namespace: enabled, annotations: map[string]string{settings.Networks: strings.Repeat("n3,", 34000) + "n3"}, injected: true},
		"200 KB of networks":             {namespace: enabled, annotations: map[string]string{settings.Networks: strings.Repeat("n3,", 68000) + "n3"}, denied: []string{settings.Networks, "fewer networks"}},
		"a default route":                {namespace: enabled, annotations: map[string]string{settings.Networks: `[{"name":"n3","default-route":["10.0.4.1"]}]`}, injected: true, warnings: []string{"default-route"}},
		"a pod with own init containers": {namespace: enabled, annotations: net, injected: true, change: func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "migrate", Image: "app:1"}} }},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod(makeNamespace(t, test.namespace), test.annotations, test.labels)
			if test.change != nil {
				test.change(p)
			}
			warnings, err := create(t, p)
			if len(test.denied) > 0 {
				wantDenied(t, err, test.denied)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := len(p.Spec.InitContainers) > 0 && p.Spec.InitContainers[0].Name == settings.ContainerName; got != test.injected {
				t.Errorf("injected: %t, want %t", got, test.injected)
			}
			for _, w := range test.warnings {
				if !slices.ContainsFunc(warnings, func(s string) bool { return strings.Contains(s, w) }) {
					t.Errorf("warnings %q do not say %q", warnings, w)
				}
			}
			if len(test.warnings) == 0 && len(warnings) > 0 {
				t.Errorf("unexpected warnings %q", warnings)
			}
		})
	}
}

// wantDenied asserts that the API server refused the pod with all of these words.
func wantDenied(t *testing.T, err error, words []string) {
	t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		t.Fatalf("created, or failed otherwise: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(status.Status().Message, w) {
			t.Errorf("the denial does not say %q: %s", w, status.Status().Message)
		}
	}
}

// The pod's owner, its own namespace and the cluster's are out of reach whatever their labels.
func TestKubeSystemIsLeftAlone(t *testing.T) {
	for _, namespace := range []string{"kube-system", "multus-ip-manager"} {
		t.Run(namespace, func(t *testing.T) {
			object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
			patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{settings.LabelInject: "enabled"}}})
			if err != nil {
				t.Fatal(err)
			}
			if err := shared.Plane.Client.Patch(t.Context(), object, client.RawPatch("application/merge-patch+json", patch)); err != nil {
				t.Fatal(err)
			}
			p := pod(namespace, map[string]string{settings.Networks: "n3"}, nil)
			if _, err := create(t, p); err != nil {
				t.Fatal(err)
			}
			if len(p.Spec.InitContainers) > 0 {
				t.Errorf("injected into %s", namespace)
			}
		})
	}
}
