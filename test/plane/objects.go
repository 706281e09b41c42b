package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldManager owns the fields that Apply sets.
const FieldManager = "multus-ip-manager-test"

// CreateNamespace makes a namespace with a name that no other test has ("prefix-" and random letters), with its default
// service account, and returns the name. Nothing can be created in it any more after the test.
func (p *Plane) CreateNamespace(tb testing.TB, prefix string, labels map[string]string) string {
	tb.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-", Labels: labels}}
	if err := p.Client.Create(tb.Context(), ns); err != nil {
		tb.Fatalf("create a namespace: %v", err)
	}
	if err := p.ensureServiceAccount(tb.Context(), ns.Name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// It stays "Terminating": no controller empties it.
		if err := p.Client.Delete(context.WithoutCancel(tb.Context()), ns); err != nil {
			tb.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	return ns.Name
}

// Apply sends every object of a YAML stream by server-side apply, as `kubectl apply --server-side` does, and returns
// what the server made of them. namespace is for objects of namespaced kinds that name none.
func (p *Plane) Apply(ctx context.Context, manifests []byte, namespace string) ([]*unstructured.Unstructured, error) {
	objects, err := Decode(manifests)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		namespaced, err := p.Client.IsObjectNamespaced(object)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", object.GetKind(), err)
		}
		if namespaced && object.GetNamespace() == "" {
			object.SetNamespace(namespace)
		}
		if err := p.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
			return nil, fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return objects, nil
}

// Decode reads the objects of a YAML stream; empty documents are left out.
func Decode(manifests []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read manifest %d: %w", len(objects)+1, err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}
