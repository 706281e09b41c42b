package aws

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ask sends one request to a handler; headers are "Name: value".
func ask(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://169.254.169.254"+path, nil)
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const ttl = "X-aws-ec2-metadata-token-ttl-seconds: "

func newToken(t *testing.T, h http.Handler, seconds string) string {
	t.Helper()
	w := ask(h, http.MethodPut, "/latest/api/token", ttl+seconds)
	if w.Code != 200 {
		t.Fatalf("token: %d", w.Code)
	}
	return "X-aws-ec2-metadata-token: " + w.Body.String()
}

// TestMetadataTree shows every key of an instance with three interfaces.
func TestMetadataTree(t *testing.T) {
	c := newFixture(t)
	if err := c.ChangeInstance(nodeB, func(i *Instance) { i.Tags["role"] = "upf" }); err != nil {
		t.Fatal(err)
	}
	h := c.IMDS(nodeB)
	var out strings.Builder
	var walk func(path string)
	walk = func(path string) {
		for _, name := range strings.Split(ask(h, http.MethodGet, path).Body.String(), "\n") {
			full := path + name
			if path == "/latest/" {
				full += "/"
			}
			if strings.HasSuffix(full, "/") {
				walk(full)
				continue
			}
			w := ask(h, http.MethodGet, full)
			value := w.Body.String()
			switch {
			case w.Code != 200:
				t.Errorf("%s is listed and answers %d", full, w.Code)
			case strings.HasPrefix(value, "{"):
				value = "{…}"
			}
			out.WriteString(strings.TrimPrefix(full, "/latest/") + " = " + strings.ReplaceAll(value, "\n", " | ") + "\n")
		}
	}
	walk("/latest/")
	golden(t, "metadata.txt", out.String())
}

func TestMetadataPaths(t *testing.T) {
	c := newFixture(t)
	h := c.IMDS(nodeA)
	mac := "/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:01/"
	for path, want := range map[string]string{
		"/": strings.Join(imdsVersions(), "\n"), "/latest": "dynamic\nmeta-data", "/latest/": "dynamic\nmeta-data",
		"/latest/meta-data/instance-id": nodeA, "/latest/meta-data/instance-id/": nodeA, "/2021-07-15/meta-data/mac": "02:00:00:00:0a:00",
		"/2016-09-02/meta-data/mac": "02:00:00:00:0a:00", "/1.0/meta-data/mac": "02:00:00:00:0a:00",
		"/latest/meta-data/network/interfaces/macs":  "02:00:00:00:0a:00/\n02:00:00:00:0a:01/\n02:00:00:00:0a:02/",
		"/latest/meta-data/network/interfaces/macs/": "02:00:00:00:0a:00/\n02:00:00:00:0a:01/\n02:00:00:00:0a:02/",
		mac + "local-ipv4s":                          "10.0.16.10\n10.0.16.11", mac + "ipv6s": "fd00:0:0:1::10\nfd00:0:0:1::11",
		mac + "security-group-ids":                    "sg-1\nsg-2",
		"/latest//meta-data/placement/region":         "us-east-1",
		"/latest/meta-data/iam/security-credentials/": "node",
		"/latest/meta-data/tags/instance/":            "Name",
	} {
		if w := ask(h, http.MethodGet, path); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", path, w.Code, w.Body.String(), want)
		}
	}
	for _, path := range []string{"/latest/user-data", "/latest/meta-data/nope", "/v1/meta-data/mac", "/1999-12-31/meta-data/mac", mac + "ipv4-prefix", mac + "network-card",
		"/latest/meta-data/network/interfaces/macs/02:00:00:00:0b:01/subnet-id", "/latest/meta-data/network/interfaces/macs/02:00:00:00:0A:01/subnet-id",
		"/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:02/ipv6s", "/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:02/subnet-ipv6-cidr-blocks"} {
		if w := ask(h, http.MethodGet, path); w.Code != 404 {
			t.Errorf("%s: %d %q, want 404", path, w.Code, w.Body.String())
		}
	}
}

// TestNodeNames: private DNS names, which are the names of EKS's nodes, and public ones are the region's.
func TestNodeNames(t *testing.T) {
	for region, want := range map[string]struct{ private, public string }{
		"us-east-1":    {"ip-10-0-0-10.ec2.internal", "ec2-203-0-113-7.compute-1.amazonaws.com"},
		"eu-central-1": {"ip-10-0-0-10.eu-central-1.compute.internal", "ec2-203-0-113-7.eu-central-1.compute.amazonaws.com"},
	} {
		c := newFixture(t, WithRegion(region), WithSettings(func(s *Settings) { s.AnyRegion = true }))
		if got := ask(c.IMDS(nodeA), http.MethodGet, "/latest/meta-data/local-hostname").Body.String(); got != want.private {
			t.Errorf("%s: metadata says %s, want %s", region, got, want.private)
		}
		body := ok(t, c, "Action=DescribeInstances", "Filter.1.Name=private-dns-name", "Filter.1.Value.1="+want.private).Body
		if got := found(body, "privateDnsName"); len(got) == 0 || got[0] != want.private {
			t.Errorf("%s: the instance is %v, want %s", region, got, want.private)
		}
		body = ok(t, c, "Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1="+b1).Body
		if got := found(body, "publicDnsName"); len(got) == 0 || got[0] != want.public {
			t.Errorf("%s: the Elastic IP is %v, want %s", region, got, want.public)
		}
	}
}

func TestMetadataTokens(t *testing.T) {
	put, get := http.MethodPut, http.MethodGet
	const tokens, id = "/latest/api/token", "/latest/meta-data/instance-id"
	cases := map[string]struct {
		change  func(*Instance)
		method  string
		path    string
		headers []string
		status  int
	}{
		"v1":                    {nil, get, id, nil, 200},
		"v1, tokens required":   {func(i *Instance) { i.TokensRequired = true }, get, id, nil, 401},
		"disabled get":          {func(i *Instance) { i.IMDSDisabled = true }, get, id, nil, 403},
		"disabled put":          {func(i *Instance) { i.IMDSDisabled = true }, put, tokens, []string{ttl + "60"}, 403},
		"put":                   {nil, put, tokens, []string{ttl + "21600"}, 200},
		"put without ttl":       {nil, put, tokens, nil, 400},
		"put ttl 0":             {nil, put, tokens, []string{ttl + "0"}, 400},
		"put ttl too long":      {nil, put, tokens, []string{ttl + "21601"}, 400},
		"put ttl not a number":  {nil, put, tokens, []string{ttl + "1h"}, 400},
		"put through a proxy":   {nil, put, tokens, []string{ttl + "60", "X-Forwarded-For: 10.1.1.1"}, 403},
		"put by a quiet proxy":  {nil, put, tokens, []string{ttl + "60", "X-Forwarded-For: "}, 403},
		"put with a slash":      {nil, put, tokens + "/", []string{ttl + "60"}, 403},
		"get a token":           {nil, get, tokens, []string{ttl + "60"}, 405},
		"options":               {nil, http.MethodOptions, tokens, nil, 200},
		"put elsewhere":         {nil, put, id, []string{ttl + "60"}, 405},
		"post":                  {nil, http.MethodPost, id, nil, 405},
		"delete":                {nil, http.MethodDelete, id, nil, 405},
		"wrong token":           {nil, get, id, []string{"X-aws-ec2-metadata-token: forged"}, 401},
		"wrong token, required": {func(i *Instance) { i.TokensRequired = true }, get, id, []string{"X-aws-ec2-metadata-token: forged"}, 401},
		"empty token":           {nil, get, id, []string{"X-aws-ec2-metadata-token: "}, 401},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newFixture(t)
			if tc.change != nil {
				if err := c.ChangeInstance(nodeA, tc.change); err != nil {
					t.Fatal(err)
				}
			}
			w := ask(c.IMDS(nodeA), tc.method, tc.path, tc.headers...)
			if w.Code != tc.status {
				t.Errorf("got %d, want %d", w.Code, tc.status)
			}
			if got := c.IMDSJournal()[0]; got.Status != tc.status || got.Instance != nodeA || got.Path != tc.path {
				t.Errorf("journal: %+v", got)
			}
		})
	}
}

func TestTokenLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t)
		for _, id := range []string{nodeA, nodeB} {
			if err := c.ChangeInstance(id, func(i *Instance) { i.TokensRequired = true }); err != nil {
				t.Fatal(err)
			}
		}
		tok := newToken(t, c.IMDS(nodeA), "60")
		status := func(id string) int { return ask(c.IMDS(id), http.MethodGet, "/latest/meta-data/mac", tok).Code }
		if status(nodeA) != 200 || status(nodeB) != 401 {
			t.Errorf("own instance %d, another %d", status(nodeA), status(nodeB))
		}
		advance(59 * time.Second)
		if status(nodeA) != 200 {
			t.Error("ended too early")
		}
		advance(time.Second)
		if status(nodeA) != 401 {
			t.Error("lives on")
		}
	})
}

// TestMetadataCredentials: what the metadata service hands out is what EC2 accepts.
func TestMetadataCredentials(t *testing.T) {
	c := newFixture(t)
	h := c.IMDS(nodeA)
	var got struct{ Code, Type, AccessKeyID, SecretAccessKey, Token, Expiration string }
	w := ask(h, http.MethodGet, "/latest/meta-data/iam/security-credentials/node")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := c.Credentials(nodeA)
	if got.Code != "Success" || got.Type != "AWS-HMAC" || got.Expiration != want.Expires.Format(time.RFC3339) {
		t.Errorf("%s %s %s", got.Code, got.Type, got.Expiration)
	}
	creds := Creds{AccessKeyID: got.AccessKeyID, SecretAccessKey: got.SecretAccessKey, SessionToken: got.Token}
	if r := send(c, signed(t, creds, form("Action=DescribeSubnets").Encode())); r.Status != 200 {
		t.Errorf("%d %s", r.Status, r.Code)
	}
	var doc struct{ InstanceID, Region, AvailabilityZone, PrivateIP string }
	if err := json.Unmarshal(ask(h, http.MethodGet, "/latest/dynamic/instance-identity/document").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.InstanceID != nodeA || doc.Region != "us-east-1" || doc.AvailabilityZone != "us-east-1a" || doc.PrivateIP != "10.0.0.10" {
		t.Errorf("%+v", doc)
	}
	if err := c.ChangeInstance(nodeA, func(i *Instance) { i.Role = "-" }); err != nil {
		t.Fatal(err)
	}
	if w := ask(h, http.MethodGet, "/latest/meta-data/iam/security-credentials/"); w.Code != 404 {
		t.Errorf("without a role: %d", w.Code)
	}
}

// TestDelays: the metadata service and the describe calls lag behind by their own delays; assigning does not.
func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t, WithSettings(func(s *Settings) {
			s.Delays = Delays{Describe: 2 * time.Second, IMDS: 30 * time.Second, DataPlane: 500 * time.Millisecond}
		}))
		advance(time.Minute) // the fixture itself is old news then
		start := time.Now()
		var log changeLog
		defer c.Watch(log.add)()
		ok(t, c, assign4, on+a1, "PrivateIpAddress.1=10.0.16.50")
		list := func() (describe, imds bool) {
			body := ok(t, c, "Action=DescribeNetworkInterfaces", "NetworkInterfaceId.1="+a1).Body
			describe = slices.Contains(found(body, "privateIpAddress"), "10.0.16.50")
			ips := ask(c.IMDS(nodeA), http.MethodGet, "/latest/meta-data/network/interfaces/macs/02:00:00:00:0a:01/local-ipv4s").Body.String()
			return describe, strings.Contains(ips, "10.0.16.50")
		}
		check := func(wantDescribe, wantIMDS bool) {
			t.Helper()
			if d, i := list(); d != wantDescribe || i != wantIMDS {
				t.Errorf("after %s: describe %t, IMDS %t", time.Since(start), d, i)
			}
		}
		check(false, false)
		if h, _ := c.Holder(ip("10.0.16.50")); h.ENI != a1 || len(log.all()) != 0 {
			t.Errorf("holder %+v, in force %v", h, log.all())
		}
		advance(600 * time.Millisecond)
		synctest.Wait()
		if got := log.all(); len(got) != 1 || got[0].At.Sub(start) != 500*time.Millisecond {
			t.Errorf("in force: %v", got)
		}
		advance(time.Second)
		check(false, false)
		advance(time.Second)
		check(true, false)
		advance(28 * time.Second)
		check(true, true)
		// Both lag both ways: what is gone is still shown.
		ok(t, c, unassign4, on+a1, "PrivateIpAddress.1=10.0.16.50")
		check(true, true)
		advance(3 * time.Second)
		check(false, true)
		advance(30 * time.Second)
		check(false, false)
	})
}

// TestFreeze: a frozen view stays as it was, hot-plug and removal included, until it is thawed.
func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t)
		advance(time.Second)
		c.Tune(func(s *Settings) { s.FreezeIMDS = true })
		advance(time.Second)
		for _, err := range []error{c.DeleteENI(a2), c.Attach(free, nodeA, 2), c.Assign(a1, ip("10.0.16.50")),
			c.Detach(a0), c.AddENI(ENI{ID: "eni-0new", SubnetID: "subnet-node", InstanceID: nodeA, MAC: "02:00:00:00:0f:02"})} {
			if err != nil {
				t.Fatal(err)
			}
		}
		macs := func() string {
			return ask(c.IMDS(nodeA), http.MethodGet, "/latest/meta-data/network/interfaces/macs/").Body.String()
		}
		frozen := "02:00:00:00:0a:00/\n02:00:00:00:0a:01/\n02:00:00:00:0a:02/"
		if macs() != frozen {
			t.Errorf("frozen: %s", macs())
		}
		body := ok(t, c, "Action=DescribeNetworkInterfaces", "Filter.1.Name=attachment.instance-id", "Filter.1.Value.1="+nodeA).Body
		if diff := cmp.Diff([]string{a1, free, "eni-0new"}, found(body, "networkInterfaceId")); diff != "" {
			t.Errorf("the describe call is not frozen:\n%s", diff)
		}
		advance(time.Hour)
		if macs() != frozen {
			t.Errorf("still frozen: %s", macs())
		}
		c.Tune(func(s *Settings) { s.FreezeIMDS = false })
		if want := "02:00:00:00:0a:01/\n02:00:00:00:0f:01/\n02:00:00:00:0f:02/"; macs() != want {
			t.Errorf("thawed: %s", macs())
		}
	})
}

func TestMetadataQuirks(t *testing.T) {
	c := newFixture(t)
	path := "/latest/meta-data/network/interfaces/macs/02:00:00:00:0b:02/"
	if w := ask(c.IMDS(nodeB), http.MethodGet, path+"subnet-ipv6-cidr-blocks"); w.Body.String() != "fd00:0:0:1::/64" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	c.Tune(func(s *Settings) { s.Quirks.IMDSIPv6NeedsAddress = true })
	if w := ask(c.IMDS(nodeB), http.MethodGet, path+"subnet-ipv6-cidr-blocks"); w.Code != 404 {
		t.Errorf("%d", w.Code)
	}
	if err := c.ChangeENI(b2, func(e *ENI) { e.AttachStatus = "attaching" }); err != nil {
		t.Fatal(err)
	}
	if w := ask(c.IMDS(nodeB), http.MethodGet, path); w.Body.String() != "device-number\ninterface-id\nmac" {
		t.Errorf("half populated: %q", w.Body)
	}
}

func TestNetworkCards(t *testing.T) {
	c := newFixture(t)
	if err := c.AddInstance(Instance{ID: "i-0c", Type: "c6in.32xlarge"}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []ENI{
		{ID: "eni-0c0", SubnetID: "subnet-node", InstanceID: "i-0c", MAC: "02:00:00:00:0c:00"},
		{ID: "eni-0c1", SubnetID: "subnet-pods", InstanceID: "i-0c", DeviceIndex: 1, NetworkCard: 1, MAC: "02:00:00:00:0c:01", IPv6: []netip.Addr{ip("fd00:0:0:1::c1")}},
		{ID: "eni-0c2", SubnetID: "subnet-pods", InstanceID: "i-0c", DeviceIndex: 1, Type: "efa-only", MAC: "02:00:00:00:0c:02"},
	} {
		if err := c.AddENI(e); err != nil {
			t.Fatal(err)
		}
	}
	path := "/latest/meta-data/network/interfaces/macs/02:00:00:00:0c:0"
	for key, want := range map[string]string{"0/network-card": "", "1/network-card": "1", "1/device-number": "1", "2/local-ipv4s": "", "2/interface-id": "eni-0c2"} {
		w := ask(c.IMDS("i-0c"), http.MethodGet, path+key)
		if want == "" && w.Code != 404 || want != "" && w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", key, w.Code, w.Body, want)
		}
	}
}

// spy hands out the connections that a listener accepts.
type spy struct {
	net.Listener
	conns chan net.Conn
}

func (s spy) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err == nil {
		s.conns <- conn
	}
	return conn, err
}

// TestHopLimitOnTheWire: a token answer leaves with the instance's hop limit, everything else with the default, also
// on one connection.
func TestHopLimitOnTheWire(t *testing.T) {
	for _, tc := range []struct {
		network, addr      string
		level, opt, normal int
	}{
		{"tcp4", "127.0.0.1:0", syscall.IPPROTO_IP, syscall.IP_TTL, 64},
		{"tcp6", "[::1]:0", syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS, 64},
	} {
		t.Run(tc.network, func(t *testing.T) {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), tc.network, tc.addr)
			if err != nil {
				t.Skipf("no %s on loopback here: %v", tc.network, err)
			}
			c := newFixture(t)
			if err := c.ChangeInstance(nodeA, func(i *Instance) { i.HopLimit = 1 }); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			s := spy{l, make(chan net.Conn, 10)}
			go func() { served <- c.ServeIMDS(ctx, s, nodeA) }()
			client := &http.Client{Transport: &http.Transport{}}
			var conn net.Conn
			do := func(method, path string) int {
				r, err := http.NewRequestWithContext(ctx, method, "http://"+l.Addr().String()+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
				resp, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if conn == nil {
					conn = <-s.conns
				}
				return sockopt(t, conn, tc.level, tc.opt)
			}
			got := []int{do("GET", "/latest/meta-data/mac"), do("PUT", "/latest/api/token"), do("GET", "/latest/meta-data/mac")}
			if diff := cmp.Diff([]int{tc.normal, 1, tc.normal}, got); diff != "" {
				t.Errorf("TTL after GET, PUT, GET:\n%s", diff)
			}
			client.CloseIdleConnections()
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if len(s.conns) > 0 {
				t.Error("the requests took several connections")
			}
		})
	}
}

func sockopt(t *testing.T, conn net.Conn, level, opt int) int {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = syscall.GetsockoptInt(int(fd), level, opt) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value
}

// TestTooFarAway: from further away than the hop limit a token request gets no answer, IMDSv1 does.
func TestTooFarAway(t *testing.T) {
	c := newFixture(t)
	if err := c.ChangeInstance(nodeA, func(i *Instance) { i.HopLimit = 1 }); err != nil {
		t.Fatal(err)
	}
	h := c.IMDSFrom(nodeA, 2)
	if w := ask(h, http.MethodGet, "/latest/meta-data/mac"); w.Code != 200 {
		t.Errorf("v1: %d", w.Code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		defer func() {
			err, _ := recover().(error)
			ended <- err
		}()
		r := httptest.NewRequestWithContext(ctx, http.MethodPut, "/latest/api/token", nil)
		r.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
		h.ServeHTTP(httptest.NewRecorder(), r)
	}()
	if err := c.WaitIMDSJournal(ctx, func(calls []Call) bool { return len(calls) == 2 && calls[1].Fault == "hop limit" }); err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := <-ended; !errors.Is(got, http.ErrAbortHandler) {
		t.Errorf("ended with %v", got)
	}
	newToken(t, c.IMDSFrom(nodeA, 1), "60")
}
