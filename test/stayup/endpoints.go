package stayup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// endpoints are the addresses of the Service: what is known of the replicas, and a moment later what the API server knows.
type endpoints struct {
	client      client.Client
	service     *corev1.Service
	port        int32
	propagation time.Duration
	proxy       *proxy // nil: the API server reads the EndpointSlice

	mu      sync.Mutex
	ready   map[netip.Addr]bool
	changed chan struct{}
	flushes []chan struct{} // closed once everything until now is known
	stop    context.CancelFunc
	done    chan struct{}
	err     error
}

func newEndpoints(ctx context.Context, r *Rig) (*endpoints, error) {
	e := &endpoints{
		client: r.Plane.Client, service: r.service, propagation: r.options.Propagation,
		ready: map[netip.Addr]bool{}, changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	for _, port := range r.container().Ports {
		if port.Name == r.service.Spec.Ports[0].TargetPort.String() {
			e.port = port.ContainerPort
		}
	}
	if r.options.KubeProxy {
		var err error
		if e.proxy, err = newProxy(ctx, r.service, e.port); err != nil {
			return nil, err
		}
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	go e.run(ctx)
	return e, nil
}

// set tells whether a replica takes new connections.
func (e *endpoints) set(p *Replica, ready bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ready {
		e.ready[p.Addr] = true
	} else {
		delete(e.ready, p.Addr)
	}
	e.tell()
}

// tell has the loop look again.
func (e *endpoints) tell() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// flush returns when what has been told until now was published.
func (e *endpoints) flush(ctx context.Context) error {
	published := make(chan struct{})
	e.mu.Lock()
	e.flushes = append(e.flushes, published)
	e.tell()
	e.mu.Unlock()
	select {
	case <-published:
		return nil
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		return fmt.Errorf("publish the endpoints: %w", errors.Join(ctx.Err(), e.err))
	}
}

// run publishes each change a while after it.
func (e *endpoints) run(ctx context.Context) {
	defer close(e.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.changed:
		}
		if Wait(ctx, e.propagation) != nil {
			return
		}
		e.mu.Lock()
		var ready []netip.Addr
		for addr := range e.ready {
			ready = append(ready, addr)
		}
		flushes := e.flushes
		e.flushes = nil
		e.mu.Unlock()
		err := e.publish(ctx, ready)
		e.mu.Lock()
		if e.err = err; err != nil { // the API server is away
			e.flushes = append(flushes, e.flushes...)
			e.tell()
		}
		e.mu.Unlock()
		if err != nil {
			continue
		}
		for _, done := range flushes {
			close(done)
		}
	}
}

// publish writes the EndpointSlice, or tells kube-proxy.
func (e *endpoints) publish(ctx context.Context, ready []netip.Addr) error {
	if e.proxy != nil {
		e.proxy.set(ready)
		return nil
	}
	port, name, protocol := e.port, e.service.Spec.Ports[0].Name, corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}}}
	slice.Namespace, slice.Name = e.service.Namespace, e.service.Name+"-1"
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: e.service.Name, discoveryv1.LabelManagedBy: "test"}
	for _, addr := range ready {
		yes := true
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{addr.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		})
	}
	err := e.client.Create(ctx, slice)
	if apierrors.IsAlreadyExists(err) {
		err = e.client.Update(ctx, slice)
	}
	return err
}

func (e *endpoints) close() {
	e.stop()
	<-e.done
	if e.proxy != nil {
		e.proxy.close()
	}
}

// proxy stands for kube-proxy: it listens on the Service's address and passes each new connection to one of the endpoints at random;
// connections stay where they are until one of their ends closes them.
type proxy struct {
	listener net.Listener
	port     uint16

	mu    sync.Mutex
	ready []netip.Addr
}

func newProxy(ctx context.Context, service *corev1.Service, port int32) (*proxy, error) {
	addr, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return nil, err
	}
	if err := addAddress(addr); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(addr, uint16(service.Spec.Ports[0].Port)).String()) //nolint:gosec // a port
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: listener, port: uint16(port)} //nolint:gosec // a port
	go p.run()
	return p, nil
}

func (p *proxy) set(ready []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = ready
}

func (p *proxy) run() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.pass(conn.(*net.TCPConn))
	}
}

// pass connects the two ends. What one end does to its connection, the other sees.
func (p *proxy) pass(front *net.TCPConn) {
	p.mu.Lock()
	var addr netip.Addr
	if len(p.ready) > 0 {
		addr = p.ready[rand.IntN(len(p.ready))] //nolint:gosec // as kube-proxy does
	}
	p.mu.Unlock()
	back, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, p.port)))
	if err != nil {
		reset(front) // kube-proxy lets the client have the endpoint's own refusal
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{front, back}, {back, front}} {
		both.Go(func() {
			if _, err := way[0].ReadFrom(way[1]); err != nil {
				reset(front)
				reset(back)
				return
			}
			_ = way[0].CloseWrite()
		})
	}
	both.Wait()
	_, _ = front.Close(), back.Close()
}

// reset closes a connection as a process does that is killed.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

func (p *proxy) close() { _ = p.listener.Close() }
