package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// The fixture's names. Node A and B have three interfaces each: device 0 in subnet-node, device 1 in subnet-pods (both
// nodes), device 2 in subnet-pods (B) or subnet-small (A).
const (
	nodeA, nodeB = "i-0a", "i-0b"
	a0, a1, a2   = "eni-0a0", "eni-0a1", "eni-0a2"
	b0, b1, b2   = "eni-0b0", "eni-0b1", "eni-0b2"
	free         = "eni-0free" // not attached
)

func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }
func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func newFixture(t testing.TB, opts ...Option) *Cloud {
	t.Helper()
	c := New(append([]Option{WithSeed(1)}, opts...)...)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.AddVPC(VPC{ID: "vpc-1", IPv4: []netip.Prefix{cidr("10.0.0.0/16")}, IPv6: []netip.Prefix{cidr("fd00::/56")}}))
	must(c.AddSubnet(Subnet{ID: "subnet-node", VPCID: "vpc-1", IPv4: cidr("10.0.0.0/24")}))
	must(c.AddSubnet(Subnet{ID: "subnet-pods", VPCID: "vpc-1", IPv4: cidr("10.0.16.0/20"), IPv6: []netip.Prefix{cidr("fd00:0:0:1::/64")},
		Tags: map[string]string{"tier": "pods"}, Reservations: []Reservation{{CIDR: cidr("10.0.31.128/25")}}}))
	must(c.AddSubnet(Subnet{ID: "subnet-small", VPCID: "vpc-1", IPv4: cidr("10.0.48.0/28")}))
	for _, id := range []string{nodeA, nodeB} {
		must(c.AddInstance(Instance{ID: id, Tags: map[string]string{"Name": id}, InstanceTags: true}))
	}
	must(c.AddENI(ENI{ID: a0, SubnetID: "subnet-node", InstanceID: nodeA, Primary: ip("10.0.0.10"), MAC: "02:00:00:00:0a:00"}))
	must(c.AddENI(ENI{ID: a1, SubnetID: "subnet-pods", InstanceID: nodeA, DeviceIndex: 1, Primary: ip("10.0.16.10"), MAC: "02:00:00:00:0a:01",
		Secondary: []netip.Addr{ip("10.0.16.11")}, IPv6: []netip.Addr{ip("fd00:0:0:1::11")}, PrimaryIPv6: ip("fd00:0:0:1::10"),
		Tags: map[string]string{"node.k8s.amazonaws.com/no_manage": "true"}, SecurityGroups: []string{"sg-1", "sg-2"}}))
	must(c.AddENI(ENI{ID: a2, SubnetID: "subnet-small", InstanceID: nodeA, DeviceIndex: 2, NetworkCard: 0, Primary: ip("10.0.48.10"), MAC: "02:00:00:00:0a:02"}))
	must(c.AddENI(ENI{ID: b0, SubnetID: "subnet-node", InstanceID: nodeB, Primary: ip("10.0.0.20"), MAC: "02:00:00:00:0b:00",
		Prefixes: []netip.Prefix{cidr("10.0.0.64/28")}}))
	must(c.AddENI(ENI{ID: b1, SubnetID: "subnet-pods", InstanceID: nodeB, DeviceIndex: 1, Primary: ip("10.0.16.20"), MAC: "02:00:00:00:0b:01",
		Secondary: []netip.Addr{ip("10.0.16.21"), ip("10.0.16.22")}, IPv6: []netip.Addr{ip("fd00:0:0:1::21")},
		Prefixes:   []netip.Prefix{cidr("10.0.17.0/28"), cidr("fd00:0:0:1:1::/80")},
		ElasticIPs: map[netip.Addr]netip.Addr{ip("10.0.16.21"): ip("203.0.113.7")}}))
	must(c.AddENI(ENI{ID: b2, SubnetID: "subnet-pods", InstanceID: nodeB, DeviceIndex: 2, Primary: ip("10.0.16.30"), MAC: "02:00:00:00:0b:02"}))
	must(c.AddENI(ENI{ID: free, SubnetID: "subnet-pods", Primary: ip("10.0.16.40"), MAC: "02:00:00:00:0f:01"}))
	c.AddUser("AKIAROOT", "root-secret")
	return c
}

// reply is an answer as a client sees it.
type reply struct {
	Status        int
	Code, Message string
	Body          string
	Header        http.Header
}

// form makes parameters out of "k=v" pairs.
func form(pairs ...string) url.Values {
	v := url.Values{"Version": {"2016-11-15"}}
	for _, p := range pairs {
		k, val, _ := strings.Cut(p, "=")
		v.Set(k, val)
	}
	return v
}

// signed is a POST request signed by the SDK's own signer.
func signed(t testing.TB, creds Creds, body string) *http.Request {
	t.Helper()
	return signedFor(t, creds, body, "ec2", "us-east-1", time.Now())
}

func signedFor(t testing.TB, creds Creds, body, service, region string, at time.Time) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://ec2.test/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(body))
	keys := sdk.Credentials{AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, SessionToken: creds.SessionToken}
	if err := v4.NewSigner().SignHTTP(context.Background(), keys, r, hex.EncodeToString(sum[:]), service, region, at); err != nil {
		t.Fatal(err)
	}
	return r
}

func send(c *Cloud, r *http.Request) reply {
	w := httptest.NewRecorder()
	c.EC2().ServeHTTP(w, r)
	out := reply{Status: w.Code, Body: w.Body.String(), Header: w.Header()}
	if w.Code >= 300 {
		var e errorXML
		if err := xml.Unmarshal(w.Body.Bytes(), &e); err != nil {
			out.Message = "not XML: " + err.Error()
		}
		out.Code, out.Message = e.Code, e.Message
	}
	return out
}

// call sends a request as root.
func call(t testing.TB, c *Cloud, pairs ...string) reply {
	t.Helper()
	return send(c, signed(t, Creds{AccessKeyID: "AKIAROOT", SecretAccessKey: "root-secret"}, form(pairs...).Encode()))
}

// ok sends a request as root that must succeed.
func ok(t testing.TB, c *Cloud, pairs ...string) reply {
	t.Helper()
	r := call(t, c, pairs...)
	if r.Status != http.StatusOK {
		t.Fatalf("%v: %d %s: %s", pairs, r.Status, r.Code, r.Message)
	}
	return r
}

// advance lets virtual time pass; it is used in synctest bubbles only.
func advance(d time.Duration) { <-time.After(d) }

// changeLog collects what a watcher is told.
type changeLog struct {
	mu   sync.Mutex
	list []Change
}

func (l *changeLog) add(c Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, c)
}

func (l *changeLog) all() []Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

// owners is who has each block after all changes.
func (l *changeLog) owners() map[string]string {
	out := map[string]string{}
	for _, c := range l.all() {
		out[c.Block.String()] = c.To
	}
	return out
}
