// Command demo shows multus-ip-manager at work on one machine: a real Kubernetes API server, an emulated VPC with two workers, the
// webhook and the agent as they are shipped, and two pods that could not reach each other.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/stage"
	"multus-ip-manager.io/test/world"
)

//go:embed world.yaml
var worldYAML []byte

// samples are applied as a user would, in this order.
var samples = []string{"00-namespace.yaml", "10-network.yaml", "20-deployment.yaml"}

const (
	// lostAfter is how long a ping is waited for that is expected to be lost, answeredWithin one that is not.
	lostAfter      = time.Second
	answeredWithin = 5 * time.Second
)

func main() {
	if err := ns.Reexec(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Stdout)
	interrupted := ctx.Err() != nil // whatever failed then, failed for that reason
	stop()
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything it started is gone")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// show is one running demo.
type show struct {
	out     io.Writer
	started time.Time
	stage   *stage.Stage
	pods    []*stage.Pod
	results []kubelet.Result
}

func (s *show) step(text string) {
	fmt.Fprintf(s.out, "[%5.1fs] %s\n", time.Since(s.started).Seconds(), text)
}

func run(ctx context.Context, out io.Writer) (err error) {
	s := &show{out: out, started: time.Now()}
	if os.Getuid() == 0 && !ownUser() {
		s.step("running in network and mount namespaces of its own: nothing on this machine is touched")
	} else {
		s.step("running in a user namespace of its own, without root. Only one user is mapped there, so the injected runAsUser is replaced " +
			"by no_new_privs and an empty capability set")
	}
	s.step("the API server, Helm, the webhook and the agent are the real programs; AWS is emulated, and kubectl, scheduler, kubelet and Multus " +
		"are played by this demo")
	spec, err := world.Parse(worldYAML)
	if err != nil {
		return err
	}
	if s.stage, err = stage.Start(ctx, stage.Options{World: spec, Step: s.step}); err != nil {
		return err
	}
	defer func() {
		s.step("tidying up")
		if cerr := s.stage.Close(); err == nil {
			err = cerr
		}
	}()
	for _, act := range []func(context.Context) error{s.install, s.createPods, s.pingBefore, s.assign, s.pingAfter, s.table} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ownUser tells whether this process is root only inside a user namespace.
func ownUser() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && len(strings.Fields(string(m))) == 3 && strings.Fields(string(m))[2] == "1"
}

func (s *show) install(ctx context.Context) error { return s.stage.Install(ctx, nil) }

// createPods applies the samples and creates the Deployment's pods through the API server, one on each worker.
func (s *show) createPods(ctx context.Context) error {
	var deployment *appsv1.Deployment
	for _, file := range samples {
		s.step("kubectl apply -f manifests/samples/" + file)
		objects, err := s.stage.ApplyFile(ctx, "manifests/samples/"+file)
		if err != nil {
			return err
		}
		if d, err := stage.Deployment(objects); err == nil {
			deployment = d
		}
	}
	for i, node := range s.stage.World.Nodes() {
		pod, err := s.stage.StartPod(ctx, deployment, i, node.Name())
		if err != nil {
			return err
		}
		s.pods = append(s.pods, pod)
		first := pod.API.Spec.InitContainers
		if len(first) == 0 || first[0].Name != "ip-manager" {
			return fmt.Errorf("pod %s came back from the API server without the container", pod.API.Name)
		}
		s.step(fmt.Sprintf("pod %s on %s: the API server asked the webhook, and it has the init container %s (%s %s) now; the demo's stand-in for Multus gave it %s on net1",
			pod.API.Name, node.Name(), first[0].Name, first[0].Image, strings.Join(first[0].Args, " "), pod.Addresses[0]))
	}
	return nil
}

func (s *show) pingBefore(ctx context.Context) error {
	return s.ping(ctx, lostAfter, func(err error) (string, error) {
		if err == nil {
			return "", errors.New("answered before anybody assigned the address")
		}
		return "lost: the VPC does not know the address", nil
	})
}

func (s *show) pingAfter(ctx context.Context) error {
	return s.ping(ctx, answeredWithin, func(err error) (string, error) {
		if err != nil {
			return "", fmt.Errorf("no answer, though the address is assigned: %w", err)
		}
		return "answered", nil
	})
}

// ping sends from each pod to the other's secondary address.
func (s *show) ping(ctx context.Context, timeout time.Duration, judge func(error) (string, error)) error {
	for i, from := range s.pods {
		to := s.pods[len(s.pods)-1-i]
		err := from.Sandbox.NS().Ping(ctx, to.Addresses[0], timeout)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := judge(err)
		if err != nil {
			return fmt.Errorf("ping %s: %w", to.Addresses[0], err)
		}
		s.step(fmt.Sprintf("ping %s → %s (%s → %s): %s", from.API.Name, to.API.Name, from.Addresses[0], to.Addresses[0], text))
	}
	return nil
}

// assign runs the injected containers, as the kubelets of the two nodes would: side by side.
func (s *show) assign(ctx context.Context) error {
	s.step("the demo's stand-in for the kubelets starts the pods: ip-manager runs first, unprivileged, and must end well before the application may start")
	s.results = make([]kubelet.Result, len(s.pods))
	errs := make([]error, len(s.pods))
	var wg sync.WaitGroup
	for i, pod := range s.pods {
		wg.Go(func() { s.results[i], errs[i] = s.stage.RunInit(ctx, pod) })
	}
	wg.Wait()
	for i, r := range s.results {
		if r.ExitCode != 0 {
			errs = append(errs, fmt.Errorf("ip-manager of pod %s ended with code %d: %s\n%s", s.pods[i].API.Name, r.ExitCode, r.Message, r.Output))
		}
	}
	return errors.Join(errs...)
}

// table prints what EC2 has now.
func (s *show) table(context.Context) error {
	fmt.Fprintln(s.out)
	w := tabwriter.NewWriter(s.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "POD\tNODE\tINTERFACE\tADDRESS\tENI\tTIME TO ASSIGNED")
	for i, pod := range s.pods {
		for j, network := range pod.Sandbox.Networks() {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d ms\n", pod.API.Name, pod.API.Spec.NodeName, network.Interface, pod.Addresses[j],
				s.holder(pod.Addresses[j]), s.results[i].Duration.Milliseconds())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	calls := s.stage.World.Cloud().Journal()
	fmt.Fprintf(s.out, "\nCalls to the emulated EC2: %d\n", len(calls))
	for _, c := range calls {
		fmt.Fprintf(s.out, "  %s %s %s by %s: %d\n", c.Action, c.ENI, strings.Join(c.Addresses, ","), c.Instance, c.Status)
	}
	fmt.Fprintln(s.out)
	return nil
}

func (s *show) holder(a netip.Addr) string {
	h, ok := s.stage.World.Cloud().Holder(a)
	if !ok {
		return "none"
	}
	return h.ENI
}
