package certs

import (
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

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	cmauthority "github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
)

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
	readSecret func(context.Context) (*corev1.Secret, error)
	conf       *Configuration
	settle     time.Duration
	leaf       time.Duration
	ips        []net.IP
	log        *slog.Logger
	backoff    wait.Backoff // between attempts at what failed

	mu       sync.Mutex
	serving  *keyPair
	fault    error
	watchers []chan<- struct{}

	stored *keyPair // only the loop touches it
}

var _ cmtls.Authority = (*stagedAuthority)(nil)

// Run keeps the CA, its publication and its rotation going until ctx ends.
func (a *stagedAuthority) Run(ctx context.Context) error {
	rotated := make(chan struct{}, 1)
	a.inner.WatchRotation(rotated)
	defer a.inner.StopWatchingRotation(rotated)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
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
		var errRead error
		if unread {
			errRead = a.read(ctx)
			unread = errRead != nil
		}
		wake, err := a.step(ctx)
		if err = errors.Join(errRead, err); err != nil {
			wake = earlier(wake, time.Now().Add(retry.Step()))
		} else {
			retry = a.backoff
		}
		if !apierrors.IsConflict(err) {
			// On a conflict somebody was faster, often another replica with the same bundle: no fault of anyone.
			a.setFault(err)
		}
		timer.Reset(time.Until(wake))
	}
}

// read takes over what the Secret holds now.
func (a *stagedAuthority) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := a.readSecret(ctx)
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	pair, err := parseKeyPair(secret.Data)
	if err != nil {
		return fmt.Errorf("read the CA from Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	a.stored = pair
	return nil
}

// step does what decide asks for and returns when to look again.
func (a *stagedAuthority) step(ctx context.Context) (wake time.Time, err error) {
	v := a.conf.current()
	d := decide(time.Now(), v, a.current().certificate(), a.stored.certificate(), a.settle)
	if d.promote {
		a.promote(a.stored)
	}
	if d.publish == nil {
		return d.wake, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := a.conf.publish(ctx, v, d.publish); err != nil {
		return d.wake, err
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

func (a *stagedAuthority) setFault(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil && (a.fault == nil || a.fault.Error() != err.Error()) {
		a.log.Warn("certificate upkeep failed, serving goes on; trying again", "error", err)
	}
	a.fault = err
}

// lastFault returns what failed in the last look, nil when nothing did.
func (a *stagedAuthority) lastFault() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fault
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
