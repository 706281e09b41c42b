package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/test/cluster"
)

// advert is how often the active keepalived tells that it lives; the other one takes over after three that did not come.
const advert = 100 * time.Millisecond

// streamed is what an application says about a stream of echo requests.
type streamed struct {
	Sent, Answered int
	Gap            time.Duration
}

// A virtual address moves from one node to the other, with real keepalived in both pods: when the active pod is deleted, which
// keepalived tells its peer, and when its node loses its power, which the peer has to notice. What is lost of 100 echo requests a
// second, sent through the VPC, is measured.
func TestVirtualAddressFailsOver(t *testing.T) {
	s := needVPC(t)
	if _, err := os.Stat(s.archive("keepalived")); err != nil {
		t.Skip("keepalived is not installed on this machine, so the cluster has no image of it (Debian: apt-get install --no-install-recommends keepalived)")
	}
	nodes := s.nodes(t)
	labels := map[string]string{enabled: "enabled", mode: "sidecar", "pod-security.kubernetes.io/enforce": "privileged"}
	namespace := s.namespace(t, labels)
	b := s.block(t)
	vip := nth(b.v4, 20)
	// The one who asks sits on the second node and comes through the VPC by his own interface; the answers go back as they came.
	s.create(t, namespace, "peer", nodes[1], s.template("peer", nil))
	peer := s.pods(t, namespace, "peer", 1)[0]
	s.makeNAD(t, namespace, "static", fmt.Sprintf(`"capabilities": {"ips": true}, "ipam": {"type": "static", "routes": [{"dst": "%s/32", "gw": "10.0.16.1"}]}`,
		peer.Status.PodIP))
	addresses := []netip.Addr{nth(b.v4, 1), nth(b.v4, 2)}
	for i, node := range nodes {
		s.keepalived(t, namespace, node, addresses[i], addresses[1-i], vip, 100+10*i)
	}
	pods := s.pods(t, namespace, "ha", 2)
	eni := []string{"eni-0a1", "eni-0b1"}
	s.until(t.Context(), t, soon, "the virtual address is on the second node", func(context.Context) error {
		if on := s.holder(t, vip); on != eni[1] {
			return fmt.Errorf("it is on %q", on)
		}
		return nil
	})
	if err := s.ping(t.Context(), &peer, vip, answered); err != nil {
		t.Fatal(err)
	}

	t.Run("the active pod is deleted", func(t *testing.T) {
		got := s.during(t, &peer, vip, func() {
			if err := s.Client.Delete(t.Context(), &pods[1]); err != nil {
				t.Error(err)
			}
		})
		t.Logf("of %d echo requests at 100 per second %d were lost, the longest gap was %s", got.Sent, got.Sent-got.Answered, got.Gap)
		if on := s.holder(t, vip); on != eni[0] {
			t.Errorf("the virtual address is on %q", on)
		}
		if lost := got.Sent - got.Answered; lost > 150 {
			t.Errorf("%d of %d were lost", lost, got.Sent)
		}
	})
	t.Run("the active node loses its power", func(t *testing.T) {
		s.keepalived(t, namespace, nodes[1], addresses[1], addresses[0], vip, 90)
		s.pods(t, namespace, "ha", 2)
		defer func() { // not a cleanup: pods cannot be removed from a node that is down
			if err := s.vpc.Boot(t.Context(), nodes[0]); err != nil {
				t.Error(err)
			}
			s.pods(t, namespace, "ha", 2)
		}()
		got := s.during(t, &peer, vip, func() {
			if err := s.vpc.Kill(t.Context(), nodes[0]); err != nil {
				t.Error(err)
			}
		})
		t.Logf("of %d echo requests at 100 per second %d were lost, the longest gap was %s", got.Sent, got.Sent-got.Answered, got.Gap)
		if on := s.holder(t, vip); on != eni[1] {
			t.Errorf("the virtual address is on %q", on)
		}
		if lost := got.Sent - got.Answered; lost > 200 {
			t.Errorf("%d of %d were lost", lost, got.Sent)
		}
	})
}

// during streams echo requests for some seconds, and does something after the first two.
func (s *suite) during(t *testing.T, from *corev1.Pod, to netip.Addr, do func()) streamed {
	t.Helper()
	var got streamed
	done := make(chan error, 1)
	go func() {
		done <- s.ask(t.Context(), from, "/stream", map[string]string{"to": to.String(), "for": "8s", "every": "10ms"}, &got)
	}()
	<-time.After(2 * time.Second) // the stream is to show that all is well before
	do()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return got
}

// keepalived makes a pod with keepalived beside the application on a node, as the sample has it.
func (s *suite) keepalived(t *testing.T, namespace, node string, own, other, vip netip.Addr, priority int) {
	t.Helper()
	name := fmt.Sprintf("ha-%s-%d", node, priority)
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Data: map[string]string{"keepalived.conf": fmt.Sprintf(`global_defs {
    vrrp_version 3
    vrrp_garp_master_delay 0
    vrrp_garp_master_repeat 1
}
vrrp_instance media {
    state BACKUP
    interface net1
    virtual_router_id 51
    priority %d
    advert_int %.2f
    unicast_src_ip %s
    unicast_peer {
        %s
    }
    virtual_ipaddress {
        %s/32 dev net1
    }
}
`, priority, advert.Seconds(), own, other, vip)}}
	if err := s.Client.Create(t.Context(), config, &client.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	no := false
	template := s.template("ha", map[string]string{networks: fmt.Sprintf(`[{"name": "static", "ips": ["%s/20"]}]`, own)})
	template.Spec.Containers = append(template.Spec.Containers, corev1.Container{
		Name: "keepalived", Image: cluster.KeepalivedImage,
		Args: []string{"--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file=/etc/keepalived/keepalived.conf"},
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, RunAsNonRoot: &no, Capabilities: &corev1.Capabilities{
			Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}}},
		VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/keepalived"}},
	})
	template.Spec.Volumes = []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}}}
	s.create(t, namespace, name, node, template)
}
