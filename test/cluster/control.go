package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"multus-ip-manager.io/test/aws"
)

// This file is how a test reaches the emulated VPC, which lives in the core: HTTP on a Unix socket.

// VPC asks and changes the emulated VPC of a running cluster.
type VPC struct{ web *http.Client }

// VPC is the cluster's VPC.
func (d Dir) VPC() *VPC {
	return &VPC{web: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.control())
	}}}}
}

// serveControl answers until ctx ends.
func (c *core) serveControl(ctx context.Context) error {
	l, err := net.Listen("unix", c.dir.control()) //nolint:noctx // closed below
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			out, err := f(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	cloud := c.world.Cloud()
	handle("GET /links", func(*http.Request) (any, error) { return c.world.IPVlan(), nil })
	handle("GET /endpoint", func(*http.Request) (any, error) { return c.world.EC2Endpoint(), nil })
	handle("GET /holder/{address}", func(r *http.Request) (any, error) {
		a, err := netip.ParseAddr(r.PathValue("address"))
		if err != nil {
			return nil, err
		}
		h, _ := cloud.Holder(a)
		return h.ENI, nil
	})
	handle("GET /calls", func(*http.Request) (any, error) { return cloud.Journal(), nil })
	handle("DELETE /faults/{id}", func(r *http.Request) (any, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		f := c.faults[r.PathValue("id")]
		if f == nil {
			return nil, errors.New("no such fault")
		}
		f.Remove()
		delete(c.faults, r.PathValue("id"))
		return nil, nil
	})
	handle("POST /faults", func(r *http.Request) (any, error) {
		var f aws.Fault
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.faultID++
		id := strconv.Itoa(c.faultID)
		c.faults[id] = cloud.Faults().Add(f)
		return id, nil
	})
	handle("DELETE /addresses/{address}/{bits}", func(r *http.Request) (any, error) {
		block, err := netip.ParsePrefix(r.PathValue("address") + "/" + r.PathValue("bits"))
		if err != nil {
			return nil, err
		}
		var errs []error
		for _, eni := range cloud.ENIs() {
			for _, a := range slices.Concat(eni.Secondary, eni.IPv6) {
				if block.Contains(a) && eni.DeviceIndex > 0 {
					errs = append(errs, cloud.Unassign(eni.ID, a))
				}
			}
		}
		return nil, errors.Join(errs...)
	})
	handle("POST /hoplimit/{node}/{limit}", func(r *http.Request) (any, error) {
		n := c.world.Node(r.PathValue("node"))
		var limit int
		if _, err := fmt.Sscan(r.PathValue("limit"), &limit); err != nil || n == nil {
			return nil, errors.Join(errors.New("want a node and a number"), err)
		}
		return nil, cloud.ChangeInstance(n.Instance(), func(i *aws.Instance) { i.HopLimit, i.TokensRequired = limit, limit < 2 })
	})
	handle("POST /kill/{node}", func(r *http.Request) (any, error) {
		w := c.workers[r.PathValue("node")]
		if w == nil {
			return nil, errors.New("no such worker")
		}
		// The links first: a namespace without processes would go on answering.
		return nil, errors.Join(c.cni.forget(w.node.Name()), w.kill())
	})
	handle("POST /boot/{node}", func(r *http.Request) (any, error) {
		w := c.workers[r.PathValue("node")]
		if w == nil {
			return nil, errors.New("no such worker")
		}
		return nil, w.start()
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	return nil
}

func (v *VPC) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = strings.NewReader(string(text))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://core"+path, body)
	if err != nil {
		return err
	}
	resp, err := v.web.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, strings.TrimSpace(string(text)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// IPVlan reports whether extra interfaces are real ipvlan links, made by its own plugin.
func (v *VPC) IPVlan(ctx context.Context) (real bool, err error) {
	err = v.call(ctx, http.MethodGet, "/links", nil, &real)
	return real, err
}

// Endpoint is the URL of EC2, for pods and nodes.
func (v *VPC) Endpoint(ctx context.Context) (url string, err error) {
	err = v.call(ctx, http.MethodGet, "/endpoint", nil, &url)
	return url, err
}

// Holder is the ENI that has an address, "" for none.
func (v *VPC) Holder(ctx context.Context, a netip.Addr) (eni string, err error) {
	err = v.call(ctx, http.MethodGet, "/holder/"+a.String(), nil, &eni)
	return eni, err
}

// Calls are all calls to EC2 so far.
func (v *VPC) Calls(ctx context.Context) (calls []aws.Call, err error) {
	err = v.call(ctx, http.MethodGet, "/calls", nil, &calls)
	return calls, err
}

// Release unassigns all addresses of a block from the ENIs for Multus: what mode init leaves behind.
func (v *VPC) Release(ctx context.Context, block netip.Prefix) error {
	return v.call(ctx, http.MethodDelete, "/addresses/"+block.String(), nil, nil)
}

// Break scripts a failure of EC2 or of the metadata services; mend ends it.
func (v *VPC) Break(ctx context.Context, f aws.Fault) (mend func(context.Context) error, err error) {
	var id string
	if err := v.call(ctx, http.MethodPost, "/faults", f, &id); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return v.call(ctx, http.MethodDelete, "/faults/"+id, nil, nil) }, nil
}

// HopLimit sets how far the session tokens of a node's metadata service get: 1 is the node, which then also requires tokens, as most
// hardened nodes do; 2 is its pods.
func (v *VPC) HopLimit(ctx context.Context, node string, limit int) error {
	return v.call(ctx, http.MethodPost, fmt.Sprintf("/hoplimit/%s/%d", node, limit), nil, nil)
}

// Kill takes a node's power.
func (v *VPC) Kill(ctx context.Context, node string) error {
	return v.call(ctx, http.MethodPost, "/kill/"+node, nil, nil)
}

// Boot starts a node that was killed.
func (v *VPC) Boot(ctx context.Context, node string) error {
	return v.call(ctx, http.MethodPost, "/boot/"+node, nil, nil)
}
