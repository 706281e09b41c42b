package plane

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// startServiceAccounts makes the "default" service account of every namespace, as a cluster's controller manager does:
// without it ServiceAccount admission refuses every pod. The server itself waits about a second for the account of a
// namespace that is brand-new, so nobody needs to know of this.
func (p *Plane) startServiceAccounts(ctx context.Context) error {
	if err := p.ensureServiceAccount(ctx, "default"); err != nil {
		return err
	}
	p.done.Go(func() {
		for {
			// What ends a round early passes: the API server is away, or the watch was too old.
			_ = p.followNamespaces(context.WithoutCancel(ctx))
			select {
			case <-p.closing:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return nil
}

// followNamespaces returns when the plane closes or anything fails. Requests are short and not cut off by the closing,
// which client-go would log as an error.
func (p *Plane) followNamespaces(ctx context.Context) error {
	var existing corev1.NamespaceList
	if err := p.Client.List(ctx, &existing); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range existing.Items {
		if err := p.ensureServiceAccount(ctx, ns.Name); err != nil {
			return err
		}
	}
	events, err := p.Client.Watch(ctx, &corev1.NamespaceList{}, &client.ListOptions{
		Raw: &metav1.ListOptions{ResourceVersion: existing.ResourceVersion},
	})
	if err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	defer events.Stop()
	for {
		select {
		case <-p.closing:
			return nil
		case event, open := <-events.ResultChan():
			if !open || event.Type == watch.Error {
				return errors.New("the watch ended")
			}
			ns, ok := event.Object.(*corev1.Namespace)
			if !ok || event.Type != watch.Added {
				continue
			}
			if err := p.ensureServiceAccount(ctx, ns.Name); err != nil {
				return err
			}
		}
	}
}

// ensureServiceAccount tolerates a namespace that is going or gone.
func (p *Plane) ensureServiceAccount(ctx context.Context, namespace string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: namespace}}
	err := p.Client.Create(ctx, account)
	switch {
	case err == nil, apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err),
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	}
	return fmt.Errorf("make the default service account of %s: %w", namespace, err)
}
