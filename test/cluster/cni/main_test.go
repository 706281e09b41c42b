package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multus-ip-manager.io/test/cluster/wire"
)

func TestRequest(t *testing.T) {
	for name, test := range map[string]struct {
		master, args string
		want         wire.Request
		err          string
	}{
		"an extra interface": {"eth1", "IgnoreUnknown=1;K8S_POD_NAMESPACE=core;K8S_POD_NAME=app-0", wire.Request{ENI: 1, Pod: "app-0", Namespace: "core"}, ""},
		"the pod's own":      {"eth0", "", wire.Request{}, ""},
		"no master":          {"", "", wire.Request{}, "want ethN"},
		"another name":       {"ens5", "", wire.Request{}, "want ethN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CNI_COMMAND", "ADD")
			t.Setenv("CNI_CONTAINERID", "c0ffee")
			t.Setenv("CNI_IFNAME", "net1")
			t.Setenv("CNI_ARGS", test.args)
			got, err := request(config{Master: test.master})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%v, want %q", err, test.err)
				}
				return
			}
			test.want.Command, test.want.Container, test.want.Interface = "ADD", "c0ffee", "net1"
			if err != nil || got != test.want {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestIPAM(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CNI_PATH", "/nowhere:"+dir)
	for name, test := range map[string]struct{ script, err string }{
		"gives":   {`cat >` + dir + `/got; echo '{"ips": [{"address": "10.0.16.7/20"}], "routes": [{"dst": "10.9.0.0/16", "gw": "10.0.16.1"}]}'`, ""},
		"refuses": {`echo '{"code": 11, "msg": "range is full"}'; exit 1`, "range is full"},
		"babbles": {`echo nonsense`, "nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "some-ipam"), []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil { //nolint:gosec // it is run
				t.Fatal(err)
			}
			var c config
			c.IPAM.Type = "some-ipam"
			r, err := ipam(c, []byte(`{"the": "configuration"}`))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "got")); err != nil || string(got) != `{"the": "configuration"}` {
				t.Errorf("the plugin got %q, %v", got, err)
			}
			if len(r.IPs) != 1 || r.IPs[0].Address != netip.MustParsePrefix("10.0.16.7/20") || gateway(r.Routes[0], r.IPs) != netip.MustParseAddr("10.0.16.1") {
				t.Errorf("%+v", r)
			}
		})
	}
	var c config
	c.IPAM.Type = "missing"
	if _, err := ipam(c, nil); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
}

func TestGateway(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.16.1"), netip.MustParseAddr("2001:db8::1")
	ips := []address{{Gateway: &six}, {Gateway: &four}}
	for dst, want := range map[string]netip.Addr{"10.9.0.0/16": four, "2001:db8:9::/48": six} {
		if got := gateway(route{Dst: netip.MustParsePrefix(dst)}, ips); got != want {
			t.Errorf("%s goes by %s, want %s", dst, got, want)
		}
	}
	if got := gateway(route{Dst: netip.MustParsePrefix("10.9.0.0/16")}, nil); got.IsValid() {
		t.Errorf("without any gateway: %s", got)
	}
}
