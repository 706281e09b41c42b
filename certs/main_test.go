package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/certs"
	"multus-ip-manager.io/test/plane"
)

const secretName = "multus-ip-manager-ca"

func TestMain(m *testing.M) { os.Exit(plane.Main(m)) }

// cluster is one test's part of the API server: a namespace, a webhook configuration, and a user who may do exactly
// what the chart grants.
type cluster struct {
	t      *testing.T
	admin  kubernetes.Interface
	user   *rest.Config
	ns     string
	config string
	log    *slog.Logger
	writes atomic.Int64 // what user asked the API server to change
	said   journal
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	p := plane.Shared(t)
	admin, err := kubernetes.NewForConfig(p.Config)
	must(t, err)
	c := &cluster{t: t, admin: admin, said: journal{t: t}}
	c.log = slog.New(slog.NewTextHandler(&c.said, nil))
	c.ns = p.CreateNamespace(t, "certs", nil)
	c.config = c.ns
	_, err = p.Apply(t.Context(), c.rights(p), c.ns)
	must(t, err)
	c.user, err = p.ServiceAccountConfig(t.Context(), c.ns, "default")
	must(t, err)
	c.user.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return transport(func(request *http.Request) (*http.Response, error) {
			if request.Method != http.MethodGet {
				c.writes.Add(1)
			}
			return next.RoundTrip(request)
		})
	})
	return c
}

// standIn stands for a test's names in what is rendered once for all.
const standIn = "stand-in"

// roles are the chart's, for the source self. They are package state as the plane is.
var roles struct {
	sync.Once
	text string
	err  error
}

// rights are what the chart grants to the webhook, for this test's part of the API server.
func (c *cluster) rights(p *plane.Plane) []byte {
	c.t.Helper()
	roles.Do(func() {
		helm, err := p.Helm()
		if err != nil {
			roles.err = err
			return
		}
		dir, err := plane.ChartDir()
		if err != nil {
			roles.err = err
			return
		}
		roles.text, roles.err = helm.Template(context.Background(), plane.Release{
			Name: standIn, Namespace: standIn, Chart: dir, Args: []string{"--show-only=templates/rbac.yaml"},
			Values: map[string]any{
				"fullnameOverride": standIn, "certs": map[string]any{"secretName": secretName},
				"serviceAccount": map[string]any{"create": false, "name": "default"},
			},
		})
	})
	must(c.t, roles.err)
	const configuration = "multus-ip-manager" // its name is fixed, and the Secret's begins with it
	return []byte(strings.NewReplacer(standIn, c.ns, secretName, secretName, configuration, c.config).Replace(roles.text))
}

// entry returns a webhook that is called for ConfigMaps of this test's namespace at addr.
func (c *cluster) entry(name, addr string) registrationv1.MutatingWebhook {
	url := "https://" + addr + "/" + name
	none, fail := registrationv1.SideEffectClassNone, registrationv1.Fail
	return registrationv1.MutatingWebhook{
		Name:                    name + ".example.com",
		ClientConfig:            registrationv1.WebhookClientConfig{URL: &url},
		SideEffects:             &none,
		FailurePolicy:           &fail,
		AdmissionReviewVersions: []string{"v1"},
		NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: c.ns}},
		Rules: []registrationv1.RuleWithOperations{{
			Operations: []registrationv1.OperationType{registrationv1.Create},
			Rule:       registrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
		}},
	}
}

// configure creates the webhook configuration, without any caBundle, as the chart does.
func (c *cluster) configure(entries ...registrationv1.MutatingWebhook) {
	c.t.Helper()
	_, err := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(c.t.Context(),
		&registrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: c.config}, Webhooks: entries}, metav1.CreateOptions{})
	must(c.t, err)
	c.t.Cleanup(func() {
		_ = c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), c.config, metav1.DeleteOptions{})
	})
}

func (c *cluster) configuration() *registrationv1.MutatingWebhookConfiguration {
	c.t.Helper()
	conf, err := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(c.t.Context(), c.config, metav1.GetOptions{})
	must(c.t, err)
	return conf
}

// cas returns the certificates of the first entry's bundle.
func (c *cluster) cas() []*x509.Certificate {
	c.t.Helper()
	return parsePEM(c.t, c.configuration().Webhooks[0].ClientConfig.CABundle)
}

// ca returns the certificate in the Secret, nil while there is none.
func (c *cluster) ca() *x509.Certificate {
	s, err := c.admin.CoreV1().Secrets(c.ns).Get(c.t.Context(), secretName, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	if certs := parsePEM(c.t, s.Data[corev1.TLSCertKey]); len(certs) == 1 {
		return certs[0]
	}
	return nil
}

// options returns the options of one replica with short times.
func (c *cluster) options() certs.SelfOptions {
	return certs.SelfOptions{
		REST: c.user, Namespace: c.ns, SecretName: secretName, Configuration: c.config,
		Names: []string{"127.0.0.1", "webhook." + c.ns + ".svc"}, Settle: 2 * time.Second, Log: c.log,
	}
}

// replica is a running source behind a TLS server that answers every AdmissionReview with yes.
type replica struct {
	certs.Source
	addr string
	stop func()
}

// start runs a source behind a server. Each admission is a new connection, so that each verifies the certificate.
func (c *cluster) start(source certs.Source, l net.Listener) *replica {
	c.t.Helper()
	server := &http.Server{
		Handler:           http.HandlerFunc(allow),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	server.SetKeepAlivesEnabled(false)
	go func() {
		_ = server.Serve(tls.NewListener(l, &tls.Config{GetCertificate: source.GetCertificate, MinVersion: tls.VersionTLS12}))
	}()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	r := &replica{Source: source, addr: l.Addr().String(), stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("source ended: %v", err)
		}
		_ = server.Close()
	})}
	c.t.Cleanup(r.stop)
	return r
}

// replicas starts n replicas of the self source; the configuration has one entry for each.
func (c *cluster) replicas(n int, change func(i int, o *certs.SelfOptions)) []*replica {
	c.t.Helper()
	var listeners []net.Listener
	var entries []registrationv1.MutatingWebhook
	for i := range n {
		l := listen(c.t)
		listeners = append(listeners, l)
		entries = append(entries, c.entry(fmt.Sprintf("replica-%d", i), l.Addr().String()))
	}
	c.configure(entries...)
	var rs []*replica
	for i, l := range listeners {
		o := c.options()
		o.Log = o.Log.With("replica", i)
		if change != nil {
			change(i, &o)
		}
		source, err := certs.NewSelf(o)
		must(c.t, err)
		rs = append(rs, c.start(source, l))
	}
	return rs
}

func (c *cluster) waitReady(rs ...*replica) {
	c.t.Helper()
	for _, r := range rs {
		eventually(c.t, "ready", func() error { return r.Ready() })
	}
}

// waitServedUnderOther waits until all these replicas serve under the CA in the Secret, and that is not before.
func (c *cluster) waitServedUnderOther(before *x509.Certificate, rs ...*replica) {
	c.t.Helper()
	eventually(c.t, "served under a new CA", func() error {
		ca := c.ca()
		if ca == nil || ca.Equal(before) {
			return errors.New("no new CA")
		}
		for i, r := range rs {
			if !signedBy(c.t, r, ca) {
				return fmt.Errorf("not by replica %d", i)
			}
		}
		return nil
	})
}

// waitRenewed waits until each of these replicas serves another certificate than now.
func (c *cluster) waitRenewed(rs ...*replica) {
	c.t.Helper()
	for i, r := range rs {
		before := leaf(c.t, r)
		eventually(c.t, fmt.Sprintf("renewal by replica %d", i), func() error {
			if leaf(c.t, r).Equal(before) {
				return errors.New("still the same certificate")
			}
			return nil
		})
	}
}

// verbs sets what the user may do with the webhook configuration.
func (c *cluster) verbs(verbs ...string) {
	c.t.Helper()
	role, err := c.admin.RbacV1().ClusterRoles().Get(c.t.Context(), c.ns, metav1.GetOptions{})
	must(c.t, err)
	role.Rules[0].Verbs = verbs
	_, err = c.admin.RbacV1().ClusterRoles().Update(c.t.Context(), role, metav1.UpdateOptions{})
	must(c.t, err)
	patch := slices.Contains(verbs, "patch")
	eventually(c.t, "the rights are in force", func() error {
		allowed, err := c.allowed("system:serviceaccount:"+c.ns+":default", "patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", c.config)
		if err == nil && allowed != patch {
			err = errors.New("not yet")
		}
		return err
	})
}

// allowed asks the API server what a user may do, in this test's namespace where that counts.
func (c *cluster) allowed(user, verb, group, resource, name string) (bool, error) {
	attributes := &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Name: name}
	if group == "" {
		attributes.Namespace = c.ns
	}
	review, err := c.admin.AuthorizationV1().SubjectAccessReviews().Create(c.t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: attributes}}, metav1.CreateOptions{})
	return err == nil && review.Status.Allowed, err
}

// admitSoon waits until the API server, which hears of a configuration a moment after it is written, calls the webhooks.
func (c *cluster) admitSoon() {
	c.t.Helper()
	eventually(c.t, "admission", func() error { return c.admit(c.t.Context()) })
}

// admit creates a ConfigMap, without keeping it: the API server calls every entry of the configuration.
func (c *cluster) admit(ctx context.Context) error {
	_, err := c.admin.CoreV1().ConfigMaps(c.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "admit-"}},
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// load admits and connects in parallel until stopped, and counts. A connecting client trusts what the configuration
// says at that moment and nothing else.
type load struct {
	admitted, connected atomic.Int64
	mu                  sync.Mutex
	failures            []string
	stop                func()
}

func (c *cluster) load(rs ...*replica) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	run := func(count *atomic.Int64, f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil && ctx.Err() == nil {
					l.fail(err)
				}
				count.Add(1)
			}
		})
	}
	for range 3 {
		run(&l.admitted, func() error { return c.admit(ctx) })
	}
	for _, r := range rs {
		run(&l.connected, func() error { return c.connect(ctx, r) })
	}
	l.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	c.t.Cleanup(l.stop)
	return l
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, time.Now().Format("05.000 ")+err.Error())
}

// verify stops the load once there was some, also after what the test did, and fails the test if any of it failed.
func (l *load) verify(t *testing.T) {
	t.Helper()
	admitted, connected := l.admitted.Load(), l.connected.Load()
	eventually(t, "load", func() error {
		if l.admitted.Load() < admitted+5 || l.connected.Load() < connected+5 {
			return errors.New("too little of it")
		}
		return nil
	})
	l.stop()
	if n := len(l.failures); n > 0 {
		t.Errorf("%d of %d admissions and connections failed, first: %s; last: %s", n, l.admitted.Load()+l.connected.Load(), l.failures[0], l.failures[n-1])
	}
	t.Logf("%d admissions, %d connections", l.admitted.Load(), l.connected.Load())
}

func (c *cluster) connect(ctx context.Context, r *replica) error {
	conf, err := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, c.config, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(conf.Webhooks[0].ClientConfig.CABundle)
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}}
	conn, err := d.DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return conn.Close()
}

// leaf returns the certificate a replica serves.
func leaf(t *testing.T, s certs.Source) *x509.Certificate {
	t.Helper()
	c, err := s.GetCertificate(nil)
	must(t, err)
	return c.Leaf
}

func signedBy(t *testing.T, s certs.Source, ca *x509.Certificate) bool {
	t.Helper()
	return ca != nil && leaf(t, s).CheckSignatureFrom(ca) == nil
}

func allow(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var review admissionv1.AdmissionReview
	if err == nil {
		err = yaml.Unmarshal(body, &review)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	review.Request = nil
	answer, err := yaml.Marshal(review)
	if err == nil {
		answer, err = yaml.YAMLToJSON(answer)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

func parsePEM(t *testing.T, data []byte) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		must(t, err)
		all = append(all, cert)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(40 * time.Second)
	defer limit.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-limit.C:
			t.Fatalf("%s: %v", what, err)
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// transport is a function that is an http.RoundTripper.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

// journal logs through t, and knows what was logged.
type journal struct {
	t    *testing.T
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	if j.t.Context().Err() == nil { // a log line after the test's end would be a panic
		j.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// count tells how often this was said.
func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), what)
}

// waitSaid waits until this was said so often.
func (c *cluster) waitSaid(n int, what string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%q is said", what), func() error {
		if have := c.said.count(what); have < n {
			return fmt.Errorf("%d times", have)
		}
		return nil
	})
}
