package chart

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
)

// testHelmTest runs `helm test` as users do, for a webhook that works, with a namespace, and for one that has ended.
func testHelmTest(t *testing.T, i installation, webhook string, stop func()) {
	t.Helper()
	said, err := i.helmTest(t, webhook, "")
	if err != nil {
		t.Errorf("helm test: %v\n%s", err, said)
	}
	for _, want := range []string{"/mutate injects", "/mutate/sidecar injects", "/mutate/other answers"} {
		if !strings.Contains(said, want) {
			t.Errorf("the test's log does not say %q:\n%s", want, said)
		}
	}

	// With a namespace: the API server itself asks, and a right to create pods is given for as long as that takes, to nobody who
	// stays.
	telco := i.plane.CreateNamespace(t, "telco", pairs{settings.LabelInject: settings.InjectEnabled, "pod-security.kubernetes.io/enforce": "restricted"})
	next := i.release
	next.Args, next.Values = []string{"--reuse-values"}, map[string]any{"helmTest": map[string]any{"namespace": telco}}
	if _, err := i.helm.Upgrade(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if said, err := i.helmTest(t, webhook, ""); err != nil || !strings.Contains(said, "namespace "+telco+": the API server calls the webhook") {
		t.Errorf("helm test with a namespace: %v\n%s", err, said)
	}

	stop()
	if said, err := i.helmTest(t, webhook, "", "--timeout=2s"); err == nil || !strings.Contains(said, "connection refused") {
		t.Errorf("helm test of a webhook that has ended: %v\n%s", err, said)
	}
	i.checkNothingOfTests(t)
	i.interruptHelmTest(t, telco)
	i.checkNothingOfTests(t)
}

func (i installation) checkNothingOfTests(t *testing.T) {
	t.Helper()
	for name := range inventory(t, i.plane, releaseName) {
		if strings.HasSuffix(name, "-test") {
			t.Errorf("left behind by helm test: %s", name)
		}
	}
}

// interruptHelmTest ends Helm in the middle of a test. What is left then gives the webhook's own account nothing, and goes with the
// next test, here one whose pod fails at once.
func (i installation) interruptHelmTest(t *testing.T, namespace string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = i.helm.Run(ctx, nil, "test", i.release.Name, "--namespace", i.release.Namespace, "--timeout", "50s")
	}()
	first, err := i.testPod(t.Context(), "", ended)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	account := releaseName + "-multus-ip-manager"
	waitFor(t, "the test's account to have its right", func() bool {
		return may(t, i.plane, i.release.Namespace, account+"-test", "create", "", "pods", namespace, "")
	})
	if may(t, i.plane, i.release.Namespace, account, "create", "", "pods", namespace, "") {
		t.Error("the webhook's account may create pods in the user's namespace")
	}
	if _, err := i.helmTest(t, "false", first.UID); err == nil {
		t.Error("a test whose pod fails succeeds")
	}
	if err := i.plane.Client.Get(t.Context(), client.ObjectKeyFromObject(first), first); !apierrors.IsNotFound(err) {
		t.Errorf("the interrupted test's pod: %v", err)
	}
}

// helmTest returns the log of the test's pod. It plays the pod's kubelet: runs the container's arguments, with the rights of
// the pod's service account, and reports how it ended.
func (i installation) helmTest(t *testing.T, binary string, before types.UID, more ...string) (string, error) {
	t.Helper()
	var said string
	var played error
	var kubelet sync.WaitGroup
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	helmEnded := make(chan struct{})
	kubelet.Go(func() {
		var pod *corev1.Pod
		if pod, played = i.testPod(t.Context(), before, helmEnded); played == nil {
			said, played = i.runTestPod(t.Context(), pod, binary, kubeconfig, more)
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

// testPod waits for the pod that Helm makes, in place of the one before that an interrupted test has left.
func (i installation) testPod(ctx context.Context, before types.UID, helmEnded <-chan struct{}) (*corev1.Pod, error) {
	key := client.ObjectKey{Namespace: i.release.Namespace, Name: releaseName + "-multus-ip-manager-test"}
	for {
		pod := &corev1.Pod{}
		err := i.plane.Client.Get(ctx, key, pod)
		if err == nil && pod.UID != before && pod.Status.Phase == corev1.PodPending {
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

func (i installation) runTestPod(ctx context.Context, pod *corev1.Pod, binary, kubeconfig string, more []string) (string, error) {
	if account := releaseName + "-multus-ip-manager-test"; pod.Spec.ServiceAccountName != account {
		return "", fmt.Errorf("runs as %s, not %s", pod.Spec.ServiceAccountName, account)
	}
	config, err := i.plane.ServiceAccountConfig(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
	if err == nil {
		err = plane.WriteKubeconfig(kubeconfig, config)
	}
	if err != nil {
		return "", err
	}
	args := append(slices.Clone(pod.Spec.Containers[0].Args), "--kubeconfig="+kubeconfig)
	out, err := exec.CommandContext(ctx, binary, append(args, more...)...).CombinedOutput() //nolint:gosec // the program under test
	pod.Status.Phase = corev1.PodSucceeded
	if err != nil {
		pod.Status.Phase = corev1.PodFailed
	}
	return string(out), i.plane.Client.Status().Update(ctx, pod)
}
