package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/test/cluster"
	"multus-ip-manager.io/test/plane"
)

const (
	release = "multus-ip-manager" // the chart's, and its namespace, as the README installs it
	enabled = "multus-ip-manager.io/inject"
	mode    = "multus-ip-manager.io/mode"
	// valuesVariable names the chart's values in a user's cluster.
	valuesVariable = "E2E_VALUES"
)

// suite is the cluster that all tests share.
type suite struct {
	*plane.Plane
	kube kubernetes.Interface
	helm *plane.Helm
	// dir and vpc are those of the cluster of our own; vpc is nil in a user's.
	dir     cluster.Dir
	vpc     *cluster.VPC
	network string // of a user's cluster
	app     string // image
	values  map[string]any
	lock    *os.File

	mu     sync.Mutex
	blocks int
}

// theSuite is what the tests of this binary have in common; nil where they are switched off.
var theSuite *suite

func TestMain(m *testing.M) {
	if os.Getenv(cluster.TestsOn) == "" {
		os.Exit(m.Run()) // every test skips and says why
	}
	home, err := os.MkdirTemp("", "multus-ip-manager-e2e-")
	if err == nil {
		theSuite, err = connect(context.Background(), home)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", errors.Join(err, os.RemoveAll(home)))
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(home); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// connect finds the cluster and installs the chart in it.
func connect(ctx context.Context, home string) (*suite, error) {
	dir, err := cluster.DefaultDir()
	if err != nil {
		return nil, err
	}
	s := &suite{app: cluster.AppImage, values: map[string]any{}}
	kubeconfig := os.Getenv("KUBECONFIG")
	if kubeconfig == "" || kubeconfig == dir.Kubeconfig() {
		kubeconfig, s.dir, s.vpc = dir.Kubeconfig(), dir, dir.VPC()
	} else if err := s.foreign(); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("%w; make cluster-up makes one", err)
	}
	if err := s.alone(); err != nil {
		return nil, err
	}
	config.QPS = -1
	if s.Plane, err = plane.Connect(config); err != nil {
		return nil, err
	}
	if s.kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if s.helm, err = plane.NewHelm(home, kubeconfig); err != nil {
		return nil, err
	}
	err = s.install(ctx)
	return s, err
}

// foreign reads what a user's cluster needs.
func (s *suite) foreign() error {
	s.network = os.Getenv("E2E_NETWORK")
	if s.network == "" {
		s.network = "default/n3"
	}
	if s.app = os.Getenv("E2E_APP"); s.app == "" {
		return errors.New("in a cluster of your own, E2E_APP must name an image of test/cluster/app that its nodes can pull")
	}
	if file := os.Getenv(valuesVariable); file != "" {
		text, err := os.ReadFile(file) //nolint:gosec // the user's
		if err != nil {
			return err
		}
		return yaml.Unmarshal(text, &s.values)
	}
	return nil
}

// alone makes sure that no other run uses the cluster: some tests take a node's power.
func (s *suite) alone() error {
	if s.vpc == nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(string(s.dir), "e2e.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = f                                                                 // until the process ends
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits an int
		return fmt.Errorf("these tests run in this cluster already: %w", err)
	}
	return nil
}

// install installs the chart as the README says, with the one value that leads to the emulated EC2.
func (s *suite) install(ctx context.Context) error {
	if s.vpc != nil {
		endpoint, err := s.vpc.Endpoint(ctx)
		if err != nil {
			return err
		}
		s.values["agent"] = map[string]any{"env": []any{map[string]any{"name": "AWS_ENDPOINT_URL_EC2", "value": endpoint}}}
		s.values["preStopSeconds"] = 1 // what it is good for is tested elsewhere; here it would only make each upgrade longer
	} else if os.Getenv(valuesVariable) == "" {
		_, err := s.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, release, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("the chart is not installed, and %s names no values to install it with: %w", valuesVariable, err)
		}
		return nil // the user's own release is not ours to change
	}
	return s.upgrade(ctx, nil)
}

// upgrade installs or upgrades the release with further values, and waits until it is rolled out.
func (s *suite) upgrade(ctx context.Context, more map[string]any) error {
	chart, err := plane.ChartDir()
	if err != nil {
		return err
	}
	values := map[string]any{}
	for _, all := range []map[string]any{s.values, more} {
		for k, v := range all {
			values[k] = v
		}
	}
	if _, err := s.helm.Upgrade(ctx, plane.Release{Name: release, Namespace: release, Chart: chart, Values: values,
		Args: []string{"--install", "--create-namespace", "--wait", "--timeout=2m"}}); err != nil {
		return err
	}
	// The pods that leave still answer, with the old settings, what reaches them before the API server knows.
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		list, err := s.kube.CoreV1().Pods(release).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + release})
		if err != nil {
			return false, err
		}
		leaving := slices.ContainsFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		return !leaving, nil
	})
}

// need skips a test where there is no cluster.
func need(t *testing.T) *suite {
	t.Helper()
	if theSuite == nil {
		t.Skipf("%s is not set: this needs a cluster; `make e2e` brings one up", cluster.TestsOn)
	}
	return theSuite
}

// needVPC skips a test that looks into or breaks the emulated AWS.
func needVPC(t *testing.T) *suite {
	t.Helper()
	s := need(t)
	if s.vpc == nil {
		t.Skip("this looks into the emulated AWS, which the cluster of KUBECONFIG does not have")
	}
	return s
}

// namespace makes one that enforces the restricted Pod Security Standard, and removes it with all pods after the test. After a failure it
// first tells what went on there.
func (s *suite) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	all := map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	for k, v := range labels {
		all[k] = v
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: all}}
	if err := s.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			s.tell(ctx, t, ns.Name)
		}
		if err := s.Client.Delete(ctx, ns); err != nil {
			t.Error(err)
		}
		s.until(ctx, t, time.Minute, "the namespace's pods end", func(ctx context.Context) error {
			list, err := s.kube.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{})
			if err == nil && len(list.Items) > 0 {
				err = fmt.Errorf("%d are left", len(list.Items))
			}
			return err
		})
	})
	return ns.Name
}

// tell logs the pods of a namespace, their events and what ip-manager said.
func (s *suite) tell(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	pods, err := s.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Log(err)
		return
	}
	for _, p := range pods.Items {
		t.Logf("pod %s on %s: %s\n%s", p.Name, p.Spec.NodeName, p.Status.Phase, s.describe(ctx, &p))
		if text, err := s.logs(ctx, &p, "ip-manager"); err == nil {
			t.Logf("ip-manager of %s:\n%s", p.Name, text)
		}
	}
}

// describe is what `kubectl describe pod` shows of a pod's containers and events.
func (s *suite) describe(ctx context.Context, p *corev1.Pod) string {
	var out string
	for _, status := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range status {
			out += fmt.Sprintf("  %s: started %v, ready %t, restarts %d", c.Name, c.Started != nil && *c.Started, c.Ready, c.RestartCount)
			for name, state := range map[string]corev1.ContainerState{"state": c.State, "last": c.LastTerminationState} {
				if w := state.Waiting; w != nil {
					out += fmt.Sprintf("; %s: waiting, %s %s", name, w.Reason, w.Message)
				}
				if e := state.Terminated; e != nil {
					out += fmt.Sprintf("; %s: exit code %d %s", name, e.ExitCode, e.Message)
				}
			}
			out += "\n"
		}
	}
	events, err := s.kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + p.Name})
	if err != nil {
		return out + err.Error()
	}
	for _, e := range events.Items {
		out += fmt.Sprintf("  %s %s: %s\n", e.Type, e.Reason, e.Message)
	}
	return out
}

func (s *suite) logs(ctx context.Context, p *corev1.Pod, container string) (string, error) {
	in, err := s.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container}).Stream(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = in.Close() }()
	text, err := io.ReadAll(in)
	return string(text), err
}

// until tries until it works; when the time is up the test fails with the last error.
func (s *suite) until(ctx context.Context, t *testing.T, limit time.Duration, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, last)
		case <-tick.C:
		}
	}
}

// block is a range of 32 addresses of each family that no other test uses.
type block struct{ v4, v6 netip.Prefix }

func (s *suite) block(t *testing.T) block {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocks++
	n := 31 + s.blocks // the ENIs' own addresses lie below
	b := block{
		v4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 16 + byte(n/8), byte(n%8) * 32}), 27),
		v6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, byte(n / 8), byte(n%8) * 32}), 123),
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(s.vpc.Release(ctx, b.v4), s.vpc.Release(ctx, b.v6)); err != nil {
			t.Error(err)
		}
	})
	return b
}

// archive is an image of the cluster of our own.
func (s *suite) archive(name string) string { return filepath.Clean(s.dir.Image(name)) }
