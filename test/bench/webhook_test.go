package bench

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/loopback"
	"multus-ip-manager.io/test/stayup"
)

// clients is how many connections ask at once: enough to keep a server busy, few enough to leave it a core.
const clients = 2

// sizes are the pods of the benchmark. Budgets are the least ratio of admissions per core-second, product to common way.
var sizes = []struct {
	name       string
	containers int
	variables  int // of each container
	bytes      int // at least; variables are added to the first container until it is reached
	block      int // admissions in a row
	budget     float64
}{
	{name: "small: 1 container", containers: 1, variables: 3, block: 300, budget: 2},
	{name: "medium: 3 containers, 40 variables each", containers: 3, variables: 40, block: 150, budget: 3},
	{name: "large: 90 KB", containers: 3, variables: 350, bytes: 90_000, block: 40, budget: 3},
	{name: "2,000 variables", containers: 1, variables: 2000, block: 30},
}

// maxRSS is what the webhook may occupy after all of that, in MiB.
const maxRSS = 40

// allocationSlack is by how much the product's allocations for an admission may grow from the small pod to the largest: what is not
// needed is not decoded. (The body itself is read in some pieces more. The common way makes 50,000 more.)
const allocationSlack = 200

// BenchmarkWebhook compares admissions over TLS: the product's handler beside one that marshals the whole pod and compares, in the same
// server, each in a process of its own, and the webhook as it is shipped. They take turns.
func BenchmarkWebhook(b *testing.B) {
	servers := startServers(b)
	t := section{title: "Admissions over TLS (HTTP/1.1, " + strconv.Itoa(clients) + " connections)", rows: [][]string{{
		"", "budget", "handler", "common way", "ratio", "webhook as shipped", "ratio",
	}}}
	var allocations []float64
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			body := review(b, size.containers, size.variables, size.bytes)
			for _, s := range servers {
				s.check(b, body)
				s.block(b, body, size.block) // warm, and the connections are there
				s.forget()
			}
			order := slices.Clone(servers)
			for b.Loop() {
				for _, s := range order {
					s.block(b, body, size.block)
				}
				slices.Reverse(order)
			}
			t.rows = append(t.rows, figuresOf(b, fmt.Sprintf("%s (%.1f KB)", size.name, float64(len(body))/1e3), size.budget, servers)...)
			allocations = append(allocations, servers[0].figures().allocations)
		})
	}
	rss := func(i int) float64 { return servers[i].peakRSS(b) }
	t.rows = append(t.rows, []string{
		"largest resident set", written(strconv.Itoa(maxRSS), "MiB"), written(digits(rss(0)), "MiB"), written(digits(rss(1)), "MiB"),
		fmt.Sprintf("%.2f", rss(0)/rss(1)), written(digits(rss(2)), "MiB"), fmt.Sprintf("%.2f", rss(2)/rss(1)),
	})
	shared.summary.add(t)
	shared.summary.note("Admissions: CPU time is that of the server's process alone, by its CPU clock; latency includes the client's work. " +
		"The common way: decode into Kubernetes' types, change, marshal, admission.PatchResponseFromRaw; it does not log, the product does.")
	if grown := slices.Max(allocations) - allocations[0]; len(allocations) == len(sizes) && grown > allocationSlack {
		b.Errorf("an admission of a large pod makes %.0f allocations more than one of a small pod, want at most %d", grown, allocationSlack)
	}
}

// figuresOf are the table's rows for one pod, and the benchmark's metrics.
func figuresOf(b *testing.B, name string, budget float64, servers []*server) [][]string {
	b.Helper()
	b.ReportMetric(0, "ns/op") // a round of several servers, which says nothing
	var f []admissions
	for _, s := range servers {
		f = append(f, s.figures())
	}
	b.ReportMetric(f[0].perCoreSecond, "admissions/core-s")
	b.ReportMetric(f[0].perCoreSecond/f[1].perCoreSecond, "x-common")
	b.ReportMetric(f[0].p50, "ms-p50")
	b.ReportMetric(f[0].p99, "ms-p99")
	b.ReportMetric(f[0].allocations, "allocs/admission")
	least := ""
	if budget > 0 {
		least = fmt.Sprintf("ratio >= %.0f", budget)
	}
	row := func(title, budget, format string, of func(admissions) float64) []string {
		line := []string{title, budget}
		for i, x := range f {
			line = append(line, fmt.Sprintf(format, of(x)))
			switch i {
			case 1:
				line = append(line, fmt.Sprintf("%.2f", of(f[0])/of(f[1])))
			case 2:
				line = append(line, fmt.Sprintf("%.2f", of(f[2])/of(f[1])))
			}
		}
		return line
	}
	return [][]string{
		{name},
		row("  admissions per core-second", least, "%.0f", func(a admissions) float64 { return a.perCoreSecond }),
		row("  latency p50", "", "%.2f ms", func(a admissions) float64 { return a.p50 }),
		row("  latency p99", "", "%.2f ms", func(a admissions) float64 { return a.p99 }),
		row("  allocations", "", "%.0f", func(a admissions) float64 { return a.allocations }),
	}
}

// admissions are the figures of one server for one pod.
type admissions struct{ perCoreSecond, p50, p99, allocations float64 }

// server is a running program that answers admissions.
type server struct {
	name    string
	command *exec.Cmd
	url     string // of the webhook
	base    string // of health and metrics
	metrics string
	client  *http.Client

	perCore     []float64       // admissions per second of CPU, of each block
	latencies   []time.Duration // of each admission
	allocations []float64       // for each admission, by block
}

// forget drops what was measured.
func (s *server) forget() { s.perCore, s.latencies, s.allocations = nil, nil, nil }

func (s *server) figures() admissions {
	return admissions{
		perCoreSecond: Quantile(s.perCore, median), p50: millis(Quantile(s.latencies, median)), p99: millis(Quantile(s.latencies, 0.99)),
		allocations: Quantile(s.allocations, median),
	}
}

// startServers builds and starts what is compared: the product's handler, the common one, and the webhook as shipped.
func startServers(b *testing.B) []*server {
	b.Helper()
	dir, err := binaries.Build(b.Context(), "webhook", "test/bench/webhookserver")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	trusted := writeCertificate(b, dir)
	var servers []*server
	for _, handler := range []string{"product", "common"} {
		ports := freePorts(b, 2)
		servers = append(servers, startServer(b, trusted, handler, ports[0], ports[1], ports[1], filepath.Join(dir, "webhookserver"),
			"-handler="+handler, "-cert-dir="+dir, "-port="+ports[0], "-metrics-port="+ports[1]))
	}
	ports := freePorts(b, 3)
	return append(servers, startServer(b, trusted, "shipped", ports[0], ports[1], ports[2], filepath.Join(dir, "webhook"), "serve", "--host=127.0.0.1",
		"--port="+ports[0], "--health-port="+ports[1], "--metrics-port="+ports[2], "--cert-source=secret", "--cert-dir="+dir, "--webhook-configuration="))
}

// startServer starts one program and waits until it is ready.
func startServer(b *testing.B, trusted *x509.CertPool, name, port, health, metrics, program string, args ...string) *server {
	b.Helper()
	cmd := exec.Command(program, args...) //nolint:gosec,noctx // our own; ended below
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = nil, nil
	if name != "shipped" { // its log is part of its work, but not of our memory
		cmd.Stderr = &said
	}
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=120795955") // as the chart sets it
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			b.Errorf("%s: %v\n%s", name, err, said.String())
		}
	})
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1, as the API server talks to a Service
	}
	b.Cleanup(transport.CloseIdleConnections)
	s := &server{
		name: name, command: cmd, url: "https://127.0.0.1:" + port + "/mutate", base: "http://127.0.0.1:" + health,
		metrics: "http://127.0.0.1:" + metrics + "/metrics", client: &http.Client{Transport: transport, Timeout: 30 * time.Second},
	}
	s.await(b)
	return s
}

// await waits for the server to say that it is ready.
func (s *server) await(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := stayup.Get(ctx, s.base+"/readyz"); err == nil {
			return
		} else if ctx.Err() != nil {
			b.Fatalf("%s is not ready: %v", s.name, err)
		}
		<-tick.C
	}
}

// block measures so many admissions.
func (s *server) block(b *testing.B, body []byte, n int) {
	b.Helper()
	objects, cpu := s.mallocs(b), s.cpu(b)
	latencies := make([][]time.Duration, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for range n / clients {
				begin := time.Now()
				answer, err := s.ask(b.Context(), body)
				latencies[c] = append(latencies[c], time.Since(begin))
				if err == nil && !bytes.Contains(answer, []byte(`"patch":"`)) {
					err = fmt.Errorf("no patch: %s", answer)
				}
				errs[c] = cmp.Or(errs[c], err)
			}
		})
	}
	wg.Wait()
	done := float64(n / clients * clients)
	s.perCore = append(s.perCore, done/(s.cpu(b)-cpu).Seconds())
	s.allocations = append(s.allocations, (s.mallocs(b)-objects)/done)
	for c := range clients {
		s.latencies = append(s.latencies, latencies[c]...)
		if errs[c] != nil {
			b.Fatalf("%s: %v", s.name, errs[c])
		}
	}
}

// ask sends one review.
func (s *server) ask(ctx context.Context, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return answer, err
}

// check sees that the server does what it is measured for: the container comes first, and the pod's own are as they were.
func (s *server) check(b *testing.B, body []byte) {
	b.Helper()
	answer, err := s.ask(b.Context(), body)
	if err != nil {
		b.Fatal(err)
	}
	var in, out admissionv1.AdmissionReview
	if err := cmp.Or(json.Unmarshal(body, &in), json.Unmarshal(answer, &out)); err != nil {
		b.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(out.Response.Patch)
	if err != nil {
		b.Fatalf("%s: %v: %s", s.name, err, answer)
	}
	text, err := patch.Apply(in.Request.Object.Raw)
	if err != nil {
		b.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		b.Fatal(err)
	}
	if len(pod.Spec.InitContainers) != 2 || pod.Spec.InitContainers[0].Name != settings.ContainerName || pod.Spec.InitContainers[1].Name != "setup" ||
		pod.Annotations[settings.KeyStatus] == "" || !out.Response.Allowed || out.Response.UID != in.Request.UID {
		b.Fatalf("%s: not injected: %s", s.name, text)
	}
}

// cpu is the CPU time of the server's process so far.
func (s *server) cpu(b *testing.B) time.Duration {
	b.Helper()
	took, err := processCPU(s.command.Process.Pid)
	if err != nil {
		b.Fatalf("%s: %v", s.name, err)
	}
	return took
}

// mallocs is how many heap objects the server has allocated so far.
func (s *server) mallocs(b *testing.B) float64 {
	b.Helper()
	text, err := stayup.Get(b.Context(), s.metrics)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "go_memstats_mallocs_total "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("%s has no go_memstats_mallocs_total", s.metrics)
	return 0
}

// peakRSS is the largest resident set of the server so far, in MiB.
func (s *server) peakRSS(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatal("no VmHWM")
	return 0
}

// review is the request of the API server for a new pod, with the fields that it fills in itself.
func review(b *testing.B, containers, variables, size int) []byte {
	b.Helper()
	for {
		text, err := json.Marshal(reviewOf(containers, variables))
		if err != nil {
			b.Fatal(err)
		}
		if len(text) >= size {
			return text
		}
		variables++
	}
}

type object = map[string]any

func reviewOf(containers, variables int) object {
	kind := object{"group": "", "version": "v1", "kind": "Pod"}
	resource := object{"group": "", "version": "v1", "resource": "pods"}
	return object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": object{
		"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
		"namespace": "telco", "operation": "CREATE", "userInfo": object{
			"username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "0e1d",
			"groups": []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
		},
		"object": podObject(containers, variables), "oldObject": nil, "dryRun": false,
		"options": object{"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
	}}
}

func podObject(containers, variables int) object {
	var list []object
	for c := range containers {
		list = append(list, container(fmt.Sprintf("app-%d", c), variables))
	}
	return object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": object{
			"generateName": "upf-5d4f8c-", "namespace": "telco", "creationTimestamp": nil,
			"labels":      object{"app": "upf", "pod-template-hash": "5d4f8c"},
			"annotations": object{settings.Networks: "n3, n4@net7"},
			"ownerReferences": []object{{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "upf-5d4f8c",
				"uid": "5a6d2f9e-0b0c-4b36-8f2d-7b1f6d2f5c11", "controller": true, "blockOwnerDeletion": true}},
		},
		"spec": object{
			"initContainers": []object{container("setup", 1)}, "containers": list,
			"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
			"serviceAccountName": "default", "serviceAccount": "default", "securityContext": object{}, "schedulerName": "default-scheduler",
			"enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
			"tolerations": []object{
				{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
				{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
			},
			"volumes": []object{{"name": "kube-api-access", "projected": object{"defaultMode": 420, "sources": []object{
				{"serviceAccountToken": object{"expirationSeconds": 3607, "path": "token"}},
				{"configMap": object{"name": "kube-root-ca.crt", "items": []object{{"key": "ca.crt", "path": "ca.crt"}}}},
			}}}},
		},
		"status": object{},
	}
}

func container(name string, variables int) object {
	env := []object{}
	for v := range variables {
		env = append(env, object{"name": fmt.Sprintf("VARIABLE_%d", v), "value": strings.Repeat("v", 40)})
	}
	return object{
		"name": name, "image": "registry.example/telco/" + name + ":1.2.3", "env": env,
		"resources":    object{"requests": object{"cpu": "100m", "memory": "64Mi"}},
		"volumeMounts": []object{{"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}},
		"ports":        []object{{"name": "http", "containerPort": 8080, "protocol": "TCP"}},
		"livenessProbe": object{"httpGet": object{"path": "/healthz", "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1,
			"periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
		"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent",
	}
}

// writeCertificate makes a certificate for 127.0.0.1 in dir, and what to trust.
func writeCertificate(b *testing.B, dir string) *x509.CertPool {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{
		"tls.crt": certificate, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certificate)
	return pool
}

// freePorts finds ports of loopback that nobody uses.
func freePorts(b *testing.B, n int) []string {
	b.Helper()
	free, err := loopback.Ports(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n)
	if err != nil {
		b.Fatal(err)
	}
	var ports []string
	for _, port := range free {
		ports = append(ports, strconv.Itoa(port))
	}
	return ports
}
