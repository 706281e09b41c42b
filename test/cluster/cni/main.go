// Command cni is the CNI plugin of the test cluster's nodes. It gives a pod a link to one of the node's ENIs, made by the emulated
// VPC: the pod's own eth0, addressed by the VPC as the VPC CNI does ("eni": 0), or an extra interface that looks as ipvlan's do, for
// kernels without ipvlan: it has the ENI's MAC, and addresses from an IPAM plugin.
//
//	{"cniVersion": "1.0.0", "name": "n3", "type": "eni", "master": "eth1", "ipam": {...}}
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multus-ip-manager.io/test/cluster/wire"
)

// config is the network's configuration, as far as it is ours.
type config struct {
	Version string `json:"cniVersion"`
	Name    string `json:"name"`
	Type    string `json:"type"`
	// Master is the node's link, ethN for the ENI with device index N.
	Master string `json:"master"`
	// Foreign gives the link a MAC of its own, as macvlan does.
	Foreign bool                  `json:"foreign,omitempty"`
	IPAM    struct{ Type string } `json:"ipam"`
}

// The result of CNI 1.0.0.
type (
	result struct {
		Version    string          `json:"cniVersion"`
		Interfaces []iface         `json:"interfaces,omitempty"`
		IPs        []address       `json:"ips,omitempty"`
		Routes     []route         `json:"routes,omitempty"`
		DNS        json.RawMessage `json:"dns,omitempty"`
	}
	iface struct {
		Name    string `json:"name"`
		MAC     string `json:"mac,omitempty"`
		Sandbox string `json:"sandbox,omitempty"`
	}
	address struct {
		Interface *int         `json:"interface,omitempty"`
		Address   netip.Prefix `json:"address"`
		Gateway   *netip.Addr  `json:"gateway,omitempty"`
	}
	route struct {
		Dst netip.Prefix `json:"dst"`
		GW  *netip.Addr  `json:"gw,omitempty"`
	}
)

// settled is how long duplicate address detection may take.
const settled = 10 * time.Second

func main() {
	runtime.LockOSThread() // it enters the pod's network namespace
	if err := run(os.Stdout); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.0.0", "code": 999, "msg": err.Error()})
		os.Exit(1)
	}
}

func run(out io.Writer) error {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		_, err := fmt.Fprintln(out, `{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}`)
		return err
	}
	var c config
	if err := json.Unmarshal(stdin, &c); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	switch command {
	case "ADD":
		r, err := add(c, stdin)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(r)
	case "DEL":
		return del(c, stdin)
	}
	return nil // CHECK, STATUS and GC have nothing to do
}

// request is what the VPC is asked, from the environment that CNI defines.
func request(c config) (wire.Request, error) {
	r := wire.Request{
		Command: os.Getenv("CNI_COMMAND"), Container: os.Getenv("CNI_CONTAINERID"), Interface: os.Getenv("CNI_IFNAME"), Foreign: c.Foreign,
	}
	if _, err := fmt.Sscanf(c.Master, "eth%d", &r.ENI); err != nil {
		return r, fmt.Errorf("master %q: want ethN, the ENI with device index N", c.Master)
	}
	for arg := range strings.SplitSeq(os.Getenv("CNI_ARGS"), ";") {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "K8S_POD_NAME":
			r.Pod = value
		case "K8S_POD_NAMESPACE":
			r.Namespace = value
		}
	}
	return r, nil
}

func add(c config, stdin []byte) (*result, error) {
	r, err := request(c)
	if err != nil {
		return nil, err
	}
	got := &result{}
	if c.IPAM.Type != "" {
		if got, err = ipam(c, stdin); err != nil {
			return nil, err
		}
	}
	if err := attach(r, got); err != nil {
		if c.IPAM.Type != "" {
			_ = os.Setenv("CNI_COMMAND", "DEL")
			_, undo := ipam(c, stdin)
			err = errors.Join(err, undo)
		}
		return nil, err
	}
	got.Version = c.Version
	return got, nil
}

// attach makes the link, puts the addresses on it and completes the result.
func attach(r wire.Request, got *result) error {
	path := os.Getenv("CNI_NETNS")
	sandbox, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = sandbox.Close() }()
	link, err := wire.Call(wire.Socket, r, sandbox)
	if err != nil {
		return err
	}
	got.Interfaces = []iface{{Name: r.Interface, MAC: link.MAC, Sandbox: path}}
	for _, a := range link.Addresses {
		got.IPs = append(got.IPs, address{Address: a})
	}
	zero := 0
	for i := range got.IPs {
		got.IPs[i].Interface = &zero
	}
	if r.ENI == 0 {
		return nil
	}
	if err := unix.Setns(int(sandbox.Fd()), unix.CLONE_NEWNET); err != nil { //nolint:gosec // a descriptor fits an int
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	return configure(r.Interface, got)
}

func del(c config, stdin []byte) error {
	r, err := request(c)
	if err != nil {
		return err
	}
	_, err = wire.Call(wire.Socket, r, nil)
	if c.IPAM.Type != "" {
		_, released := ipam(c, stdin)
		err = errors.Join(err, released)
	}
	return err
}

// ipam runs the IPAM plugin, which gets what we got.
func ipam(c config, stdin []byte) (*result, error) {
	var path string
	for dir := range strings.SplitSeq(os.Getenv("CNI_PATH"), ":") {
		if p := filepath.Join(dir, filepath.Base(c.IPAM.Type)); path == "" {
			if _, err := os.Stat(p); err == nil {
				path = p
			}
		}
	}
	if path == "" {
		return nil, fmt.Errorf("no IPAM plugin %q in %s", c.IPAM.Type, os.Getenv("CNI_PATH"))
	}
	cmd := exec.Command(path) //nolint:gosec,noctx // as CNI has it; the runtime ends us both
	cmd.Stdin = bytes.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("IPAM plugin %s: %w: %s %s", c.IPAM.Type, err, &out, &said)
	}
	r := &result{}
	if out.Len() == 0 {
		return r, nil
	}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		return nil, fmt.Errorf("IPAM plugin %s: %w: %s", c.IPAM.Type, err, &out)
	}
	return r, nil
}
