package admission

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// restricted is the Pod Security Standard that most samples' namespaces enforce.
const restricted = "restricted"

// samples are the files of manifests/samples: what each workload's pods get, and what their namespace enforces. A file that belongs to
// others stands with them.
var samples = []struct {
	files    []string
	modes    map[string]string // by workload
	security string
}{
	{[]string{"00-namespace.yaml", "10-network.yaml", "20-deployment.yaml"}, map[string]string{"Deployment/upf": "init"}, restricted},
	{[]string{"30-sidecar.yaml"}, map[string]string{"Deployment/smf": "sidecar"}, restricted},
	{[]string{"40-untouched.yaml"}, map[string]string{"Deployment/sbc": "sidecar"}, restricted},
	{[]string{"50-static.yaml"}, map[string]string{"StatefulSet/amf-a": "init", "StatefulSet/amf-b": "init"}, restricted},
	{[]string{"60-keepalived.yaml"}, map[string]string{"StatefulSet/media-a": "sidecar", "StatefulSet/media-b": "sidecar"}, "privileged"},
	{[]string{"70-dual-stack.yaml"}, map[string]string{"Deployment/pcscf": "init"}, restricted},
	{[]string{"80-two-networks.yaml"}, map[string]string{"Deployment/upf-routed": "init"}, restricted},
	{[]string{"90-job.yaml"}, map[string]string{"Job/probe": "sidecar"}, restricted},
}

func samplesFolder(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "manifests", "samples")
}

func TestEverySampleIsTested(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(samplesFolder(t), "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, s := range samples {
		listed = append(listed, s.files...)
	}
	var there []string
	for _, file := range files {
		there = append(there, filepath.Base(file))
	}
	slices.Sort(listed)
	if !slices.Equal(listed, there) {
		t.Errorf("tested are %v, there are %v", listed, there)
	}
	readme, err := os.ReadFile(filepath.Join(samplesFolder(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range there {
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("the README does not name %s", name)
		}
	}
}

// Each sample, applied as kubectl applies it, and the pods of its workloads.
func TestSamples(t *testing.T) {
	t.Parallel()
	for _, s := range samples {
		t.Run(s.files[len(s.files)-1], func(t *testing.T) {
			t.Parallel()
			var objects []*unstructured.Unstructured
			for _, file := range s.files {
				data, err := os.ReadFile(filepath.Join(samplesFolder(t), file))
				if err != nil {
					t.Fatal(err)
				}
				applied, err := shared.plane.Apply(t.Context(), data, "")
				if err != nil {
					t.Fatal(err)
				}
				objects = append(objects, applied...)
			}
			sample := &sample{T: t, networks: map[string]network{}, security: s.security}
			var tested []string
			for _, o := range objects {
				if name, ok := sample.object(o, s.modes); ok {
					tested = append(tested, name)
				}
			}
			if want := slices.Sorted(maps.Keys(s.modes)); !slices.Equal(slices.Sorted(slices.Values(tested)), want) {
				t.Errorf("workloads %v, want %v", tested, want)
			}
			for name, n := range sample.networks {
				if !n.used {
					t.Errorf("no pod uses network %s", name)
				}
			}
		})
	}
}

// sample is what is known of one sample so far.
type sample struct {
	*testing.T

	networks map[string]network
	security string
}

// network is what matters of a NetworkAttachmentDefinition.
type network struct {
	static bool // pods name their addresses
	used   bool
}

// object checks one object. Of a workload it gives the name.
func (s *sample) object(o *unstructured.Unstructured, modes map[string]string) (string, bool) {
	s.Helper()
	name := o.GetKind() + "/" + o.GetName()
	var template corev1.PodTemplateSpec
	switch o.GetKind() {
	case "Namespace":
		labels := o.GetLabels()
		if labels["pod-security.kubernetes.io/enforce"] != s.security || labels[settings.LabelInject] != settings.InjectEnabled {
			s.Errorf("labels of %s: %v, want opted in and %s enforced", name, labels, s.security)
		}
		return "", false
	case "NetworkAttachmentDefinition":
		s.network(o)
		return "", false
	case "ConfigMap":
		s.keepalived(o)
		return "", false
	case "Deployment":
		template = convert[appsv1.Deployment](s.T, o).Spec.Template
	case "StatefulSet":
		template = convert[appsv1.StatefulSet](s.T, o).Spec.Template
	case "Job":
		template = convert[batchv1.Job](s.T, o).Spec.Template
	case "Service":
		return "", false
	default:
		s.Errorf("%s: nobody looks at this kind", name)
		return "", false
	}
	for _, c := range append(slices.Clone(template.Spec.InitContainers), template.Spec.Containers...) {
		if c.Name == settings.ContainerName || c.Name == settings.LegacyContainerName || strings.Contains(c.Image, "multus-ip") {
			s.Errorf("%s has a container pasted in: %s", name, c.Name)
		}
	}
	s.pod(name, o, template, modes[name])
	return name, true
}

func convert[T any](t *testing.T, o *unstructured.Unstructured) *T {
	t.Helper()
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, out, true); err != nil {
		t.Fatal(err)
	}
	return out
}

// pod creates the workload's pod as its controller would, and checks what comes out.
func (s *sample) pod(name string, owner *unstructured.Unstructured, template corev1.PodTemplateSpec, mode string) {
	s.Helper()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Namespace, pod.GenerateName = owner.GetNamespace(), owner.GetName()+"-"
	a := shared.create(s.T, pod)
	for _, w := range a.warnings {
		// The sample with keepalived has the server tell what "restricted" would refuse: keepalived, and nothing else.
		if s.security == restricted || !strings.Contains(w, "PodSecurity") || strings.Contains(w, settings.ContainerName) || strings.Contains(w, `"app"`) {
			s.Errorf("%s: warning %s", name, w)
		}
	}
	if !injected(s.T, a.pod) {
		s.Fatalf("%s was not injected", name)
	}
	ours := a.pod.Spec.InitContainers[0]
	native := ours.RestartPolicy != nil && *ours.RestartPolicy == corev1.ContainerRestartPolicyAlways
	if ours.Name != settings.ContainerName || ours.Args[0] != mode || native != (mode == "sidecar") || (ours.StartupProbe != nil) != native {
		s.Errorf("%s: the first init container is %+v, want mode %s", name, ours, mode)
	}
	if len(a.pod.Spec.Containers) != len(template.Spec.Containers) || len(a.pod.Spec.InitContainers) != len(template.Spec.InitContainers)+1 {
		s.Errorf("%s: %d containers, %d init containers", name, len(a.pod.Spec.Containers), len(a.pod.Spec.InitContainers))
	}
	networks, err := settings.ParseNetworks(a.pod.Annotations[settings.Networks], a.pod.Namespace)
	if err != nil {
		s.Fatal(err)
	}
	for _, n := range networks {
		known, ok := s.networks[n.Namespace+"/"+n.Name]
		known.used = true
		s.networks[n.Namespace+"/"+n.Name] = known
		if asks := strings.Contains(a.pod.Annotations[settings.Networks], `"ips"`); !ok || asks != known.static {
			s.Errorf("%s: network %s: there %v, static %v, the pod names addresses %v", name, n.Name, ok, known.static, asks)
		}
	}
}

// plugin is a CNI plugin's configuration.
type plugin struct {
	Type, Master, Mode string
	Capabilities       map[string]bool
	IPAM               ipam
}

type ipam struct {
	Type, Range string
	Start       netip.Addr `json:"range_start"`
	End         netip.Addr `json:"range_end"`
	Gateway     netip.Addr
	IPRanges    []ipam `json:"ipRanges"`
}

// network checks a NetworkAttachmentDefinition: what works in a VPC, with ranges inside their subnets and clear of what AWS keeps.
func (s *sample) network(o *unstructured.Unstructured) {
	s.Helper()
	text, _, err := unstructured.NestedString(o.Object, "spec", "config")
	if err != nil {
		s.Fatal(err)
	}
	var config struct {
		CNIVersion, Name string
		plugin
		Plugins []plugin
	}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		s.Fatalf("%s: %v", o.GetName(), err)
	}
	main := config.plugin
	if len(config.Plugins) > 0 {
		main = config.Plugins[0]
		if config.Plugins[1].Type != "sbr" || config.Name != o.GetName() || !main.IPAM.Gateway.IsValid() {
			s.Errorf("%s: source-based routing needs a gateway: %+v", o.GetName(), config)
		}
	}
	if config.CNIVersion == "" || main.Type != "ipvlan" || main.Mode != "l2" || main.Master == "" {
		s.Errorf("%s: %+v, want ipvlan in mode l2 with a master", o.GetName(), main)
	}
	known := network{static: main.IPAM.Type == "static"}
	if known.static != main.Capabilities["ips"] {
		s.Errorf("%s: addresses that pods name need the capability ips", o.GetName())
	}
	ranges := main.IPAM.IPRanges
	if !known.static && len(ranges) == 0 {
		ranges = []ipam{main.IPAM}
	}
	for _, r := range ranges {
		subnet, err := netip.ParsePrefix(r.Range)
		if err != nil {
			s.Fatal(err)
		}
		kept := subnet.Addr().Next().Next().Next() // the subnet's first four addresses are AWS's
		if !subnet.Contains(r.Start) || !subnet.Contains(r.End) || r.Start.Compare(kept) <= 0 || r.Start.Compare(r.End) >= 0 || subnet.Contains(r.End.Next()) != true {
			s.Errorf("%s: the range %s to %s is not well inside %s", o.GetName(), r.Start, r.End, subnet)
		}
		if r.Gateway.IsValid() && r.Gateway != subnet.Addr().Next() {
			s.Errorf("%s: gateway %s, want the VPC router's address %s", o.GetName(), r.Gateway, subnet.Addr().Next())
		}
	}
	s.networks[o.GetNamespace()+"/"+o.GetName()] = known
}

// keepalived checks the configuration files by the program itself, where it is installed.
func (s *sample) keepalived(o *unstructured.Unstructured) {
	s.Helper()
	path, err := exec.LookPath("keepalived")
	if err != nil {
		s.Logf("the configuration of keepalived was not checked: %v", err)
		return
	}
	data, _, err := unstructured.NestedStringMap(o.Object, "data")
	if err != nil {
		s.Fatal(err)
	}
	links, err := net.Interfaces()
	if err != nil {
		s.Fatal(err)
	}
	links = slices.DeleteFunc(links, func(l net.Interface) bool { return l.Flags&net.FlagLoopback != 0 })
	if len(links) == 0 {
		s.Log("the configuration of keepalived was not checked: it takes no loopback interface, and there is no other")
		return
	}
	for name, text := range data {
		file := filepath.Join(s.TempDir(), name)
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "net1", links[0].Name)), 0o600); err != nil {
			s.Fatal(err)
		}
		if out, err := exec.CommandContext(s.Context(), path, "--config-test", "--use-file="+file).CombinedOutput(); err != nil { //nolint:gosec // our own file
			s.Errorf("keepalived refuses %s: %v\n%s", name, err, out)
		}
	}
}

// No two samples give out the same address: all of them can be applied at once.
func TestSamplesDoNotOverlap(t *testing.T) {
	t.Parallel()
	taken := map[netip.Addr]string{}
	take := func(a netip.Addr, by string) {
		if other, ok := taken[a]; ok {
			t.Errorf("%s is %s's and %s's", a, other, by)
		}
		taken[a] = by
	}
	for _, s := range samples {
		for _, file := range s.files {
			data, err := os.ReadFile(filepath.Join(samplesFolder(t), file))
			if err != nil {
				t.Fatal(err)
			}
			objects, err := plane.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range objects {
				for _, r := range rangesOf(t, o) {
					for a := r.Start; a.Compare(r.End) <= 0; a = a.Next() {
						take(a, o.GetName())
					}
				}
				annotations, _, _ := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "annotations")
				var wanted []struct{ IPs []netip.Prefix }
				if value := annotations[settings.Networks]; strings.HasPrefix(value, "[") && json.Unmarshal([]byte(value), &wanted) == nil {
					for _, w := range wanted {
						for _, p := range w.IPs {
							take(p.Addr(), fmt.Sprint(o.GetKind(), " ", o.GetName()))
						}
					}
				}
			}
		}
	}
	take(netip.MustParseAddr("10.0.4.50"), "the floating address of keepalived")
	if len(taken) < 80 {
		t.Errorf("only %d addresses were found", len(taken))
	}
}

// rangesOf are the ranges of a NetworkAttachmentDefinition, none of anything else.
func rangesOf(t *testing.T, o *unstructured.Unstructured) []ipam {
	t.Helper()
	if o.GetKind() != "NetworkAttachmentDefinition" {
		return nil
	}
	text, _, _ := unstructured.NestedString(o.Object, "spec", "config")
	var config struct {
		plugin
		Plugins []plugin
	}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	from := config.IPAM
	if len(config.Plugins) > 0 {
		from = config.Plugins[0].IPAM
	}
	switch {
	case from.Type == "static":
		return nil
	case len(from.IPRanges) > 0:
		return from.IPRanges
	}
	return []ipam{from}
}
