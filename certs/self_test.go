package certs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	registrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applyv1 "k8s.io/client-go/applyconfigurations/admissionregistration/v1"

	"multus-ip-manager.io/certs"
)

func TestReplicasAgreeOnOneCA(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(3, nil)
	c.waitReady(rs...)
	if n := len(c.cas()); n != 1 {
		t.Errorf("the bundle holds %d CAs, want 1", n)
	}
	for i, r := range rs {
		if !signedBy(t, r, c.ca()) {
			t.Errorf("replica %d serves a certificate of another CA than the Secret's", i)
		}
	}
	c.admitSoon()
}

func TestRotationLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(2, nil)
	c.waitReady(rs...)
	c.admitSoon()
	load := c.load(rs...)
	for range 2 {
		before := c.ca()
		must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{}))
		c.waitServedUnderOther(before, rs...)
	}
	load.verify(t)
	if n := len(c.cas()); n != 3 {
		t.Errorf("the bundle holds %d CAs, want all 3 that are not expired", n)
	}
}

func TestRotationByAge(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	// Two thirds of this CA's life are over in three seconds.
	aging := certs.NewTestCA(t, time.Now().Add(-2*time.Hour+3*time.Second), time.Now().Add(time.Hour+3*time.Second))
	cert, key := aging.PEM(t)
	_, err := c.admin.CoreV1().Secrets(c.ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secretName, Annotations: map[string]string{"cert-manager.io/allow-direct-injection": "true"}}, // as the library's
		Data:       map[string][]byte{"ca.crt": cert, corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
	}, metav1.CreateOptions{})
	must(t, err)
	rs := c.replicas(2, nil)
	c.waitReady(rs...)
	for _, r := range rs {
		if !signedBy(t, r, aging.Cert()) {
			t.Fatal("the CA in the Secret is not used")
		}
	}
	c.admitSoon()
	load := c.load(rs...)
	c.waitServedUnderOther(aging.Cert(), rs...)
	load.verify(t)
}

func TestLeafRenewalLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(2, func(_ int, o *certs.SelfOptions) { o.LeafDuration = 4 * time.Second })
	c.waitReady(rs...)
	c.admitSoon()
	load := c.load(rs...)
	for range 3 {
		c.waitRenewed(rs...)
	}
	load.verify(t)
	if n := len(c.cas()); n != 1 {
		t.Errorf("the bundle holds %d CAs, want 1: a leaf's renewal is no rotation", n)
	}
}

func TestDamagedSecretHeals(t *testing.T) {
	t.Parallel()
	_, foreign := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).PEM(t)
	for name, damage := range map[string]func(data map[string][]byte){
		"garbage": func(data map[string][]byte) { data[corev1.TLSCertKey] = []byte("garbage") },
		"truncated": func(data map[string][]byte) {
			k := data[corev1.TLSPrivateKeyKey]
			data[corev1.TLSPrivateKeyKey] = k[:len(k)/2]
		},
		"empty":       func(data map[string][]byte) { clear(data) },
		"foreign key": func(data map[string][]byte) { data[corev1.TLSPrivateKeyKey] = foreign },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			rs := c.replicas(1, nil)
			c.waitReady(rs...)
			c.admitSoon()
			load := c.load(rs...)
			before := c.ca()
			s, err := c.admin.CoreV1().Secrets(c.ns).Get(t.Context(), secretName, metav1.GetOptions{})
			must(t, err)
			damage(s.Data)
			_, err = c.admin.CoreV1().Secrets(c.ns).Update(t.Context(), s, metav1.UpdateOptions{})
			must(t, err)
			c.waitServedUnderOther(before, rs...)
			load.verify(t)
		})
	}
}

// A replica that cannot reach the API server goes on as before, whatever happens meanwhile, and catches up afterwards.
func TestUnreachableAPIServerChangesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	server, err := url.Parse(c.user.Host)
	must(t, err)
	link := newLink(t, server.Host)
	rs := c.replicas(2, func(i int, o *certs.SelfOptions) {
		o.LeafDuration = 4 * time.Second
		if i == 0 {
			config := *c.user
			config.Host = "https://" + link.addr
			o.REST = &config
		}
	})
	c.waitReady(rs...)
	c.admitSoon()
	load := c.load(rs...)
	before := c.ca()

	link.cut()
	c.waitRenewed(rs[0])
	must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{}))
	c.waitServedUnderOther(before, rs[1]) // the other replica has rotated the CA
	c.waitRenewed(rs[0])
	if !signedBy(t, rs[0], before) {
		t.Errorf("the replica that is cut off serves under a CA it cannot know")
	}
	if err := rs[0].Ready(); err != nil {
		t.Errorf("the replica that is cut off lost its readiness: %v", err)
	}

	link.restore()
	c.waitServedUnderOther(before, rs[0])
	load.verify(t)
}

// A CA that nobody may publish is not served; leaves of the present one are still renewed, and the fault is told.
func TestUnpublishableCAIsAnAlertAndNoOutage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(1, func(_ int, o *certs.SelfOptions) { o.LeafDuration = 4 * time.Second })
	c.waitReady(rs...)
	c.admitSoon()
	if err := rs[0].Fault(); err != nil {
		t.Errorf("fault while all is well: %v", err)
	}
	load := c.load(rs...)
	before := c.ca()
	c.verbs("get", "list", "watch")
	must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{}))
	eventually(t, "the fault is told", func() error {
		if err := rs[0].Fault(); err == nil || !strings.Contains(err.Error(), "forbidden") {
			return fmt.Errorf("fault: %w", err)
		}
		return nil
	})
	c.waitRenewed(rs[0])
	c.waitRenewed(rs[0])
	if !signedBy(t, rs[0], before) {
		t.Errorf("a CA is served that nobody trusts")
	}
	must(t, rs[0].Ready())

	c.verbs("get", "list", "watch", "patch")
	c.waitServedUnderOther(before, rs[0])
	load.verify(t)
	eventually(t, "the fault passes", rs[0].Fault)
}

func TestNotReadyBeforeTrusted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.verbs("get", "list", "watch")
	r := c.replicas(1, nil)[0]
	eventually(t, "the fault is told", func() error {
		if r.Fault() == nil {
			return errors.New("no fault")
		}
		return nil
	})
	if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("got %v, want an error that tells what is forbidden", err)
	}
	c.verbs("get", "list", "watch", "patch")
	c.waitReady(r)
}

// The configuration may come after the webhook, and may be made anew.
func TestConfigurationComesLateAndAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	l := listen(t)
	source, err := certs.NewSelf(c.options())
	must(t, err)
	r := c.start(source, l)
	for range 2 {
		if err := r.Ready(); err == nil {
			t.Errorf("ready without a configuration")
		}
		c.configure(c.entry("late", l.Addr().String()))
		c.waitReady(r)
		c.admitSoon()
		must(t, c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), c.config, metav1.DeleteOptions{}))
		eventually(t, "not ready without a configuration", func() error {
			if r.Ready() == nil {
				return errors.New("still ready")
			}
			return nil
		})
	}
}

func TestDamagedBundleHeals(t *testing.T) {
	t.Parallel()
	for name, patch := range map[string]string{
		"removed": `[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`,
		"foreign": `[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":"` + foreignBundle(t) + `"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			rs := c.replicas(2, nil)
			c.waitReady(rs...)
			version := c.configuration().ResourceVersion
			_, err := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), c.config,
				types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
			must(t, err)
			eventually(t, "our CA is back", func() error {
				if c.configuration().ResourceVersion == version || !slices.ContainsFunc(c.cas(), c.ca().Equal) {
					return errors.New("not yet")
				}
				return nil
			})
			c.waitReady(rs...)
			c.admitSoon()
		})
	}
}

// What is trusted stays trusted until it expires: another source's CA, or one of ours from before.
func TestForeignCAIsForgottenWhenItExpires(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	other := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(5*time.Second))
	bundle, _ := other.PEM(t)
	l := listen(t)
	entry := c.entry("replica", l.Addr().String())
	entry.ClientConfig.CABundle = bundle
	c.configure(entry)
	source, err := certs.NewSelf(c.options())
	must(t, err)
	c.waitReady(c.start(source, l))
	if n := len(c.cas()); n != 2 {
		t.Errorf("the bundle holds %d CAs, want ours and the other one", n)
	}
	eventually(t, "the expired CA is forgotten", func() error {
		if all := c.cas(); len(all) != 1 || all[0].Equal(other.Cert()) {
			return fmt.Errorf("%d CAs", len(all))
		}
		return nil
	})
	if time.Now().Before(other.Cert().NotAfter) {
		t.Errorf("the other CA is gone before its end")
	}
}

func TestOnlyTheBundleIsOwned(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	chart := func(names ...string) {
		t.Helper()
		conf := applyv1.MutatingWebhookConfiguration(c.config).WithLabels(map[string]string{"app.kubernetes.io/managed-by": "Helm"})
		for _, name := range names {
			conf.WithWebhooks(applyv1.MutatingWebhook().WithName(name + ".example.com").
				WithAdmissionReviewVersions("v1").WithSideEffects(registrationv1.SideEffectClassNone).
				WithClientConfig(applyv1.WebhookClientConfig().WithURL("https://127.0.0.1:1/" + name)))
		}
		_, err := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Apply(t.Context(), conf, metav1.ApplyOptions{FieldManager: "helm"})
		must(t, err)
	}
	chart("one", "two")
	t.Cleanup(func() {
		_ = c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), c.config, metav1.DeleteOptions{})
	})
	source, err := certs.NewSelf(c.options())
	must(t, err)
	r := c.start(source, listen(t))
	c.waitReady(r)

	entry := map[string]any{".": map[string]any{}, "f:clientConfig": map[string]any{"f:caBundle": map[string]any{}}, "f:name": map[string]any{}}
	want, err := json.Marshal(map[string]any{"f:webhooks": map[string]any{
		`k:{"name":"one.example.com"}`: entry, `k:{"name":"two.example.com"}`: entry}})
	must(t, err)
	var owned []string
	for _, m := range c.configuration().ManagedFields {
		if m.Manager == certs.FieldManager {
			owned = append(owned, m.FieldsV1.GetRawString())
		}
	}
	if len(owned) != 1 || owned[0] != string(want) {
		t.Errorf("we own\n%s\nwant\n%s", owned, want)
	}

	bundle := c.configuration().Webhooks[0].ClientConfig.CABundle
	chart("one", "two", "three") // the next release: no conflict, nothing wiped, the new entry gets the bundle
	eventually(t, "the new entry has the bundle", func() error {
		for _, w := range c.configuration().Webhooks {
			if string(w.ClientConfig.CABundle) != string(bundle) {
				return fmt.Errorf("%s has another bundle", w.Name)
			}
		}
		return nil
	})
	c.waitReady(r)
}

func TestSelfOptions(t *testing.T) {
	t.Parallel()
	good := newCluster(t).options()
	for name, change := range map[string]func(*certs.SelfOptions){
		"no API server":    func(o *certs.SelfOptions) { o.REST = nil },
		"no namespace":     func(o *certs.SelfOptions) { o.Namespace = "" },
		"no Secret":        func(o *certs.SelfOptions) { o.SecretName = "" },
		"no configuration": func(o *certs.SelfOptions) { o.Configuration = "" },
		"no names":         func(o *certs.SelfOptions) { o.Names = nil },
		"leaf outlives CA": func(o *certs.SelfOptions) { o.LeafDuration, o.CADuration = time.Hour, time.Hour },
	} {
		o := good
		change(&o)
		if _, err := certs.NewSelf(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := certs.NewSelf(good); err != nil {
		t.Errorf("good options: %v", err)
	}
}

func foreignBundle(t *testing.T) string {
	t.Helper()
	cert, _ := certs.NewTestCA(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)).PEM(t)
	data, err := json.Marshal(cert)
	must(t, err)
	return strings.Trim(string(data), `"`)
}

// link is a TCP connection to the API server that can be cut.
type link struct {
	addr  string
	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { _ = l.Close() })
	n := &link{addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go n.forward(conn, to)
		}
	}()
	return n
}

func (n *link) forward(conn net.Conn, to string) {
	defer func() { _ = conn.Close() }()
	server, err := net.Dial("tcp", to)
	if err != nil || !n.add(conn, server) {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(server, conn)
		_ = server.Close()
	}()
	_, _ = io.Copy(conn, server)
}

func (n *link) add(conns ...net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range conns {
		n.conns[conn] = true
	}
	return !n.down
}

func (n *link) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for conn := range n.conns {
		_ = conn.Close()
	}
	clear(n.conns)
}

func (n *link) restore() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}
