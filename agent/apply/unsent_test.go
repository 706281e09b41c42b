package apply

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// unsent is a call that found no way to EC2.
func unsent() error {
	return &OpError{Op: "Assign", Class: Unsent, Err: errors.New("connection refused")}
}

// After a call of which nothing was sent there is nothing to be read: what is not floating is assigned at once. That needs one permission.
func TestAfterNothingWasSent(t *testing.T) {
	const a, v = "10.0.17.5", "2001:db8::5"
	tests := map[string]struct {
		world  func(f *fakeEC2)
		claims []Claim
		steps  []step
	}{
		"IPv4": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign4", err: unsent()}, {op: "assign4", err: unsent()}} },
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"assign4 ours " + a + " reassign"}},
			},
		},
		"IPv6": {
			world:  func(f *fakeEC2) { f.faults = []fault{{op: "assign6", err: unsent()}} },
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v}},
				{want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v}},
			},
		},
		"a floating address has its holder read before each further attempt": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "10.0.16.11", a)
				f.faults = []fault{{op: "assign4", err: unsent()}}
			},
			claims: floating(claimsOf(a)),
			steps: []step{
				{want: map[string]string{a: "again"}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"what an earlier call did is still not known": {
			world: func(f *fakeEC2) {
				f.faults = []fault{{op: "assign4", err: noAnswer()}, {op: "holders", err: unsent()}, {op: "assign4", err: unsent()}}
			},
			claims: claimsOf(a),
			steps: []step{
				{want: map[string]string{a: "again"}},
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a}},
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
			},
		},
		"IPv6 that another ENI holds, and was not taken off it": {
			world: func(f *fakeEC2) {
				f.eni("theirs", "10.0.16.11", v)
				f.faults = []fault{{op: "unassign6", err: unsent()}}
			},
			claims: claimsOf(v),
			steps: []step{
				{want: map[string]string{v: "again"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v}},
				{want: map[string]string{v: "done"}, calls: []string{"assign6 ours " + v, "holders subnet-b " + v, "unassign6 theirs " + v, "assign6 ours " + v}},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { play(t, tt.world, tt.claims, tt.steps) })
	}
	for class, unsure := range map[Class]bool{Unsent: false, Unanswered: true} {
		f := newFake(t)
		f.eni("ours", "10.0.16.10")
		f.faults = []fault{{op: "assign4", err: &OpError{Class: class, Err: errors.New("why")}}}
		if _, rest, _ := attemptOn(t, f, claimsOf(a)); len(rest) != 1 || rest[0].Unsure() != unsure {
			t.Errorf("%s: %+v, want unsure: %t", class, rest, unsure)
		}
	}
}

// Where holders may not be read, an IPv4 address that came with the pod is assigned again after a call whose outcome is not known. Nothing
// else is.
func TestWithoutReading(t *testing.T) {
	const a, b, v = "10.0.17.5", "10.0.17.6", "2001:db8::5"
	denied := apiError("UnauthorizedOperation", 403, "You are not authorized")
	lost := func(f *fakeEC2) {
		f.eni("theirs", "10.0.16.11", a)
		f.faults = []fault{{op: "assign4", err: noAnswer()}, {op: "assign6", err: noAnswer()}, {op: "holders", err: denied}}
	}
	again := func(addr string) step { return step{want: map[string]string{addr: "again"}} }
	forbidden := func(addr string) []step {
		return []step{again(addr), {want: map[string]string{addr: "forbidden"}, calls: []string{"holders subnet-b " + addr}}}
	}
	tests := map[string]struct {
		world  func(f *fakeEC2)
		claims []Claim
		steps  []step
	}{
		"it came with the pod": {lost, claimsOf(a), []step{again(a),
			{want: map[string]string{a: "done"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}}}},
		"it came with the pod, and the next answers are lost, too": {
			func(f *fakeEC2) {
				lost(f)
				f.faults = append(f.faults, fault{op: "assign4", err: apiError("InternalError", 500, "no"), applied: true}, fault{op: "assign4", err: noAnswer()})
			},
			claimsOf(a), []step{again(a),
				{want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a, "assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "again"}, calls: []string{"assign4 ours " + a + " reassign"}},
				{want: map[string]string{a: "done"}, calls: []string{"assign4 ours " + a + " reassign"}}}},
		"searching fails for another reason": {
			func(f *fakeEC2) {
				lost(f)
				f.faults[2].err = apiError("RequestLimitExceeded", 503, "later")
			},
			claimsOf(a), []step{again(a), {want: map[string]string{a: "again"}, calls: []string{"holders subnet-b " + a}}}},
		"the credentials may not search": {
			func(f *fakeEC2) {
				lost(f)
				f.faults[2].err = apiError("AuthFailure", 401, "not validated")
			},
			claimsOf(a), forbidden(a)},
		"a floating one beside it": {lost, append(claimsOf(b), floating(claimsOf(a))...), []step{
			{want: map[string]string{a: "again", b: "again"}},
			{want: map[string]string{a: "forbidden", b: "done"}, calls: []string{"holders subnet-b " + b + "," + a, "assign4 ours " + b + " reassign"}}}},
		"one that was found": {lost, []Claim{{Addr: netip.MustParseAddr(a), TakeNothing: true}}, forbidden(a)},
		"on an ENI that may be the VPC CNI's": {
			func(f *fakeEC2) { lost(f); f.enis["ours"].unmanaged = true }, []Claim{{Addr: netip.MustParseAddr(a), CheckENI: true}},
			[]step{again(a), {want: map[string]string{a: "forbidden"}, calls: []string{"unmanaged ours", "holders subnet-b " + a}}}},
		"IPv6":                         {lost, claimsOf(v), forbidden(v)},
		"in a subnet of the VPC CNI's": {func(f *fakeEC2) { f.faults = []fault{{op: "holders", err: denied}} }, holderChecked(claimsOf(a)), forbidden(a)[1:]},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { play(t, tt.world, tt.claims, tt.steps) })
	}

	f, claims := newFake(t), claimsOf(a)
	f.eni("ours", "10.0.16.10")
	lost(f)
	f.faults = append(f.faults, fault{op: "assign4", err: noAnswer()})
	var log bytes.Buffer
	for range 3 {
		applier := Applier{EC2: f, Log: slog.New(slog.NewTextHandler(&log, nil))}
		claims = []Claim{applier.Attempt(t.Context(), "ours", "subnet-b", claims)[0].Claim}
	}
	if n := strings.Count(log.String(), "without reading"); n != 1 || !strings.Contains(log.String(), a) || f.holder(netip.MustParseAddr(a)) != "ours" {
		t.Errorf("logged %d times, want once: %s", n, log.String())
	}
}

// moody is a network on which connections to EC2 come to nothing at first.
type moody struct {
	network
	fail   func(ctx context.Context) (net.Conn, error)
	mended atomic.Bool
}

func (m *moody) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if strings.HasPrefix(address, "example.com:") && !m.mended.Load() {
		return m.fail(ctx)
	}
	return m.network.DialContext(ctx, network, address)
}

// A call that was never given a connection to EC2 is told from one whose answer is lost, whatever the reason.
func TestNothingWasSent(t *testing.T) {
	cfg := certificate(t)
	hang := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	// server gives a connection on whose other side something is done.
	server := func(do func(net.Conn)) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) {
			client, other := net.Pipe()
			go do(other)
			return client, nil
		}
	}
	gone := server(func(c net.Conn) { _ = c.Close() })
	tests := map[string]struct {
		scheme string
		fail   func(context.Context) (net.Conn, error)
		// late: the answer with credentials takes longer than an attempt may.
		late bool
		want Class
	}{
		"refused":                  {scheme: "http", fail: (&refusing{}).refuse, want: Unsent},
		"no such name":             {scheme: "https", fail: func(context.Context) (net.Conn, error) { return nil, &net.DNSError{Err: "no such host"} }, want: Unsent},
		"the dial hangs":           {scheme: "http", fail: hang, want: Unsent},
		"the dial hangs, with TLS": {scheme: "https", fail: hang, want: Unsent},
		"closed in the handshake":  {scheme: "https", fail: gone, want: Unsent},
		"the handshake hangs":      {scheme: "https", fail: server(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), want: Unsent},
		"no TLS at the other end": {scheme: "https", fail: server(func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			_, _ = c.Write([]byte("HTTP/1.1 400 No\r\n\r\n"))
			_ = c.Close()
		}), want: Unsent},
		"no credentials in time":      {scheme: "http", late: true, want: NoCredentials},
		"closed after the connection": {scheme: "http", fail: gone, want: Unanswered},
		"closed after the request":    {scheme: "http", fail: server(func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<14)); _ = c.Close() }), want: Unanswered},
		"no answer on the connection": {scheme: "http", fail: server(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), want: Unanswered},
		"half an answer": {scheme: "http", fail: server(func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1<<14))
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n"))
			_ = c.Close()
		}), want: Unanswered},
		"EC2 cannot, but has heard it": {scheme: "http", fail: server(func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1<<14))
			_, _ = c.Write([]byte("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"))
		}), want: Unavailable},
	}
	for name, tt := range tests {
		for _, warm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, spare connection: %t", name, warm), func(t *testing.T) {
				podIdentity(t, tt.scheme+"://example.com")
				synctest.Test(t, func(t *testing.T) {
					m := &moody{fail: tt.fail}
					defer m.stop()
					late := tt.late
					m.serve("169.254.170.23:80", nil, func(w http.ResponseWriter, _ *http.Request) {
						if late {
							late = false
							pass(5 * time.Second)
						}
						_, _ = io.WriteString(w, `{"AccessKeyId":"AKIA","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}`)
					})
					var asked []string
					answer := func(w http.ResponseWriter, r *http.Request) {
						_ = r.ParseForm()
						asked = append(asked, r.PostForm.Get("Action"))
						_, _ = io.WriteString(w, assigned)
					}
					m.serve("example.com:"+map[string]string{"https": "443", "http": "80"}[tt.scheme], map[string]*tls.Config{"https": cfg}[tt.scheme], answer)
					c := newTestClient(t, m, slog.New(slog.DiscardHandler))
					defer c.Close()
					if warm && !tt.late {
						c.Warm(t.Context())
					}
					applier := Applier{EC2: c, Log: slog.New(slog.DiscardHandler)}
					o := applier.Attempt(t.Context(), "eni-1", "subnet-b", []Claim{{Addr: netip.MustParseAddr("10.0.17.5"), ENI: "eni-1", Subnet: "subnet-b"}})
					if class := classOf(t, o[0].Err); class != tt.want || o[0].Claim.Unsure() == class.Certain() {
						t.Fatalf("class %s, unsure: %t, want %s: %v", class, o[0].Claim.Unsure(), tt.want, o[0].Err)
					}
					m.mended.Store(true)
					pass(10 * time.Second) // whatever the first attempt kept is given up
					applier.Attempt(t.Context(), "eni-1", "subnet-b", []Claim{o[0].Claim})
					if want := map[bool]string{true: "AssignPrivateIpAddresses", false: "DescribeNetworkInterfaces"}[tt.want.Certain()]; len(asked) == 0 || asked[0] != want {
						t.Errorf("asked for %q after that, want %s first", asked, want)
					}
				})
			})
		}
	}
}

func (r *refusing) refuse(ctx context.Context) (net.Conn, error) { return r.DialContext(ctx, "", "") }
