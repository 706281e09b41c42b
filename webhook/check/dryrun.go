package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/agent/settings"
)

// throughAPIServer lets the API server make a pod without keeping it. Only that takes the API server's own way to the
// webhook, which on some networks is closed while pods reach it.
func (o Options) throughAPIServer(ctx context.Context, entries []admissionregistrationv1.MutatingWebhook) (string, error) {
	pod, err := o.Client.CoreV1().Pods(o.Namespace).Create(ctx, samplePod(o.Namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case apierrors.IsInternalError(err) && slices.ContainsFunc(entries, func(e admissionregistrationv1.MutatingWebhook) bool { return strings.Contains(err.Error(), e.Name) }):
		return "", fmt.Errorf("pods reach the webhook and the API server does not; on EKS let the cluster security group reach the webhook's port on the nodes, or use hostNetwork where pods have addresses that the VPC does not know: %w", err)
	case err != nil:
		return "", fmt.Errorf("create a pod in namespace %s as a dry run: %w", o.Namespace, err)
	}
	injected := slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == settings.ContainerName })
	if !injected {
		return "", fmt.Errorf("the API server admits a pod to namespace %s without the container %s; is the namespace labelled %s=%s, and not one of webhook.excludedNamespaces? (With failurePolicy Ignore: or the API server does not reach the webhook.)",
			o.Namespace, settings.ContainerName, settings.LabelInject, settings.InjectEnabled)
	}
	return fmt.Sprintf("namespace %s: the API server calls the webhook for a new pod and takes its answer", o.Namespace), nil
}

// samplePod is admitted where only restricted pods are, and under quotas and limits. It asks for a mode and names no
// network: others, who look networks up, would refuse one that does not exist.
func samplePod(namespace string) *corev1.Pod {
	yes, no := true, false
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
	}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: "multus-ip-manager-check",
			Annotations: map[string]string{settings.KeyMode: string(settings.Init)},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "never-run", Image: "registry.k8s.io/pause:3.10",
				Resources: corev1.ResourceRequirements{Requests: resources, Limits: resources},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no,
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}
