package stayup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"multus-ip-manager.io/agent/settings"
)

// persistence is how long a controller is followed that tries to create its pod again and again.
const persistence = time.Minute

// atOnce is how many pods at most are being created at a time. A load that would need more falls behind.
const atOnce = 100

// loadClient creates pods with little work of its own.
type loadClient struct {
	rest rest.Interface
	pod  []byte
}

func newLoadClient(config *rest.Config) (loadClient, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // no limit
	config.UserAgent = "replicaset-controller"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return loadClient{}, err
	}
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "upf-", Annotations: map[string]string{settings.Networks: "n3"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "registry.example/upf:1"}}},
	}
	data, err := json.Marshal(pod)
	return loadClient{rest: c.CoreV1().RESTClient(), pod: data}, err
}

// errNaked is the error of a pod that was admitted without our container: worse than one that was refused.
var errNaked = errors.New("admitted without the container")

// create creates a pod in all but its storage.
func (c loadClient) create(ctx context.Context, namespace string) error {
	answer, err := c.rest.Post().Namespace(namespace).Resource("pods").Param("dryRun", "All").
		SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").Body(c.pod).DoRaw(ctx)
	if err != nil {
		var status metav1.Status
		if json.Unmarshal(answer, &status) == nil && status.Message != "" { // DoRaw leaves the server's words out of the error
			return &apierrors.StatusError{ErrStatus: status}
		}
		return err
	}
	if !bytes.Contains(answer, []byte(`"name":"`+settings.ContainerName+`"`)) {
		return errNaked
	}
	return nil
}

// Load is pods being created at a steady rate, each by a controller of its own: whether or not those before are done.
type Load struct {
	client    loadClient
	namespace string
	stop      context.CancelFunc
	done      sync.WaitGroup

	mu     sync.Mutex
	result Result
}

// Result is what became of a load.
type Result struct {
	// Asked is the number of pods, Refused that of answers that no webhook could be asked (the figure that should be zero), Away that
	// of attempts for which there was no API server, Naked that of pods admitted without the container, Lost that of pods that their
	// controller could not create in a minute of attempts.
	Asked, Refused, Away, Naked, Lost int
	// Pods is the number of pods of which an attempt was refused.
	Pods int
	// Late is the number of pods that were created later than the rate says because too many were under way.
	Late int
	// Took is how long each pod's creation took, with all attempts.
	Took []time.Duration
	// Errors are the first errors.
	Errors []string
	// For is how long the load lasted.
	For time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("%d pods in %s: %d refused (%d attempts), %d without API server, %d without the container, %d lost, %d late; first errors: %q",
		r.Asked, r.For.Round(time.Millisecond), r.Pods, r.Refused, r.Away, r.Naked, r.Lost, r.Late, r.Errors)
}

// Load starts a load of so many pods a second.
func (r *Rig) Load(ctx context.Context, namespace string, rate int) *Load {
	ctx, stop := context.WithCancel(ctx)
	l := &Load{client: r.load, namespace: namespace, stop: stop}
	l.done.Go(func() { l.run(ctx, rate) })
	return l
}

// Stop ends the load and waits for those under way.
func (l *Load) Stop() Result {
	l.stop()
	l.done.Wait()
	return l.result
}

// Asked is the number of pods so far.
func (l *Load) Asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result.Asked
}

// Await waits until the load has come to what is asked for; the error says what it came to in a minute.
func (l *Load) Await(ctx context.Context, reached func(Result) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		l.mu.Lock()
		done, so := reached(l.result), l.result
		l.mu.Unlock()
		if done {
			return nil
		}
		if err := Wait(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("the load only came to %s: %w", so, err)
		}
	}
}

func (l *Load) run(ctx context.Context, rate int) {
	begin := time.Now()
	places := make(chan struct{}, atOnce)
	tick := time.NewTicker(max(time.Second/time.Duration(rate), time.Millisecond))
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			l.result.For = time.Since(begin)
			l.mu.Unlock()
			return
		case <-tick.C:
		}
		for due := int(time.Since(begin).Seconds() * float64(rate)); n < due; n++ { // a ticker drops what nobody takes
			l.mu.Lock()
			l.result.Asked++
			l.mu.Unlock()
			select {
			case places <- struct{}{}:
			default:
				l.mu.Lock()
				l.result.Late++
				l.mu.Unlock()
				select {
				case places <- struct{}{}:
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
				break
			}
			l.done.Go(func() {
				defer func() { <-places }()
				l.controller(context.WithoutCancel(ctx))
			})
		}
	}
}

// controller creates one pod, and tries again as a controller does: after growing pauses.
func (l *Load) controller(ctx context.Context) {
	begin, refused := time.Now(), false
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := l.client.create(ctx, l.namespace)
		if l.note(err) && !refused {
			refused = true
			l.mu.Lock()
			l.result.Pods++
			l.mu.Unlock()
		}
		if err == nil || errors.Is(err, errNaked) {
			l.mu.Lock()
			l.result.Took = append(l.result.Took, time.Since(begin))
			l.mu.Unlock()
			return
		}
		if time.Since(begin) > persistence {
			l.mu.Lock()
			l.result.Lost++
			l.mu.Unlock()
			return
		}
		if Wait(ctx, pause) != nil {
			return
		}
	}
}

// note counts an attempt, and reports whether it was refused for want of a webhook.
func (l *Load) note(err error) (refused bool) {
	if err == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.result
	status := apierrors.APIStatus(nil)
	switch {
	case errors.Is(err, errNaked):
		r.Naked++
	case errors.As(err, &status) && strings.Contains(err.Error(), "webhook"):
		r.Refused++
		refused = true
	default:
		r.Away++
	}
	if len(r.Errors) < 5 {
		r.Errors = append(r.Errors, err.Error())
	}
	return refused
}
