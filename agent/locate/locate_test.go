package locate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/quickack"
)

// imdsServer speaks the metadata protocol. Its fields are set before the first request; hooks take over single requests.
type imdsServer struct {
	// keys are paths under /latest/meta-data/ with their values.
	keys map[string]string
	// tokenStatus, when not 0, is the answer to every request for a token.
	tokenStatus int
	// mute leaves requests for a token without an answer.
	mute bool
	// needToken refuses requests without a valid token.
	needToken bool
	// hook, when set, may answer a request itself.
	hook func(w http.ResponseWriter, r *http.Request) bool

	mu     sync.Mutex
	tokens int
	valid  map[string]bool // as on AWS, a new token does not end the others
	gets   []string
	stop   chan struct{}
}

func (s *imdsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.hook != nil && s.hook(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" {
		s.tokens++
		switch {
		case s.mute:
			s.mu.Unlock()
			select {
			case <-r.Context().Done():
			case <-s.stop:
			}
			s.mu.Lock()
		case s.tokenStatus != 0:
			w.WriteHeader(s.tokenStatus)
		default:
			token := fmt.Sprintf("token-%d", s.tokens)
			if s.valid == nil {
				s.valid = map[string]bool{}
			}
			s.valid[token] = true
			w.Header().Set("X-aws-ec2-metadata-token-ttl-seconds", r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds"))
			_, _ = w.Write([]byte(token))
		}
		return
	}
	s.gets = append(s.gets, r.URL.Path)
	if token := r.Header.Get("X-aws-ec2-metadata-token"); s.needToken && !s.valid[token] {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	value, ok := s.keys[strings.TrimPrefix(r.URL.Path, "/latest/meta-data/")]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = w.Write([]byte(value))
}

// serve listens on loopback.
func (s *imdsServer) serve(t *testing.T) *httptest.Server {
	t.Helper()
	s.stop = make(chan struct{})
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.stop)
		server.Close()
	})
	return server
}

// start serves and gives a client that takes the server for the real metadata address.
func (s *imdsServer) start(t *testing.T) *Metadata {
	t.Helper()
	m, err := New(rerouted{s.serve(t).Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rerouted dials one address whatever was asked for, as a route would.
type rerouted struct{ to string }

func (r rerouted) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, r.to)
}

func clientOf(t *testing.T, url string) *Metadata {
	t.Helper()
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
	m, err := New(&net.Dialer{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const (
	mac0 = "02:00:00:00:00:00"
	mac1 = "02:00:00:00:00:01"
	mac2 = "02:00:00:00:00:02"
)

// node gives the metadata of a node with three ENIs.
func node() map[string]string {
	k := map[string]string{
		"mac":                      mac0,
		"placement/region":         "eu-central-1",
		"network/interfaces/macs/": mac0 + "/\n" + mac1 + "/\n" + mac2 + "/",
	}
	add := func(mac, id, device, subnet string, more map[string]string) {
		base := "network/interfaces/macs/" + mac + "/"
		k[base+"interface-id"], k[base+"device-number"], k[base+"subnet-id"] = id, device, subnet
		for key, value := range more {
			k[base+key] = value
		}
	}
	add(mac0, "eni-0", "0", "subnet-a", map[string]string{"subnet-ipv4-cidr-block": "10.0.0.0/24", "local-ipv4s": "10.0.0.4"})
	add(mac1, "eni-1", "1", "subnet-b", map[string]string{"subnet-ipv4-cidr-block": "10.0.1.0/24",
		"subnet-ipv6-cidr-blocks": "2001:db8:0:1::/64\n2001:db8:0:2::/64", "ipv4-prefix": "10.0.1.16/28\n10.0.1.32/28", "ipv6-prefix": "2001:db8:0:1:aa::/80"})
	add(mac2, "eni-2", "2", "subnet-c", map[string]string{"subnet-ipv4-cidr-block": "10.0.2.0/24"})
	return k
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

var (
	// Of a primary ENI that was not asked for, only the identity is read.
	wantENI0  = plan.ENI{ID: "eni-0", MAC: mac0, DeviceIndex: 0, SubnetID: "subnet-a"}
	wholeENI0 = plan.ENI{ID: "eni-0", MAC: mac0, DeviceIndex: 0, SubnetID: "subnet-a", Subnets: prefixes("10.0.0.0/24")}
	wantENI1  = plan.ENI{ID: "eni-1", MAC: mac1, DeviceIndex: 1, SubnetID: "subnet-b", Subnets: prefixes("10.0.1.0/24", "2001:db8:0:1::/64", "2001:db8:0:2::/64"),
		Prefixes: prefixes("10.0.1.16/28", "10.0.1.32/28", "2001:db8:0:1:aa::/80")}
	wantENI2 = plan.ENI{ID: "eni-2", MAC: mac2, DeviceIndex: 2, SubnetID: "subnet-c", Subnets: prefixes("10.0.2.0/24")}
)

func compare(t *testing.T, want, got []plan.ENI) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("ENIs (-want +got):\n%s", diff)
	}
}

func TestENIs(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(k map[string]string)
		macs   []string
		want   []plan.ENI
		err    error
	}{
		"one, and the primary":    {macs: []string{mac1}, want: []plan.ENI{wantENI0, wantENI1}},
		"two":                     {macs: []string{mac2, mac1}, want: []plan.ENI{wantENI0, wantENI1, wantENI2}},
		"none: still the primary": {want: []plan.ENI{wantENI0}},
		"an unknown one":          {macs: []string{"fa:ce:00:00:00:01", mac2}, want: []plan.ENI{wantENI0, wantENI2}},
		"the primary itself":      {macs: []string{mac0}, want: []plan.ENI{wholeENI0}},
		"MACs in upper case": {change: func(k map[string]string) {
			// Metadata is asked about a MAC as it writes it itself.
			rename(k, mac0, "02:AA:00:00:00:00")
			rename(k, mac1, "02:AA:00:00:00:01")
			k["mac"] = "02:AA:00:00:00:00"
		}, macs: []string{"02:aa:00:00:00:01"}, want: []plan.ENI{withMAC(wantENI0, "02:aa:00:00:00:00"), withMAC(wantENI1, "02:aa:00:00:00:01")}},
		"primary MAC in upper case":                          {change: func(k map[string]string) { k["mac"] = "02:AA:00:00:00:00"; rename(k, mac0, "02:aa:00:00:00:00") }, macs: []string{mac1}, want: []plan.ENI{withMAC(wantENI0, "02:aa:00:00:00:00"), wantENI1}},
		"no key of the primary MAC":                          {change: noMAC(), macs: []string{mac1}, want: []plan.ENI{wantENI0, wantENI1}},
		"no key of the primary MAC, which is asked for":      {change: noMAC(), macs: []string{mac0, mac1}, want: []plan.ENI{wholeENI0, wantENI1}},
		"no key of the primary MAC, which is half there":     {change: noMAC(drop(mac0, "subnet-id")), macs: []string{mac1}, err: ErrIncomplete},
		"no key of the primary MAC, an ENI without a number": {change: noMAC(drop(mac0, "device-number")), macs: []string{mac1}, err: ErrIncomplete},
		"no key of the primary MAC, half of another":         {change: noMAC(drop(mac2, "subnet-id")), macs: []string{mac1}, want: []plan.ENI{wantENI0, wantENI1}},
		"no key of the primary MAC, a number of another":     {change: noMAC(drop(mac2, "device-number")), macs: []string{mac1}, want: []plan.ENI{wantENI0, wantENI1}},
		"another is named the primary":                       {change: func(k map[string]string) { k["mac"] = mac2 }, macs: []string{mac1}, want: []plan.ENI{wantENI0, wantENI1}},
		"no primary at all": {change: func(k map[string]string) { k["network/interfaces/macs/"] = mac1 + "/\n" + mac2 + "/" },
			macs: []string{mac1}, want: []plan.ENI{wantENI1}},
		"half of it: no id":                 {change: drop(mac1, "interface-id"), macs: []string{mac1, mac2}, err: ErrIncomplete},
		"half of it: no subnet":             {change: drop(mac1, "subnet-id"), macs: []string{mac1, mac2}, err: ErrIncomplete},
		"half of it: no device":             {change: drop(mac1, "device-number"), macs: []string{mac1, mac2}, err: ErrIncomplete},
		"device is no number":               {change: func(k map[string]string) { k[base(mac1)+"device-number"] = "one" }, macs: []string{mac1, mac2}, err: ErrIncomplete},
		"half of the primary: no id":        {change: drop(mac0, "interface-id"), macs: []string{mac2}, err: ErrIncomplete},
		"half of the primary: no subnet":    {change: drop(mac0, "subnet-id"), macs: []string{mac2}, err: ErrIncomplete},
		"half of the primary: no device":    {change: drop(mac0, "device-number"), macs: []string{mac2}, err: ErrIncomplete},
		"half of one that nobody asked for": {change: drop(mac1, "subnet-id"), macs: []string{mac2}, want: []plan.ENI{wantENI0, wantENI2}},
		"no blocks": {change: func(k map[string]string) { delete(k, base(mac2)+"subnet-ipv4-cidr-block") }, macs: []string{mac2},
			want: []plan.ENI{wantENI0, {ID: "eni-2", MAC: mac2, DeviceIndex: 2, SubnetID: "subnet-c"}}},
		"spaces and host bits": {change: func(k map[string]string) {
			k[base(mac2)+"subnet-ipv4-cidr-block"] = " 10.0.2.7/24\n"
			k[base(mac2)+"interface-id"] = "eni-2\n"
		}, macs: []string{mac2}, want: []plan.ENI{wantENI0, wantENI2}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &imdsServer{keys: node(), needToken: true}
			if tt.change != nil {
				tt.change(s.keys)
			}
			got, err := s.start(t).ENIs(t.Context(), tt.macs)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			compare(t, tt.want, got)
			if s.tokens != 1 {
				t.Errorf("%d tokens asked for, want 1", s.tokens)
			}
			for _, g := range s.gets {
				if strings.HasSuffix(g, "/local-ipv4s") || strings.HasSuffix(g, "/ipv6s") {
					t.Errorf("the stale list %s was read", g)
				}
			}
		})
	}
}

func base(mac string) string { return "network/interfaces/macs/" + mac + "/" }

func withMAC(e plan.ENI, mac string) plan.ENI { e.MAC = mac; return e }

func drop(mac, key string) func(map[string]string) {
	return func(k map[string]string) { delete(k, base(mac)+key) }
}

// noMAC takes away the key that names the primary ENI, and what else is to be missing.
func noMAC(more ...func(map[string]string)) func(map[string]string) {
	return func(k map[string]string) {
		delete(k, "mac")
		for _, change := range more {
			change(k)
		}
	}
}

func rename(k map[string]string, from, to string) {
	for key, value := range k {
		if strings.Contains(key, from) {
			delete(k, key)
			k[strings.ReplaceAll(key, from, to)] = value
		}
	}
	k["network/interfaces/macs/"] = strings.ReplaceAll(k["network/interfaces/macs/"], from, to)
}

// Where all is as it should be nothing is read that is not needed: the list, the primary's MAC and who it is, and one ENI in full.
func TestENIsReadsNoMore(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node(), needToken: true}
	if _, err := s.start(t).ENIs(t.Context(), []string{mac1}); err != nil {
		t.Fatal(err)
	}
	if len(s.gets) != 2+3+7 {
		t.Errorf("%d requests: %q", len(s.gets), s.gets)
	}
}

func TestAll(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(k map[string]string)
		want   []plan.ENI
		err    error
	}{
		"whole":                {change: noMAC(), want: []plan.ENI{wholeENI0, wantENI1, wantENI2}},
		"half of one":          {change: drop(mac1, "device-number"), want: []plan.ENI{wholeENI0, wantENI2}},
		"half of the primary":  {change: drop(mac0, "subnet-id"), err: ErrIncomplete},
		"the primary unknown":  {change: drop(mac0, "device-number"), err: ErrIncomplete},
		"no primary is listed": {change: func(k map[string]string) { k["network/interfaces/macs/"] = mac1 + "/" }, want: []plan.ENI{wantENI1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &imdsServer{keys: node(), needToken: true}
			tt.change(s.keys)
			got, err := s.start(t).All(t.Context())
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			compare(t, tt.want, got)
		})
	}
}

// A primary ENI that metadata knows half of for a moment is there at the next look.
func TestPrimaryIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node()}
	m := s.start(t)
	drop(mac0, "subnet-id")(s.keys)
	_, err := m.ENIs(t.Context(), []string{mac1})
	if !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), mac0) || !strings.Contains(err.Error(), "primary") {
		t.Errorf("%v", err)
	}
	s.mu.Lock()
	s.keys[base(mac0)+"subnet-id"] = "subnet-a"
	s.mu.Unlock()
	got, err := m.ENIs(t.Context(), []string{mac1})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, []plan.ENI{wantENI0, wantENI1}, got)
}

func TestRegion(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node(), needToken: true}
	m := s.start(t)
	if got, err := m.Region(t.Context()); err != nil || got != "eu-central-1" || len(s.gets) != 1 {
		t.Errorf("%q, %v, after %d requests", got, err, len(s.gets))
	}
	for _, bad := range []string{"", "<html>", "eu central", "eu-central-1.evil.example", strings.Repeat("a", 64)} {
		s.mu.Lock()
		s.keys["placement/region"] = bad
		s.mu.Unlock()
		if _, err := m.Region(t.Context()); !errors.Is(err, ErrNoMetadata) || !strings.Contains(err.Error(), "AWS_REGION") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Metadata without the key of the Region has the Region elsewhere.
func TestRegionElsewhere(t *testing.T) {
	t.Parallel()
	const unknown = "names one; set AWS_REGION"
	tests := map[string]struct {
		document, zone string
		want, fault    string
	}{
		"document":               {document: `{"region": "eu-central-1", "availabilityZone": "eu-central-1a"}`, want: "eu-central-1"},
		"document before zone":   {document: `{"region": "eu-central-1"}`, zone: "us-east-1a", want: "eu-central-1"},
		"zone":                   {zone: "us-east-1a", want: "us-east-1"},
		"zone of GovCloud":       {zone: "us-gov-west-1a", want: "us-gov-west-1"},
		"zone of two digits":     {zone: "ap-southeast-12b", want: "ap-southeast-12"},
		"local zone":             {zone: "us-west-2-lax-1a", want: "us-west-2"},
		"wavelength zone":        {zone: "us-east-1-wl1-bos-wlz-1", want: "us-east-1"},
		"document without one":   {document: `{"accountId": "1"}`, zone: "us-east-1a", want: "us-east-1"},
		"document that is none":  {document: "<html>", zone: "us-east-1a", want: "us-east-1"},
		"document that names no": {document: `{"region": "a.evil.example"}`, zone: "us-east-1a", want: "us-east-1"},
		"nothing":                {fault: unknown},
		"a zone that is none":    {zone: "<html>", fault: unknown},
		"a name and more":        {zone: "us-east-1a.evil.example", fault: unknown},
		"no number":              {zone: "us-east", fault: unknown},
		"an id of a zone":        {zone: "use1-az1", fault: unknown},
		"document away":          {document: "500", fault: "instance-identity/document"},
		"document away, a zone":  {document: "500", zone: "us-east-1a", want: "us-east-1"},
		"zone away":              {zone: "500", fault: "placement/availability-zone"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &imdsServer{needToken: true}
			s.hook = func(w http.ResponseWriter, r *http.Request) bool {
				told := map[string]string{"/latest/dynamic/instance-identity/document": tt.document, "/latest/meta-data/placement/availability-zone": tt.zone}[r.URL.Path]
				switch {
				case told == "500":
					w.WriteHeader(http.StatusInternalServerError)
				case told != "":
					_, _ = w.Write([]byte(told))
				default:
					return false
				}
				return true
			}
			got, err := s.start(t).Region(t.Context())
			if got != tt.want || (err != nil) != (tt.fault != "") {
				t.Fatalf("%q, %v, want %q", got, err, tt.want)
			}
			if err != nil && (!errors.Is(err, ErrNoMetadata) || !strings.Contains(err.Error(), tt.fault) || !strings.Contains(err.Error(), "AWS_REGION")) {
				t.Errorf("%v, want %q told", err, tt.fault)
			}
		})
	}
}

// Without tokens (IMDSv1 only, or a proxy that forbids PUT) the agent goes on at once.
func TestVersionOne(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := &imdsServer{keys: node(), tokenStatus: status}
			got, err := s.start(t).ENIs(t.Context(), []string{mac1})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, []plan.ENI{wantENI0, wantENI1}, got)
			if s.tokens > 2 {
				t.Errorf("%d tokens asked for", s.tokens)
			}
		})
	}
}

// A token that never comes (hop limit 1) is waited for one second, then version 1 is tried. Reads that begin together wait together;
// their clock is real, because in the SDK they wait for a lock, which virtual time cannot see.
func TestTokenNeverAnswered(t *testing.T) {
	t.Run("version 1 answers", func(t *testing.T) {
		s := &imdsServer{keys: node(), mute: true}
		s.inBubble(t, func(t *testing.T, m *Metadata) {
			for _, want := range []time.Duration{time.Second, 0} { // the token is not waited for again
				started := time.Now()
				if region, err := m.Region(t.Context()); err != nil || region != "eu-central-1" {
					t.Errorf("%q, %v", region, err)
				}
				if took := time.Since(started); took != want {
					t.Errorf("took %s, want %s", took, want)
				}
			}
		})
	})
	t.Run("version 1 is refused", func(t *testing.T) {
		s := &imdsServer{keys: node(), mute: true, needToken: true}
		s.inBubble(t, func(t *testing.T, m *Metadata) {
			started := time.Now()
			if _, err := m.Region(t.Context()); !errors.Is(err, ErrHopLimit) {
				t.Errorf("%v, want the hop limit named", err)
			}
			if took := time.Since(started); took != time.Second {
				t.Errorf("took %s, want one second", took)
			}
		})
	})
	t.Run("reads side by side", func(t *testing.T) {
		t.Parallel()
		s := &imdsServer{keys: node(), mute: true}
		m := s.start(t)
		started := time.Now()
		got, err := m.ENIs(t.Context(), []string{mac1})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, []plan.ENI{wantENI0, wantENI1}, got)
		if took := time.Since(started); took < 900*time.Millisecond || took > 1900*time.Millisecond {
			t.Errorf("took %s, want about one second", took)
		}
	})
}

// 401 after a token was given is no sign of a hop limit.
func TestTokenRefused(t *testing.T) {
	t.Parallel()
	s := &imdsServer{hook: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}}
	_, err := s.start(t).Region(t.Context())
	if !errors.Is(err, ErrNoMetadata) || errors.Is(err, ErrHopLimit) {
		t.Errorf("%v", err)
	}
	if s.tokens > 2 {
		t.Errorf("%d tokens asked for: one renewal is enough", s.tokens)
	}
}

// A failure is the caller's to wait out: nothing is tried again here, and nothing paused for.
func TestNoRetry(t *testing.T) {
	for _, status := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		reads := 0
		s := &imdsServer{hook: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				return false
			}
			reads++
			w.WriteHeader(status)
			return true
		}}
		s.inBubble(t, func(t *testing.T, m *Metadata) {
			started := time.Now()
			if _, err := m.Region(t.Context()); !errors.Is(err, ErrNoMetadata) {
				t.Errorf("%d: %v", status, err)
			}
			if took := time.Since(started); reads != 1 || took != 0 {
				t.Errorf("%d: %d reads in %s, want one", status, reads, took)
			}
		})
	}
}

// A token that expired between two requests is renewed within the call.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node(), needToken: true}
	m := s.start(t)
	if _, err := m.All(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := 0
	s.hook = func(w http.ResponseWriter, r *http.Request) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.Method == http.MethodGet && refused == 0 {
			refused++
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	got, err := m.ENIs(t.Context(), []string{mac2})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, []plan.ENI{wantENI0, wantENI2}, got)
}

func TestNoMetadata(t *testing.T) {
	t.Parallel()
	tests := map[string]func(s *imdsServer){
		"an empty list of MACs": func(s *imdsServer) { s.keys["network/interfaces/macs/"] = "" },
		"no list of MACs":       func(s *imdsServer) { delete(s.keys, "network/interfaces/macs/") },
		"errors": func(s *imdsServer) {
			s.hook = func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusInternalServerError)
				return true
			}
		},
		"forbidden": func(s *imdsServer) {
			s.hook = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }
		},
		"a body that breaks off": func(s *imdsServer) {
			s.hook = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut {
					return false
				}
				w.Header().Set("Content-Length", "100")
				_, _ = w.Write([]byte("half"))
				panic(http.ErrAbortHandler)
			}
		},
	}
	for name, arrange := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &imdsServer{keys: node()}
			arrange(s)
			m := s.start(t)
			if _, err := m.ENIs(t.Context(), []string{mac1}); !errors.Is(err, ErrNoMetadata) || errors.Is(err, ErrHopLimit) {
				t.Errorf("ENIs: %v", err)
			}
			if _, err := m.All(t.Context()); !errors.Is(err, ErrNoMetadata) {
				t.Errorf("All: %v", err)
			}
		})
	}
}

// Nothing listens: said at once, so that the caller can wait as it likes.
func TestNothingListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := New(rerouted{l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.ENIs(t.Context(), []string{mac1})
	if !errors.Is(err, ErrNoMetadata) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

// What is no metadata at all (a captive portal, another cloud) gives an error or nothing, never an ENI.
func TestGarbage(t *testing.T) {
	t.Parallel()
	s := &imdsServer{hook: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			return false
		}
		_, _ = w.Write([]byte("<html><body>Welcome to the hotel, please / log in</body></html>"))
		return true
	}}
	if got, err := s.start(t).All(t.Context()); err == nil {
		t.Errorf("gives %v", got)
	}
	t.Run("a block that is none", func(t *testing.T) {
		s := &imdsServer{keys: node()}
		s.keys[base(mac1)+"subnet-ipv4-cidr-block"] = "10.0.1.0"
		if _, err := s.start(t).ENIs(t.Context(), []string{mac1}); err == nil || !strings.Contains(err.Error(), "subnet-ipv4-cidr-block") {
			t.Errorf("%v, want the key named", err)
		}
	})
}

// A body that never ends is cut off by the request's own bound.
func TestHungBody(t *testing.T) {
	s := &imdsServer{keys: node()}
	s.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			return false
		}
		_, _ = w.Write([]byte("half"))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-s.stop:
		}
		return true
	}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		started := time.Now()
		if _, err := m.All(t.Context()); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("%v", err)
		}
		if took := time.Since(started); took != 2*time.Second {
			t.Errorf("took %s, want two seconds", took)
		}
	})
}

// The caller's end ends a read at once, and is told as such.
func TestCanceled(t *testing.T) {
	s := &imdsServer{mute: true}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		time.AfterFunc(100*time.Millisecond, cancel)
		started := time.Now()
		if _, err := m.All(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrHopLimit) {
			t.Errorf("%v", err)
		}
		if took := time.Since(started); took != 100*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

func TestNewHonoursTheEnvironment(t *testing.T) {
	t.Run("endpoint", func(t *testing.T) {
		s := &imdsServer{keys: node()}
		got, err := clientOf(t, s.serve(t).URL).ENIs(t.Context(), []string{mac1})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, []plan.ENI{wantENI0, wantENI1}, got)
	})
	t.Run("endpoint of the configuration file", func(t *testing.T) {
		s := &imdsServer{keys: node()}
		t.Setenv("AWS_CONFIG_FILE", file(t, "[default]\nec2_metadata_service_endpoint = "+s.serve(t).URL+"\n"))
		m, err := New(&net.Dialer{})
		if err != nil {
			t.Fatal(err)
		}
		if region, err := m.Region(t.Context()); err != nil || region != "eu-central-1" {
			t.Errorf("%q, %v", region, err)
		}
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1") // the environment comes first
		if m, err = New(&net.Dialer{}); err != nil {
			t.Fatal(err)
		}
		if region, err := m.Region(t.Context()); err == nil {
			t.Errorf("%q by the file", region)
		}
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
		t.Setenv("AWS_CONFIG_FILE", file(t, "[default]\nec2_metadata_service_endpoint = 169.254.169.254\n"))
		if _, err := New(&net.Dialer{}); err == nil || !strings.Contains(err.Error(), "ec2_metadata_service_endpoint") {
			t.Errorf("%v", err)
		}
	})
	t.Run("disabled", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		s := &imdsServer{keys: node()}
		if _, err := s.start(t).All(t.Context()); !errors.Is(err, ErrNoMetadata) || s.tokens+len(s.gets) != 0 {
			t.Errorf("%v after %d requests", err, s.tokens+len(s.gets))
		}
	})
	t.Run("version 1 disabled", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_V1_DISABLED", "true")
		s := &imdsServer{keys: node(), tokenStatus: http.StatusForbidden}
		if _, err := s.start(t).All(t.Context()); !errors.Is(err, ErrNoMetadata) || len(s.gets) != 0 {
			t.Errorf("%v, read without a token: %v", err, s.gets)
		}
	})
	t.Run("a proxy is not used", func(t *testing.T) {
		t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
		t.Setenv("http_proxy", "http://127.0.0.1:1")
		s := &imdsServer{keys: node()}
		if _, err := s.start(t).All(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("no endpoint", func(t *testing.T) {
		for _, bad := range []string{"169.254.169.254", "ftp://169.254.169.254", "http://", "http://a b"} {
			t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", bad)
			if _, err := New(&net.Dialer{}); err == nil || !strings.Contains(err.Error(), "AWS_EC2_METADATA_SERVICE_ENDPOINT") {
				t.Errorf("%q: %v", bad, err)
			}
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv5")
		if _, err := New(&net.Dialer{}); err == nil {
			t.Error("accepted")
		}
	})
}

// Connections are the dialer's own, which acknowledge at once.
func TestConnectionsAcknowledgeAtOnce(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node()}
	m, err := New(quickack.Dial(rerouted{s.serve(t).Listener.Addr().String()}.DialContext))
	if err != nil {
		t.Fatal(err)
	}
	transport, ok := m.token.base.(*http.Transport)
	if !ok {
		t.Fatalf("metadata is asked by a %T", m.token.base)
	}
	conn, err := transport.DialContext(t.Context(), "tcp", "any:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*quickack.Conn); !ok {
		t.Errorf("the connection is a %T", conn)
	}
}

func TestDisabledByTheEnvironment(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := &imdsServer{keys: node()}
	if _, err := s.start(t).ENIs(t.Context(), []string{mac1}); !errors.Is(err, ErrDisabled) {
		t.Errorf("error %v, want %v", err, ErrDisabled)
	}
	if len(s.gets) > 0 {
		t.Errorf("asked all the same: %v", s.gets)
	}
}
