package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nothing is left of an uninstalled release but its namespace, and the pods it was injected into go on.
func TestUninstall(t *testing.T) {
	s := needVPC(t)
	namespace := s.namespace(t, sidecarMode)
	s.deploy(t, namespace, 2, s.template("app", map[string]string{networks: s.makeNetwork(t, namespace)}))
	pods := s.pods(t, namespace, "app", 2)
	if _, err := s.helm.Uninstall(t.Context(), release, release); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.upgrade(context.WithoutCancel(t.Context()), nil); err != nil {
			t.Error(err)
		}
	})
	s.until(t.Context(), t, soon, "nothing is left", func(ctx context.Context) error { return s.leftovers(ctx) })
	s.wantPings(t, pods, true)
	left := s.pods(t, namespace, "app", 2)
	for i := range left {
		if left[i].UID != pods[i].UID {
			t.Errorf("%s is another pod than before", left[i].Name)
		}
	}
	s.create(t, namespace, "later", "", s.template("later", map[string]string{networks: "n3"}))
	if later := s.pods(t, namespace, "later", 1)[0]; len(later.Spec.InitContainers) > 0 {
		t.Error("something is injected yet")
	}
}

// leftovers are the objects that the chart or the webhook made.
func (s *suite) leftovers(ctx context.Context) error {
	var found []string
	add := func(kind string, names ...string) {
		for _, n := range names {
			if !strings.HasPrefix(n, "kube-root-ca.crt") && n != "default" {
				found = append(found, kind+" "+n)
			}
		}
	}
	configurations, err := s.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, c := range configurations.Items {
		add("MutatingWebhookConfiguration", c.Name)
	}
	secrets, err := s.kube.CoreV1().Secrets(release).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range secrets.Items {
		add("Secret", o.Name)
	}
	pods, err := s.kube.CoreV1().Pods(release).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range pods.Items {
		add("Pod", o.Name)
	}
	configMaps, err := s.kube.CoreV1().ConfigMaps(release).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range configMaps.Items {
		add("ConfigMap", o.Name)
	}
	accounts, err := s.kube.CoreV1().ServiceAccounts(release).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range accounts.Items {
		add("ServiceAccount", o.Name)
	}
	leases, err := s.kube.CoordinationV1().Leases(release).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range leases.Items {
		add("Lease", o.Name)
	}
	roles, err := s.kube.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + release})
	if err != nil {
		return err
	}
	for _, o := range roles.Items {
		add("ClusterRole", o.Name)
	}
	if len(found) > 0 {
		return errors.New(fmt.Sprint("left: ", strings.Join(found, ", ")))
	}
	return nil
}
