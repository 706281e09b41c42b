package chart

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"multus-ip-manager.io/test/loopback"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// buildWebhook builds the product's webhook.
func buildWebhook(t *testing.T) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "webhook")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./webhook")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// arguments are those of the Deployment's container.
func arguments(t *testing.T, manifests string) []string {
	t.Helper()
	for _, object := range decode(t, manifests) {
		if object.GetKind() != "Deployment" {
			continue
		}
		containers, _, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "containers")
		if err != nil || len(containers) != 1 {
			t.Fatalf("containers: %v, %v", containers, err)
		}
		args, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
		if err != nil {
			t.Fatal(err)
		}
		return args
	}
	t.Fatal("no Deployment was rendered")
	return nil
}

// The webhook itself runs with the arguments that the chart gives it and the rights of the chart's service account, on
// this machine. With its own CA it becomes ready, which takes all of those rights: it made the Secret, wrote the bundle
// and has seen that the API server trusts it.
func TestWebhookRunsAsTheChartSays(t *testing.T) {
	webhook := buildWebhook(t)
	for name, ready := range map[string]bool{"default": true, "secret": false, "agent": true} {
		t.Run(name, func(t *testing.T) {
			addresses := loopback.Addresses(t, 3)
			host, url := loopback.IP().String(), "https://"+addresses[0].String()
			v := values(t, name)
			v["webhook"] = map[string]any{"url": url}
			i := install(t, v)
			config, err := i.plane.ServiceAccountConfig(t.Context(), i.release.Namespace, releaseName+"-multus-ip-manager")
			if err != nil {
				t.Fatal(err)
			}
			kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
			if err := plane.WriteKubeconfig(kubeconfig, config); err != nil {
				t.Fatal(err)
			}
			delete(v, "webhook")
			helm, dir := offlineHelm(t)
			manifests, err := helm.Template(t.Context(), plane.Release{Name: releaseName, Namespace: i.release.Namespace, Chart: dir, Values: v})
			if err != nil {
				t.Fatal(err)
			}
			args := append(arguments(t, manifests), "--kubeconfig="+kubeconfig, "--host="+host, "--dns-names="+host)
			for n, flag := range []string{"port", "health-port", "metrics-port"} {
				args = append(args, fmt.Sprintf("--%s=%d", flag, addresses[n].Port()))
			}
			base := "http://" + addresses[1].String()
			stop := sync.OnceFunc(start(t, webhook, args, base+"/healthz"))
			defer stop()
			if ready {
				waitFor(t, "the webhook to be ready", func() bool { return ok(t, base+"/readyz") })
				for _, entry := range i.configuration(t).Webhooks {
					if len(entry.ClientConfig.CABundle) == 0 {
						t.Errorf("%s: the webhook is ready and the bundle empty", entry.Name)
					}
				}
				// The chart's next upgrade and the webhook's field live together.
				changed := i.release
				changed.Values = map[string]any{"webhook": map[string]any{"url": url, "timeoutSeconds": 4}}
				if _, err := i.helm.Upgrade(t.Context(), changed); err != nil {
					t.Error(err)
				}
				if !ok(t, base+"/readyz") {
					t.Error("an upgrade of the chart took the webhook's trust away")
				}
				if name == "default" {
					i.release.Values = changed.Values
					testHelmTest(t, i, webhook, stop)
				}
			} else if ok(t, base+"/readyz") {
				t.Error("ready without a certificate")
			}
		})
	}
}

// start runs the webhook until the returned function is called, and waits for it to answer at url.
func start(t *testing.T, binary string, args []string, url string) (stop func()) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(30 * time.Second)
	for !ok(t, url) {
		select {
		case err := <-ended:
			t.Fatalf("%v: %v\n%s", args, err, log.String())
		case <-deadline:
			_ = cmd.Process.Kill()
			<-ended
			t.Fatalf("%v does not answer\n%s", args, log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("the webhook ended with %v\n%s", err, log.String())
		}
	}
}

func ok(t *testing.T, url string) bool {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}
