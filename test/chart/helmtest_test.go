package chart

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
)

// testHelmTest runs `helm test` as users do, for a webhook that works, with a namespace, and for one that has ended.
func testHelmTest(t *testing.T, i installation, webhook, kubeconfig string, stop func()) {
	t.Helper()
	said, err := i.helmTest(t, webhook, kubeconfig)
	if err != nil {
		t.Errorf("helm test: %v\n%s", err, said)
	}
	for _, want := range []string{"/mutate injects", "/mutate/sidecar injects", "/mutate/other answers"} {
		if !strings.Contains(said, want) {
			t.Errorf("the test's log does not say %q:\n%s", want, said)
		}
	}

	// With a namespace: the API server itself asks, and a right to create pods is given for as long as that takes.
	telco := i.plane.CreateNamespace(t, "telco", pairs{settings.LabelInject: settings.InjectEnabled, "pod-security.kubernetes.io/enforce": "restricted"})
	next := i.release
	next.Args, next.Values = []string{"--reuse-values"}, map[string]any{"helmTest": map[string]any{"namespace": telco}}
	if _, err := i.helm.Upgrade(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if said, err := i.helmTest(t, webhook, kubeconfig); err != nil || !strings.Contains(said, "namespace "+telco+": the API server calls the webhook") {
		t.Errorf("helm test with a namespace: %v\n%s", err, said)
	}

	stop()
	if said, err := i.helmTest(t, webhook, kubeconfig, "--timeout=2s"); err == nil || !strings.Contains(said, "connection refused") {
		t.Errorf("helm test of a webhook that has ended: %v\n%s", err, said)
	}
	for name := range inventory(t, i.plane, releaseName) {
		if strings.HasSuffix(name, "-test") {
			t.Errorf("left behind by helm test: %s", name)
		}
	}
}

// helmTest returns the log of the test's pod. It plays the pod's kubelet: runs the container's arguments, with the rights of
// the pod's service account, and reports how it ended.
func (i installation) helmTest(t *testing.T, binary, kubeconfig string, more ...string) (string, error) {
	t.Helper()
	var said string
	var played error
	var kubelet sync.WaitGroup
	helmEnded := make(chan struct{})
	kubelet.Go(func() {
		var pod *corev1.Pod
		if pod, played = i.testPod(t.Context(), helmEnded); played == nil {
			said, played = i.runTestPod(t.Context(), pod, binary, append([]string{"--kubeconfig=" + kubeconfig}, more...))
		}
	})
	_, err := i.helm.Run(t.Context(), nil, "test", i.release.Name, "--namespace", i.release.Namespace, "--timeout", "50s")
	close(helmEnded)
	kubelet.Wait()
	if played != nil {
		t.Errorf("the test's pod: %v (helm: %v)", played, err)
	}
	return said, err
}

// testPod waits for the pod that Helm makes.
func (i installation) testPod(ctx context.Context, helmEnded <-chan struct{}) (*corev1.Pod, error) {
	key := client.ObjectKey{Namespace: i.release.Namespace, Name: releaseName + "-multus-ip-manager-test"}
	for {
		pod := &corev1.Pod{}
		err := i.plane.Client.Get(ctx, key, pod)
		if err == nil && pod.Status.Phase == corev1.PodPending {
			return pod, nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		select {
		case <-helmEnded:
			return nil, errors.New("there was none")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (i installation) runTestPod(ctx context.Context, pod *corev1.Pod, binary string, more []string) (string, error) {
	if account := releaseName + "-multus-ip-manager"; pod.Spec.ServiceAccountName != account {
		return "", fmt.Errorf("runs as %s, not %s", pod.Spec.ServiceAccountName, account)
	}
	out, err := exec.CommandContext(ctx, binary, append(pod.Spec.Containers[0].Args, more...)...).CombinedOutput() //nolint:gosec // the program under test
	pod.Status.Phase = corev1.PodSucceeded
	if err != nil {
		pod.Status.Phase = corev1.PodFailed
	}
	return string(out), i.plane.Client.Status().Update(ctx, pod)
}
