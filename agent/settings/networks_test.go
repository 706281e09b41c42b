package settings

import (
	"strings"
	"testing"
)

func TestParseNetworks(t *testing.T) {
	net := func(ns, name, link string) Network { return Network{Namespace: ns, Name: name, Interface: link} }
	for name, tt := range map[string]struct {
		in   string
		want []Network
	}{
		"nothing":                             {"", nil},
		"empty list":                          {"[]", nil},
		"empty list with space":               {" [ ] ", nil},
		"one name":                            {"n3", []Network{net("telco", "n3", "")}},
		"namespace and interface":             {"x/n3@n3", []Network{net("x", "n3", "n3")}},
		"space around everything":             {" x / n3 @ n3 , n4 ", []Network{net("x", "n3", "n3"), net("telco", "n4", "")}},
		"the same network twice":              {"n3,n3", []Network{net("telco", "n3", ""), net("telco", "n3", "")}},
		"empty namespace":                     {"/n3", []Network{net("telco", "n3", "")}},
		"empty interface":                     {"n3@", []Network{net("telco", "n3", "")}},
		"vlan-like interface":                 {"a@eth0.100", []Network{net("telco", "a", "eth0.100")}},
		"upper case interface":                {"a@Net_1", []Network{net("telco", "a", "Net_1")}},
		"null is a name":                      {"null", []Network{net("telco", "null", "")}},
		"none is a name":                      {"none", []Network{net("telco", "none", "")}},
		"line breaks":                         {"n3,\n n4", []Network{net("telco", "n3", ""), net("telco", "n4", "")}},
		"JSON":                                {`[{"name":"n3"},{"name":"n4","namespace":"x","interface":"n4"}]`, []Network{net("telco", "n3", ""), net("x", "n4", "n4")}},
		"JSON, unknown keys":                  {`[{"name":"n3","future":{"a":[1]}}]`, []Network{net("telco", "n3", "")}},
		"JSON, old interface key":             {`[{"name":"n3","interfaceRequest":"e1"}]`, []Network{net("telco", "n3", "e1")}},
		"JSON, new interface key wins":        {`[{"name":"n3","interfaceRequest":"e1","interface":"e2"}]`, []Network{net("telco", "n3", "e2")}},
		"JSON, addresses and hardware":        {`[{"name":"n3","ips":["10.0.4.5","10.0.4.6/24","2001:db8::1/64"],"mac":"02:00:00:00:00:01"}]`, []Network{net("telco", "n3", "")}},
		"JSON, all other keys":                {`[{"name":"n3","portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp"}],"bandwidth":{"ingressRate":1},"cni-args":{"a":1},"deviceID":"0","infiniband-guid":"00:00:00:00:00:00:00:01","ipam-claim-reference":"c"}]`, []Network{net("telco", "n3", "")}},
		"JSON, names are not checked further": {`[{"name":"N.3"}]`, []Network{net("telco", "N.3", "")}},
		"JSON, default route":                 {`[{"name":"n3","default-route":["10.0.4.1"]}]`, []Network{{Namespace: "telco", Name: "n3", DefaultRoute: true}}},
		"JSON, empty default route":           {`[{"name":"n3","default-route":[]}]`, []Network{{Namespace: "telco", Name: "n3", DefaultRoute: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseNetworks(tt.in, "telco")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, got, tt.want)
		})
	}
}

func TestParseNetworksErrors(t *testing.T) {
	for name, tt := range map[string]struct{ in, say string }{
		"trailing comma":          {"a,", "network 2"},
		"only a comma":            {",", "no name"},
		"only space":              {" ", "no name"},
		"namespace without name":  {"a/", "no name"},
		"interface without name":  {"@net1", "no name"},
		"two slashes":             {"a/b/c", "more than one '/'"},
		"two at signs":            {"a@b@c", "more than one '@'"},
		"slash in the interface":  {"a@b/c", "names consist of"}, // everything before '/' is the namespace
		"dots":                    {"n3.example", "names consist of"},
		"upper case":              {"N3", "names consist of"},
		"upper case namespace":    {"X/n3", "names consist of"},
		"dash at the end":         {"n3-", "names consist of"},
		"long interface":          {"a@abcdefghijklmnop", "longer than 15"},
		"space in the interface":  {"a@b c", "contains a space"},
		"JSON null element":       {"[null]", "null is not a network"},
		"JSON null among others":  {`[{"name":"a"},null]`, "network 2: null"},
		"JSON object":             {`{"name":"a"}`, "not a JSON list"},
		"JSON string":             {`"a"`, "not a JSON list"},
		"JSON list of strings":    {`["a"]`, "unexpected string"},
		"JSON trailing comma":     {`[{"name":"a"},]`, "not a JSON list"},
		"JSON cut off":            {`[{"name":"a"`, "not a JSON list"},
		"JSON and more":           {`[{"name":"a"}] x`, "not a JSON list"},
		"JSON without name":       {`[{"namespace":"a"}]`, "no name"},
		"JSON empty element":      {`[{}]`, "no name"},
		"JSON wrong type":         {`[{"name":7}]`, "unexpected number in name"},
		"JSON bad hardware":       {`[{"name":"a","mac":"zz"}]`, "hardware address"},
		"JSON bad GUID":           {`[{"name":"a","infiniband-guid":"1"}]`, "hardware address"},
		"JSON bad address":        {`[{"name":"a","ips":["10.0.0"]}]`, "neither an address nor a CIDR"},
		"JSON bad CIDR":           {`[{"name":"a","ips":["10.0.0.1/33"]}]`, "neither an address nor a CIDR"},
		"JSON ips not a list":     {`[{"name":"a","ips":"10.0.0.1"}]`, "unexpected string in ips"},
		"JSON bad default route":  {`[{"name":"a","default-route":["x"]}]`, "not a JSON list"},
		"JSON long interface":     {`[{"name":"a","interface":"abcdefghijklmnop"}]`, "longer than 15"},
		"a list with one bracket": {"a,[b", "not a JSON list"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseNetworks(tt.in, "telco")
			if err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, %v; want an error with %q", got, err, tt.say)
			}
			if err != nil && strings.Contains(err.Error(), "settings.") {
				t.Errorf("%v names a type of ours", err)
			}
		})
	}
}

func TestParseNetworksLarge(t *testing.T) {
	list := strings.TrimSuffix(strings.Repeat("some-network,", 100_000/13), ",")
	if got, err := ParseNetworks(list, "x"); err != nil || len(got) != 100_000/13 {
		t.Errorf("%d networks, %v", len(got), err)
	}
	if _, err := ParseNetworks(strings.Repeat("[", 100_000), "x"); err == nil || len(err.Error()) > 256 {
		t.Errorf("nested lists: %v", err)
	}
	if _, err := ParseNetworks(strings.Repeat("x", 100_000)+"@@", "x"); err == nil || len(err.Error()) > 256 {
		t.Errorf("message of %d bytes", len(err.Error()))
	}
}

func FuzzParseNetworks(f *testing.F) {
	for _, s := range []string{"", "a", "a,", ",", " ", "a/", "x/a@b", "a@@", "[]", "[null]", "null", `[{"name":"a"}]`, `{"name":"a"}`,
		`"a"`, `[{"name":"a","default-route":[null]}]`, `[{"name":"a","ips":[null]}]`, `[{"NAME":"a"}]`, "\x00", "[\xff]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		networks, err := ParseNetworks(s, "default-ns")
		if err != nil && networks != nil {
			t.Fatal("both a result and an error")
		}
		for _, n := range networks {
			if n.Name == "" || n.Namespace == "" || len(n.Interface) > 15 {
				t.Fatalf("impossible network %+v", n)
			}
		}
	})
}

func FuzzCheckAnnotations(f *testing.F) {
	f.Add(KeyIgnore, "10.0.0.0/8")
	f.Add(KeyInterfaces, "net1,net2")
	f.Add(KeyCPU, "1e3")
	f.Add(KeyMemory, "0.5Gi")
	f.Add(KeyDeadline, "1h")
	f.Fuzz(func(t *testing.T, key, value string) {
		problems := CheckAnnotations(map[string]string{key: value})
		for _, r := range podRows() {
			if r.Annotation != key || r.Env == "" {
				continue
			}
			if _, err := Load(Init, nil, env(r.Env, value)); (err != nil) != (len(problems) > 0) {
				t.Fatalf("webhook says %v, agent says %v", problems, err)
			}
		}
	})
}
