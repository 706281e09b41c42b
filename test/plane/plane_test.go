package plane_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/test/plane"
)

// childVariable makes the test binary do one of the children's jobs instead of running tests.
const childVariable = "PLANE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "orphan":
		orphan()
	case "lonely":
		lonely()
	}
	os.Exit(plane.Main(m))
}

// orphan starts a plane, prints its folder and waits, to be killed.
func orphan() {
	p, err := plane.Start(context.Background(), plane.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Dir)
	select {}
}

// lonely starts and stops a plane where there is no interface but lo.
func lonely() {
	err := func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		p, err := plane.Start(context.Background(), plane.Options{})
		if err != nil {
			return err
		}
		return p.Stop()
	}()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func pod(namespace string, change func(*corev1.Pod)) *corev1.Pod {
	no, yes := false, true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "pod-"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: "app:1",
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no,
				RunAsNonRoot:             &yes,
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func TestServerIsTheStampedOne(t *testing.T) {
	p := plane.Shared(t)
	client, err := discovery.NewDiscoveryClientForConfig(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	version, err := client.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv(plane.AssetsVariable) == "" && version.GitVersion != "v1.36.3" {
		t.Errorf("the API server says it is %s; charts' kubeVersion checks need the true version, v1.36.3", version.GitVersion)
	}
}

// What a pod goes through here is what it goes through in a cluster.
func TestAdmissionIsThatOfACluster(t *testing.T) {
	p := plane.Shared(t)

	t.Run("ServiceAccount", func(t *testing.T) {
		ns := p.CreateNamespace(t, "sa", nil)
		got := pod(ns, nil)
		if err := p.Client.Create(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if got.Spec.ServiceAccountName != "default" || len(got.Spec.Containers[0].VolumeMounts) != 1 {
			t.Errorf("service account %q, mounts %v: want default and its token", got.Spec.ServiceAccountName, got.Spec.Containers[0].VolumeMounts)
		}
	})
	t.Run("ServiceAccount of a namespace that came by other ways", func(t *testing.T) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "plain-"}}
		if err := p.Client.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		if err := p.Client.Create(t.Context(), pod(ns.Name, nil)); err != nil {
			t.Errorf("create a pod right after its namespace: %v", err)
		}
	})
	t.Run("PodSecurity", func(t *testing.T) {
		ns := p.CreateNamespace(t, "restricted", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
		if err := p.Client.Create(t.Context(), pod(ns, nil)); err != nil {
			t.Errorf("a restricted pod: %v", err)
		}
		err := p.Client.Create(t.Context(), pod(ns, func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = nil }))
		if !apierrors.IsForbidden(err) {
			t.Errorf("a pod that is not restricted: got %v, want forbidden", err)
		}
	})
	t.Run("LimitRanger", func(t *testing.T) {
		ns := p.CreateNamespace(t, "limits", nil)
		limits := &corev1.LimitRange{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "limits"},
			Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
				Type: corev1.LimitTypeContainer, Default: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
			}}},
		}
		if err := p.Client.Create(t.Context(), limits); err != nil {
			t.Fatal(err)
		}
		got := pod(ns, nil)
		if err := p.Client.Create(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if memory := got.Spec.Containers[0].Resources.Limits.Memory().String(); memory != "64Mi" {
			t.Errorf("memory limit %s, want the namespace's default", memory)
		}
	})
	t.Run("system priority classes", func(t *testing.T) {
		ns := p.CreateNamespace(t, "priority", nil)
		got := pod(ns, func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" })
		if err := p.Client.Create(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if got.Spec.Priority == nil || *got.Spec.Priority != 2000000000 {
			t.Errorf("priority %v", got.Spec.Priority)
		}
	})
}

func TestApply(t *testing.T) {
	p := plane.Shared(t)
	ns := p.CreateNamespace(t, "apply", nil)
	manifests := `
# a comment, then an empty document
---
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: net}
spec:
  config: '{"cniVersion": "1.0.0", "type": "ipvlan"}'
---
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
data: {a: b}
`
	for _, round := range []string{"create", "change nothing"} {
		objects, err := p.Apply(t.Context(), []byte(manifests), ns)
		if err != nil {
			t.Fatalf("%s: %v", round, err)
		}
		if len(objects) != 2 || objects[0].GetUID() == "" || objects[0].GetNamespace() != ns {
			t.Fatalf("%s: got %v", round, objects)
		}
	}
	nad := &unstructured.Unstructured{}
	nad.SetGroupVersionKind(schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"})
	if err := p.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "net"}, nad); err != nil {
		t.Fatal(err)
	}
	if config, _, _ := unstructured.NestedString(nad.Object, "spec", "config"); !strings.Contains(config, "ipvlan") {
		t.Errorf("config is %q", config)
	}
	if _, err := p.Apply(t.Context(), []byte("kind: [not, an, object"), ns); err == nil {
		t.Error("broken YAML was applied")
	}
}

func TestServiceAccountConfigHasTheAccountsRightsOnly(t *testing.T) {
	p := plane.Shared(t)
	ns := p.CreateNamespace(t, "rights", nil)
	config, err := p.ServiceAccountConfig(t.Context(), ns, "default")
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var pods corev1.PodList
	if err := c.List(t.Context(), &pods, client.InNamespace(ns)); !apierrors.IsForbidden(err) {
		t.Errorf("listing pods without a role: got %v, want forbidden", err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(file, config); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig's mode is %v, %v: a token must be private", info.Mode(), err)
	}
}

// The owner is killed with its whole process group, as a terminal or a test runner does it, so nothing of its own can
// tidy up.
func TestNothingOutlivesItsOwner(t *testing.T) {
	plane.Shared(t) // says what to do where the binaries are missing
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	temp := t.TempDir()
	cmd.Env = append(os.Environ(), childVariable+"=orphan", "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	if !scanner.Scan() {
		t.Fatal("the owner said nothing")
	}
	dir := scanner.Text()
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the owner's folder: %v", err)
	}
	pids := recorded(t, dir)
	if len(pids) != 2 {
		t.Fatalf("recorded processes: %v, want two", pids)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says that it was killed
	waitFor(t, "the folder to be removed", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, pid := range pids {
		if command := commandLine(pid); strings.Contains(command, dir) {
			t.Errorf("still runs: %s", command)
		}
	}
}

// A fresh user and network namespace, as the demo of an unprivileged user has it: no address but loopback, no route, no
// rights outside.
func TestStartsWithLoopbackAlone(t *testing.T) {
	plane.Shared(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=lonely")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("user namespaces are not allowed here: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	plane.Shared(t)
	p, err := plane.Start(t.Context(), plane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pids := recorded(t, p.Dir)
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("the second Stop: %v", err)
	}
	if _, err := os.Stat(p.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
	for _, pid := range pids {
		if command := commandLine(pid); strings.Contains(command, p.Dir) {
			t.Errorf("still runs: %s", command)
		}
	}
}

// A server that never becomes ready would be waited for much longer than the test allows.
func TestStartCanBeGivenUp(t *testing.T) {
	plane.Shared(t)
	for _, server := range []string{"etcd", "kube-apiserver"} {
		t.Run("while "+server+" starts", func(t *testing.T) {
			temp, assets := t.TempDir(), t.TempDir()
			if err := os.WriteFile(filepath.Join(assets, server), []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", temp)
			t.Setenv(plane.AssetsVariable, assets)
			ctx, cancel := context.WithCancelCause(t.Context())
			enough := errors.New("enough")
			var watching sync.WaitGroup
			defer watching.Wait()
			watching.Go(func() {
				for {
					if files, _ := filepath.Glob(filepath.Join(temp, "*", server+".pid")); len(files) > 0 || t.Context().Err() != nil {
						cancel(enough)
						return
					}
					<-time.After(5 * time.Millisecond)
				}
			})
			start := time.Now()
			p, err := plane.Start(ctx, plane.Options{})
			if !errors.Is(err, enough) {
				t.Errorf("got %v, %v; want the cause of the cancellation", p, err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("giving up took %s", took)
			}
			if left, _ := os.ReadDir(temp); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestMissingBinariesSayWhatToDo(t *testing.T) {
	t.Setenv("MIM_CACHE", t.TempDir())
	for name, assets := range map[string]string{"nothing set": "", "assets without them": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(plane.AssetsVariable, assets)
			_, err := plane.Start(t.Context(), plane.Options{})
			if err == nil || !strings.Contains(err.Error(), "make tools") {
				t.Errorf("got %v, want an error that names `make tools`", err)
			}
			if assets != "" && !strings.Contains(err.Error(), assets) {
				t.Errorf("got %v, want the folder that was looked in", err)
			}
		})
	}
}

func TestAssetsVariableOverrides(t *testing.T) {
	assets := t.TempDir()
	want := filepath.Join(assets, "etcd")
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(plane.AssetsVariable, assets)
	if got, err := plane.Binary("etcd"); got != want || err != nil {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

func TestFailedStartTellsWhatTheServerSaid(t *testing.T) {
	plane.Shared(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	_, err := plane.Start(t.Context(), plane.Options{APIServerArgs: map[string][]string{"no-such-flag": {"1"}}})
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("got %v, want the server's own words", err)
	}
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// recorded reads the process ids that the launchers wrote.
func recorded(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, strings.TrimSpace(string(data)))
	}
	return pids
}

// commandLine is empty where no such process runs.
func commandLine(pid string) string {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(data), "\x00", " ")
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
