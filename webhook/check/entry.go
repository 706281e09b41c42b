package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

// maxAnswer bounds what is read of an answer, in bytes; the patch of a small pod is a few KiB.
const maxAnswer = 1 << 20

// askEntry sends one AdmissionReview as the API server does, and returns what is well about the answer.
func (o Options) askEntry(ctx context.Context, entry admissionregistrationv1.MutatingWebhook) (string, error) {
	address, err := addressOf(entry.ClientConfig)
	if err != nil {
		return "", err
	}
	client, err := clientFor(entry, o.dial(ctx, entry.ClientConfig.Service))
	if err != nil {
		return "", err
	}
	injects := injecting(entry.ClientConfig)
	request, err := review(injects)
	if err != nil {
		return "", err
	}
	response, err := post(ctx, client, address, request)
	if err != nil {
		return "", err
	}
	if !response.Allowed {
		reason := "no reason given"
		if response.Result != nil {
			reason = response.Result.Message
		}
		return "", fmt.Errorf("%s refuses a pod that it should admit: %s", address, reason)
	}
	if !injects {
		return address + " answers, and its certificate is trusted", nil
	}
	if !bytes.Contains(response.Patch, []byte(`"`+settings.ContainerName+`"`)) {
		return "", fmt.Errorf("%s does not add the container %s to a pod with a Multus network", address, settings.ContainerName)
	}
	return address + " injects, and its certificate is trusted", nil
}

// addressOf is where the API server calls an entry.
func addressOf(c admissionregistrationv1.WebhookClientConfig) (string, error) {
	switch {
	case c.URL != nil:
		return *c.URL, nil
	case c.Service == nil:
		return "", errors.New("it names neither a Service nor a URL")
	}
	port, path := int32(443), ""
	if c.Service.Port != nil {
		port = *c.Service.Port
	}
	if c.Service.Path != nil {
		path = *c.Service.Path
	}
	// The name that the certificate must be for; a pod's resolver completes it with the cluster's domain.
	host := net.JoinHostPort(c.Service.Name+"."+c.Service.Namespace+".svc", strconv.Itoa(int(port)))
	return "https://" + strings.TrimSuffix(host, ":443") + path, nil
}

// dial reaches a Service by its own address, as the API server does, which asks no resolver. Where that address cannot be read, it
// is left to the Service's name.
func (o Options) dial(ctx context.Context, ref *admissionregistrationv1.ServiceReference) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{}
	if ref == nil {
		return dialer.DialContext
	}
	service, err := o.Client.CoreV1().Services(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil || net.ParseIP(service.Spec.ClusterIP) == nil {
		return dialer.DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return dialer.DialContext(ctx, network, net.JoinHostPort(service.Spec.ClusterIP, port))
	}
}

// clientFor trusts what the API server trusts for this entry and nothing else, and waits as long.
func clientFor(entry admissionregistrationv1.MutatingWebhook, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*http.Client, error) {
	if len(entry.ClientConfig.CABundle) == 0 {
		return nil, errors.New("its caBundle is empty: nobody has published a CA yet (see the webhook's log, or cert-manager's; a certificate of your own needs its CA put there)")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(entry.ClientConfig.CABundle) {
		return nil, errors.New("its caBundle holds no certificate")
	}
	seconds := int32(10)
	if entry.TimeoutSeconds != nil {
		seconds = *entry.TimeoutSeconds
	}
	return &http.Client{
		Timeout: time.Duration(seconds) * time.Second,
		// No proxy: the API server asks the Service itself. Each attempt dials anew, as it may reach another replica.
		Transport: &http.Transport{
			DialContext:       dial,
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true,
		},
	}, nil
}

// injecting tells whether a Multus pod that an entry is asked about gets the container. The others are for namespaces that
// name a mode there is not: they are asked about a pod that concerns nobody, or each check would count as a denial.
func injecting(c admissionregistrationv1.WebhookClientConfig) bool {
	path := ""
	if c.URL != nil {
		if u, err := url.Parse(*c.URL); err == nil {
			path = u.Path
		}
	} else if c.Service != nil && c.Service.Path != nil {
		path = *c.Service.Path
	}
	modes := []inject.NamespaceMode{inject.NamespaceNone, inject.NamespaceInit, inject.NamespaceSidecar}
	return slices.ContainsFunc(inject.Paths(), func(p inject.Path) bool {
		return slices.Contains(modes, p.NamespaceMode) && strings.HasSuffix(path, p.Path)
	})
}

// review is the API server's question about a small pod.
func review(multus bool) (*admissionv1.AdmissionReview, error) {
	pod := samplePod("default")
	pod.Annotations = nil
	if multus {
		pod.Annotations = map[string]string{settings.Networks: pod.Name}
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("write the pod: %w", err)
	}
	dryRun := true
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID:       types.UID("multus-ip-manager-check"),
			Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Namespace: pod.Namespace, Name: pod.Name,
			Operation: admissionv1.Create,
			Object:    runtime.RawExtension{Raw: raw},
			DryRun:    &dryRun,
		},
	}, nil
}

// post returns the answer to a question.
func post(ctx context.Context, client *http.Client, address string, question *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, fmt.Errorf("write the AdmissionReview: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", address, err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return nil, err // names the address
	}
	defer answer.Body.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", address, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s", address, answer.Status, strings.TrimSpace(string(data[:min(len(data), 200)])))
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(data, &out); err != nil || out.Response == nil || out.Response.UID != question.Request.UID {
		return nil, fmt.Errorf("%s does not answer with an AdmissionReview: something else listens there (%w)", address, errors.Join(err, errNoReview))
	}
	return out.Response, nil
}

var errNoReview = errors.New("no response to this request in it")
