package world

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

const (
	answered = 5 * time.Second        // bound of a ping that must be answered
	lost     = 250 * time.Millisecond // bound of a ping that must not be
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// failing is a logger for which every error fails the test.
func failing(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(errorWriter{t}, nil)) }

type errorWriter struct{ t testing.TB }

func (w errorWriter) Write(b []byte) (int, error) {
	w.t.Errorf("world logged: %s", b)
	return len(b), nil
}

func start(t testing.TB, file string, change func(*Spec)) *World {
	t.Helper()
	spec, err := Load("testdata/" + file)
	must(t, err)
	if change != nil {
		change(spec)
	}
	w, err := Start(t.Context(), spec, Options{Logger: failing(t)})
	must(t, err)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return w
}

func addPod(t testing.TB, w *World, node, name string, networks ...Network) *Pod {
	t.Helper()
	p, err := w.AddPod(PodSpec{Name: name, Node: node, Networks: networks})
	must(t, err)
	return p
}

func reaches(t *testing.T, from *Pod, to string, opts ...ns.PingOption) {
	t.Helper()
	if err := from.NS().Ping(t.Context(), addr(to), answered, opts...); err != nil {
		t.Errorf("%v; want an answer", err)
	}
}

func doesNotReach(t *testing.T, from *Pod, to string, opts ...ns.PingOption) {
	t.Helper()
	if err := from.NS().Ping(t.Context(), addr(to), lost, opts...); !errors.Is(err, ns.ErrNoAnswer) {
		t.Errorf("ping %s from %s gave %v; want no answer", to, from.Name(), err)
	}
}

// families are the same two pods in IPv4 and IPv6.
var families = []struct {
	name           string
	same1, same2   netip.Prefix // in the shared n3 subnet
	other2         netip.Prefix // node-2's, in the n6 subnet
	everything     netip.Prefix
	floating, slim netip.Prefix
}{
	{"IPv4", prefix("10.0.1.100/24"), prefix("10.0.1.200/24"), prefix("10.0.2.200/24"), prefix("10.0.0.0/16"), prefix("10.0.1.77/32"), prefix("10.0.1.78/32")},
	{"IPv6", prefix("2001:db8:0:b::100/64"), prefix("2001:db8:0:b::200/64"), prefix("2001:db8:0:c::200/64"), prefix("2001:db8::/56"), prefix("2001:db8:0:b::77/128"), prefix("2001:db8:0:b::78/128")},
}

func TestOnlyAssignedAddressesReachAnotherNode(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := start(t, "two-nodes.yaml", nil)
			one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{f.same1}, Routes: []netip.Prefix{f.everything}})
			same := addPod(t, w, "node-2", "same", Network{ENI: 1, Addresses: []netip.Prefix{f.same2}, Routes: []netip.Prefix{f.everything}})
			other := addPod(t, w, "node-2", "other", Network{ENI: 2, Addresses: []netip.Prefix{f.other2}, Routes: []netip.Prefix{f.everything}})
			oneENI, sameENI, otherENI := one.ENI("net1"), same.ENI("net1"), other.ENI("net1")
			at1, atSame, atOther := f.same1.Addr(), f.same2.Addr(), f.other2.Addr()

			doesNotReach(t, one, atSame.String())
			doesNotReach(t, one, atOther.String())
			must(t, w.Cloud().Assign(sameENI, atSame))
			must(t, w.Cloud().Assign(otherENI, atOther))
			doesNotReach(t, one, atSame.String()) // its own address is not assigned: the answer is lost, and so is the question
			must(t, w.Cloud().Assign(oneENI, at1))
			reaches(t, one, atSame.String())
			reaches(t, one, atOther.String())
			reaches(t, same, at1.String())
			reaches(t, other, at1.String())

			must(t, w.Cloud().Unassign(sameENI, atSame))
			doesNotReach(t, one, atSame.String())
			doesNotReach(t, same, at1.String())
			reaches(t, one, atOther.String())
		})
	}
}

func TestLinkModes(t *testing.T) {
	for mode, kind := range map[LinkMode]string{LinksVeth: "veth", LinksIPVlan: "ipvlan"} {
		t.Run(kind, func(t *testing.T) {
			if mode == LinksIPVlan && !ns.IPVlanAvailable() {
				t.Skip("this kernel has no ipvlan driver (CONFIG_IPVLAN)")
			}
			spec, err := Load("testdata/two-nodes.yaml")
			must(t, err)
			w, err := Start(t.Context(), spec, Options{Links: mode, Logger: failing(t)})
			must(t, err)
			defer func() { _ = w.Close() }()
			one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
			two := addPod(t, w, "node-1", "two", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.101/24")}})
			far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}})
			link, err := one.NS().Netlink().LinkByName("net1")
			must(t, err)
			if link.Type() != kind || link.Attrs().HardwareAddr.String() != w.Node("node-1").MAC(1) || w.IPVlan() != (kind == "ipvlan") {
				t.Errorf("net1 is a %s with the MAC %s", link.Type(), link.Attrs().HardwareAddr)
			}
			reaches(t, one, "10.0.1.101")
			doesNotReach(t, one, "10.0.1.200")
			must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
			must(t, w.Cloud().Assign(two.ENI("net1"), addr("10.0.1.101")))
			reaches(t, two, "10.0.1.200")
			doesNotReach(t, one, "10.0.1.200")
		})
	}
}

func TestPodsOfOneENIReachEachOtherUnassigned(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := start(t, "two-nodes.yaml", nil)
			one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{f.same1}})
			two := addPod(t, w, "node-1", "two", Network{ENI: 1, Addresses: []netip.Prefix{f.same2}})
			reaches(t, one, f.same2.Addr().String())
			reaches(t, two, f.same1.Addr().String())
			mac1, err := one.NS().MAC("net1")
			must(t, err)
			mac2, err := two.NS().MAC("net1")
			must(t, err)
			if want := w.Node("node-1").MAC(1); mac1.String() != want || mac2.String() != want {
				t.Errorf("the pods' MACs are %s and %s, want the ENI's, %s", mac1, mac2, want)
			}
			must(t, two.Remove())
			doesNotReach(t, one, f.same2.Addr().String())
		})
	}
}

func TestFloatingAddressFollowsItsAssignment(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := start(t, "two-nodes.yaml", nil)
			client := addPod(t, w, "node-1", "client", Network{ENI: 2, Addresses: []netip.Prefix{f.other2}, Routes: []netip.Prefix{f.everything}})
			a := addPod(t, w, "node-1", "a", Network{ENI: 1, Addresses: []netip.Prefix{f.same1}, Routes: []netip.Prefix{f.everything}})
			b := addPod(t, w, "node-2", "b", Network{ENI: 1, Addresses: []netip.Prefix{f.same2}, Routes: []netip.Prefix{f.everything}})
			must(t, w.Cloud().Assign(client.ENI("net1"), f.other2.Addr()))
			vip := f.floating.Addr()

			// As keepalived does: in the namespace, without telling the world.
			must(t, a.NS().AddAddr("net1", f.floating, ns.NoDAD))
			must(t, w.Cloud().Assign(a.ENI("net1"), vip))
			reaches(t, client, vip.String())

			must(t, a.DelAddr("net1", f.floating))
			must(t, b.AddAddr("net1", f.floating))
			doesNotReach(t, client, vip.String())
			must(t, w.Cloud().Assign(b.ENI("net1"), vip))
			reaches(t, client, vip.String())

			// Both have it (split brain): the assignment alone decides.
			must(t, a.AddAddr("net1", f.floating))
			must(t, b.NS().Down("net1"))
			doesNotReach(t, client, vip.String())
			must(t, w.Cloud().Assign(a.ENI("net1"), vip))
			reaches(t, client, vip.String())
		})
	}
}

func TestDADIsNotAnsweredByTheVPC(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	spec := PodSpec{Name: "a", Node: "node-1", DAD: true, Networks: []Network{{ENI: 1}}}
	a, err := w.AddPod(spec)
	must(t, err)
	b := addPod(t, w, "node-2", "b", Network{ENI: 1, Addresses: []netip.Prefix{prefix("2001:db8:0:b::77/128"), prefix("2001:db8:0:b::200/64")}})
	must(t, w.Cloud().Assign(b.ENI("net1"), addr("2001:db8:0:b::77"), addr("2001:db8:0:b::200")))
	must(t, a.AddAddr("net1", prefix("2001:db8:0:b::77/64")))
	must(t, w.Cloud().Assign(a.ENI("net1"), addr("2001:db8:0:b::77")))
	reaches(t, b, "2001:db8:0:b::77", ns.From(addr("2001:db8:0:b::200")), ns.Via("net1"))
	// b has the address too, so it answered itself; a must be able to use it all the same.
	must(t, b.DelAddr("net1", prefix("2001:db8:0:b::77/128")))
	reaches(t, b, "2001:db8:0:b::77")
}

func TestMacvlanStaysOnItsNode(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	net := func(a string, kind NetworkKind) Network {
		return Network{ENI: 1, Kind: kind, Addresses: []netip.Prefix{prefix(a)}}
	}
	one := addPod(t, w, "node-1", "one", net("10.0.1.100/24", Macvlan))
	two := addPod(t, w, "node-1", "two", net("10.0.1.101/24", Macvlan))
	far := addPod(t, w, "node-2", "far", net("10.0.1.200/24", IPVlan))
	must(t, w.Cloud().Assign(one.ENI("net1"), addr("10.0.1.100")))
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	reaches(t, one, "10.0.1.101")
	reaches(t, two, "10.0.1.100")
	doesNotReach(t, one, "10.0.1.200")
	doesNotReach(t, far, "10.0.1.100")
	if mac, err := one.NS().MAC("net1"); err != nil || mac.String() == w.Node("node-1").MAC(1) {
		t.Errorf("a macvlan link has the MAC %s, %v; want one of its own", mac, err)
	}
}

func TestSourceDestCheckOff(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	everything := []netip.Prefix{prefix("10.0.0.0/16")}
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everything})
	far := addPod(t, w, "node-2", "far", Network{ENI: 2, Addresses: []netip.Prefix{prefix("10.0.2.200/24")}, Routes: everything})
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.2.200")))
	before := counter(t, far.NS(), "InEchos")
	doesNotReach(t, one, "10.0.2.200")
	if got := counter(t, far.NS(), "InEchos"); got != before {
		t.Errorf("echo requests from an unassigned source arrived: count %s, then %s", before, got)
	}
	must(t, w.SetSourceDestCheck(one.ENI("net1"), false))
	doesNotReach(t, one, "10.0.2.200") // nothing leads the answer back
	if got := counter(t, far.NS(), "InEchos"); got == before {
		t.Error("with the check off nothing arrived from an unassigned source")
	}
	must(t, w.SetSourceDestCheck(one.ENI("net1"), true))
	before = counter(t, far.NS(), "InEchos")
	doesNotReach(t, one, "10.0.2.200")
	if got := counter(t, far.NS(), "InEchos"); got != before {
		t.Error("the check did not come back on")
	}
}

// counter is one of the kernel's IPv4 or ICMP counters in a namespace.
func counter(t *testing.T, n *ns.Namespace, name string) string {
	t.Helper()
	var text []byte
	must(t, n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	}))
	return snmp(string(text), name)
}

func TestSourceDestCheckOffFromTheStart(t *testing.T) {
	w := start(t, "two-nodes.yaml", func(s *Spec) { s.Nodes[0].ENIs[1].NoSourceDestCheck = true })
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
	far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}})
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	before := counter(t, far.NS(), "InEchos")
	doesNotReach(t, one, "10.0.1.200")
	if counter(t, far.NS(), "InEchos") == before {
		t.Error("nothing arrived from an unassigned source")
	}
}

func TestNodesDoNotSendBackWhatNoPodHas(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	one := addPod(t, w, "node-1", "one")
	node := w.Node("node-2").NS()
	before := counter(t, node, "ForwDatagrams")
	doesNotReach(t, one, "10.0.0.47") // in node-2's pool, no pod's yet
	if after := counter(t, node, "ForwDatagrams"); after != before {
		t.Errorf("the node forwarded packets for an address it has no pod for: %s, then %s", before, after)
	}
}

func TestOwnAddressesWork(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	one, two := addPod(t, w, "node-1", "one"), addPod(t, w, "node-2", "two")
	reaches(t, one, two.IPs()[0].String())
	for _, n := range w.Nodes() {
		if err := one.NS().Ping(t.Context(), n.IP(), answered); err != nil {
			t.Error(err)
		}
		if err := n.NS().Ping(t.Context(), two.IPs()[0], answered); err != nil {
			t.Error(err)
		}
	}
	six, err := w.AddPod(PodSpec{Name: "six", Node: "node-1", Eth0: []netip.Addr{addr("10.0.0.99"), addr("2001:db8:0:a::99")}})
	must(t, err)
	if err := w.Node("node-2").NS().Ping(t.Context(), six.IPs()[1], answered); err != nil {
		t.Error(err)
	}
	if h, ok := w.Cloud().Holder(addr("10.0.0.99")); !ok || h.ENI != w.Node("node-1").ENI(0) {
		t.Errorf("an eth0 address asked for is held by %+v", h)
	}
	doesNotReach(t, one, "10.0.0.250") // in the subnet, nobody's
}

// get asks a URL from inside a namespace.
func get(ctx context.Context, n *ns.Namespace, method, target, token string, wait time.Duration) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
	if token != "" {
		req.Header.Set("X-Aws-Ec2-Metadata-Token", token)
	}
	tr := &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestMetadataServiceIsOneHopBehindTheNode(t *testing.T) {
	const address = "10.0.1.100"
	for _, base := range []string{"http://169.254.169.254", "http://[fd00:ec2::254]"} {
		for _, test := range []struct {
			hops          int
			where         string
			tokenAnswered bool
		}{
			{1, "node", true}, {1, "pod", false}, {2, "pod", true}, {2, "node", true},
		} {
			t.Run(base+" "+test.where, func(t *testing.T) {
				w := start(t, "two-nodes.yaml", func(s *Spec) { s.Nodes[0].HopLimit = test.hops })
				p, err := w.AddPod(PodSpec{Name: "p", Node: "node-1", Eth0: []netip.Addr{addr("10.0.0.20"), addr("2001:db8:0:a::20")},
					Networks: []Network{{ENI: 1, Addresses: []netip.Prefix{prefix(address + "/24")}}}})
				must(t, err)
				n := p.NS()
				if test.where == "node" {
					n = w.Node("node-1").NS()
				}
				status, id, err := get(t.Context(), n, http.MethodGet, base+"/latest/meta-data/instance-id", "", answered)
				if err != nil || status != http.StatusOK || id != "i-00000000000000001" {
					t.Errorf("without a token: %d %q %v", status, id, err)
				}
				wait := answered
				if !test.tokenAnswered {
					wait = 500 * time.Millisecond
				}
				status, token, err := get(t.Context(), n, http.MethodPut, base+"/latest/api/token", "", wait)
				if !test.tokenAnswered {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("token at hop limit %d: %d %q %v; want no answer", test.hops, status, token, err)
					}
					return
				}
				if err != nil || status != http.StatusOK {
					t.Fatalf("token at hop limit %d: %d %q %v", test.hops, status, token, err)
				}
				status, region, err := get(t.Context(), n, http.MethodGet, base+"/latest/meta-data/placement/region", token, answered)
				if err != nil || status != http.StatusOK || region != "eu-central-1" {
					t.Errorf("with the token: %d %q %v", status, region, err)
				}
			})
		}
	}
}

func TestEC2Endpoint(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	p := addPod(t, w, "node-1", "p")
	key, endpoint, _ := strings.Cut(p.AgentEnv()[0], "=")
	if key != "AWS_ENDPOINT_URL_EC2" || endpoint != w.EC2Endpoint() {
		t.Errorf("the environment is %v", p.AgentEnv())
	}
	for _, n := range []*ns.Namespace{p.NS(), w.Node("node-2").NS()} {
		status, body, err := get(t.Context(), n, http.MethodGet, endpoint+"/?"+url.Values{"Action": {"DescribeSubnets"}}.Encode(), "", answered)
		if err != nil || status/100 != 4 || !strings.Contains(body, "<Errors>") {
			t.Errorf("an unsigned request gave %d %q %v; want EC2's refusal", status, body, err)
		}
	}
}

func TestDefaultRouteByAnExtraInterface(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	p := addPod(t, w, "node-1", "p", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, DefaultRoute: true})
	for _, target := range []string{w.EC2Endpoint(), "http://169.254.169.254/latest/meta-data/instance-id"} {
		if status, body, err := get(t.Context(), p.NS(), http.MethodGet, target, "", 500*time.Millisecond); err == nil {
			t.Errorf("%s answered %d %q before the address was assigned", target, status, body)
		}
	}
	must(t, w.Cloud().Assign(p.ENI("net1"), addr("10.0.1.100")))
	for _, target := range []string{w.EC2Endpoint(), "http://169.254.169.254/latest/meta-data/instance-id"} {
		if _, _, err := get(t.Context(), p.NS(), http.MethodGet, target, "", answered); err != nil {
			t.Errorf("%s did not answer after the address was assigned: %v", target, err)
		}
	}
	status, token, err := get(t.Context(), p.NS(), http.MethodPut, "http://169.254.169.254/latest/api/token", "", answered)
	if err != nil || status != http.StatusOK || token == "" {
		t.Errorf("token by net1: %d %q %v", status, token, err)
	}
}

func TestDelegatedPrefixReachesItsPods(t *testing.T) {
	w := start(t, "two-nodes.yaml", func(s *Spec) {
		s.Nodes[1].ENIs[1].Prefixes = []netip.Prefix{prefix("10.0.1.208/28")}
	})
	client := addPod(t, w, "node-1", "client", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
	must(t, w.Cloud().Assign(client.ENI("net1"), addr("10.0.1.100")))
	addPod(t, w, "node-2", "in", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.210/24")}})
	addPod(t, w, "node-2", "out", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.230/24")}})
	reaches(t, client, "10.0.1.210")
	doesNotReach(t, client, "10.0.1.230")
}

func TestHotPlug(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	must(t, w.Node("node-2").AddENI(ENISpec{Index: 3, Subnet: "subnet-0000000000000000d", Primary: addr("10.0.3.12")}))
	everything := []netip.Prefix{prefix("10.0.0.0/16")}
	far := addPod(t, w, "node-2", "far", Network{ENI: 3, Addresses: []netip.Prefix{prefix("10.0.3.200/24")}, Routes: everything})
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}, Routes: everything})
	must(t, w.Cloud().Assign(one.ENI("net1"), addr("10.0.1.100")))
	doesNotReach(t, one, "10.0.3.200")
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.3.200")))
	reaches(t, one, "10.0.3.200")
}

func TestTwoENIsInOneSubnet(t *testing.T) {
	w := start(t, "two-enis-one-subnet.yaml", nil)
	a := addPod(t, w, "node-1", "a", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
	b := addPod(t, w, "node-1", "b", Network{ENI: 2, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}})
	must(t, w.Cloud().Assign(a.ENI("net1"), addr("10.0.1.100")))
	must(t, w.Cloud().Assign(a.ENI("net1"), addr("10.0.1.200"))) // the wrong one of the two
	doesNotReach(t, a, "10.0.1.200")
	must(t, w.Cloud().Assign(b.ENI("net1"), addr("10.0.1.200")))
	reaches(t, a, "10.0.1.200")
	reaches(t, b, "10.0.1.100")
}

func TestDataPlaneDelay(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	one := addPod(t, w, "node-1", "one", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
	far := addPod(t, w, "node-2", "far", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.200/24")}})
	must(t, w.Cloud().Assign(one.ENI("net1"), addr("10.0.1.100")))
	w.Cloud().Tune(func(s *aws.Settings) { s.Delays.DataPlane = time.Second })
	must(t, w.Cloud().Assign(far.ENI("net1"), addr("10.0.1.200")))
	doesNotReach(t, one, "10.0.1.200")
	reaches(t, one, "10.0.1.200")
}

func TestCloseLeavesNothing(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	spec, err := Load("testdata/two-nodes.yaml")
	must(t, err)
	cycle := func() {
		w, err := Start(t.Context(), spec, Options{Logger: failing(t)})
		must(t, err)
		p := addPod(t, w, "node-1", "p", Network{ENI: 1, Addresses: []netip.Prefix{prefix("10.0.1.100/24")}})
		reaches(t, p, "10.0.1.100")
		must(t, w.Close())
		must(t, w.Close())
	}
	cycle() // the runtime's own descriptors
	before := count()
	cycle()
	if after := count(); after > before {
		t.Errorf("%d descriptors before a world, %d after", before, after)
	}
	if spec.Nodes[0].IMDS != IMDSOptional || len(spec.Pods) != 0 {
		t.Errorf("the caller's spec was changed: %+v", spec)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	spec, err := Load("testdata/two-nodes.yaml")
	must(t, err)
	spec.Nodes[1].ENIs[1].Primary = addr("10.99.0.1")
	if _, err := Start(t.Context(), spec, Options{}); err == nil || !strings.Contains(err.Error(), "10.99.0.1") {
		t.Errorf("got %v, want an error that names the address", err)
	}
	if _, err := Start(t.Context(), spec, Options{Links: LinksIPVlan}); err == nil {
		t.Error("an impossible world started")
	}
}

func TestStartIsQuick(t *testing.T) {
	began := time.Now()
	w := start(t, "two-nodes.yaml", func(s *Spec) {
		for _, node := range []string{"node-1", "node-2"} {
			for _, name := range []string{"a", "b"} {
				s.Pods = append(s.Pods, PodSpec{Name: node + name, Node: node, Networks: []Network{{ENI: 1}, {ENI: 2}}})
			}
		}
	})
	took := time.Since(began)
	t.Logf("2 nodes, 6 ENIs, 4 pods started in %s, ipvlan %v", took, w.IPVlan())
	if took > 5*time.Second {
		t.Errorf("took %s, want well under a second on an idle machine", took)
	}
	if got := len(w.Pods()); got != 4 {
		t.Errorf("%d pods", got)
	}
}
