package certs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"multus-ip-manager.io/certs"
)

// waitOwned waits until the Secret belongs to the configuration that is there now, as the garbage collector understands it, and
// holds up neither's deletion.
func (c *cluster) waitOwned() *corev1.Secret {
	c.t.Helper()
	var secret *corev1.Secret
	want := []metav1.OwnerReference{{
		APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration", Name: c.config, UID: c.configuration().UID,
	}}
	eventually(c.t, "the Secret is owned", func() (err error) {
		secret, err = c.admin.CoreV1().Secrets(c.ns).Get(c.t.Context(), secretName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, secret.OwnerReferences); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	return secret
}

// bare returns the configuration's entries as the chart makes them: without a caBundle.
func (c *cluster) bare() []registrationv1.MutatingWebhook {
	c.t.Helper()
	entries := c.configuration().Webhooks
	for i := range entries {
		entries[i].ClientConfig.CABundle = nil
	}
	return entries
}

// deleteConfiguration deletes the configuration and waits until the replicas know.
func (c *cluster) deleteConfiguration(rs ...*replica) {
	c.t.Helper()
	must(c.t, c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(c.t.Context(), c.config, metav1.DeleteOptions{}))
	for i, r := range rs {
		eventually(c.t, fmt.Sprintf("replica %d knows", i), func() error {
			if r.Ready() == nil {
				return errors.New("still ready")
			}
			return nil
		})
	}
}

// An uninstalled release leaves no Secret: it belongs to the configuration, the garbage collector takes it away after that, and
// replicas that still end do not make it anew. In an installed one it comes back.
func TestSecretGoesWithTheConfiguration(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	detail := slog.New(slog.NewTextHandler(&c.said, &slog.HandlerOptions{Level: slog.Level(-10)})) // all that the library says
	rs := c.replicas(2, func(_ int, o *certs.SelfOptions) { o.Log = detail })
	entries := c.bare()
	c.waitReady(rs...)
	before := c.waitOwned()

	c.deleteConfiguration(rs...)
	const tries = "Will regenerate CA"
	writes, tried := c.writes.Load(), c.said.count(tries)
	must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{})) // in the garbage collector's place
	c.waitSaid(tried+len(rs), tries)
	if _, err := c.admin.CoreV1().Secrets(c.ns).Get(t.Context(), secretName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret is back: %v", err)
	}
	if n := c.writes.Load() - writes; n > 0 {
		t.Errorf("%d writes while there is no configuration", n)
	}

	c.configure(entries...)
	c.waitReady(rs...)
	c.admitSoon()
	after := c.waitOwned()
	if after.UID == before.UID {
		t.Error("the same Secret")
	}
}

// A configuration that is made anew is another owner; the reference to the one before goes, and with the collector, which takes the
// Secret of the one before although there is a new one, it still heals under load.
func TestSecretFollowsANewConfiguration(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(2, nil)
	entries := c.bare()
	c.waitReady(rs...)
	secret := c.waitOwned()
	secret.OwnerReferences = append(secret.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "another", UID: "1"})
	secret, err := c.admin.CoreV1().Secrets(c.ns).Update(t.Context(), secret, metav1.UpdateOptions{})
	must(t, err)

	c.deleteConfiguration(rs...)
	c.configure(entries...)
	c.waitReady(rs...)
	c.admitSoon()
	eventually(t, "the owner is the new one, and others are left alone", func() error {
		now, err := c.admin.CoreV1().Secrets(c.ns).Get(t.Context(), secretName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		var uids []types.UID
		for _, owner := range now.OwnerReferences {
			uids = append(uids, owner.UID)
		}
		if diff := cmp.Diff([]types.UID{"1", c.configuration().UID}, uids); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	load := c.load(rs...)
	before := c.ca()
	must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(secret.UID))}))
	c.waitServedUnderOther(before, rs...)
	c.waitOwned()
	load.verify(t)
}

// What cert-manager's library fails in is a fault and no outage: here it may not make the CA's Secret any more.
func TestUnwritableSecretIsAnAlertAndNoOutage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	rs := c.replicas(1, nil)
	c.waitReady(rs...)
	c.waitOwned()
	load := c.load(rs...)
	before := c.ca()
	role, err := c.admin.RbacV1().Roles(c.ns).Get(t.Context(), c.ns, metav1.GetOptions{})
	must(t, err)
	rules := role.Rules
	role.Rules = slices.DeleteFunc(slices.Clone(rules), func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Verbs, "create") })
	role, err = c.admin.RbacV1().Roles(c.ns).Update(t.Context(), role, metav1.UpdateOptions{})
	must(t, err)
	c.waitMayCreate(false)
	must(t, c.admin.CoreV1().Secrets(c.ns).Delete(t.Context(), secretName, metav1.DeleteOptions{}))
	eventually(t, "the fault is told", func() error {
		if diff := cmp.Diff([]string{certs.ReasonWriteCA}, certs.Reasons(rs[0].Fault())); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	must(t, rs[0].Ready())

	role.Rules = rules
	_, err = c.admin.RbacV1().Roles(c.ns).Update(t.Context(), role, metav1.UpdateOptions{})
	must(t, err)
	c.waitServedUnderOther(before, rs...) // the library tries every ten seconds
	eventually(t, "the fault passes", rs[0].Fault)
	load.verify(t)
}

// waitMayCreate waits until the user may, or may not, create Secrets.
func (c *cluster) waitMayCreate(may bool) {
	c.t.Helper()
	user := "system:serviceaccount:" + c.ns + ":default"
	eventually(c.t, "the rights are in force", func() error {
		allowed, err := c.allowed(user, "create", "", "secrets", "")
		if err == nil && allowed != may {
			err = errors.New("not yet")
		}
		return err
	})
}

// Two installations that fight over one configuration: who is not called leaves it alone and says so.
func TestForeignConfigurationIsLeftAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	entry := c.entry("theirs", "127.0.0.2:443")
	c.configure(entry)
	source, err := certs.NewSelf(c.options())
	must(t, err)
	r := c.start(source, listen(t))
	eventually(t, "the fault is told", func() error {
		if diff := cmp.Diff([]string{certs.ReasonNotOurs}, certs.Reasons(r.Fault())); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	r.stop() // what was begun is done
	if n := c.writes.Load(); n > 0 {
		t.Errorf("%d writes by who is not called", n)
	}
	must(t, c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.WithoutCancel(t.Context()), c.config, metav1.DeleteOptions{}))
}
