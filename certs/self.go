package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	cmauthority "github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
)

// SelfOptions configures [NewSelf]. Durations have defaults that suit production; tests shorten them.
type SelfOptions struct {
	// REST tells how to reach the API server. The rights it needs: on Secrets of Namespace create (which no name
	// can limit), and get, list, watch and update on SecretName, and delete where the API server lets nobody else say
	// whose an object is; and those of [Configuration].
	REST *rest.Config

	// Namespace and SecretName name the one Secret that keeps the CA. The source creates it; nothing else should.
	Namespace, SecretName string

	// Configuration is the name of the MutatingWebhookConfiguration whose caBundle fields are kept.
	Configuration string

	// Names are the DNS names and IP addresses that the certificate is for: the Service's, or the host of the
	// webhook's URL.
	Names []string

	// CADuration is the life of a CA; it is replaced after two thirds of it. Default: a year.
	CADuration time.Duration

	// LeafDuration is the life of a serving certificate; it is replaced after about two thirds of it. Default: a week.
	LeafDuration time.Duration

	// Settle is how long a CA must have been in the webhook configuration before it replaces another one: within
	// it, every instance of the API server has learned of the change, and by it its clock may be behind. Default: a minute.
	Settle time.Duration

	// Log is where the source tells what it does. Default: slog.Default().
	Log *slog.Logger
}

// Self is the source that depends on nothing but the API server: one CA in one Secret, shared by all replicas, a leaf
// signed in memory by each replica, the CA published in the webhook configuration by whichever replica comes first.
// No replica leads.
//
// A rotation of the CA, whatever caused it (age, a deleted or damaged Secret), passes through three states: trusted
// (the old and the new CA are in the bundle), serving (leaves of the new one, after Settle), forgotten (the old one
// leaves the bundle when it expires). Without the API server everything stays as it is, and leaves are renewed.
//
// The Secret belongs to the webhook configuration, by an owner reference: the cluster's garbage collector takes it away
// when the release is uninstalled. Without a configuration none is made.
type Self struct {
	conf      *Configuration
	authority *stagedAuthority
	leaf      *cmtls.DynamicSource
	log       *slog.Logger
}

var _ Source = (*Self)(nil)

// NewSelf checks the options. Nothing is contacted before Run.
func NewSelf(o SelfOptions) (*Self, error) {
	if o.REST == nil || o.Namespace == "" || o.SecretName == "" || o.Configuration == "" || len(o.Names) == 0 {
		return nil, errors.New("certificate source self: needs a namespace, a Secret name, a webhook configuration and at least one DNS name or IP")
	}
	o.setDefaults()
	if o.LeafDuration >= o.CADuration {
		return nil, fmt.Errorf("certificate source self: a leaf (%s) must live shorter than its CA (%s)", o.LeafDuration, o.CADuration)
	}
	conf, err := ConnectConfiguration(o.REST, o.Configuration, o.Log)
	if err != nil {
		return nil, fmt.Errorf("certificate source self: %w", err)
	}
	dns, ips := splitNames(o.Names)
	library := &library{}
	config := rest.CopyConfig(o.REST)
	config.Wrap(library.wrap)
	config.Wrap(conf.clock.wrap)
	authority := &stagedAuthority{
		library: library,
		inner: &cmauthority.DynamicAuthority{
			SecretNamespace: o.Namespace,
			SecretName:      o.SecretName,
			SecretLabels:    map[string]string{"app.kubernetes.io/name": "multus-ip-manager"},
			RESTConfig:      config,
			CommonName:      "multus-ip-manager-ca",
			CADuration:      o.CADuration,
			LeafDuration:    o.LeafDuration,
		},
		secret:     conf.client.CoreV1().Secrets(o.Namespace),
		secretName: o.SecretName,
		names:      o.Names,
		conf:       conf,
		settle:     o.Settle,
		leaf:       o.LeafDuration,
		ips:        ips,
		log:        o.Log,
		backoff:    wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 30 * time.Second},
	}
	library.gate = authority.gate(conf.subscribe())
	return &Self{
		conf:      conf,
		authority: authority,
		leaf:      &cmtls.DynamicSource{DNSNames: dns, Authority: authority, RetryInterval: 250 * time.Millisecond},
		log:       o.Log,
	}, nil
}

func (o *SelfOptions) setDefaults() {
	if o.CADuration == 0 {
		o.CADuration = 365 * 24 * time.Hour
	}
	if o.LeafDuration == 0 {
		o.LeafDuration = 7 * 24 * time.Hour
	}
	if o.Settle == 0 {
		o.Settle = tolerance
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
}

// splitNames separates the IP addresses from the DNS names.
func splitNames(names []string) (dns []string, ips []net.IP) {
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, name)
		}
	}
	return dns, ips
}

// Run implements [Source].
func (s *Self) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(logr.NewContext(ctx, quiet(s.log)))
	group.Go(func() error { return s.conf.Run(ctx) })
	group.Go(func() error { return s.leaf.Start(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("certificate source self: %w", err)
	}
	return nil
}

// GetCertificate implements [Source].
func (s *Self) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := s.leaf.GetCertificate(hello)
	if errors.Is(err, cmtls.ErrNotAvailable) {
		return nil, ErrNoCertificate
	}
	return cert, err
}

// Ready implements [Source].
func (s *Self) Ready() error { return ready(s.GetCertificate, s.conf, s.Fault) }

// Expiry implements [Source].
func (s *Self) Expiry() time.Time { return expiry(s.GetCertificate) }

// Renewal implements [Source]. The library renews a leaf when a third of its life is left.
func (s *Self) Renewal() time.Time {
	served, err := s.GetCertificate(nil)
	if err != nil {
		return time.Time{}
	}
	leaf, err := leafOf(served)
	if err != nil {
		return time.Time{}
	}
	return leaf.NotAfter.Add(leaf.NotBefore.Sub(leaf.NotAfter) / 3)
}

// Fault implements [Source].
func (s *Self) Fault() error { return s.authority.lastFault() }
