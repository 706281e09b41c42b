package world

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTestdataLoads(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	must(t, err)
	if len(files) < 2 {
		t.Fatalf("found %v", files)
	}
	for _, f := range files {
		if _, err := Load(f); err != nil {
			t.Error(err)
		}
	}
	if _, err := Load("testdata/none.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file gave %v", err)
	}
}

const small = `
subnets: [{id: subnet-0a, ipv4: 10.0.0.0/24}]
nodes:
- name: n
  enis:
  - {index: 0, subnet: subnet-0a}
  - {index: 1, subnet: subnet-0a}
`

func TestDefaults(t *testing.T) {
	s, err := Parse([]byte(small + "pods: [{name: p, node: n, networks: [{eni: 1}, {eni: 1, interface: n6}, {eni: 1}]}]"))
	must(t, err)
	n, p := s.Nodes[0], s.Pods[0]
	if n.Instance != "i-00000000000000001" || n.IMDS != IMDSOptional || n.ENIs[1].ID != "eni-00000000000010001" || n.ENIs[1].MAC != "06:ee:00:00:01:01" {
		t.Errorf("node is %+v", n)
	}
	if p.Namespace != "default" || p.Networks[0].Interface != "net1" || p.Networks[1].Interface != "n6" || p.Networks[2].Interface != "net3" || p.Networks[0].Kind != IPVlan {
		t.Errorf("pod is %+v", p)
	}
}

func TestBadSpecs(t *testing.T) {
	for _, test := range []struct{ name, yaml, want string }{
		{"unknown key", "nodez: []", "nodez"},
		{"repeated key", "region: a\nregion: b", "region"},
		{"bad address", "subnets: [{id: subnet-0a, ipv4: 10.0.0.0}]", "10.0.0.0"},
		{"node twice", "nodes: [{name: n, enis: []}, {name: n, enis: []}]", "used twice"},
		{"no device 0", "nodes: [{name: n, enis: []}]", "index 0"},
		{"unknown subnet", "nodes: [{name: n, enis: [{index: 0, subnet: subnet-0b}]}]", `no subnet "subnet-0b"`},
		{"bad MAC", "nodes: [{name: n, enis: [{index: 0, mac: x, subnet: subnet-0b}]}]", "MAC"},
		{"bad IMDS mode", "nodes: [{name: n, imds: maybe, enis: []}]", "maybe"},
		{"pod on no node", small + "pods: [{name: p, node: m}]", `no node "m"`},
		{"pod without a name", small + "pods: [{node: n}]", "no name"},
		{"interface twice", small + "pods: [{name: p, node: n, networks: [{eni: 1, interface: a}, {eni: 1, interface: a}]}]", "taken"},
		{"eth0 twice", small + "pods: [{name: p, node: n, networks: [{eni: 1, interface: eth0}]}]", "taken"},
		{"bad kind", small + "pods: [{name: p, node: n, networks: [{eni: 1, kind: bridge}]}]", "bridge"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Parse([]byte(test.yaml)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to name %q", err, test.want)
			}
		})
	}
}

func TestBadPodsAreRefusedAndLeaveNothing(t *testing.T) {
	w := start(t, "two-nodes.yaml", nil)
	addPod(t, w, "node-1", "p")
	for _, test := range []struct {
		name string
		spec PodSpec
		want string
	}{
		{"exists", PodSpec{Name: "p", Node: "node-1"}, "exists"},
		{"no such ENI", PodSpec{Name: "q", Node: "node-1", Networks: []Network{{ENI: 9}}}, "index 9"},
		{"address of another pod", PodSpec{Name: "q", Node: "node-1", Eth0: w.Pod("default", "p").IPs()}, "another pod"},
		{"no such node", PodSpec{Name: "q", Node: "node-9"}, "node-9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := w.AddPod(test.spec); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to name %q", err, test.want)
			}
			if got := len(w.Pods()); got != 1 {
				t.Errorf("%d pods, want the one", got)
			}
		})
	}
	for i := range 7 {
		addPod(t, w, "node-1", string(rune('a'+i)))
	}
	if _, err := w.AddPod(PodSpec{Name: "q", Node: "node-1"}); err == nil || !strings.Contains(err.Error(), "no free secondary address") {
		t.Errorf("an empty pool gave %v", err)
	}
	must(t, w.Pod("default", "p").Remove())
	addPod(t, w, "node-1", "q") // the address of the removed pod is free again
}
