package stayup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/plane"
)

const (
	// Release is the name of the chart's release, as in the README's install command.
	Release = "multus-ip-manager"
	// Namespace is the release's.
	Namespace = "multus-ip-manager"
)

// Options says what to start.
type Options struct {
	// Values are the chart's, over those of the rig.
	Values map[string]any
	// Args are further arguments of the webhook.
	Args []string
	// KubeProxy has the API server connect to the Service's address, where a stand-in for kube-proxy listens; else it connects to
	// the endpoints.
	KubeProxy bool
	// Propagation is how long it takes until the API server or kube-proxy has heard of a change of the endpoints.
	Propagation time.Duration
	// Log gets the replicas' logs; nil discards them.
	Log io.Writer
}

// Rig is a control plane with the chart installed, and the replicas.
type Rig struct {
	// Plane is the control plane.
	Plane *plane.Plane
	// Helm is the Helm that installed the chart.
	Helm *plane.Helm

	options    Options
	bin        string
	deployment *appsv1.Deployment
	service    *corev1.Service
	endpoints  *endpoints
	load       loadClient

	mu       sync.Mutex
	replicas []*Replica
	started  int // so far
}

// Start starts the control plane and installs the chart; no replica runs yet. The caller closes the rig.
func Start(ctx context.Context, o Options) (*Rig, error) {
	r := &Rig{options: o}
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Rig) start(ctx context.Context) (err error) {
	if r.bin, err = binaries.Build(ctx, "webhook"); err != nil {
		return err
	}
	args := map[string][]string{"shutdown-watch-termination-grace-period": {"2s"}} // see RestartAPIServer
	if !r.options.KubeProxy {
		args["enable-aggregator-routing"] = []string{"true"}
	}
	if r.Plane, err = plane.Start(ctx, plane.Options{APIServerArgs: args}); err != nil {
		return err
	}
	if r.Helm, err = r.Plane.Helm(); err != nil {
		return err
	}
	if err := r.install(ctx); err != nil {
		return err
	}
	if r.load, err = newLoadClient(r.Plane.Config); err != nil {
		return err
	}
	config, err := r.Plane.ServiceAccountConfig(ctx, Namespace, r.deployment.Spec.Template.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if err := plane.WriteKubeconfig(r.kubeconfig(), config); err != nil {
		return err
	}
	r.endpoints, err = newEndpoints(ctx, r)
	return err
}

// install installs the chart and reads what it made.
func (r *Rig) install(ctx context.Context) error {
	chart, err := plane.ChartDir()
	if err != nil {
		return err
	}
	values := map[string]any{}
	maps.Copy(values, r.options.Values)
	if _, err := r.Helm.Install(ctx, plane.Release{Name: Release, Namespace: Namespace, Chart: chart, Values: values}); err != nil {
		return err
	}
	key := client.ObjectKey{Namespace: Namespace, Name: Release}
	r.deployment, r.service = &appsv1.Deployment{}, &corev1.Service{}
	return errors.Join(r.Plane.Client.Get(ctx, key, r.deployment), r.Plane.Client.Get(ctx, key, r.service))
}

func (r *Rig) kubeconfig() string { return filepath.Join(r.bin, "webhook.kubeconfig") }

// OptedIn are the labels of a namespace whose pods are injected.
func OptedIn() map[string]string {
	return map[string]string{settings.LabelInject: settings.InjectEnabled}
}

// Scale starts replicas until there are as many as the chart says, at once, and waits until all are ready.
func (r *Rig) Scale(ctx context.Context) error {
	var started []*Replica
	for range int(*r.deployment.Spec.Replicas) {
		replica, err := r.StartReplica(ctx)
		if err != nil {
			return err
		}
		started = append(started, replica)
	}
	for _, replica := range started {
		if err := replica.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Replicas are those that serve or are about to: not told to end.
func (r *Rig) Replicas() []*Replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.replicas)
}

// Roll replaces all replicas as the Deployment's controller does with surge 1 and unavailable 0: a new one is ready before an old
// one is told to end, and the next starts while that one is ending. It returns when all old ones have ended.
func (r *Rig) Roll(ctx context.Context) error {
	var ending sync.WaitGroup
	old := r.Replicas()
	errs := make([]error, len(old))
	for i, replica := range old {
		next, err := r.StartReplica(ctx)
		if err != nil {
			return err
		}
		if err := next.AwaitReady(ctx); err != nil {
			return err
		}
		ending.Go(func() { errs[i] = replica.End(ctx) })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// newAddress gives the next replica an address, on lo.
func (r *Rig) newAddress() (netip.Addr, error) {
	r.mu.Lock()
	r.started++
	addr := netip.AddrFrom4([4]byte{198, 18, byte(r.started >> 8), byte(r.started)})
	r.mu.Unlock()
	return addr, addAddress(addr)
}

// addAddress puts an address on lo.
func addAddress(addr netip.Addr) error {
	here, err := ns.Current()
	if err != nil {
		return err
	}
	defer here.Close()                                                               //nolint:errcheck // nothing was written to it
	if err := here.AddAddr("lo", ns.Single(addr)); !errors.Is(err, syscall.EEXIST) { // from a rig before this one
		return err
	}
	return nil
}

func (r *Rig) add(replica *Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replicas = append(r.replicas, replica)
}

func (r *Rig) remove(replica *Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replicas = slices.DeleteFunc(r.replicas, func(one *Replica) bool { return one == replica })
}

// Close ends everything and removes every file.
func (r *Rig) Close() error {
	var errs []error
	for _, replica := range r.Replicas() {
		replica.kill()
	}
	if r.endpoints != nil {
		r.endpoints.close()
	}
	if r.Plane != nil {
		errs = append(errs, r.Plane.Stop())
	}
	if r.bin != "" {
		errs = append(errs, os.RemoveAll(r.bin))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the rig: %w", err)
	}
	return nil
}
