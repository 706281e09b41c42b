package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multus-ip-manager.io/agent/locate"
)

// wire is an EC2 endpoint that gives one answer and notes what it was asked.
type wire struct {
	status int
	body   string
	forms  []url.Values
	// credentials is the status of the answer to a request for credentials.
	credentials int
	// role: credentials are the instance role's.
	role bool
	// fetched counts the requests for credentials.
	fetched int
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		rw.WriteHeader(http.StatusForbidden) // no session tokens here
		return
	}
	if r.URL.Path == "/credentials" || strings.HasPrefix(r.URL.Path, "/latest/meta-data/iam/") {
		w.fetched++
		rw.WriteHeader(w.credentials)
		_, _ = fmt.Fprint(rw, `{"AccessKeyId":"AKIA","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}`)
		return
	}
	_ = r.ParseForm()
	w.forms = append(w.forms, r.PostForm)
	rw.Header().Set("Content-Type", "text/xml")
	rw.WriteHeader(w.status)
	_, _ = fmt.Fprint(rw, w.body)
}

// client gives a real client of the endpoint. With keys, its credentials come from the environment, else from the endpoint too.
func (w *wire) client(t *testing.T, keys bool) *Client {
	t.Helper()
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	none := filepath.Join(t.TempDir(), "none")
	for key, value := range map[string]string{
		"AWS_ENDPOINT_URL_EC2": server.URL, "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_PROFILE": "",
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
		"AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_ROLE_ARN": "",
	} {
		t.Setenv(key, value)
	}
	switch {
	case keys:
		t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	case w.role:
		t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.URL)
	default:
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL+"/credentials")
	}
	metadata, err := locate.New(&net.Dialer{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), metadata, &net.Dialer{}, slog.New(slog.DiscardHandler), "multus-ip-manager-test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func xmlError(code string) string {
	return "<Response><Errors><Error><Code>" + code + "</Code><Message>the text</Message></Error></Errors><RequestID>req-9</RequestID></Response>"
}

func classOf(t *testing.T, err error) Class {
	t.Helper()
	var op *OpError
	if !errors.As(err, &op) {
		t.Fatalf("%v is no *OpError", err)
	}
	return op.Class
}

// The classes hold for errors as the SDK really makes them, and one attempt is one request.
func TestClientErrors(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		want   Class
	}{
		"throttled":            {503, xmlError("RequestLimitExceeded"), Throttled},
		"denied":               {403, xmlError("UnauthorizedOperation"), Denied},
		"full":                 {400, xmlError("PrivateIpAddressLimitExceeded"), Full},
		"gone":                 {400, xmlError("InvalidNetworkInterfaceID.NotFound"), Gone},
		"refused":              {400, xmlError("InvalidParameterValue"), Refused},
		"expired":              {400, xmlError("RequestExpired"), Expired},
		"internal":             {500, xmlError("InternalError"), Unavailable},
		"a proxy's 502":        {502, "<html>Bad Gateway</html>", Unavailable},
		"a proxy's 403":        {403, "<html>Forbidden</html>", Unanswered},
		"an empty 400":         {400, "", Unanswered},
		"an answer cut off":    {200, "<AssignPrivateIpAddressesResponse><networkInterfaceId>eni-1</networkInt", Unanswered},
		"a page instead of it": {200, "<html>Welcome</html>", Unanswered},
		"another ENI's answer": {200, "<AssignPrivateIpAddressesResponse><networkInterfaceId>eni-2</networkInterfaceId></AssignPrivateIpAddressesResponse>", Unanswered},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := &wire{status: tt.status, body: tt.body}
			_, err := w.client(t, true).AssignIPv4(t.Context(), "eni-1", addrs("10.0.17.5"), true)
			if got := classOf(t, err); got != tt.want {
				t.Errorf("class %s, want %s: %v", got, tt.want, err)
			}
			if len(w.forms) != 1 {
				t.Errorf("%d requests, want 1", len(w.forms))
			}
			if strings.Contains(tt.body, "req-9") && !strings.Contains(err.Error(), "request req-9") {
				t.Errorf("%v does not give the request id", err)
			}
		})
	}
}

func TestClientCredentials(t *testing.T) {
	tests := map[string]struct {
		// role: the instance role by metadata, else an endpoint of its own as EKS Pod Identity has.
		role   bool
		status int
		want   Class
	}{
		"the instance has no role":        {true, http.StatusNotFound, Denied},
		"metadata cannot say now":         {true, http.StatusBadRequest, NoCredentials},
		"pod identity not yet associated": {false, http.StatusNotFound, NoCredentials},
		"pod identity cannot say now":     {false, http.StatusBadRequest, NoCredentials},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := &wire{status: 200, credentials: tt.status, role: tt.role}
			_, err := w.client(t, false).AssignIPv4(t.Context(), "eni-1", addrs("10.0.17.5"), true)
			if got := classOf(t, err); got != tt.want || !strings.Contains(err.Error(), "get AWS credentials") {
				t.Errorf("class %s, want %s: %v", got, tt.want, err)
			}
			if len(w.forms) != 0 {
				t.Errorf("EC2 was asked without credentials: %v", w.forms)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := &wire{status: 200}
		if _, err := w.client(t, true).AssignIPv4(ctx, "eni-1", addrs("10.0.17.5"), true); classOf(t, err) != Unsent || !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// Credentials are fetched once, and anew when EC2 calls them too old.
func TestClientExpiredCredentials(t *testing.T) {
	w := &wire{status: 400, body: xmlError("RequestExpired"), credentials: http.StatusOK}
	c := w.client(t, false)
	for call, want := range []int{1, 2, 3} {
		if _, err := c.AssignIPv4(t.Context(), "eni-1", addrs("10.0.17.5"), true); classOf(t, err) != Expired || w.fetched != want {
			t.Errorf("call %d: fetched %d times, want %d: %v", call+1, w.fetched, want, err)
		}
	}
	w.body = xmlError("InvalidParameterValue")
	for range 2 {
		_, _ = c.AssignIPv4(t.Context(), "eni-1", addrs("10.0.17.5"), true)
	}
	if w.fetched != 4 {
		t.Errorf("fetched %d times, want 4: a refusal says nothing about credentials", w.fetched)
	}
}

func TestClientRequests(t *testing.T) {
	four, six := addrs("10.0.17.5", "10.0.17.6"), addrs("2001:DB8::5")
	tests := map[string]struct {
		body string
		call func(ctx context.Context, c *Client) (any, error)
		want any
		form map[string]string
		not  []string
	}{
		"assign IPv4, move allowed": {
			body: `<R><networkInterfaceId>eni-1</networkInterfaceId><assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.17.5</privateIpAddress></item></assignedPrivateIpAddressesSet></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.AssignIPv4(ctx, "eni-1", four, true) },
			want: four[:1],
			form: map[string]string{"Action": "AssignPrivateIpAddresses", "NetworkInterfaceId": "eni-1", "PrivateIpAddress.1": "10.0.17.5", "PrivateIpAddress.2": "10.0.17.6", "AllowReassignment": "true"},
		},
		"assign IPv4, move not allowed": {
			body: `<R><networkInterfaceId>eni-1</networkInterfaceId></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.AssignIPv4(ctx, "eni-1", four, false) },
			want: []netip.Addr(nil),
			form: map[string]string{"Action": "AssignPrivateIpAddresses"}, not: []string{"AllowReassignment"},
		},
		"assign IPv6, in canonical text": {
			body: `<R><networkInterfaceId>eni-1</networkInterfaceId></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return nil, c.AssignIPv6(ctx, "eni-1", six) },
			form: map[string]string{"Action": "AssignIpv6Addresses", "Ipv6Addresses.1": "2001:db8::5"},
		},
		"unassign IPv4": {
			body: `<R><return>true</return></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return nil, c.UnassignIPv4(ctx, "eni-1", four) },
			form: map[string]string{"Action": "UnassignPrivateIpAddresses", "NetworkInterfaceId": "eni-1", "PrivateIpAddress.1": "10.0.17.5", "PrivateIpAddress.2": "10.0.17.6"},
		},
		"unassign IPv6": {
			body: `<R><networkInterfaceId>eni-1</networkInterfaceId></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return nil, c.UnassignIPv6(ctx, "eni-1", six) },
			form: map[string]string{"Action": "UnassignIpv6Addresses", "NetworkInterfaceId": "eni-1", "Ipv6Addresses.1": "2001:db8::5"},
		},
		"holders of IPv4": {
			body: `<R><networkInterfaceSet>
				<item><networkInterfaceId>eni-2</networkInterfaceId><attachment><deviceIndex>0</deviceIndex></attachment>
					<privateIpAddressesSet><item><privateIpAddress>10.0.17.5</privateIpAddress><primary>true</primary></item><item><privateIpAddress>10.0.17.99</privateIpAddress></item></privateIpAddressesSet></item>
				<item><networkInterfaceId>eni-3</networkInterfaceId><privateIpAddressesSet><item><privateIpAddress>10.0.17.6</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>
					<tagSet><item><key>node.k8s.amazonaws.com/no_manage</key><value>true</value></item></tagSet></item>
				</networkInterfaceSet></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.Holders(ctx, "subnet-b", four) },
			want: map[netip.Addr]Holder{four[0]: {ENI: "eni-2", Primary: true, DeviceIndex: 0}, four[1]: {ENI: "eni-3", Unmanaged: true, DeviceIndex: -1}},
			form: map[string]string{"Action": "DescribeNetworkInterfaces", "Filter.1.Name": "addresses.private-ip-address", "Filter.1.Value.1": "10.0.17.5", "Filter.1.Value.2": "10.0.17.6",
				"Filter.2.Name": "subnet-id", "Filter.2.Value.1": "subnet-b", "MaxResults": "100"},
		},
		"holders of IPv6": {
			body: `<R><networkInterfaceSet><item><networkInterfaceId>eni-2</networkInterfaceId><attachment><deviceIndex>2</deviceIndex></attachment>
				<ipv6AddressesSet><item><ipv6Address>2001:db8:0:0::5</ipv6Address><isPrimaryIpv6>true</isPrimaryIpv6></item></ipv6AddressesSet></item></networkInterfaceSet></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.Holders(ctx, "subnet-b", six) },
			want: map[netip.Addr]Holder{six[0]: {ENI: "eni-2", Primary: true, DeviceIndex: 2}},
			form: map[string]string{"Filter.1.Name": "ipv6-addresses.ipv6-address", "Filter.1.Value.1": "2001:db8::5"},
		},
		"tagged": {
			body: `<R><networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId><tagSet><item><key>node.k8s.amazonaws.com/no_manage</key><value>true</value></item></tagSet></item></networkInterfaceSet></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.Unmanaged(ctx, "eni-1") }, want: true,
			form: map[string]string{"NetworkInterfaceId.1": "eni-1"}, not: []string{"MaxResults"},
		},
		"tagged with false": {
			body: `<R><networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId><tagSet><item><key>node.k8s.amazonaws.com/no_manage</key><value>false</value></item></tagSet></item></networkInterfaceSet></R>`,
			call: func(ctx context.Context, c *Client) (any, error) { return c.Unmanaged(ctx, "eni-1") }, want: false,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := &wire{status: 200, body: tt.body}
			got, err := tt.call(t.Context(), w.client(t, true))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			for key, want := range tt.form {
				if got := w.forms[0].Get(key); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			for _, key := range tt.not {
				if w.forms[0].Has(key) {
					t.Errorf("%s is sent", key)
				}
			}
		})
	}
	t.Run("the ENI is not in the answer", func(t *testing.T) {
		w := &wire{status: 200, body: "<R><networkInterfaceSet/></R>"}
		if _, err := w.client(t, true).Unmanaged(t.Context(), "eni-1"); classOf(t, err) != Unanswered || !strings.Contains(err.Error(), "eni-1") {
			t.Errorf("%v", err)
		}
	})
}

// An answer that names an address nobody asked for is no word about the one that was.
func TestClientAnswerAboutAnotherAddress(t *testing.T) {
	for body, ok := range map[string]bool{
		`<R><networkInterfaceId>eni-1</networkInterfaceId></R>`:                                                                          true,
		`<R><networkInterfaceId>eni-1</networkInterfaceId><assignedIpv6Addresses><item>2001:db8:0::5</item></assignedIpv6Addresses></R>`: true,
		`<R><networkInterfaceId>eni-1</networkInterfaceId><assignedIpv6Addresses><item>2001:db8::6</item></assignedIpv6Addresses></R>`:   false,
		`<R><networkInterfaceId>eni-1</networkInterfaceId><assignedIpv6Addresses><item>five</item></assignedIpv6Addresses></R>`:          false,
	} {
		w := &wire{status: 200, body: body}
		err := w.client(t, true).AssignIPv6(t.Context(), "eni-1", addrs("2001:db8::5"))
		if ok != (err == nil) || err != nil && classOf(t, err) != Unanswered {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// pieces is a body that comes byte by byte, and notes whether it was read to its end and closed.
type pieces struct {
	rest          string
	err           error // at the end
	ended, closed bool
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.rest == "" {
		p.ended = true
		return 0, p.err
	}
	n := copy(b[:1], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pieces) Close() error { p.closed = true; return nil }

// Do implements [aws.HTTPClient].
func (p *pieces) Do(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: p}, nil
}

// An answer is read to its end, in however many pieces it comes, before the SDK sees it: the SDK may close it early.
func TestClientReadsWholeAnswers(t *testing.T) {
	p := &pieces{rest: "answer", err: io.EOF}
	resp, err := (wholeAnswers{p}).Do(nil)
	if err != nil || !p.ended || !p.closed {
		t.Fatalf("%v, read to its end: %t, closed: %t", err, p.ended, p.closed)
	}
	got, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	broken := &pieces{rest: "ans", err: io.ErrUnexpectedEOF}
	if _, err := (wholeAnswers{broken}).Do(nil); !errors.Is(err, io.ErrUnexpectedEOF) || !broken.closed { //nolint:bodyclose // none is given
		t.Errorf("a broken answer: %v, closed: %t", err, broken.closed)
	}
	if c := (&wire{status: 200}).client(t, true).ec2.Options().HTTPClient; fmt.Sprintf("%T", c) != fmt.Sprintf("%T", wholeAnswers{}) {
		t.Errorf("the client reads by %T", c)
	}
}

func TestClientIPv6Slots(t *testing.T) {
	w := &wire{status: 200, body: `<R><networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId>
		<ipv6AddressesSet><item><ipv6Address>2001:db8::5</ipv6Address></item><item><ipv6Address>2001:db8::6</ipv6Address></item></ipv6AddressesSet>
		<ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:0:a::/80</ipv6Prefix></item></ipv6PrefixSet></item></networkInterfaceSet></R>`}
	if n, err := w.client(t, true).IPv6Slots(t.Context(), "eni-1"); n != 3 || err != nil {
		t.Errorf("%d slots in use, %v, want 3", n, err)
	}
}

// Settings of the environment that contradict themselves are told from metadata that cannot tell the Region yet: only the latter
// is worth waiting for.
func TestNewErrors(t *testing.T) {
	tests := map[string]struct {
		env           map[string]string
		configuration bool
		say           string
	}{
		"a profile that is not there": {map[string]string{"AWS_PROFILE": "telco"}, true, "telco"},
		"no name of a Region":         {map[string]string{"AWS_REGION": "Frankfurt, Germany"}, true, "AWS_REGION"},
		"no endpoint":                 {map[string]string{"AWS_ENDPOINT_URL_EC2": "ec2.example.com"}, true, "AWS_ENDPOINT_URL_EC2"},
		"no Region, no metadata":      {map[string]string{"AWS_REGION": ""}, false, "Region"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			(&wire{status: 200}).client(t, true) // sets the environment of the tests
			for key, value := range tt.env {
				t.Setenv(key, value)
			}
			metadata, err := locate.New(&net.Dialer{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = New(t.Context(), metadata, &net.Dialer{}, slog.New(slog.DiscardHandler), "multus-ip-manager-test")
			if err == nil || errors.Is(err, ErrConfiguration) != tt.configuration || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("%v", err)
			}
		})
	}
}

// EC2 takes 200 values of filters in one request.
func TestHoldersAsksInParts(t *testing.T) {
	var all []netip.Addr
	for a := netip.MustParseAddr("10.0.0.1"); len(all) < 500; a = a.Next() {
		all = append(all, a)
	}
	w := &wire{status: 200, body: `<DescribeNetworkInterfacesResponse><networkInterfaceSet/></DescribeNetworkInterfacesResponse>`}
	if _, err := w.client(t, true).Holders(t.Context(), "subnet-b", all); err != nil {
		t.Fatal(err)
	}
	if len(w.forms) != 3 {
		t.Errorf("%d requests, want 3", len(w.forms))
	}
	for _, f := range w.forms {
		if f.Get("Filter.1.Value.200") != "" || f.Get("Filter.1.Value.1") == "" {
			t.Errorf("request with filters %v", f)
		}
	}
}
