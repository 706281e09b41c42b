package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	applyv1 "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// FieldManager is the name under which the caBundle fields are owned. Nothing else is ever owned by it.
const FieldManager = "multus-ip-manager-certs"

// Configuration watches one MutatingWebhookConfiguration: which CAs the API server trusts when it calls us. What it
// has seen once stays valid until it sees something else; a watch that fails changes nothing.
//
// It needs get, list and watch on mutatingwebhookconfigurations with its name as resourceName, and patch for
// publishing. List and watch carry the field selector metadata.name, without which a resourceName does not match.
type Configuration struct {
	name   string
	client kubernetes.Interface
	log    *slog.Logger
	clock  *clock

	mu       sync.Mutex
	view     view
	watchers []chan<- struct{}
}

// NewConfiguration returns the watcher of the MutatingWebhookConfiguration called name. It sees nothing until Run.
func NewConfiguration(client kubernetes.Interface, name string, log *slog.Logger) *Configuration {
	return &Configuration{name: name, client: client, clock: &clock{}, log: log.With("webhookConfiguration", name)}
}

// ConnectConfiguration is [NewConfiguration] with a connection of its own, from whose answers it learns the API server's time: a
// machine whose clock is wrong judges its certificate by that.
func ConnectConfiguration(config *rest.Config, name string, log *slog.Logger) (*Configuration, error) {
	c := NewConfiguration(nil, name, log)
	config = rest.CopyConfig(config)
	config.Wrap(c.clock.wrap)
	var err error
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return c, nil
}

// Run watches until ctx ends. Run it once.
func (c *Configuration) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(c.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, c.name).String()
		}))
	informer := factory.Admissionregistration().V1().MutatingWebhookConfigurations().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, initial bool) { c.see(obj, initial) },
		UpdateFunc: func(_, obj any) { c.see(obj, false) },
		DeleteFunc: func(any) { c.lose() },
	})
	if err != nil {
		return fmt.Errorf("watch the webhook configuration %q: %w", c.name, err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		c.update(func(v *view) { v.synced = true })
	}
	<-ctx.Done()
	return nil
}

// now returns the API server's time as far as it is known.
func (c *Configuration) now() time.Time {
	if c == nil {
		return time.Now()
	}
	return c.clock.now()
}

// subscribe returns a channel that holds a value whenever something has changed since the last receive.
func (c *Configuration) subscribe() <-chan struct{} {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers = append(c.watchers, ch)
	return ch
}

// current returns what was last seen. The value is never modified afterwards.
func (c *Configuration) current() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *Configuration) see(obj any, initial bool) {
	conf, ok := obj.(*admissionv1.MutatingWebhookConfiguration)
	if !ok {
		return
	}
	c.update(func(v *view) { *v = v.next(conf, c.now(), initial) })
}

func (c *Configuration) lose() {
	c.log.Warn("webhook configuration is gone")
	c.update(func(v *view) { *v = view{synced: true} })
}

func (c *Configuration) update(change func(*view)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.view)
	for _, ch := range c.watchers {
		notify(ch)
	}
}

// publish writes b as the caBundle of every entry of v, the state it was computed from. It fails with a conflict
// when the configuration has changed since: two replicas that each add their CA to the same old bundle would
// otherwise remove each other's. Only caBundle fields are sent, so only they are owned and changed.
func (c *Configuration) publish(ctx context.Context, v view, b bundle) error {
	data := b.encode()
	conf := applyv1.MutatingWebhookConfiguration(c.name).WithResourceVersion(v.resourceVersion)
	for _, e := range v.entries {
		conf.WithWebhooks(applyv1.MutatingWebhook().WithName(e.name).
			WithClientConfig(applyv1.WebhookClientConfig().WithCABundle(data...)))
	}
	// Force: when the source was another one before, its injector still owns the field and has no further use for it.
	opts := metav1.ApplyOptions{FieldManager: FieldManager, Force: true}
	if _, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Apply(ctx, conf, opts); err != nil {
		return fmt.Errorf("publish the CA in the webhook configuration %q: %w", c.name, err)
	}
	return nil
}

// accepts returns nil when every entry of the configuration last seen would accept the served chain at now.
func (c *Configuration) accepts(served *tls.Certificate, now time.Time) error {
	v := c.current()
	switch {
	case !v.synced:
		return fmt.Errorf("webhook configuration %q was not read yet", c.name)
	case len(v.entries) == 0:
		return fmt.Errorf("webhook configuration %q does not exist or has no webhooks", c.name)
	}
	for i, e := range v.entries {
		if i > 0 && e.sameTrust(v.entries[i-1]) {
			continue
		}
		if err := e.accepts(served, now); err != nil {
			return fmt.Errorf("webhook %q of configuration %q does not trust the serving certificate: %w", e.name, c.name, err)
		}
	}
	return nil
}

// view is one state of the configuration. The zero value means: nothing read yet.
type view struct {
	synced          bool
	uid             types.UID // empty while there is no configuration
	resourceVersion string
	entries         []entry
	// trustedSince tells for each CA that every entry trusts since when it does, by the raw certificate.
	trustedSince map[string]time.Time
}

// next returns the view of conf, which was seen at now. With initial, conf is what this process found, and nobody
// saw since when it stands: a CA is published right after it was made, so its own age is the best answer.
func (v view) next(conf *admissionv1.MutatingWebhookConfiguration, now time.Time, initial bool) view {
	n := view{synced: true, uid: conf.UID, resourceVersion: conf.ResourceVersion, trustedSince: map[string]time.Time{}}
	for _, w := range conf.Webhooks {
		n.entries = append(n.entries, newEntry(w))
	}
	for _, ca := range n.trusted() {
		since, known := v.trustedSince[string(ca.Raw)]
		switch {
		case known:
		case initial:
			since = ca.NotBefore
		default:
			since = now
		}
		n.trustedSince[string(ca.Raw)] = since
	}
	return n
}

// foreign returns an error when an entry calls somebody who has none of these names. Who keeps the bundle then is not for us to
// know: most likely another installation has taken the configuration over.
func (v view) foreign(names []string) error {
	for _, e := range v.entries {
		if !slices.ContainsFunc(names, func(name string) bool { return sameName(name, e.serverName) }) {
			return faultf(ReasonNotOurs, "webhook %q calls %q and not this webhook (%s): are there two installations in the cluster?",
				e.name, e.serverName, strings.Join(names, ", "))
		}
	}
	return nil
}

// sameName compares two DNS names or two IP addresses.
func sameName(a, b string) bool {
	if x, y := net.ParseIP(a), net.ParseIP(b); x != nil && y != nil {
		return x.Equal(y)
	}
	return strings.EqualFold(a, b)
}

// all returns every CA that any entry trusts.
func (v view) all() bundle {
	var b bundle
	for _, e := range v.entries {
		for _, ca := range e.bundle {
			b = b.with(ca)
		}
	}
	return b
}

// trusted returns the CAs that every entry trusts.
func (v view) trusted() bundle {
	var b bundle
	for _, ca := range v.all() {
		if v.trusts(ca) {
			b = b.with(ca)
		}
	}
	return b
}

// trusts reports whether every entry trusts ca.
func (v view) trusts(ca *x509.Certificate) bool {
	for _, e := range v.entries {
		if !e.bundle.contains(ca) {
			return false
		}
	}
	return len(v.entries) > 0
}

// holds reports whether every entry's field is exactly b, byte by byte: what cannot be parsed must go too.
func (v view) holds(b bundle) bool {
	want := string(b.encode())
	for _, e := range v.entries {
		if e.raw != want {
			return false
		}
	}
	return true
}

// entry is one webhook of the configuration: the name the API server expects in our certificate and whom it trusts.
type entry struct {
	name       string
	serverName string
	raw        string
	bundle     bundle
}

func newEntry(w admissionv1.MutatingWebhook) entry {
	e := entry{name: w.Name, raw: string(w.ClientConfig.CABundle), bundle: parseBundle(w.ClientConfig.CABundle)}
	if s := w.ClientConfig.Service; s != nil {
		e.serverName = s.Name + "." + s.Namespace + ".svc"
	} else if w.ClientConfig.URL != nil {
		if u, err := url.Parse(*w.ClientConfig.URL); err == nil {
			e.serverName = u.Hostname()
		}
	}
	return e
}

// sameTrust reports whether e and o accept exactly the same certificates.
func (e entry) sameTrust(o entry) bool {
	return e.serverName == o.serverName && e.raw == o.raw
}

// accepts verifies the chain as the API server does when it calls this entry.
func (e entry) accepts(served *tls.Certificate, now time.Time) error {
	if len(e.bundle) == 0 {
		// An empty bundle means the system roots to the API server; they are its own and not ours to know.
		return errors.New("its caBundle is empty")
	}
	leaf, err := leafOf(served)
	if err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, der := range served.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(cert)
		}
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		DNSName:       e.serverName,
		Roots:         e.bundle.pool(),
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// notify leaves one value in ch without waiting.
func notify(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
