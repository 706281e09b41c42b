// Package podlab prepares the agent as a pod runs it: in the very container that the webhook injects, in the network namespace of a
// pod of the emulated VPC.
package podlab

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/world"
	"multus-ip-manager.io/webhook/inject"
)

// Start says what is started and with what.
type Start struct {
	// Mode is the mode the container is injected for; the default is init.
	Mode settings.Mode
	// Program stands for the agent's image: its path on this machine.
	Program string
	// Annotations are the pod's own, beside the networks annotation, which asks for as many networks as the pod has.
	Annotations map[string]string
	// Agent are settings of the installation, by flag.
	Agent map[string]string
	// Env is added to the container's environment, after what leads to the emulated EC2.
	Env []string
	// PodIPs are what status.podIPs tells; nil means the pod's own.
	PodIPs []netip.Addr
	// Restarted gives the container the network-status that Multus wrote. The pod's first container does not see it yet.
	Restarted bool
}

// Container is the container that the webhook injects into the pod.
func Container(p *world.Pod, s Start) (kubelet.Container, error) {
	config := inject.DefaultConfig()
	config.Agent = s.Agent
	raw, err := config.Container(cmp.Or(s.Mode, settings.Init), inject.Burstable)
	if err != nil {
		return kubelet.Container{}, err
	}
	var c corev1.Container
	if err := json.Unmarshal(raw, &c); err != nil {
		return kubelet.Container{}, err
	}
	ips := s.PodIPs
	if ips == nil {
		ips = p.IPs()
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name(), Namespace: p.Namespace(), UID: "5e1f", Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{c}},
	}
	for _, ip := range ips {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	var networks []string
	for range p.Networks() {
		networks = append(networks, "net")
	}
	pod.Annotations[settings.Networks] = strings.Join(networks, ",")
	if s.Restarted {
		status, err := NetworkStatus(p)
		if err != nil {
			return kubelet.Container{}, err
		}
		pod.Annotations[settings.NetworkStatus] = status
	}
	for k, v := range s.Annotations {
		pod.Annotations[k] = v
	}
	return kubelet.Container{
		Pod: pod, Name: c.Name, NS: p.NS(),
		Images: map[string]string{c.Image: s.Program},
		Env:    append(p.AgentEnv(), s.Env...),
	}, nil
}
