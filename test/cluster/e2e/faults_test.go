package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/test/aws"
)

// breakFor scripts a failure of every call that names an address of the block.
func (s *suite) breakFor(t *testing.T, b block, f aws.Fault) (mend func()) {
	t.Helper()
	var all []func(context.Context) error
	for n := range 32 {
		for _, a := range []string{nth(b.v4, n).String(), nth(b.v6, n).String()} {
			f.Address = a
			one, err := s.vpc.Break(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
	}
	done := false
	mend = func() {
		if done {
			return
		}
		done = true
		for _, one := range all {
			if err := one(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(mend)
	return mend
}

// EC2 is away for a minute while pods start: they wait, tell why where their owner looks, and start by themselves when it is back.
func TestEC2AwayWhilePodsStart(t *testing.T) {
	t.Parallel()
	for name, labels := range map[string]map[string]string{"init": initMode, "sidecar": sidecarMode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := needVPC(t)
			namespace := s.namespace(t, labels)
			s.staticNetwork(t, namespace)
			b := s.block(t)
			mend := s.breakFor(t, b, aws.Fault{Kind: aws.FaultError, Status: 503, Code: "ServiceUnavailable", Message: "try again"})
			minute := time.NewTimer(time.Minute)
			defer minute.Stop()
			var waiting []*corev1.Pod
			for i, node := range s.nodes(t) {
				waiting = append(waiting, s.create(t, namespace, "app-"+node, node, s.template("app", map[string]string{networks: fixed(b, i)})))
			}
			for i, p := range waiting {
				// Both the log and, of a sidecar, the failed startup probe name the address and EC2's word.
				address := nth(b.v4, i).String()
				s.until(t.Context(), t, soon, "the log says what is waited for", func(ctx context.Context) error {
					text, err := s.logs(ctx, p, ours)
					if err == nil && (!strings.Contains(text, address) || !strings.Contains(text, "ServiceUnavailable")) {
						err = errors.New(text)
					}
					return err
				})
				s.until(t.Context(), t, soon, "kubectl describe says what is waited for", func(ctx context.Context) error {
					now, err := s.kube.CoreV1().Pods(namespace).Get(ctx, p.Name, metav1.GetOptions{})
					if err != nil {
						return err
					}
					text := s.describe(ctx, now)
					if name == "sidecar" && !strings.Contains(text, "ServiceUnavailable") {
						return errors.New(text)
					}
					for _, c := range now.Status.ContainerStatuses {
						if c.State.Waiting == nil || c.State.Waiting.Reason != "PodInitializing" {
							t.Fatalf("the application does not wait: %s", text)
						}
					}
					return nil
				})
			}
			select {
			case <-minute.C:
			case <-t.Context().Done():
			}
			mend()
			pods := s.pods(t, namespace, "app", 2)
			for _, p := range pods {
				for _, c := range p.Status.InitContainerStatuses {
					if c.RestartCount > 0 {
						t.Errorf("%s of %s was restarted %d times, want it to have waited", c.Name, p.Name, c.RestartCount)
					}
				}
			}
			s.wantPings(t, pods, true)
			s.wantRoutableFirst(t, pods)
		})
	}
}

// What cannot pass ends mode init at once, with its own code and a line that says what to do.
func TestExitCodes(t *testing.T) {
	s := needVPC(t)
	first := s.nodes(t)[0]
	for _, test := range []struct {
		name  string
		alone bool // changes the node
		spoil func(t *testing.T, b block) (mend func())
		// networks is the annotation; empty means the block's first addresses.
		networks string
		code     int32
		says     string
	}{
		{name: "no permission", code: 3, says: "allow ec2:AssignPrivateIpAddresses", spoil: func(t *testing.T, b block) func() {
			return s.breakFor(t, b, aws.Fault{Kind: aws.FaultError, Status: 403, Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation."})
		}},
		{name: "an address outside of the subnet", code: 5, says: "subnet", networks: `[{"name": "static", "ips": ["10.0.99.7/24"]}]`},
		{name: "Multus is not installed", alone: true, code: 6, says: "delete the pod", spoil: func(t *testing.T, _ block) func() {
			if err := s.dir.SetMultus(first, false); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := s.dir.SetMultus(first, true); err != nil {
					t.Error(err)
				}
			}
		}},
		{name: "hop limit 1", alone: true, code: 7, says: "hop limit", spoil: func(t *testing.T, _ block) func() {
			if err := s.vpc.HopLimit(t.Context(), first, 1); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := s.vpc.HopLimit(context.WithoutCancel(t.Context()), first, 2); err != nil {
					t.Error(err)
				}
			}
		}},
		{name: "a default route by net1", code: 8, says: "default-route", networks: `[{"name": "static", "ips": ["ADDRESS/20"], "default-route": ["10.0.16.1"]}]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !test.alone {
				t.Parallel()
			}
			namespace := s.namespace(t, initMode)
			s.staticNetwork(t, namespace)
			b := s.block(t)
			if test.spoil != nil {
				t.Cleanup(test.spoil(t, b))
			}
			annotation := fixed(b, 1)
			if test.networks != "" {
				annotation = strings.ReplaceAll(test.networks, "ADDRESS", nth(b.v4, 1).String())
			}
			template := s.template("app", map[string]string{networks: annotation, "multus-ip-manager.io/deadline": "20s"})
			template.Spec.RestartPolicy = corev1.RestartPolicyNever
			p := s.create(t, namespace, "app", first, template)
			p = s.pod(t, p, soon, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
			for _, c := range p.Status.InitContainerStatuses {
				end := c.State.Terminated
				if end == nil || end.ExitCode != test.code || !strings.Contains(end.Message, test.says) {
					t.Errorf("%s ended with %+v, want code %d and %q", c.Name, end, test.code, test.says)
					continue
				}
				t.Logf("after %s: %s", end.FinishedAt.Sub(end.StartedAt.Time), end.Message)
			}
			if running := p.Status.ContainerStatuses[0].State; running.Running != nil {
				t.Error("the application ran")
			}
		})
	}
}

// What is not there, is not there for the kubelet and for Multus: their events say so, and the application does not start.
func TestWhatIsMissing(t *testing.T) {
	s := needVPC(t)
	t.Run("the network", func(t *testing.T) {
		namespace := s.namespace(t, initMode)
		p := s.create(t, namespace, "app", "", s.template("app", map[string]string{networks: "nowhere"}))
		s.wantEvent(t, p, "nowhere")
		s.makeNAD(t, namespace, "nowhere", fmt.Sprintf(`"ipam": {"type": "host-local", "ranges": [[%s]]}`, ipRange("10.0.16.0/20", s.block(t).v4)))
		s.pods(t, namespace, "app", 1) // the kubelet has tried on
	})
	t.Run("the agent's image", func(t *testing.T) {
		values := map[string]any{}
		for k, v := range s.values["agent"].(map[string]any) {
			values[k] = v
		}
		values["image"] = map[string]any{"tag": "missing"}
		if err := s.upgrade(t.Context(), map[string]any{"agent": values}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.upgrade(context.WithoutCancel(t.Context()), nil); err != nil {
				t.Error(err)
			}
		})
		namespace := s.namespace(t, initMode)
		p := s.create(t, namespace, "app", "", s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
		s.wantEvent(t, p, "multus-ip-agent:missing")
		if err := s.dir.TagImage(t.Context(), s.podNode(t, p), "docker.io/library/multus-ip-agent:0.1.0", "docker.io/library/multus-ip-agent:missing"); err != nil {
			t.Fatal(err)
		}
		s.pods(t, namespace, "app", 1)
	})
}

func (s *suite) podNode(t *testing.T, p *corev1.Pod) string {
	t.Helper()
	return s.pod(t, p, soon, "has a node", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" }).Spec.NodeName
}

// wantEvent waits until an event of the pod has the text.
func (s *suite) wantEvent(t *testing.T, p *corev1.Pod, text string) {
	t.Helper()
	s.until(t.Context(), t, soon, "an event names "+text, func(ctx context.Context) error {
		now, err := s.kube.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if said := s.describe(ctx, now); !strings.Contains(said, text) {
			return errors.New(said)
		}
		return nil
	})
}

// The webhook is down: pods of other namespaces are not touched by that, and a Deployment of an opted-in one waits, says why, and starts
// by itself when the webhook is back.
func TestWebhookDown(t *testing.T) {
	s := needVPC(t)
	webhook := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: release, Namespace: release}}
	s.patch(t, webhook, `{"spec":{"replicas":0}}`)
	back := func() { s.patch(t, webhook, `{"spec":{"replicas":2}}`) }
	s.until(t.Context(), t, soon, "the webhook's pods end", func(ctx context.Context) error {
		list, err := s.kube.CoreV1().Pods(release).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
	other, opted := s.namespace(t, nil), s.namespace(t, initMode)
	s.deploy(t, other, 1, s.template("app", map[string]string{networks: s.makeNetwork(t, other)}))
	s.deploy(t, opted, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, opted)}))
	s.deploy(t, opted, 1, s.template("plain", nil))
	s.pods(t, other, "app", 1)
	s.pods(t, opted, "plain", 1) // no networks: not asked about
	s.until(t.Context(), t, soon, "an event says why there is no pod", func(ctx context.Context) error {
		events, err := s.kube.CoreV1().Events(opted).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, "webhook") {
				t.Log(e.Message)
				return nil
			}
		}
		return fmt.Errorf("%d events", len(events.Items))
	})
	started := time.Now()
	back()
	s.wantPings(t, s.pods(t, opted, "app", 2), true)
	t.Logf("the pods were there %s after the webhook was told to come back", time.Since(started).Round(100*time.Millisecond))
}
