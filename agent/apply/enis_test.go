package apply

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/plan"
)

var _ locate.Source = (*Client)(nil)

// described is an EC2 endpoint that answers DescribeNetworkInterfaces by MAC and by instance.
type described struct {
	// enis are the items of answers by MAC and instance, by both in the form "MAC instance".
	enis map[string]string
	// asked are the filters of the requests so far.
	asked []string
	// refusal is the code of the next answers, if not empty.
	refusal string
}

func (d *described) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	if d.refusal != "" {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, xmlError(d.refusal))
		return
	}
	var values []string
	for i := 1; r.PostForm.Has(fmt.Sprintf("Filter.1.Value.%d", i)); i++ {
		values = append(values, r.PostForm.Get(fmt.Sprintf("Filter.1.Value.%d", i)))
	}
	d.asked = append(d.asked, r.PostForm.Get("Filter.1.Name")+"="+strings.Join(values, ","))
	if r.PostForm.Get("Action") != "DescribeNetworkInterfaces" || r.PostForm.Get("MaxResults") == "" || r.PostForm.Has("Filter.2.Name") {
		d.asked = append(d.asked, "unexpected: "+r.PostForm.Encode())
	}
	var items []string
	for key, item := range d.enis {
		mac, instance, _ := strings.Cut(key, " ")
		if slices.Contains(values, mac) || slices.Contains(values, instance) {
			items = append(items, item)
		}
	}
	slices.Sort(items)
	_, _ = fmt.Fprintf(w, "<R><networkInterfaceSet>%s</networkInterfaceSet></R>", strings.Join(items, ""))
}

func item(id, mac, subnet, instance string, device int, more string) string {
	return fmt.Sprintf("<item><networkInterfaceId>%s</networkInterfaceId><macAddress>%s</macAddress><subnetId>%s</subnetId><vpcId>vpc-1</vpcId>"+
		"<attachment><instanceId>%s</instanceId><deviceIndex>%d</deviceIndex></attachment>%s</item>", id, strings.ToUpper(mac), subnet, instance, device, more)
}

const macA, macB, macC, macX = "02:00:00:00:00:00", "02:00:00:00:00:0b", "02:00:00:00:00:02", "02:00:00:00:00:99"

func threeENIs() *described {
	return &described{enis: map[string]string{
		macA + " i-1": item("eni-0", macA, "subnet-a", "i-1", 0, ""),
		macB + " i-1": item("eni-1", macB, "subnet-b", "i-1", 1, "<ipv4PrefixSet><item><ipv4Prefix>10.0.1.32/28</ipv4Prefix></item></ipv4PrefixSet>"+
			"<ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:aa::/80</ipv6Prefix></item></ipv6PrefixSet>"),
		macC + " i-1": item("eni-2", macC, "subnet-c", "i-1", 2, ""),
		macX + " i-2": item("eni-9", macX, "subnet-b", "i-2", 1, ""),
	}}
}

// inBubble runs a test in virtual time against the endpoint.
func (d *described) inBubble(t *testing.T, run func(t *testing.T, c *Client)) {
	t.Helper()
	podIdentity(t, "http://example.com")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIA")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		defer n.stop()
		n.serve("example.com:80", nil, d.ServeHTTP)
		c := newTestClient(t, n, slog.New(slog.DiscardHandler))
		defer c.Close()
		run(t, c)
	})
}

func idsOf(enis []plan.ENI) string {
	var ids []string
	for _, e := range enis {
		ids = append(ids, e.ID)
	}
	return strings.Join(ids, " ")
}

// The first look takes two requests, each further one takes one, and the primary ENI is always in the answer.
func TestENIs(t *testing.T) {
	d := threeENIs()
	d.inBubble(t, func(t *testing.T, c *Client) {
		got, err := c.ENIs(t.Context(), []string{macB, "fa:ce:00:00:00:01"})
		if err != nil {
			t.Fatal(err)
		}
		want := []plan.ENI{
			{ID: "eni-0", MAC: macA, DeviceIndex: 0, SubnetID: "subnet-a"},
			{ID: "eni-1", MAC: macB, DeviceIndex: 1, SubnetID: "subnet-b", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.32/28"), netip.MustParsePrefix("2001:db8:0:1:aa::/80")}},
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("ENIs (-want +got):\n%s", diff)
		}
		for range 3 {
			if all, err := c.All(t.Context()); err != nil || idsOf(all) != "eni-0 eni-1 eni-2" {
				t.Errorf("all: %s, %v", idsOf(all), err)
			}
		}
		requests := []string{"mac-address=" + macB + ",fa:ce:00:00:00:01", "attachment.instance-id=i-1"}
		if !slices.Equal(d.asked, requests) {
			t.Errorf("asked %q, want %q", d.asked, requests)
		}
		if enis, err := c.ENIs(t.Context(), []string{macC}); err != nil || idsOf(enis) != "eni-0 eni-2" {
			t.Errorf("another MAC: %s, %v", idsOf(enis), err)
		}
		if requests = append(requests, requests[1]); !slices.Equal(d.asked, requests) {
			t.Errorf("asked %q, want %q: the node is known", d.asked, requests)
		}
	})
}

// A MAC that EC2 does not know is left out, and does not cost a request at each look.
func TestENIsUnknown(t *testing.T) {
	looks := func(t *testing.T, c *Client, d *described, macs ...string) (requests int) {
		before := len(d.asked)
		for range 20 {
			enis, err := c.ENIs(t.Context(), macs)
			if err != nil || strings.Contains(idsOf(enis), "eni-9") || strings.Contains(idsOf(enis), "eni-2") {
				t.Fatalf("%s, %v", idsOf(enis), err)
			}
			if _, err := c.All(t.Context()); err != nil {
				t.Fatal(err)
			}
			pass(500 * time.Millisecond)
		}
		return len(d.asked) - before
	}
	t.Run("among known ones", func(t *testing.T) {
		d := threeENIs()
		d.inBubble(t, func(t *testing.T, c *Client) {
			if n := looks(t, c, d, macB, "fa:ce:00:00:00:01"); n > 6 {
				t.Errorf("%d requests in ten seconds", n)
			}
		})
	})
	t.Run("alone, then attached", func(t *testing.T) {
		d := threeENIs()
		late := d.enis[macC+" i-1"]
		delete(d.enis, macC+" i-1")
		d.inBubble(t, func(t *testing.T, c *Client) {
			if n := looks(t, c, d, macC); n > 5 {
				t.Errorf("%d requests in ten seconds", n)
			}
			d.enis[macC+" i-1"] = late
			if enis, err := c.ENIs(t.Context(), []string{macC}); err != nil || idsOf(enis) != "eni-0 eni-2" {
				t.Errorf("attached: %s, %v", idsOf(enis), err)
			}
		})
	})
	t.Run("half of it", func(t *testing.T) {
		d := &described{enis: map[string]string{macC + " i-1": "<item><networkInterfaceId>eni-2</networkInterfaceId><macAddress>" + macC + "</macAddress></item>"}}
		d.inBubble(t, func(t *testing.T, c *Client) {
			if enis, err := c.ENIs(t.Context(), []string{macC}); err != nil || len(enis) != 0 {
				t.Errorf("an ENI that is not attached: %s, %v", idsOf(enis), err)
			}
		})
	})
	t.Run("no MAC at all", func(t *testing.T) {
		d := threeENIs()
		d.inBubble(t, func(t *testing.T, c *Client) {
			if enis, err := c.All(t.Context()); err != nil || len(enis)+len(d.asked) != 0 {
				t.Errorf("%s, asked %q, %v", idsOf(enis), d.asked, err)
			}
		})
	})
}

// Where the MACs lead to two nodes, neither is believed.
func TestENIsOfTwoInstances(t *testing.T) {
	d := threeENIs()
	d.inBubble(t, func(t *testing.T, c *Client) {
		if enis, err := c.ENIs(t.Context(), []string{macB, macX}); !errors.Is(err, errTwoInstances) || !strings.Contains(err.Error(), "i-2") {
			t.Errorf("%s, %v", idsOf(enis), err)
		}
	})
}

// A failure keeps its class, and is not remembered as an answer.
func TestENIsRefused(t *testing.T) {
	d := threeENIs()
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	c := (&wire{status: 200}).client(t, true)
	c.Close()
	t.Setenv("AWS_ENDPOINT_URL_EC2", server.URL)
	c = newTestClient(t, &refusingEC2{}, slog.New(slog.DiscardHandler))
	for code, want := range map[string]Class{"UnauthorizedOperation": Denied, "RequestLimitExceeded": Throttled, "InternalError": Unavailable} {
		d.refusal = code
		if _, err := c.ENIs(t.Context(), []string{macB}); ClassOf(err) != want {
			t.Errorf("%s: %v", code, err)
		}
	}
	d.refusal = ""
	if enis, err := c.ENIs(t.Context(), []string{macB}); err != nil || idsOf(enis) != "eni-0 eni-1" {
		t.Errorf("%s, %v", idsOf(enis), err)
	}
}
