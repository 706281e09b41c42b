package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	cmauthority "github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	registrationv1 "k8s.io/api/admissionregistration/v1"
)

func service(b bundle) registrationv1.MutatingWebhook {
	return registrationv1.MutatingWebhook{Name: "by-service", ClientConfig: registrationv1.WebhookClientConfig{
		CABundle: b.encode(), Service: &registrationv1.ServiceReference{Name: "hook", Namespace: "net"}}}
}

func address(b bundle, url string) registrationv1.MutatingWebhook {
	return registrationv1.MutatingWebhook{Name: "by-url", ClientConfig: registrationv1.WebhookClientConfig{CABundle: b.encode(), URL: &url}}
}

func TestVerdict(t *testing.T) {
	now := epoch.Add(time.Hour)
	ours := NewTestCA(t, epoch, epoch.AddDate(1, 0, 0))
	other := NewTestCA(t, epoch, epoch.AddDate(1, 0, 0))
	trusted, untrusted := bundle{ours.Cert(), other.Cert()}, bundle{other.Cert()}
	good := ours.chain(t, "hook.net.svc", now.Add(time.Hour))

	for name, tc := range map[string]struct {
		served  *tls.Certificate
		unknown bool // the configuration was not read
		entries []registrationv1.MutatingWebhook
		want    string // part of the error; "" = ready
	}{
		"trusted by all":       {served: good, entries: []registrationv1.MutatingWebhook{service(trusted), service(trusted)}},
		"by an IP address":     {served: ours.chain(t, "192.0.2.7", now.Add(time.Hour)), entries: []registrationv1.MutatingWebhook{address(trusted, "https://192.0.2.7:9443/mutate")}},
		"by an IPv6 address":   {served: ours.chain(t, "2001:db8::7", now.Add(time.Hour)), entries: []registrationv1.MutatingWebhook{address(trusted, "https://[2001:db8::7]:9443/mutate")}},
		"nothing to serve":     {want: "no serving certificate"},
		"not read yet":         {served: good, unknown: true, want: "not read yet"},
		"no configuration":     {served: good, want: "does not exist"},
		"empty bundle":         {served: good, entries: []registrationv1.MutatingWebhook{service(nil)}, want: "caBundle is empty"},
		"another CA":           {served: good, entries: []registrationv1.MutatingWebhook{service(untrusted)}, want: "unknown authority"},
		"one of two distrusts": {served: good, entries: []registrationv1.MutatingWebhook{service(trusted), service(untrusted)}, want: "unknown authority"},
		"another name":         {served: ours.chain(t, "old.net.svc", now.Add(time.Hour)), entries: []registrationv1.MutatingWebhook{service(trusted)}, want: "hook.net.svc"},
		"expired":              {served: ours.chain(t, "hook.net.svc", now.Add(-time.Second)), entries: []registrationv1.MutatingWebhook{service(trusted)}, want: "expired"},
		"from the future":      {served: NewTestCA(t, now.Add(time.Hour), now.AddDate(1, 0, 0)).chain(t, "hook.net.svc", now.AddDate(1, 0, 0)), entries: []registrationv1.MutatingWebhook{service(trusted)}, want: "not valid before"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := NewConfiguration(nil, "hooks", slog.New(slog.DiscardHandler))
			if !tc.unknown {
				conf.update(func(v *view) { v.synced = true })
			}
			if tc.entries != nil {
				conf.see(&registrationv1.MutatingWebhookConfiguration{Webhooks: tc.entries}, true)
			}
			get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				if tc.served == nil {
					return nil, ErrNoCertificate
				}
				return tc.served, nil
			}
			err := verdict(get, conf, now)
			if tc.want == "" && err != nil {
				t.Errorf("not ready: %v", err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	// A certificate whose trust is somebody else's to check must be valid all the same.
	for want, end := range map[string]time.Time{"": now.Add(time.Hour), "expired": now.Add(-time.Second)} {
		served := ours.chain(t, "hook.net.svc", end)
		err := verdict(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return served, nil }, nil, now)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("without a configuration: %v, want %q", err, want)
		}
	}
}

func TestSign(t *testing.T) {
	const week = 7 * 24 * time.Hour
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := func() *x509.Certificate {
		return &x509.Certificate{PublicKeyAlgorithm: x509.ECDSA, PublicKey: key.Public(), DNSNames: []string{"hook.net.svc"}}
	}
	a := &stagedAuthority{leaf: week, log: slog.New(slog.DiscardHandler)}
	if _, err := a.Sign(template()); !errors.Is(err, cmauthority.ErrCertificateNotAvailable) {
		t.Errorf("without a CA: %v", err)
	}
	now := time.Now()
	for name, tc := range map[string]struct{ caLeft, want time.Duration }{
		"long-lived CA":   {365 * 24 * time.Hour, week},
		"CA near its end": {time.Hour, time.Hour},
	} {
		ca := NewTestCA(t, now.Add(-24*time.Hour), now.Add(tc.caLeft))
		a.serving = &ca.pair
		leaf, err := a.Sign(template())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if left := leaf.NotAfter.Sub(now); left > tc.want+time.Minute || left < tc.want-time.Minute {
			t.Errorf("%s: the leaf lives %s, want %s", name, left, tc.want)
		}
		if leaf.NotAfter.After(ca.Cert().NotAfter) {
			t.Errorf("%s: the leaf outlives its CA", name)
		}
		// The library renews at two thirds between both ends: in the past, that would be a busy loop.
		if renewal := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3); renewal.Before(now.Add(tc.want / 2)) {
			t.Errorf("%s: renewal comes %s after the start", name, renewal.Sub(now))
		}
	}
	expired := NewTestCA(t, now.Add(-time.Hour), now.Add(-time.Minute))
	a.serving = &expired.pair
	if _, err := a.Sign(template()); err == nil {
		t.Errorf("an expired CA signs")
	}
}
