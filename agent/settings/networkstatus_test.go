package settings

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseNetworkStatus(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want []string
		say  string // what the error says, "" for none
	}{
		"none":            {in: ""},
		"blank":           {in: " \n"},
		"an empty list":   {in: "[]"},
		"null":            {in: "null"},
		"null interfaces": {in: `[null,{"ips":["10.0.4.80"]},null]`, want: []string{"10.0.4.80"}},
		"as Multus writes it beside the VPC CNI": {
			in: `[{
    "name": "aws-cni",
    "interface": "eth0",
    "ips": [
        "10.0.1.7"
    ],
    "mac": "2",
    "default": true,
    "dns": {}
},{
    "name": "aws-cni",
    "interface": "dummy2f1c9a",
    "mac": "0",
    "dns": {}
},{
    "name": "telco/n3-ipvlan",
    "interface": "net1",
    "ips": [
        "10.0.4.80",
        "2001:db8:4::80"
    ],
    "mac": "02:00:00:00:04:01",
    "dns": {},
    "gateway": [
        "\u003cnil\u003e"
    ]
}]`,
			want: []string{"10.0.1.7", "10.0.4.80", "2001:db8:4::80"},
		},
		"without interface names":  {in: `[{"name":"n3","ips":["10.0.4.80"]}]`, want: []string{"10.0.4.80"}},
		"with prefix lengths":      {in: `[{"ips":["10.0.4.80/24","2001:db8::80/64"]}]`, want: []string{"10.0.4.80", "2001:db8::80"}},
		"the same address twice":   {in: `[{"ips":["10.0.4.80","10.0.4.80/24"]},{"ips":["10.0.4.80"]}]`, want: []string{"10.0.4.80"}},
		"IPv4 in IPv6":             {in: `[{"ips":["::ffff:10.0.4.80"]}]`, want: []string{"10.0.4.80"}},
		"another form of the same": {in: `[{"ips":["2001:DB8:0:0::80"]}]`, want: []string{"2001:db8::80"}},
		"with a zone":              {in: `[{"ips":["fe80::1%net1"]}]`, want: []string{"fe80::1"}},
		"null for ips":             {in: `[{"ips":null},{"ips":["10.0.4.80"]}]`, want: []string{"10.0.4.80"}},
		"one bad among good": {in: `[{"ips":["10.0.4.80"]},{"ips":["<nil>","10.0.4.81"]}]`, want: []string{"10.0.4.80", "10.0.4.81"},
			say: `interface 2: "<nil>" is neither`},
		"a prefix too long":     {in: `[{"ips":["10.0.4.80/33"]}]`, say: `"10.0.4.80/33"`},
		"an empty address":      {in: `[{"ips":[""]}]`, say: `""`},
		"ips is no list":        {in: `[{"ips":"10.0.4.80"},{"ips":["10.0.4.81"]}]`, want: []string{"10.0.4.81"}, say: "unexpected string in ips"},
		"an address is no text": {in: `[{"ips":["10.0.4.80",7,"10.0.4.81"]}]`, want: []string{"10.0.4.80", "10.0.4.81"}, say: "unexpected number"},
		"an interface is text":  {in: `["net1",{"ips":["10.0.4.80"]}]`, want: []string{"10.0.4.80"}, say: "unexpected string"},
		"an object":             {in: `{"ips":["10.0.4.80"]}`, say: "not a JSON list"},
		"cut off":               {in: `[{"ips":["10.0.4.80"]},{"ips":["10.0`, say: "not a JSON list"},
		"more than a list":      {in: `[{"ips":["10.0.4.80"]}] x`, say: "not a JSON list"},
		"not JSON":              {in: "net1", say: "not a JSON list"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseNetworkStatus(tt.in)
			var want []netip.Addr
			for _, s := range tt.want {
				want = append(want, netip.MustParseAddr(s))
			}
			compare(t, got, want)
			switch {
			case tt.say == "" && err != nil:
				t.Errorf("error %v", err)
			case tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say) || !strings.Contains(err.Error(), NetworkStatus)):
				t.Errorf("error %v, want one with %q that names the annotation", err, tt.say)
			case err != nil && (strings.Contains(err.Error(), "settings.") || strings.Contains(err.Error(), "attached")):
				t.Errorf("%v names a type of ours", err)
			}
		})
	}
}

func TestParseNetworkStatusLarge(t *testing.T) {
	in := `[{"ips":["10.0.4.80"` + strings.Repeat(`,"10.0.4.80"`, 10_000) + `]}]`
	if got, err := ParseNetworkStatus(in); err != nil || len(got) != 1 {
		t.Errorf("%d addresses, %v", len(got), err)
	}
	for _, in := range []string{strings.Repeat("[", 100_000), `[{"ips":["` + strings.Repeat("x", 100_000) + `"]}]`} {
		if _, err := ParseNetworkStatus(in); err == nil || len(err.Error()) > 256 {
			t.Errorf("message %v", err)
		}
	}
}

func FuzzParseNetworkStatus(f *testing.F) {
	for _, s := range []string{"", " ", "null", "[]", "[null]", `[{}]`, `[{"ips":["10.0.4.80","2001:db8::80/64"]}]`, `[{"ips":[null]}]`,
		`[{"ips":"x"}]`, `[{"IPS":["::ffff:1.2.3.4"]}]`, `{"ips":[]}`, `[{"ips":["fe80::1%net1"]}]`, "[\xff]", "[{\"ips\":[\"\x00\"]}]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addrs, err := ParseNetworkStatus(s)
		if err != nil && len(err.Error()) > 512 {
			t.Fatalf("message of %d bytes", len(err.Error()))
		}
		for i, a := range addrs {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() || slices.Contains(addrs[:i], a) {
				t.Fatalf("impossible address %v in %v", a, addrs)
			}
			if !strings.ContainsAny(s, ".:\\") {
				t.Fatalf("%v is not in %q", a, s)
			}
		}
	})
}
