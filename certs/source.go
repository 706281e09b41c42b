// Package certs decides which certificate the admission webhook serves and tells whether the API server would
// accept it. A [Source] is one origin of certificates:
//
//   - [Self] keeps a CA of its own in one Secret, signs a leaf in memory for each replica and publishes the CA in the
//     webhook configuration. Nothing has to be installed for it.
//   - [Files] serves a key pair from a directory, as the user mounts it, and follows its changes.
//   - [CertManager] does the same with what cert-manager issues, and tells why cert-manager does not renew it.
//
// [Configuration] is the API server's side of it: the CA bundles of the webhook configuration as last seen.
//
// Two rules hold for every source. Serving never waits for anything: a certificate, once there, is served until a
// better one is ready, whatever the API server, the Secret or the disk do. And readiness follows evidence, not
// errors: a read that fails leaves the last verdict standing, because replicas that all became unready for the
// same fault of the API server would turn that fault into an outage of admission.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ErrNoCertificate is returned by a [Source] that has nothing to serve yet.
var ErrNoCertificate = errors.New("no serving certificate yet")

// Source provides the serving certificate of the webhook.
type Source interface {
	// Run keeps the certificate fresh until ctx ends. It returns nil then, and an error only for what no waiting
	// can cure. GetCertificate keeps answering after Run has returned, so that a server can be drained.
	Run(ctx context.Context) error

	// GetCertificate returns the certificate to serve now. It fits tls.Config and never does I/O.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)

	// Ready returns nil when the certificate is unexpired and the bundle last seen in the webhook configuration
	// trusts it, else what is missing. It never does I/O.
	Ready() error

	// Expiry returns when the certificate now served ends; zero while there is none.
	Expiry() time.Time

	// Renewal returns when the renewal of the certificate now served is due; zero when that is not known.
	Renewal() time.Time

	// Fault returns what keeps the source from renewing or publishing at the moment, nil when nothing does. It is
	// meant for metrics and alerts, and is no reason to stop serving. [Reasons] makes single words of it.
	Fault() error
}

// expiry returns the end of the certificate that get returns, zero when it returns none.
func expiry(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) time.Time {
	served, err := get(nil)
	if err != nil {
		return time.Time{}
	}
	leaf, err := leafOf(served)
	if err != nil {
		return time.Time{}
	}
	return leaf.NotAfter
}

// verdict tells whether the API server accepts what get returns, by everything known at now. A nil conf leaves
// trust unchecked: then only the certificate itself is looked at.
func verdict(get func(*tls.ClientHelloInfo) (*tls.Certificate, error), conf *Configuration, now time.Time) error {
	served, err := get(nil)
	if err != nil {
		return err
	}
	leaf, err := leafOf(served)
	if err != nil {
		return err
	}
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("serving certificate is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("serving certificate expired at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	if conf == nil {
		return nil
	}
	return conf.accepts(served, now)
}

// ready is [Source.Ready] of a source that serves what get returns: the verdict, with the fault that is behind it.
func ready(get func(*tls.ClientHelloInfo) (*tls.Certificate, error), conf *Configuration, fault func() error) error {
	err := verdict(get, conf, conf.now())
	if err == nil {
		return nil
	}
	if behind := fault(); behind != nil {
		return fmt.Errorf("%w (%w)", err, behind)
	}
	return err
}

// leafOf returns the parsed first certificate of the chain.
func leafOf(c *tls.Certificate) (*x509.Certificate, error) {
	if c == nil || len(c.Certificate) == 0 {
		return nil, ErrNoCertificate
	}
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse the serving certificate: %w", err)
	}
	return leaf, nil
}
