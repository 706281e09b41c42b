package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/test/stayup"
)

// stayupRate is how many pods are created a second.
const stayupRate = 200

// maxServingRSS is what a replica may occupy after ten minutes of that, in MiB.
const maxServingRSS = 40

// mishap is something that happens to the webhook while pods are created.
type mishap struct {
	name   string
	happen func(context.Context, *stayup.Rig) error
	// mayRefuse: what is in flight on a process that is killed is lost, for an API server repeats no call that was cut off. What counts
	// is that every pod is created.
	mayRefuse bool
}

func mishaps() []mishap {
	return []mishap{
		{name: "rolling update", happen: func(ctx context.Context, r *stayup.Rig) error { return r.Roll(ctx) }},
		{name: "leaf renewal", happen: func(ctx context.Context, r *stayup.Rig) error { return r.RenewLeaves(ctx) }},
		{name: "CA rotation", happen: func(ctx context.Context, r *stayup.Rig) error { return r.RotateCA(ctx) }},
		{name: "a replica is killed", happen: func(ctx context.Context, r *stayup.Rig) error { return r.CrashOne(ctx) }, mayRefuse: true},
		{name: "API server restart", happen: func(ctx context.Context, r *stayup.Rig) error { return r.RestartAPIServer(ctx) }},
	}
}

// shortForm reports whether the benchmarks shall only show that they run (-benchtime 1x).
func shortForm() bool { return flag.Lookup("test.benchtime").Value.String() == "1x" }

// BenchmarkStayup counts what is lost while something happens to the webhook, under load through a real API server. The short form has
// a shorter preStop than the chart, one event of each kind, and half a minute of load in all; the long one holds it for ten minutes.
func BenchmarkStayup(b *testing.B) {
	t := section{title: fmt.Sprintf("The webhook stays up (%d pods a second through kube-apiserver, 2 replicas)", stayupRate), rows: [][]string{{
		"", "pods", "refused", "without the container", "never created", "connections refused", "slowest", "p99",
	}}}
	var ready []time.Duration
	for _, route := range []struct {
		name  string
		proxy bool
	}{{"to the endpoints", false}, {"through kube-proxy's stand-in", true}} {
		rig, telco := newStayup(b, route.proxy)
		for _, e := range mishaps() {
			if route.proxy && e.name != mishaps()[0].name && shortForm() {
				continue
			}
			b.Run(e.name+", "+route.name, func(b *testing.B) {
				ready = append(ready, happen(b, rig, telco, e, &t, route.name)...)
			})
		}
		if !route.proxy {
			b.Run("memory", func(b *testing.B) { hold(b, rig, telco, &t) })
		}
		if err := rig.Close(); err != nil { // before the next one, which has the same addresses
			b.Error(err)
		}
	}
	if len(ready) > 0 {
		t.rows = append(t.rows, []string{"start to ready", written(digits(millis(Quantile(ready, median))), "ms median"),
			written(digits(millis(Quantile(ready, largest))), "ms slowest"), fmt.Sprintf("of %d starts", len(ready))})
	}
	shared.summary.add(t)
	shared.summary.note("Staying up: budgets are 0 refused (but where a replica is killed: what it had in flight, and what goes to its address until the " +
		"kubelet has noticed, is refused, and an API server repeats no call; a controller does) and 0 never created; memory " + fmt.Sprint(maxServingRSS) + " MiB.")
}

// newStayup starts the rig with its replicas, and makes a namespace for pods.
func newStayup(b *testing.B, proxy bool) (rig *stayup.Rig, namespace string) {
	b.Helper()
	o := stayup.Options{Args: []string{"--leaf-duration=20s", "--ca-settle=1s"}, KubeProxy: proxy, Propagation: 300 * time.Millisecond}
	if shortForm() {
		o.Values = map[string]any{"preStopSeconds": 1}
	}
	rig, err := stayup.Start(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	if err := rig.Scale(b.Context()); err != nil {
		b.Fatal(errors.Join(err, rig.Close()))
	}
	ns := &corev1.Namespace{}
	ns.Name, ns.Labels = "telco", stayup.OptedIn()
	if err := rig.Plane.Client.Create(b.Context(), ns); err != nil {
		b.Fatal(errors.Join(err, rig.Close()))
	}
	return rig, ns.Name
}

// happen has an event happen, once or a few times, and adds what it cost to the table. It returns how long new replicas took until
// they were ready.
func happen(b *testing.B, rig *stayup.Rig, telco string, e mishap, t *section, route string) (ready []time.Duration) {
	b.Helper()
	once(b, func() {
		ctx := b.Context()
		rounds := 1
		if !shortForm() {
			rounds = 5
		}
		trust, load := rig.Trust(ctx), rig.Load(ctx, telco, stayupRate)
		for range rounds {
			before := rig.Replicas()
			if err := e.happen(ctx, rig); err != nil {
				b.Error(err)
			}
			for _, p := range rig.Replicas() {
				if !slices.Contains(before, p) {
					ready = append(ready, p.Ready)
				}
			}
			after := load.Asked() + stayupRate
			if err := load.Await(ctx, func(r stayup.Result) bool { return r.Asked >= after }); err != nil { // with what it led to
				b.Error(err)
			}
		}
		r := load.Stop()
		trust.Stop()
		if r.Naked+r.Lost > 0 || r.Refused > 0 && !e.mayRefuse {
			b.Errorf("%s: %s", e.name, r)
		}
		if trust.Refused > 0 && !e.mayRefuse {
			b.Errorf("%s: %d of %d connections failed: %q", e.name, trust.Refused, trust.Connections, trust.Errors)
		}
		b.ReportMetric(float64(r.Pods), "refused")
		b.ReportMetric(float64(r.Lost), "never-created")
		budget := " (budget 0)"
		if e.mayRefuse {
			budget = fmt.Sprintf(" in %d", rounds)
		}
		t.rows = append(t.rows, []string{
			fmt.Sprintf("%s, %s (%d times)", e.name, route, rounds), fmt.Sprint(r.Asked), fmt.Sprint(r.Pods) + budget, fmt.Sprint(r.Naked),
			fmt.Sprint(r.Lost), fmt.Sprintf("%d of %d", trust.Refused, trust.Connections),
			written(digits(millis(Quantile(r.Took, largest))), "ms"), written(digits(millis(Quantile(r.Took, 0.99))), "ms"),
		})
	})
	return ready
}

// hold measures the replicas' memory under the load.
func hold(b *testing.B, rig *stayup.Rig, telco string, t *section) {
	once(b, func() {
		ctx, length := b.Context(), 10*time.Second
		if !shortForm() {
			length = 10 * time.Minute
		}
		load := rig.Load(ctx, telco, stayupRate)
		if err := stayup.Wait(ctx, length); err != nil {
			b.Error(err)
		}
		r := load.Stop()
		if r.Refused+r.Naked+r.Lost > 0 {
			b.Errorf("%s", r)
		}
		row := []string{fmt.Sprintf("memory after %s of it (budget %d MiB)", length, maxServingRSS), fmt.Sprint(r.Asked), fmt.Sprint(r.Refused),
			fmt.Sprint(r.Naked), fmt.Sprint(r.Lost), "", written(digits(millis(Quantile(r.Took, largest))), "ms"), written(digits(millis(Quantile(r.Took, 0.99))), "ms")}
		for _, p := range rig.Replicas() {
			rss, err := p.RSS()
			if err != nil {
				b.Fatal(err)
			}
			if rss > maxServingRSS {
				b.Errorf("replica %s has occupied %.1f MiB, want at most %d", p.Addr, rss, maxServingRSS)
			}
			b.ReportMetric(rss, "MiB-RSS")
			row = append(row, written(digits(rss), "MiB"))
		}
		t.rows = append(t.rows, row)
	})
}

// once does something once, however many rounds are asked for.
func once(b *testing.B, f func()) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for first := true; b.Loop(); first = false {
		if first {
			f()
		}
	}
}
