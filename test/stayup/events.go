package stayup

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// RenewLeaves waits until each replica has renewed its certificate under the CA it has.
func (r *Rig) RenewLeaves(ctx context.Context) error {
	before, err := r.Served(ctx)
	if err != nil {
		return err
	}
	return r.AwaitServed(ctx, before, NewLeaf)
}

// RotateCA has the source self make a new CA, as it also does in time: by deleting the Secret with the present one. It returns when
// every replica serves under the new one.
func (r *Rig) RotateCA(ctx context.Context) error {
	before, err := r.Served(ctx)
	if err != nil {
		return err
	}
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = Namespace, Release+"-ca"
	if err := r.Plane.Client.Delete(ctx, secret); err != nil {
		return err
	}
	return r.AwaitServed(ctx, before, NewCA)
}

// CrashOne kills a replica, and starts it again when the kubelet has noticed.
func (r *Rig) CrashOne(ctx context.Context) error {
	if err := r.Replicas()[0].Crash(ctx); err != nil {
		return err
	}
	p, err := r.StartReplica(ctx)
	if err != nil {
		return err
	}
	return p.AwaitReady(ctx)
}

// RestartAPIServer restarts the API server and waits until the replicas are told to serve as before.
func (r *Rig) RestartAPIServer(ctx context.Context) error {
	if err := r.Plane.RestartAPIServer(ctx); err != nil {
		return err
	}
	for _, p := range r.Replicas() {
		if _, err := p.get(ctx, p.ports.health, "/readyz", firstAnswer); err != nil {
			return errors.Join(fmt.Errorf("replica %s after the restart", p.Addr), err)
		}
	}
	return nil
}
