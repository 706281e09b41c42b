package certs

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"multus-ip-manager.io/test/plane"
)

// oneRotation is an authority that tells of a rotation once.
type oneRotation struct {
	cmtls.Authority
	ch chan<- struct{}
}

func (o *oneRotation) WatchRotation(ch chan<- struct{})   { o.ch = ch }
func (*oneRotation) StopWatchingRotation(chan<- struct{}) {}
func (o *oneRotation) Run(ctx context.Context) error {
	o.ch <- struct{}{}
	<-ctx.Done()
	return nil
}

// oneSecret is a store that can only be read.
type oneSecret func() (*corev1.Secret, error)

func (f oneSecret) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	return f()
}
func (oneSecret) Update(_ context.Context, s *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	return s, nil
}

// A Secret that cannot be read when the library tells of a rotation is read again, later and later; the library tells once.
func TestReadingTheSecretIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failures = 5
		start := time.Now()
		ca := NewTestCA(t, start.Add(-time.Hour), start.Add(24*time.Hour))
		conf := NewConfiguration(nil, "hooks", slog.New(slog.DiscardHandler))
		conf.see(&registrationv1.MutatingWebhookConfiguration{Webhooks: []registrationv1.MutatingWebhook{service(bundle{ca.Cert()})}}, true)
		var reads []time.Time
		a := &stagedAuthority{
			inner: &oneRotation{}, library: &library{}, conf: conf, names: []string{"hook.net.svc"}, leaf: time.Hour, log: slog.New(slog.DiscardHandler),
			backoff: wait.Backoff{Duration: time.Second, Factor: 2, Steps: 10, Cap: time.Minute},
			secret: oneSecret(func() (*corev1.Secret, error) {
				if reads = append(reads, time.Now()); len(reads) <= failures {
					return nil, errors.New("the API server is away")
				}
				cert, key := ca.PEM(t)
				return &corev1.Secret{Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}}, nil
			}),
		}
		rotated := make(chan struct{}, 1)
		a.WatchRotation(rotated)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		synctest.Wait()
		if a.lastFault() == nil {
			t.Errorf("a failed read is no fault")
		}
		select {
		case <-rotated:
		case <-time.After(time.Hour): // of the bubble's time
			t.Fatal("not read again")
		}
		synctest.Wait()
		if err := a.lastFault(); err != nil {
			t.Errorf("the fault stays: %v", err)
		}
		for i := 2; i < len(reads); i++ {
			if pause, before := reads[i].Sub(reads[i-1]), reads[i-1].Sub(reads[i-2]); pause <= before {
				t.Errorf("pause %d is %s after %s", i, pause, before)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Two replicas that add their CA to the same old bundle must not remove each other's: the second is refused.
func TestPublishingFromAnOldViewIsRefused(t *testing.T) {
	api := plane.Shared(t)
	client, err := kubernetes.NewForConfig(api.Config)
	if err != nil {
		t.Fatal(err)
	}
	name := api.CreateNamespace(t, "publish", nil)
	none := registrationv1.SideEffectClassNone
	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	webhook := address(nil, "https://127.0.0.1:1/")
	webhook.Name, webhook.SideEffects, webhook.AdmissionReviewVersions = "hook.example.com", &none, []string{"v1"}
	created, err := hooks.Create(t.Context(), &registrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []registrationv1.MutatingWebhook{webhook}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), name, metav1.DeleteOptions{}) })

	c := cas(t, 2)
	conf := NewConfiguration(client, name, slog.New(slog.DiscardHandler))
	old := view{}.next(created, time.Now(), true)
	if err := conf.publish(t.Context(), old, bundle{c[0]}); err != nil {
		t.Fatal(err)
	}
	if err := conf.publish(t.Context(), old, bundle{c[1]}); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	after, err := hooks.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := parseBundle(after.Webhooks[0].ClientConfig.CABundle); !got.contains(c[0]) {
		t.Errorf("the first replica's CA is gone")
	}
	if err := hooks.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := conf.publish(t.Context(), view{}.next(after, time.Now(), false), bundle{c[0]}); err == nil {
		t.Errorf("publishing has made a configuration of its own")
	}
}
