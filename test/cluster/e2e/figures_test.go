package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/test/cluster"
)

// rounds is how many pods of each kind are measured, by default few: E2E_ROUNDS=10 gives a median worth telling.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("E2E_ROUNDS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("E2E_ROUNDS=%q: want a number", text)
	}
	return n
}

// What the product adds to the start of a pod, from its creation to the start of the application, and what a sidecar holds in memory.
func TestFigures(t *testing.T) {
	s := needVPC(t)
	kinds := []struct {
		name   string
		labels map[string]string
	}{{"without", nil}, {"init", initMode}, {"sidecar", sidecarMode}}
	n := rounds(t)
	median := map[string]time.Duration{}
	for _, kind := range kinds {
		namespace := s.namespace(t, kind.labels)
		network := s.makeNetwork(t, namespace)
		var took []time.Duration
		for i := range n {
			app := fmt.Sprintf("app-%d", i)
			created := time.Now()
			s.create(t, namespace, app, s.nodes(t)[0], s.template(app, map[string]string{networks: network}))
			p := s.pods(t, namespace, app, 1)[0]
			var started time.Time
			if err := s.ask(t.Context(), &p, "/started", nil, &started); err != nil {
				t.Fatal(err)
			}
			took = append(took, started.Sub(created))
			if kind.name == "sidecar" && i == 0 {
				s.tellMemory(t, &p)
			}
			if err := s.Client.Delete(t.Context(), &p); err != nil {
				t.Fatal(err)
			}
			s.pods(t, namespace, app, 0)
		}
		slices.Sort(took)
		median[kind.name] = took[len(took)/2]
		t.Logf("create to application's start, %-8s median of %d: %6d ms (%d to %d)", kind.name+",", n,
			median[kind.name].Milliseconds(), took[0].Milliseconds(), took[len(took)-1].Milliseconds())
	}
	t.Logf("init adds %d ms, sidecar %d ms", (median["init"] - median["without"]).Milliseconds(), (median["sidecar"] - median["without"]).Milliseconds())
	for _, kind := range kinds {
		namespace := s.namespace(t, kind.labels)
		template := s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)})
		created := time.Now()
		s.deploy(t, namespace, 10, template)
		s.pods(t, namespace, "app", 10)
		t.Logf("ten pods at once, %-8s all ready after %d ms", kind.name+",", time.Since(created).Milliseconds())
	}
}

// tellMemory asserts that the injected container is far from its limit.
func (s *suite) tellMemory(t *testing.T, p *corev1.Pod) {
	t.Helper()
	for _, c := range p.Status.InitContainerStatuses {
		if c.Name != ours {
			continue
		}
		all, anonymous, err := cluster.Memory(string(p.UID), c.ContainerID)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("memory of the sidecar as the kernel accounts it: %.1f MiB, of it %.1f MiB anonymous", float64(all)/(1<<20), float64(anonymous)/(1<<20))
		if all > 32<<20 {
			t.Errorf("the sidecar holds %d bytes: too near to its limit of 48 MiB", all)
		}
	}
}
