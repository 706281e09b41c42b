package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	cmauthority "github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
)

// clockInterval is how often the API server is asked something while its clock and ours differ.
const clockInterval = 5 * time.Second

// callTimeout bounds one request to the API server.
const callTimeout = 10 * time.Second

// keyPair is a CA that can sign.
type keyPair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// certificate returns the CA's certificate, nil when there is no CA.
func (p *keyPair) certificate() *x509.Certificate {
	if p == nil {
		return nil
	}
	return p.cert
}

// parseKeyPair reads a CA from the data of a Secret.
func parseKeyPair(data map[string][]byte) (*keyPair, error) {
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("no usable key pair: %w", err)
	}
	cert, err := leafOf(&pair)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("the certificate is not one of a CA that may sign")
	}
	return &keyPair{cert: cert, key: key}, nil
}

// stagedAuthority signs leaves like the library's authority does, with one difference: a new CA signs only after the
// API server trusts it. The library's authority (inner) makes, renews and heals the CA in the Secret and tells when it
// has changed. Left alone it would also sign with the new CA at that moment, when nobody trusts it yet.
//
// The CA that signs is held here, with its key, so that a CA that cannot be published does not keep leaves of the
// present one from being renewed.
type stagedAuthority struct {
	inner      cmtls.Authority
	library    *library // what inner does to the Secret
	secret     secretStore
	conf       *Configuration
	secretName string
	names      []string // under which we may be called
	settle     time.Duration
	leaf       time.Duration
	ips        []net.IP
	log        *slog.Logger
	backoff    wait.Backoff // between attempts at what failed

	mu       sync.Mutex
	serving  *keyPair
	fault    error
	told     string // the fault that was logged last
	watchers []chan<- struct{}

	// Only the loop touches these.
	stored *keyPair
	looked time.Time // when the Secret was last read
	owner  types.UID // what it was last seen to be owned by
}

// secretStore reads and writes the Secret of the CA.
type secretStore interface {
	Get(ctx context.Context, name string, opts metav1.GetOptions) (*corev1.Secret, error)
	Update(ctx context.Context, secret *corev1.Secret, opts metav1.UpdateOptions) (*corev1.Secret, error)
}

var _ cmtls.Authority = (*stagedAuthority)(nil)

// Run keeps the CA, its publication and its rotation going until ctx ends.
func (a *stagedAuthority) Run(ctx context.Context) error {
	rotated := make(chan struct{}, 1)
	a.inner.WatchRotation(rotated)
	defer a.inner.StopWatchingRotation(rotated)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.library.start(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.loop(ctx, rotated)
	}()
	err := a.inner.Run(ctx)
	cancel()
	<-done
	return err
}

// loop looks at the state of things after each event, retries what failed, and sleeps otherwise.
func (a *stagedAuthority) loop(ctx context.Context, rotated <-chan struct{}) {
	changed := a.conf.subscribe()
	timer := time.NewTimer(0)
	defer timer.Stop()
	unread := false
	retry := a.backoff
	for {
		select {
		case <-ctx.Done():
			return
		case <-rotated:
			unread = true
		case <-changed:
		case <-timer.C:
		}
		// The clocks' difference is learned from answers, so there must be some.
		skewed := a.conf.clock.skew() != 0
		unread = unread || a.owner != a.conf.current().uid || time.Since(a.looked) >= lookAgain || skewed
		var errRead error
		if unread {
			errRead = a.read(ctx)
			unread = errRead != nil
		}
		wake, errStep := a.step(ctx)
		if errRead != nil || errStep != nil {
			wake = earlier(wake, time.Now().Add(retry.Step()))
		} else {
			retry = a.backoff
		}
		if skewed {
			wake = earlier(wake, time.Now().Add(clockInterval))
		}
		a.setFault(errors.Join(unlessConflict(errRead), unlessConflict(errStep)))
		timer.Reset(time.Until(wake))
	}
}

// unlessConflict returns err, nil for a conflict: somebody was faster, often another replica with the same bundle, and that is no
// fault of anyone.
func unlessConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// read takes over what the Secret holds now, and makes the webhook configuration its owner.
func (a *stagedAuthority) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := a.secret.Get(ctx, a.secretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// The library makes it, and tells when it has: that is when there is something to read.
		a.looked, a.owner = time.Now(), a.conf.current().uid
		return nil
	}
	if err != nil {
		return faultf(ReasonReadCA, "read the CA: %w", err)
	}
	if err := notOurs(secret); err != nil {
		return err
	}
	pair, err := parseKeyPair(secret.Data)
	if err != nil {
		return faultf(ReasonReadCA, "read the CA from Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	a.stored = pair
	if !due(secret.Data, pair.cert) {
		a.library.healed()
	}
	return a.adopt(ctx, secret)
}

// notOurs says that a Secret was made by somebody else, who would lose what it holds. The library marks what it makes.
func notOurs(secret *corev1.Secret) error {
	if _, ours := secret.Annotations[cmapi.AllowsInjectionFromSecretAnnotation]; ours || len(secret.Data) == 0 {
		return nil
	}
	return faultf(ReasonNotOurs, "Secret %s/%s holds something and was not made by this webhook (it lacks the annotation %s): it is left alone; name another "+
		"Secret, or use the certificate source secret to serve what it holds", secret.Namespace, secret.Name, cmapi.AllowsInjectionFromSecretAnnotation)
}

// due reports whether the library replaces the CA that data holds, by what it goes by itself.
func due(data map[string][]byte, cert *x509.Certificate) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return !bytes.Equal(data[cmmeta.TLSCAKey], data[corev1.TLSCertKey]) || time.Until(cert.NotAfter) < life/3
}

// adopt makes the webhook configuration the owner of the Secret, so that the cluster's garbage collector removes it when the
// release is uninstalled. It is made anew by the library where it still serves: see gate.
func (a *stagedAuthority) adopt(ctx context.Context, secret *corev1.Secret) error {
	uid := a.conf.current().uid
	if owned, changed := ownedBy(secret, a.conf.name, uid); changed {
		if _, err := a.secret.Update(ctx, owned, metav1.UpdateOptions{}); err != nil {
			return faultf(ReasonWriteCA, "make the webhook configuration %q the owner of Secret %s/%s: %w", a.conf.name, secret.Namespace, secret.Name, err)
		}
		a.log.Info("the CA's Secret now goes when the webhook configuration does", "secret", secret.Name)
	}
	a.looked, a.owner = time.Now(), uid
	return nil
}

// ownedBy returns secret with the webhook configuration of that name and uid as its one owner of that kind, and whether that is a
// change. Without a uid, nothing is to be changed.
//
// A configuration that was made anew has another uid. The reference to the one before must go, or the Secret's fate would be
// that of an object that does not exist.
func ownedBy(secret *corev1.Secret, name string, uid types.UID) (owned *corev1.Secret, changed bool) {
	if uid == "" {
		return secret, false
	}
	const kind = "MutatingWebhookConfiguration"
	want := metav1.OwnerReference{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: kind, Name: name, UID: uid}
	references := slices.DeleteFunc(slices.Clone(secret.OwnerReferences), func(r metav1.OwnerReference) bool { return r.Kind == kind })
	references = append(references, want)
	if equality.Semantic.DeepEqual(references, secret.OwnerReferences) {
		return secret, false
	}
	owned = secret.DeepCopy()
	owned.OwnerReferences = references
	return owned, true
}

// gate is the library's: it waits until there is a webhook configuration that calls us. Without one nobody could trust a new CA,
// and the release may be on its way out: its Secret, already removed, must not come back. While our clock is ahead, a new CA would
// be one that is not valid yet.
func (a *stagedAuthority) gate(changed <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			v := a.conf.current()
			switch {
			case len(v.entries) == 0 || v.foreign(a.names) != nil:
			case a.conf.clock.skew() > 0:
				return a.conf.clock.fault()
			default:
				secret, err := a.secret.Get(ctx, a.secretName, metav1.GetOptions{})
				if err != nil {
					return nil //nolint:nilerr // it is not there, or the write tells what is wrong
				}
				return notOurs(secret)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}
}

// step does what decide asks for and returns when to look again.
func (a *stagedAuthority) step(ctx context.Context) (wake time.Time, err error) {
	v := a.conf.current()
	if err := v.foreign(a.names); err != nil {
		return time.Now().Add(lookAgain), err // the loop tries again sooner, as after all that failed
	}
	d := decide(a.conf.now(), v, a.current().certificate(), a.stored.certificate(), a.settle)
	d.wake = d.wake.Add(a.conf.clock.skew()) // by our clock
	if d.promote {
		a.promote(a.stored)
	}
	if d.publish == nil {
		return d.wake, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := a.conf.publish(ctx, v, d.publish); err != nil {
		return d.wake, &FaultError{Reason: ReasonPublishCA, Err: err}
	}
	a.log.Info("published the CA bundle", "cas", len(d.publish))
	return d.wake, nil
}

// promote makes pair the CA that signs and has the leaf replaced.
func (a *stagedAuthority) promote(pair *keyPair) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serving = pair
	for _, ch := range a.watchers {
		notify(ch)
	}
	a.log.Info("serving under a new CA", "notBefore", pair.cert.NotBefore, "notAfter", pair.cert.NotAfter)
}

func (a *stagedAuthority) current() *keyPair {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.serving
}

// setFault keeps what failed in this look, and says it when it is another thing than in the last.
func (a *stagedAuthority) setFault(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = err
	tellFault(a.log, &a.told, errors.Join(err, a.conf.clock.fault()))
}

// tellFault logs err if it says something else than told, and that all is well again when it is nil.
func tellFault(log *slog.Logger, told *string, err error) {
	switch {
	case err != nil && err.Error() != *told:
		*told = err.Error()
		log.Warn("certificate upkeep fails, serving goes on; trying again", "reason", Reasons(err), "error", err)
	case err == nil && *told != "":
		*told = ""
		log.Info("certificate upkeep works again")
	}
}

// lastFault returns what failed in the last look and what the library failed in, nil when all is well.
func (a *stagedAuthority) lastFault() error {
	a.mu.Lock()
	fault := a.fault
	a.mu.Unlock()
	return errors.Join(append(a.library.faults(), fault, a.conf.clock.fault())...)
}

// WatchRotation has ch told when another CA signs from now on.
func (a *stagedAuthority) WatchRotation(ch chan<- struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = append(a.watchers, ch)
}

// StopWatchingRotation ends WatchRotation for ch.
func (a *stagedAuthority) StopWatchingRotation(ch chan<- struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = slices.DeleteFunc(a.watchers, func(c chan<- struct{}) bool { return c == ch })
}

// Sign signs template with the CA that serves. The leaf never outlives its CA. It is valid from some time ago, so
// that a clock that is behind ours accepts it, but by so little that its renewal, at two thirds between both ends,
// still lies ahead of now.
func (a *stagedAuthority) Sign(template *x509.Certificate) (*x509.Certificate, error) {
	ca := a.current()
	if ca == nil {
		return nil, cmauthority.ErrCertificateNotAvailable
	}
	now := time.Now()
	template.NotAfter = earlier(now.Add(a.leaf), ca.cert.NotAfter)
	remaining := template.NotAfter.Sub(now)
	if remaining <= 0 {
		return nil, fmt.Errorf("the CA expired at %s and no new one is trusted yet", ca.cert.NotAfter.Format(time.RFC3339))
	}
	template.NotBefore = now.Add(-remaining / 4)
	template.BasicConstraintsValid = true
	template.IPAddresses = a.ips
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, template.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the serving certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
