package cluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/cluster/wire"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/world"
)

//go:embed world.yaml
var worldYAML []byte

//go:embed base.yaml
var baseYAML []byte

// core is the process that holds the VPC and started all others.
type core struct {
	dir     Dir
	started time.Time
	world   *world.World
	cni     *vpcCNI
	workers map[string]*worker
	api     netip.AddrPort
	ended   chan string
	plane   *plane.Plane

	mu      sync.Mutex
	faults  map[string]*aws.ActiveFault
	faultID int
}

// Core is the body of the core process. Descriptor 3 is the listener for kubectl, which is outside of the cluster's network.
func Core(ctx context.Context, d Dir) error {
	c := &core{dir: d, started: time.Now(), workers: map[string]*worker{}, faults: map[string]*aws.ActiveFault{}, ended: make(chan string, 8)}
	listener, err := net.FileListener(os.NewFile(3, "port"))
	if err != nil {
		return fmt.Errorf("descriptor 3: %w", err)
	}
	if err := c.start(ctx, listener); err != nil {
		return err
	}
	c.step("ready")
	if err := os.WriteFile(d.ready(), nil, 0o600); err != nil {
		return err
	}
	select {
	case name := <-c.ended:
		return fmt.Errorf("%s ended: see %s", name, d.path("log", name+".log"))
	case <-ctx.Done():
		return nil
	}
}

func (c *core) step(text string) {
	fmt.Fprintf(os.Stderr, "[%5.1fs] %s\n", time.Since(c.started).Seconds(), text)
}

func (c *core) start(ctx context.Context, listener net.Listener) error {
	spec, err := world.Parse(worldYAML)
	if err != nil {
		return err
	}
	if c.world, err = world.Start(ctx, spec, world.Options{}); err != nil {
		return err
	}
	c.step(fmt.Sprintf("the VPC runs; extra interfaces are %s", map[bool]string{true: "ipvlan", false: "veth ends with the ENI's MAC, " +
		"because this kernel has no ipvlan"}[c.world.IPVlan()]))
	c.cni = &vpcCNI{world: c.world, sandboxes: map[string]*world.Pod{}}
	for _, act := range []func(context.Context) error{
		func(ctx context.Context) error { return c.startControlPlane(ctx, listener) },
		c.startWorkers, c.awaitAPI, c.startControllers, c.base, c.loadImages, c.awaitNodes, c.serveControl,
	} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startControlPlane makes every key and starts the servers.
func (c *core) startControlPlane(ctx context.Context, listener net.Listener) error {
	n := c.world.Node(controlPlane)
	c.api = netip.AddrPortFrom(n.IP(), 6443)
	a, err := newAuthority(c.dir)
	if err != nil {
		return err
	}
	inside, outside := "https://"+c.api.String(), "https://"+listener.Addr().String()
	local := "https://127.0.0.1:" + apiPort
	errs := []error{
		a.certificate(identity{file: "apiserver", name: "kube-apiserver", hosts: []string{"kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "127.0.0.1", serviceIP, n.IP().String()}}),
		a.certificate(identity{file: "front-proxy", name: "front-proxy"}),
		a.kubeconfig(identity{file: "admin", name: "admin", groups: []string{"system:masters"}}, c.dir.Kubeconfig(), outside),
		a.kubeconfig(identity{file: "core", name: "core", groups: []string{"system:masters"}}, c.dir.pki("core.conf"), inside),
		a.kubeconfig(identity{file: "controller-manager", name: "system:kube-controller-manager", hosts: []string{"127.0.0.1"}},
			c.dir.pki("controller-manager.conf"), local),
		a.kubeconfig(identity{file: "scheduler", name: "system:kube-scheduler", hosts: []string{"127.0.0.1"}}, c.dir.pki("scheduler.conf"), local),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, spec := range c.world.Spec().Nodes {
		if spec.Name == controlPlane {
			continue
		}
		w := &worker{dir: c.dir, node: c.world.Node(spec.Name)}
		c.workers[spec.Name] = w
		if err := w.files(a, inside); err != nil {
			return err
		}
	}
	if err := errors.Join(daemon(n, c.dir, "etcd", etcdCommand(c.dir), c.ended),
		daemon(n, c.dir, "kube-apiserver", apiServerCommand(c.dir, n.IP().String()), c.ended)); err != nil {
		return err
	}
	go forward(ctx, listener, n.NS(), local[len("https://"):])
	return nil
}

// startControllers starts what ends where there is no API server yet.
func (c *core) startControllers(context.Context) error {
	n := c.world.Node(controlPlane)
	return errors.Join(daemon(n, c.dir, "kube-controller-manager", controllerManagerCommand(c.dir), c.ended),
		daemon(n, c.dir, "kube-scheduler", schedulerCommand(c.dir), c.ended))
}

// forward passes every connection on to an address in a network namespace.
func forward(ctx context.Context, l net.Listener, to *ns.Namespace, address string) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		from, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = from.Close() }()
			server, err := to.Dial(ctx, "tcp", address)
			if err != nil {
				return
			}
			defer func() { _ = server.Close() }()
			done := make(chan struct{}, 2)
			for _, pair := range [][2]net.Conn{{from, server}, {server, from}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					if half, ok := pair[0].(*net.TCPConn); ok {
						_ = half.CloseWrite()
					}
					done <- struct{}{}
				}()
			}
			<-done
			<-done
		}()
	}
}

// awaitAPI asks the API server until it is ready.
func (c *core) awaitAPI(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.dir.pki("core.conf"))
	if err != nil {
		return err
	}
	config.Dial = c.world.Node(controlPlane).NS().Dial
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	err = c.await(ctx, "the API server", time.Minute, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := web.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.step("the API server is ready")
	c.plane, err = plane.Connect(config)
	return err
}

// await tries until it works, a process of the control plane has ended, or the time is up.
func (c *core) await(ctx context.Context, what string, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case name := <-c.ended:
			return fmt.Errorf("%s ended while %s was waited for: see %s", name, what, c.dir.path("log", name+".log"))
		case <-ctx.Done():
			return fmt.Errorf("%s did not get ready within %s: %w", what, limit, err)
		case <-tick.C:
		}
	}
}

func (c *core) startWorkers(ctx context.Context) error {
	for name, w := range c.workers {
		socket := c.dir.node(name, wire.Socket)
		if err := os.RemoveAll(socket); err != nil {
			return err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			return err
		}
		go c.cni.serve(ctx, name, l)
		if err := w.start(); err != nil {
			return err
		}
	}
	return nil
}

// base installs what a cluster with Multus has.
func (c *core) base(ctx context.Context) error {
	_, err := c.plane.Apply(ctx, baseYAML, "default")
	return errors.Join(err, c.plane.InstallDefinitions())
}

// loadImages waits for each containerd and gives it the images.
func (c *core) loadImages(ctx context.Context) error {
	archives, err := filepath.Glob(c.dir.path("images", "*.tar"))
	if err != nil {
		return err
	}
	for name := range c.workers {
		for _, archive := range archives {
			err := c.await(ctx, "containerd of "+name, time.Minute, func(ctx context.Context) error { return c.dir.LoadImage(ctx, name, archive) })
			if err != nil {
				return err
			}
		}
	}
	c.step(fmt.Sprintf("%d images are loaded on each node", len(archives)))
	return nil
}

func (c *core) awaitNodes(ctx context.Context) error {
	for name := range c.workers {
		err := c.await(ctx, "node "+name, time.Minute, func(ctx context.Context) error {
			var n corev1.Node
			if err := c.plane.Client.Get(ctx, client.ObjectKey{Name: name}, &n); err != nil {
				return err
			}
			for _, condition := range n.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					return nil
				}
				if condition.Type == corev1.NodeReady {
					return errors.New(condition.Message)
				}
			}
			return errors.New("no condition Ready")
		})
		if err != nil {
			return err
		}
		slog.Info("node ready", "node", name)
	}
	c.step("both nodes are ready")
	return nil
}
