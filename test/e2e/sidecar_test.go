package e2e

import (
	"context"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/stage"
)

// A virtual address moves between the pods of a Deployment: as it goes in through the API, is answered by the kubelet's probe, and
// arrives as packets.
func TestAVirtualAddressMoves(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
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
	deployment.Name = "active-standby"
	deployment.Spec.Template.Annotations[settings.Networks] = "n3"
	deployment.Spec.Template.Annotations[settings.KeyMode] = string(settings.Sidecar)
	var pods []*stage.Pod
	var sidecars []*kubelet.Running
	for i, node := range shared.World.Nodes() {
		p, err := shared.StartPod(ctx, deployment, i, node.Name())
		if err != nil {
			t.Fatal(err)
		}
		first := p.API.Spec.InitContainers
		if len(first) != 1 || first[0].Name != settings.ContainerName || first[0].RestartPolicy == nil || *first[0].RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Fatalf("%s has no native sidecar: %+v", p.API.Name, first)
		}
		c, err := kubelet.Container{Pod: p.API, Name: settings.ContainerName, Images: shared.Images(first[0].Image), NS: p.Sandbox.NS()}.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		started(ctx, t, c, first[0].StartupProbe)
		pods, sidecars = append(pods, p), append(sidecars, c)
	}
	vip := netip.MustParseAddr("10.0.4.240")
	for i := range 4 {
		from, to := pods[(i+1)%2], pods[i%2]
		if err := to.Sandbox.AddAddr("net1", netip.PrefixFrom(vip, 32)); err != nil {
			t.Fatal(err)
		}
		if err := from.Sandbox.NS().Ping(ctx, vip, 10*time.Second); err != nil {
			t.Errorf("hop %d: %s does not answer %s: %v", i, vip, from.API.Name, err)
		}
		if err := to.Sandbox.DelAddr("net1", netip.PrefixFrom(vip, 32)); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range sidecars {
		if err := c.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Wait(); err != nil || r.ExitCode != 0 {
			t.Errorf("exit code %d, %v\n%s", r.ExitCode, err, r.Output)
		}
		for _, a := range pods[i].Addresses {
			if h, held := shared.World.Cloud().Holder(a); held {
				t.Errorf("%s is still on %s at the pod's end", a, h.ENI)
			}
		}
	}
	if _, held := shared.World.Cloud().Holder(vip); !held {
		t.Error("the virtual address was released")
	}
}

// started plays the kubelet's startup probe.
func started(ctx context.Context, t *testing.T, c *kubelet.Running, probe *corev1.Probe) {
	t.Helper()
	if probe == nil || probe.Exec == nil || !slices.Equal(probe.Exec.Command, []string{"/agent", "ready"}) {
		t.Fatalf("startup probe %+v", probe)
	}
	tick := time.NewTicker(time.Duration(probe.PeriodSeconds) * time.Second)
	defer tick.Stop()
	for {
		r, err := c.Exec(ctx, "ready")
		if err != nil {
			t.Fatal(err)
		}
		if r.ExitCode == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not ready: %s\n%s", r.Output, c.Output())
		}
	}
}
