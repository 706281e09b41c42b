package certmanager

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/loopback"
	"multus-ip-manager.io/test/plane"
)

const (
	// release is the release's name and that of its objects.
	release       = "multus-ip-manager"
	configuration = "multus-ip-manager"
	// lag is how late the kubelet brings a changed Secret into the pods, under load: after so many admissions that were asked for
	// when the API server trusts its CA. A real one takes up to a minute or more; what matters is that they were asked before.
	lag = 100
)

// shared is what the tests of this package have in common. It is package state as the plane is.
var shared struct{ bin string }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	bin, err := binaries.Build(context.Background(), "webhook")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin) //nolint:errcheck // nothing can be done about it
	shared.bin = bin
	return plane.Main(m)
}

// rig is an API server with cert-manager, the chart installed with the source cert-manager, and its webhook with the rights of its
// service account. A stand-in for the kubelet brings the Secret into the webhook's folder.
type rig struct {
	t           *testing.T
	plane       *plane.Plane
	controllers *Controllers
	helm        *plane.Helm
	client      client.Client
	namespace   string // of the release
	pods        string // an opted-in namespace
	address     string // of the webhook
	metricsURL  string
	readyURL    string
	log         *log
	values      map[string]any
	loaded      atomic.Pointer[load] // what runs beside the test now
}

func newRig(t *testing.T, certManager map[string]any, prepare func(*rig), args ...string) *rig {
	t.Helper()
	p := plane.Shared(t)
	must(t, Install(t.Context(), p))
	scheme := runtime.NewScheme()
	must(t, errors.Join(clientgoscheme.AddToScheme(scheme), cmapi.AddToScheme(scheme)))
	r := &rig{t: t, plane: p, log: &log{}}
	r.startControllers(args...)
	t.Cleanup(r.stopControllers)
	var err error
	r.client, err = client.New(p.Config, client.Options{Scheme: scheme})
	must(t, err)
	r.helm, err = p.Helm()
	must(t, err)
	r.namespace = p.CreateNamespace(t, "certmanager", nil)
	r.pods = p.CreateNamespace(t, "pods", map[string]string{settings.LabelInject: settings.InjectEnabled})
	if prepare != nil {
		prepare(r)
	}
	r.install(certManager)
	return r
}

func (r *rig) startControllers(args ...string) {
	r.t.Helper()
	controllers, err := Start(r.plane, args...)
	must(r.t, err)
	r.controllers = controllers
}

func (r *rig) stopControllers() {
	r.t.Helper()
	if err := r.controllers.Stop(); err != nil {
		r.t.Error(err)
	}
	if r.t.Failed() {
		r.t.Logf("cert-manager said:\n%s", tailOf(r.controllers.Log(), 60))
	}
}

// install installs the chart and starts the webhook as the chart's notes say.
func (r *rig) install(certManager map[string]any) {
	r.t.Helper()
	addresses := loopback.Addresses(r.t, 3)
	r.address = addresses[0].String()
	r.readyURL = "http://" + addresses[1].String() + "/readyz"
	r.metricsURL = "http://" + addresses[2].String() + "/metrics"
	r.values = map[string]any{
		"webhook": map[string]any{"url": "https://" + r.address},
		"ports":   map[string]any{"webhook": addresses[0].Port(), "health": addresses[1].Port(), "metrics": addresses[2].Port()},
		"certs":   map[string]any{"source": "cert-manager", "certManager": certManager},
		"log":     map[string]any{"level": "warn"},
	}
	chart, err := plane.ChartDir()
	must(r.t, err)
	notes, err := r.helm.Install(r.t.Context(), plane.Release{Name: release, Namespace: r.namespace, Chart: chart, Values: r.values})
	must(r.t, err)
	r.t.Cleanup(func() {
		if _, err := r.helm.Uninstall(context.WithoutCancel(r.t.Context()), release, r.namespace); err != nil {
			r.t.Error(err)
		}
	})
	dir := r.t.TempDir()
	r.mount(dir)
	config, err := r.plane.ServiceAccountConfig(r.t.Context(), r.namespace, release)
	must(r.t, err)
	kubeconfig := filepath.Join(r.t.TempDir(), "kubeconfig")
	must(r.t, plane.WriteKubeconfig(kubeconfig, config))
	r.start(append(argsOf(notes), "--kubeconfig="+kubeconfig, "--cert-dir="+dir, "--host="+loopback.IP().String(),
		"--certificate-interval=1s"))
}

func (r *rig) start(args []string) {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(shared.bin, "webhook"), args...) //nolint:gosec,noctx // ended below
	cmd.Stdout, cmd.Stderr = r.log, r.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(r.t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				r.t.Errorf("the webhook ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			r.t.Error("the webhook does not end")
		}
		if r.t.Failed() {
			r.t.Logf("the webhook said:\n%s", tailOf(r.log.String(), 40))
		}
	})
}

// argsOf reads the webhook's arguments out of the chart's notes.
func argsOf(notes string) []string {
	var args []string
	for line := range strings.Lines(notes) {
		line = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "\\"))
		if arg, ok := strings.CutPrefix(line, "'"); ok {
			args = append(args, strings.TrimSuffix(arg, "'"))
		}
	}
	return args
}

// mount keeps the Secret's files in dir, as the kubelet does: late, and all by one rename.
func (r *rig) mount(dir string) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan struct{})
	r.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		k := &kubelet{rig: r, dir: dir}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			k.look(ctx)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
}

// kubelet is the stand-in for it.
type kubelet struct {
	rig   *rig
	dir   string
	have  string      // the version of the Secret that is in dir
	count int         // of those that were
	late  func() bool // whether the version after that is held back yet; nil while there is none
}

// look brings the Secret as it is now, unless that is to be late.
func (k *kubelet) look(ctx context.Context) {
	secret := &corev1.Secret{}
	if err := k.rig.client.Get(ctx, k.rig.key(release+"-tls"), secret); err != nil || secret.ResourceVersion == k.have {
		return
	}
	if k.count > 0 && k.heldBack(ctx, secret) {
		return
	}
	k.have, k.late = secret.ResourceVersion, nil
	k.count++
	err := writeMount(k.dir, fmt.Sprintf("..%d", k.count), secret.Data)
	if err = errors.Join(err, os.RemoveAll(filepath.Join(k.dir, fmt.Sprintf("..%d", k.count-1)))); err != nil {
		k.rig.t.Error(err)
	}
}

// heldBack tells whether it is too early for another version: while there is load, all trust its CA first, and then so many
// admissions are asked for as lag says.
func (k *kubelet) heldBack(ctx context.Context, secret *corev1.Secret) bool {
	l := k.rig.loaded.Load()
	if l == nil {
		return false
	}
	if k.late == nil {
		if k.rig.injected(ctx, secret.Data[cmmeta.TLSCAKey]) != nil {
			return true
		}
		from := l.admitted.Load()
		k.late = func() bool { return k.rig.loaded.Load() == l && l.admitted.Load() < from+lag }
	}
	return k.late()
}

func writeMount(dir, version string, data map[string][]byte) error {
	if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil { //nolint:gosec // as the kubelet's
		return err
	}
	for name, content := range data {
		if err := os.WriteFile(filepath.Join(dir, version, name), content, 0o600); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := os.Symlink(version, filepath.Join(dir, "..new")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data"))
}

func (r *rig) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: r.namespace, Name: name}
}

// get reads an object of the release's namespace.
func (r *rig) get(object client.Object, name string) {
	r.t.Helper()
	must(r.t, r.client.Get(r.t.Context(), r.key(name), object))
}

// bundles are the caBundle fields of the chart's entries.
func (r *rig) bundles(ctx context.Context) ([][]byte, error) {
	conf := &admissionv1.MutatingWebhookConfiguration{}
	if err := r.client.Get(ctx, client.ObjectKey{Name: configuration}, conf); err != nil {
		return nil, err
	}
	var all [][]byte
	for _, w := range conf.Webhooks {
		all = append(all, w.ClientConfig.CABundle)
	}
	return all, nil
}

// renew asks cert-manager for a new issuance, as `cmctl renew` does.
func (r *rig) renew(certificate string) {
	r.t.Helper()
	r.eventually("renewal of "+certificate+" is asked for", func() error {
		c := &cmapi.Certificate{}
		r.get(c, certificate)
		now := metav1.Now()
		for i := range c.Status.Conditions {
			if condition := &c.Status.Conditions[i]; condition.Type == cmapi.CertificateConditionIssuing {
				if condition.Status == cmmeta.ConditionTrue {
					return nil
				}
				c.Status.Conditions = append(c.Status.Conditions[:i], c.Status.Conditions[i+1:]...)
				break
			}
		}
		c.Status.Conditions = append(c.Status.Conditions, cmapi.CertificateCondition{
			Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: "ManuallyTriggered",
			Message: "Certificate re-issuance manually triggered", LastTransitionTime: &now, ObservedGeneration: c.Generation,
		})
		return r.client.Status().Update(r.t.Context(), c)
	})
}

// secret returns the value of a Secret's key.
func (r *rig) secret(name, key string) []byte {
	r.t.Helper()
	s := &corev1.Secret{}
	if err := r.client.Get(r.t.Context(), r.key(name), s); err != nil {
		return nil
	}
	return s.Data[key]
}

// waitChanged waits until a Secret's key holds something else than before.
func (r *rig) waitChanged(name, key string, before []byte) []byte {
	r.t.Helper()
	var now []byte
	r.eventually(name+"/"+key+" has changed", func() error {
		if now = r.secret(name, key); len(now) == 0 || bytes.Equal(now, before) {
			return errors.New("still the old one")
		}
		return nil
	})
	return now
}

// served returns the certificate that the webhook serves to a client that trusts what the configuration says.
func (r *rig) served(ctx context.Context) (*x509.Certificate, error) {
	bundles, err := r.bundles(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundles[0])
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: loopback.IP().String(), MinVersion: tls.VersionTLS12}}
	conn, err := d.DialContext(ctx, "tcp", r.address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close() //nolint:errcheck // it was only looked at
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// waitServed waits until the webhook serves what is in the Secret, and that is another certificate than before. The client trusts
// what the configuration says.
func (r *rig) waitServed(before []byte) {
	r.t.Helper()
	r.eventually("the new certificate is served", func() error {
		c, err := r.served(r.t.Context())
		if err != nil {
			return err
		}
		now := r.secret(release+"-tls", corev1.TLSCertKey)
		if block, _ := pem.Decode(now); block == nil || bytes.Equal(now, before) || !bytes.Equal(block.Bytes, c.Raw) {
			return errNotYet
		}
		return nil
	})
}

// waitInjected waits until every entry trusts the CA that the certificate's Secret names.
func (r *rig) waitInjected() {
	r.t.Helper()
	r.eventually("the CA is injected", func() error {
		return r.injected(r.t.Context(), r.secret(release+"-tls", cmmeta.TLSCAKey))
	})
}

// injected returns nil when every entry trusts ca.
func (r *rig) injected(ctx context.Context, ca []byte) error {
	bundles, err := r.bundles(ctx)
	if err != nil {
		return err
	}
	for _, b := range bundles {
		if len(ca) == 0 || !bytes.Contains(b, ca) {
			return errNotYet
		}
	}
	return nil
}

// admit has a pod admitted without keeping it.
func (r *rig) admit(ctx context.Context) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.pods, GenerateName: "app-", Annotations: map[string]string{settings.Networks: "n3"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
	if err := r.client.Create(ctx, pod, client.DryRunAll); err != nil {
		return err
	}
	if len(pod.Spec.InitContainers) != 1 {
		return errors.New("nothing was injected")
	}
	return nil
}

// load admits pods and connects until it is verified; a client that connects trusts what the configuration says at that moment.
type load struct {
	admitted, connected atomic.Int64
	mu                  sync.Mutex
	failures            []string
	stop                func()
}

func (r *rig) load() *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var wg sync.WaitGroup
	run := func(count *atomic.Int64, f func(context.Context) error) {
		wg.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				if err := f(ctx); err != nil && ctx.Err() == nil {
					l.mu.Lock()
					l.failures = append(l.failures, time.Now().Format("05.000 ")+err.Error())
					l.mu.Unlock()
				}
				count.Add(1)
			}
		})
	}
	for range 2 {
		run(&l.admitted, r.admit)
	}
	run(&l.connected, func(ctx context.Context) error { _, err := r.served(ctx); return err })
	r.loaded.Store(l)
	l.stop = sync.OnceFunc(func() { r.loaded.Store(nil); cancel(); wg.Wait() })
	r.t.Cleanup(l.stop)
	return l
}

// verifyLoad stops the load once there was some, also after what the test did, and fails the test if any of it failed.
func (r *rig) verifyLoad(l *load) {
	t := r.t
	t.Helper()
	admitted, connected := l.admitted.Load(), l.connected.Load()
	r.eventually("load", func() error {
		if l.admitted.Load() < admitted+20 || l.connected.Load() < connected+20 {
			return errors.New("too little of it")
		}
		return nil
	})
	l.stop()
	t.Logf("%d admissions, %d connections", l.admitted.Load(), l.connected.Load())
	if n := len(l.failures); n > 0 {
		t.Errorf("%d of them failed, first: %s; last: %s", n, l.failures[0], l.failures[n-1])
	}
}

// fetch returns the text behind url, and its status.
func (r *rig) fetch(url string) (string, int) {
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, url, nil)
	must(r.t, err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err.Error(), 0
	}
	defer response.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(response.Body)
	must(r.t, err)
	return string(body), response.StatusCode
}

func (r *rig) waitReady() {
	r.t.Helper()
	r.eventually("ready", func() error {
		if text, status := r.fetch(r.readyURL); status != http.StatusOK {
			return errors.New(text)
		}
		return nil
	})
	r.eventually("admission", func() error { return r.admit(r.t.Context()) })
}

// metric returns the value of a series of the webhook's metrics, or "" when there is none.
func (r *rig) metric(series string) string {
	r.t.Helper()
	text, _ := r.fetch(r.metricsURL)
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// waitFault waits until the webhook's metrics tell of this one reason; "" means of none.
func (r *rig) waitFault(reason string) {
	r.t.Helper()
	r.eventually("fault "+reason, func() error {
		text, _ := r.fetch(r.metricsURL)
		var faults []string
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, "multus_ip_manager_certificate_fault{"); ok {
				faults = append(faults, rest)
			}
		}
		healthy, want := r.metric("multus_ip_manager_certificate_upkeep_healthy"), "1"
		if reason != "" {
			want = "0"
		}
		switch {
		case healthy != want:
			return fmt.Errorf("healthy is %s: %q", healthy, faults)
		case reason == "" && len(faults) == 0:
			return nil
		case len(faults) == 1 && faults[0] == `reason="`+reason+"\"} 1\n":
			return nil
		}
		return fmt.Errorf("%q", faults)
	})
}

// waitLog waits until one line of the webhook's log holds all of these.
func (r *rig) waitLog(parts ...string) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("a log line with %q", parts), func() error {
		for line := range strings.Lines(r.log.String()) {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				return nil
			}
		}
		return errors.New("none")
	})
}

func (r *rig) eventually(what string, f func() error) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(40 * time.Second)
	defer limit.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			r.t.Fatalf("%s: %v", what, err)
		case <-r.t.Context().Done():
			r.t.Fatalf("%s: %v", what, err)
		case <-r.controllers.gone:
			r.t.Fatalf("%s: cert-manager has ended", what)
		}
	}
}

// errNotYet says that what is waited for is not there.
var errNotYet = errors.New("not yet")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tailOf(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
