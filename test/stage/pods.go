package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/tools"
	"multus-ip-manager.io/test/world"
)

// Pod is a pod of the API server with its sandbox in the emulated VPC.
type Pod struct {
	// API is the pod as the kubelet has it when it starts the first container: admitted, with status.podIPs.
	API *corev1.Pod
	// Sandbox is its network namespace.
	Sandbox *world.Pod
	// Addresses are the addresses of its extra interfaces, in the order of its networks.
	Addresses []netip.Addr
}

// ApplyFile applies a manifest of the repository, named from its top.
func (s *Stage) ApplyFile(ctx context.Context, path string) ([]*unstructured.Unstructured, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(path)))
	if err != nil {
		return nil, err
	}
	return s.Plane.Apply(ctx, data, "default")
}

// Deployment finds the one Deployment among applied objects.
func Deployment(objects []*unstructured.Unstructured) (*appsv1.Deployment, error) {
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			d := &appsv1.Deployment{}
			return d, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, d)
		}
	}
	return nil, fmt.Errorf("there is no Deployment among %d objects", len(objects))
}

// StartPod plays the Deployment's controller and the scheduler, creating its pod number i on a node, and then the kubelet and Multus
// up to the moment at which the first container starts.
func (s *Stage) StartPod(ctx context.Context, d *appsv1.Deployment, i int, node string) (*Pod, error) {
	pod := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
	pod.Namespace, pod.Name = d.Namespace, fmt.Sprintf("%s-%d", d.Name, i)
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: d.Name, UID: d.UID}}
	pod.Spec.NodeName = node
	if err := s.Plane.Client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", pod.Name, err)
	}
	return s.Sandbox(ctx, pod)
}

// Sandbox plays the kubelet and Multus for a pod that is bound to a node: it makes the interfaces the networks annotation asks for,
// with addresses from the networks' ranges, and reports the pod's own addresses.
func (s *Stage) Sandbox(ctx context.Context, pod *corev1.Pod) (*Pod, error) {
	networks, err := settings.ParseNetworks(pod.Annotations[settings.Networks], pod.Namespace)
	if err != nil {
		return nil, err
	}
	p := &Pod{}
	spec := world.PodSpec{Name: pod.Name, Namespace: pod.Namespace, Node: pod.Spec.NodeName}
	for i, n := range networks {
		attachment, err := s.attach(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("network %s/%s: %w", n.Namespace, n.Name, err)
		}
		attachment.Interface = n.Interface
		if attachment.Interface == "" {
			attachment.Interface = "net" + strconv.Itoa(i+1)
		}
		spec.Networks = append(spec.Networks, attachment)
		p.Addresses = append(p.Addresses, attachment.Addresses[0].Addr())
	}
	if p.Sandbox, err = s.World.AddPod(spec); err != nil {
		return nil, err
	}
	for _, ip := range p.Sandbox.IPs() {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	pod.Status.PodIP = pod.Status.PodIPs[0].IP
	if err := s.Plane.Client.Status().Update(ctx, pod); err != nil {
		return nil, fmt.Errorf("update the status of pod %s: %w", pod.Name, err)
	}
	p.API = pod
	return p, nil
}

// cni is the part of a NetworkAttachmentDefinition's configuration that matters here.
type cni struct {
	Type   string `json:"type"`
	Master string `json:"master"`
	IPAM   struct {
		Range string     `json:"range"`
		Start netip.Addr `json:"range_start"`
		End   netip.Addr `json:"range_end"`
	} `json:"ipam"`
}

// attach reads a network from the API server and takes the next address of its range. The master ethN is the ENI with device
// index N.
func (s *Stage) attach(ctx context.Context, n settings.Network) (world.Network, error) {
	nad := &unstructured.Unstructured{}
	nad.SetAPIVersion("k8s.cni.cncf.io/v1")
	nad.SetKind("NetworkAttachmentDefinition")
	if err := s.Plane.Client.Get(ctx, client.ObjectKey{Namespace: n.Namespace, Name: n.Name}, nad); err != nil {
		return world.Network{}, err
	}
	text, _, err := unstructured.NestedString(nad.Object, "spec", "config")
	if err != nil {
		return world.Network{}, err
	}
	var c cni
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return world.Network{}, fmt.Errorf("configuration: %w", err)
	}
	eni, err := strconv.Atoi(strings.TrimPrefix(c.Master, "eth"))
	if err != nil {
		return world.Network{}, fmt.Errorf("master %q: only ethN is played here", c.Master)
	}
	address, err := s.ipam.next(n.Namespace+"/"+n.Name, c)
	return world.Network{ENI: eni, Addresses: []netip.Prefix{address}}, err
}

// ipam hands out addresses of ranges, as whereabouts does.
type ipam struct {
	mu   sync.Mutex
	last map[string]netip.Addr
}

func (i *ipam) next(network string, c cni) (netip.Prefix, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	subnet, err := netip.ParsePrefix(c.IPAM.Range)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("range: %w", err)
	}
	addr := c.IPAM.Start
	if last, ok := i.last[network]; ok {
		addr = last.Next()
	}
	if !addr.IsValid() || addr.Compare(c.IPAM.End) > 0 {
		return netip.Prefix{}, fmt.Errorf("the range %s to %s is used up", c.IPAM.Start, c.IPAM.End)
	}
	if i.last == nil {
		i.last = map[string]netip.Addr{}
	}
	i.last[network] = addr
	return netip.PrefixFrom(addr, subnet.Bits()), nil
}

// RunInit runs the pod's init containers one after the other, as the kubelet does, and gives the result of the last one: the first
// that fails, or the pod's last.
func (s *Stage) RunInit(ctx context.Context, p *Pod) (kubelet.Result, error) {
	var r kubelet.Result
	for _, c := range p.API.Spec.InitContainers {
		var err error
		r, err = kubelet.Container{Pod: p.API, Name: c.Name, Images: s.Images(c.Image), NS: p.Sandbox.NS()}.Run(ctx)
		if err != nil || r.ExitCode != 0 {
			return r, err
		}
	}
	return r, nil
}
