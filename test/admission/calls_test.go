package admission

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// call is one line of the webhook's log: that it was asked about a pod, and what it decided.
type call struct {
	Msg       string        `json:"msg"`
	Namespace string        `json:"namespace"`
	Pod       string        `json:"pod"`
	Mode      string        `json:"mode"`
	Outcome   inject.Action `json:"outcome"`
	Reason    inject.Reason `json:"reason"`
	DryRun    bool          `json:"dryRun"`
}

func (c call) String() string { return fmt.Sprintf("%s %s (%s)", c.Outcome, c.Reason, c.Mode) }

// calls collects the webhook's log.
type calls struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each call
	by      map[string][]call
	last    []string // the last lines
}

func newCalls() *calls { return &calls{changed: make(chan struct{}), by: map[string][]call{}} }

// read reads the log to its end.
func (c *calls) read(log io.Reader) {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var one call
		known := json.Unmarshal(lines.Bytes(), &one) == nil && one.Msg == "admission"
		c.mu.Lock()
		c.last = append(c.last[max(0, len(c.last)-20):], lines.Text())
		if known {
			c.by[one.Namespace] = append(c.by[one.Namespace], one)
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
}

func (c *calls) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.last, "\n")
}

// await returns a namespace's calls once they satisfy a condition.
func (c *calls) await(ctx context.Context, namespace string, done func([]call) bool) ([]call, error) {
	for {
		c.mu.Lock()
		got, changed := slices.Clone(c.by[namespace]), c.changed
		c.mu.Unlock()
		if done(got) {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, ctx.Err()
		}
	}
}

// barrierNamespace is the namespace of pods that are only asked about: once the webhook has logged one, it has logged all before.
const barrierNamespace = "barrier"

func (r *rig) makeBarrier(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: barrierNamespace, Labels: optedIn(nil)}}
	if err := r.plane.Client.Create(ctx, ns); err != nil {
		return err
	}
	return r.barrier(ctx, "first")
}

// barrier returns when the webhook has logged everything that it was asked before.
func (r *rig) barrier(ctx context.Context, name string) error {
	pod := podWith(barrierNamespace, pairs{settings.Networks: "n"})
	pod.Name = name
	if a := r.post(ctx, barrierNamespace, "pods", pod, true); a.err != nil {
		return a.err
	}
	_, err := r.log.await(ctx, barrierNamespace, func(all []call) bool {
		return slices.ContainsFunc(all, func(c call) bool { return c.Pod == name })
	})
	return err
}

// calls are all questions about a namespace's pods so far.
func (r *rig) calls(t *testing.T, namespace string) []call {
	t.Helper()
	if err := r.barrier(t.Context(), fmt.Sprintf("%s-%d", namespace, r.log.count())); err != nil {
		t.Fatal(err)
	}
	got, err := r.log.await(t.Context(), namespace, func([]call) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (c *calls) count() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, all := range c.by {
		n += len(all)
	}
	return n
}

// auditPolicy has the API server write down each new pod, with what webhooks said about it.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create]
  resources: [{group: "", resources: [pods]}]
- level: None
`

// event is what is needed of an event of the audit log.
type event struct {
	RequestURI     string                     `json:"requestURI"`
	ObjectRef      struct{ Namespace string } `json:"objectRef"`
	ResponseStatus struct{ Code int }         `json:"responseStatus"`
	Annotations    map[string]string          `json:"annotations"`
}

// auditLog is the API server's audit log.
type auditLog struct{ path string }

// of waits for the first event about a namespace's pods that is no dry run's.
func (l *auditLog) of(t *testing.T, namespace string) event {
	t.Helper()
	var found event
	eventually(t, "the audit event of a pod in "+namespace, func() bool {
		data, err := os.ReadFile(l.path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			if !bytes.Contains(line, []byte(`"`+namespace+`"`)) {
				continue
			}
			var e event
			if json.Unmarshal(line, &e) != nil {
				return false // it is still being written
			}
			if e.ObjectRef.Namespace == namespace && !strings.Contains(e.RequestURI, "dryRun") {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// said are a webhook's audit annotations in an event, without the webhook's name, which the API server puts before them.
func said(e event, webhook string) pairs {
	var got pairs
	for key, value := range e.Annotations {
		if short, ours := strings.CutPrefix(key, webhook+"/"); ours {
			if got == nil {
				got = pairs{}
			}
			got[short] = value
		}
	}
	return got
}

// statusOf is the error with the server's own words.
func statusOf(data []byte, err error) error {
	status := metav1.Status{}
	if json.Unmarshal(data, &status) != nil || status.Message == "" {
		return err
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// denial is the text of a refusal, "" for any other error and for none.
func denial(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return ""
	}
	return status.Status().Message
}

// podWith is a pod that the restricted Pod Security Standard accepts.
func podWith(namespace string, annotations pairs) *corev1.Pod {
	yes, no, nobody := true, false, int64(65534)
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "app", Annotations: annotations},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: "example.com/app:1",
			SecurityContext: &corev1.SecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &nobody, AllowPrivilegeEscalation: &no,
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		}}},
	}
}
