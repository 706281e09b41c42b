package certs

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	"github.com/google/go-cmp/cmp"
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

// oneSecret is a store that can be read; what is written there ends as refused says.
type oneSecret struct {
	get     func() (*corev1.Secret, error)
	refused error
}

func (o oneSecret) Get(context.Context, string, metav1.GetOptions) (*corev1.Secret, error) {
	return o.get()
}

func (o oneSecret) Update(_ context.Context, s *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	return s, o.refused
}

// secretOf returns the Secret of a CA, as the library makes it.
func secretOf(t *testing.T, ca *TestCA) *corev1.Secret {
	t.Helper()
	cert, key := ca.PEM(t)
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{cmapi.AllowsInjectionFromSecretAnnotation: "true"}}, Data: map[string][]byte{cmmeta.TLSCAKey: cert, corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}}
}

// newAuthority returns an authority beside a library that tells of one rotation, for a configuration that trusts ca. It is to be
// run in a bubble: the backoff has no jitter.
func newAuthority(ca *TestCA, secret oneSecret) *stagedAuthority {
	conf := NewConfiguration(nil, "hooks", slog.New(slog.DiscardHandler))
	conf.see(&registrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{UID: "1"}, Webhooks: []registrationv1.MutatingWebhook{service(bundle{ca.Cert()})}}, true)
	return &stagedAuthority{
		inner: &oneRotation{}, library: &library{}, conf: conf, names: []string{"hook.net.svc"}, leaf: time.Hour, log: slog.New(slog.DiscardHandler),
		backoff: wait.Backoff{Duration: time.Second, Factor: 2, Steps: 10, Cap: time.Minute}, secret: secret,
	}
}

// runFor runs a until stop.
func (a *stagedAuthority) runFor(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A Secret that cannot be read when the library tells of a rotation is read again, later and later; the library tells once.
func TestReadingTheSecretIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failures = 5
		start := time.Now()
		ca := NewTestCA(t, start.Add(-time.Hour), start.Add(24*time.Hour))
		var reads []time.Time
		a := newAuthority(ca, oneSecret{get: func() (*corev1.Secret, error) {
			if reads = append(reads, time.Now()); len(reads) <= failures {
				return nil, errors.New("the API server is away")
			}
			return secretOf(t, ca), nil
		}})
		rotated := make(chan struct{}, 1)
		a.WatchRotation(rotated)
		defer a.runFor(t)()
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
	})
}

// A write that failed is a fault until the Secret is sound again, whoever mended it: the library tells nothing when the CA is the same.
func TestAFailedWriteIsForgottenWhenTheSecretIsSound(t *testing.T) {
	for name, test := range map[string]struct {
		age    time.Duration // of a CA that lives for three hours
		change func(*corev1.Secret)
		sound  bool
	}{
		"sound":           {age: time.Hour, sound: true},
		"due":             {age: 2*time.Hour - time.Minute},
		"without ca.crt":  {age: time.Hour, change: func(s *corev1.Secret) { delete(s.Data, cmmeta.TLSCAKey) }},
		"another ca.crt":  {age: time.Hour, change: func(s *corev1.Secret) { s.Data[cmmeta.TLSCAKey] = []byte("garbage") }},
		"without its key": {age: time.Hour, change: func(s *corev1.Secret) { delete(s.Data, corev1.TLSPrivateKeyKey) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ca := NewTestCA(t, start.Add(-test.age), start.Add(3*time.Hour-test.age))
				a := newAuthority(ca, oneSecret{get: func() (*corev1.Secret, error) {
					secret := secretOf(t, ca)
					if test.change != nil && time.Since(start) > 0 {
						test.change(secret)
					}
					return secret, nil
				}})
				defer a.runFor(t)()
				synctest.Wait()
				a.library.set(&a.library.write, faultf(ReasonWriteCA, "write the CA's Secret: forbidden"))
				<-time.After(lookAgain + time.Second) // of the bubble's time
				synctest.Wait()
				if got := slices.Contains(Reasons(a.lastFault()), ReasonWriteCA); got == test.sound {
					t.Errorf("told: %v (%v)", got, a.lastFault())
				}
			})
		})
	}
}

// Another replica that was faster hides nothing else that fails, and what failed before and does not any more is not told on.
func TestAConflictHidesNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
		a := newAuthority(ca, oneSecret{
			get:     func() (*corev1.Secret, error) { return secretOf(t, ca), nil },
			refused: apierrors.NewConflict(corev1.Resource("secrets"), "ca", errors.New("modified")),
		})
		ours := a.conf.current()
		a.conf.update(func(v *view) { v.entries = []entry{{serverName: "another.net.svc"}} })
		defer a.runFor(t)()
		synctest.Wait()
		if diff := cmp.Diff([]string{ReasonNotOurs}, Reasons(a.lastFault())); diff != "" {
			t.Errorf("beside a conflict (-want +got):\n%s", diff)
		}
		a.conf.update(func(v *view) { *v = ours })
		<-time.After(time.Hour) // of the bubble's time
		synctest.Wait()
		if err := a.lastFault(); err != nil {
			t.Errorf("a conflict alone: %v", err)
		}
	})
}

// No CA is written while no configuration calls us: the release may be on its way out; nor while our clock is ahead.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
		there := &corev1.Secret{}
		a := newAuthority(ca, oneSecret{get: func() (*corev1.Secret, error) { return there, nil }})
		gate := a.gate(a.conf.subscribe())
		called := a.conf.current()
		for name, s := range map[string]*corev1.Secret{"nothing in it": {}, "ours": secretOf(t, ca)} {
			there = s
			if err := gate(t.Context()); err != nil {
				t.Errorf("called, %s: %v", name, err)
			}
		}
		there = &corev1.Secret{Data: secretOf(t, ca).Data}
		if diff := cmp.Diff([]string{ReasonNotOurs}, Reasons(gate(t.Context()))); diff != "" {
			t.Errorf("somebody else's Secret (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{ReasonNotOurs}, Reasons(a.read(t.Context()))); diff != "" {
			t.Errorf("somebody else's Secret is read (-want +got):\n%s", diff)
		}
		there = &corev1.Secret{}
		a.conf.clock.learn(time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), time.Now())
		if diff := cmp.Diff([]string{ReasonClockSkew}, Reasons(gate(t.Context()))); diff != "" {
			t.Errorf("ahead (-want +got):\n%s", diff)
		}
		a.conf.clock.learn(time.Now().UTC().Format(http.TimeFormat), time.Now())

		for name, uncalled := range map[string]func(){
			"no configuration": a.conf.lose,
			"a foreign one":    func() { a.conf.update(func(v *view) { v.entries = []entry{{serverName: "another.net.svc"}} }) },
		} {
			uncalled()
			passed := make(chan error, 1)
			go func() { passed <- gate(t.Context()) }()
			<-time.After(time.Hour) // of the bubble's time
			synctest.Wait()
			select {
			case err := <-passed:
				t.Errorf("%s: passed: %v", name, err)
				passed <- err
			default:
			}
			a.conf.update(func(v *view) { *v = called })
			if err := <-passed; err != nil {
				t.Errorf("%s, then ours: %v", name, err)
			}
		}
		a.conf.lose()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := gate(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
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
