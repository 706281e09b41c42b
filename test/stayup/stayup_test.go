package stayup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/ns"
)

// rate is how many pods are created a second.
const rate = 50

// shared is the one rig of these tests, with times shorter than the chart's. The tests build on each other: the first has no webhook.
var shared *Rig

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
	shared, err = Start(context.Background(), Options{
		Values:      map[string]any{"preStopSeconds": 1},
		Args:        []string{"--leaf-duration=20s", "--ca-settle=1s"},
		Propagation: 300 * time.Millisecond,
	})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.Close()) }()
	return s.m.Run(), nil
}

func TestMain(m *testing.M) { ns.Main(suite{m}) }

// scaled makes sure that the replicas run.
func scaled(t *testing.T) {
	t.Helper()
	if len(shared.Replicas()) > 0 {
		return
	}
	if err := shared.Scale(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// during has something happen under load: no pod may be refused, or admitted without the container.
func during(t *testing.T, event func(ctx context.Context) error) {
	t.Helper()
	scaled(t)
	namespace := shared.Plane.CreateNamespace(t, "load", OptedIn())
	trust := shared.Trust(t.Context())
	load := shared.Load(t.Context(), namespace, rate)
	if err := event(t.Context()); err != nil {
		t.Error(err)
	}
	after := load.Asked() + rate/2
	if err := load.Await(t.Context(), func(r Result) bool { return r.Asked >= after }); err != nil { // with what it led to
		t.Error(err)
	}
	r := load.Stop()
	trust.Stop()
	if r.Refused+r.Naked+r.Lost > 0 { // where there was no API server is told, but nothing that a webhook can do about
		t.Error(r)
	}
	if trust.Refused > 0 || trust.Connections == 0 {
		t.Errorf("%d of %d connections failed: %q", trust.Refused, trust.Connections, trust.Errors)
	}
	t.Log(r, trust.Connections, "connections")
}

// A namespace is opted in before the webhook runs: only the pods that need it wait, they are told why, and their controller gets
// them in once it runs. kube-system and the webhook's own namespace do not wait, whatever their labels say.
func TestBeforeTheWebhookIsUp(t *testing.T) {
	if len(shared.Replicas()) > 0 {
		t.Skip("the webhook runs already; this test needs a fresh rig, so it does not repeat")
	}
	ctx := t.Context()
	early := shared.Plane.CreateNamespace(t, "early", OptedIn())
	for _, name := range []string{"kube-system", Namespace} {
		namespace := &corev1.Namespace{}
		if err := shared.Plane.Client.Get(ctx, key(name), namespace); err != nil {
			t.Fatal(err)
		}
		namespace.Labels[settings.LabelInject] = settings.InjectEnabled
		if err := shared.Plane.Client.Update(ctx, namespace); err != nil {
			t.Fatal(err)
		}
	}
	create := func(namespace string, annotations map[string]string) error {
		return shared.Plane.Client.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "app-", Namespace: namespace, Annotations: annotations},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "registry.example/app:1"}}},
		})
	}
	networks := map[string]string{settings.Networks: "n3"}
	for namespace, annotations := range map[string]map[string]string{early: nil, "default": networks, "kube-system": networks, Namespace: networks} {
		if err := create(namespace, annotations); err != nil {
			t.Errorf("a pod in %s with the annotations %v: %v", namespace, annotations, err)
		}
	}
	err := create(early, networks)
	if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "default.multus-ip-manager.io"`) ||
		!strings.Contains(err.Error(), `no endpoints available for service "multus-ip-manager"`) {
		t.Errorf("a pod that needs the webhook: %v", err)
	}

	load := shared.Load(ctx, early, 10)
	if err := load.Await(ctx, func(r Result) bool { return r.Refused > 0 }); err != nil {
		t.Fatal(err)
	}
	scaled(t)
	r := load.Stop()
	if r.Lost+r.Naked > 0 || len(r.Took) != r.Asked {
		t.Errorf("controllers that began before: %s", r)
	}
	t.Log(r)
}

// Every old replica ends while others are asked, and each new one takes part.
func TestRoll(t *testing.T) {
	crowd := shared.Plane.CreateNamespace(t, "crowd", OptedIn())
	during(t, func(ctx context.Context) error {
		before := shared.Replicas()
		if err := shared.Roll(ctx); err != nil {
			return err
		}
		for _, p := range shared.Replicas() {
			if slices.Contains(before, p) {
				t.Errorf("the old replica %s is still there", p.Addr)
			}
			if err := asked(ctx, p, crowd); err != nil {
				return err
			}
		}
		return nil
	})
}

// asked creates pods, many at a time so that API servers need new connections, until a replica was asked for one.
func asked(ctx context.Context, p *Replica, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		n, err := p.Metric(ctx, `controller_runtime_webhook_requests_total{code="200",webhook="/mutate"}`)
		if err != nil {
			return fmt.Errorf("nobody asked the new replica %s: %w", p.Addr, err)
		}
		if n > 0 {
			return nil
		}
		var pods errgroup.Group
		for range atOnce {
			pods.Go(func() error { return shared.load.create(ctx, namespace) })
		}
		if err := pods.Wait(); err != nil {
			return err
		}
	}
}

func TestLeavesAreRenewed(t *testing.T) { during(t, shared.RenewLeaves) }

func TestCAIsRotated(t *testing.T) { during(t, shared.RotateCA) }

func key(name string) client.ObjectKey { return client.ObjectKey{Name: name} }
