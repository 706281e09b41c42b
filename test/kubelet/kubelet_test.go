package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"multus-ip-manager.io/test/ns"
)

// program marks the runs of this test binary that stand for a container's program.
const program = "container-program"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == program {
		os.Exit(play(os.Args[2:]))
	}
	ns.Main(m)
}

// play is what the containers of these tests do.
func play(args []string) int {
	switch args[0] {
	case "env":
		fmt.Println(os.Getenv("WHO"), os.Getuid() == 0)
		return 3
	case "serve":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		fmt.Println("serving, network-status", os.Getenv("NETWORK_STATUS"))
		<-stop
		fmt.Println("stopped")
		if err := os.WriteFile(terminationLog, []byte("told to stop\n"), 0); err != nil {
			fmt.Println(err)
		}
		return 7
	}
	return 99
}

func container(t *testing.T, args ...string) Container {
	t.Helper()
	n, err := ns.New("pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ref := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: "telco", Annotations: map[string]string{}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "image", Args: append([]string{program}, args...), Env: []corev1.EnvVar{
			{Name: "WHO", ValueFrom: ref("metadata.name")},
			{Name: "NETWORK_STATUS", ValueFrom: ref("metadata.annotations['status']")},
		}}}},
	}
	return Container{Pod: pod, Name: "main", NS: n, Images: map[string]string{"image": self}}
}

func has(words string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, words) }
}

func start(t *testing.T, c Container) *Running {
	t.Helper()
	r, err := c.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WaitOutput(t.Context(), has("serving")); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRunToTheEnd(t *testing.T) {
	r, err := container(t, "env").Run(t.Context())
	if err != nil || r.ExitCode != 3 || !strings.HasPrefix(r.Output, "app ") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRunningContainer(t *testing.T) {
	c := container(t, "serve")
	r := start(t, c)
	select {
	case <-r.Done():
		t.Fatal("it ended")
	default:
	}
	if err := syscall.Kill(r.Pid(), 0); err != nil {
		t.Errorf("no process %d: %v", r.Pid(), err)
	}
	got, err := r.Exec(t.Context(), program, "env")
	if err != nil || got.ExitCode != 3 || !strings.HasPrefix(got.Output, "app ") {
		t.Errorf("exec: %+v, %v", got, err)
	}
	end, err := r.Stop(time.Minute)
	if err != nil || end.ExitCode != 7 || end.Message != "told to stop" || !strings.HasSuffix(end.Output, "stopped\n") {
		t.Errorf("%+v, %v", end, err)
	}
	if err := r.WaitOutput(t.Context(), has("never printed")); err == nil {
		t.Error("waited for output of a container that has ended")
	}
}

// The kubelet restarts a container with the environment of that moment.
func TestRestart(t *testing.T) {
	c := container(t, "serve")
	r := start(t, c)
	if end, err := r.Kill(); err != nil || end.ExitCode != 128+int(syscall.SIGKILL) || end.Message != "" {
		t.Errorf("%+v, %v", end, err)
	}
	c.Pod.Annotations["status"] = "there now"
	again := start(t, c)
	if !strings.Contains(again.Output(), "network-status there now") {
		t.Error(again.Output())
	}
	if _, err := again.Stop(time.Minute); err != nil {
		t.Error(err)
	}
}

func TestStopIsNotAsked(t *testing.T) {
	r := start(t, container(t, "serve"))
	if err := r.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if end, err := r.Stop(0); err != nil || end.ExitCode != 128+int(syscall.SIGKILL) {
		t.Errorf("%+v, %v", end, err)
	}
}

func TestWaitOutputEndsWithItsContext(t *testing.T) {
	r := start(t, container(t, "serve"))
	ctx, cancel := context.WithCancelCause(t.Context())
	because := errors.New("enough")
	cancel(because)
	if err := r.WaitOutput(ctx, has("never printed")); !errors.Is(err, because) {
		t.Error(err)
	}
	if _, err := r.Kill(); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBePlayedIsAnError(t *testing.T) {
	yes, no := true, false
	for name, change := range map[string]func(*Container){
		"no such container": func(c *Container) { c.Name = "other" },
		"no such image":     func(c *Container) { c.Images = nil },
		"a command":         func(c *Container) { c.Pod.Spec.Containers[0].Command = []string{"sh"} },
		"an unknown field": func(c *Container) {
			c.Pod.Spec.Containers[0].Env[0].ValueFrom.FieldRef.FieldPath = "spec.priority"
		},
		"half restricted": func(c *Container) {
			c.Pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := container(t, "env")
			change(&c)
			if r, err := c.Run(t.Context()); err == nil {
				t.Errorf("it ran: %+v", r)
			}
		})
	}
}
