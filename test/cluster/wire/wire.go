// Package wire is what the cluster's CNI plugin, which runs on a node, says to the emulated VPC, which makes its links: one request
// and one answer per connection of a Unix socket, each one line of JSON. The pod's network namespace goes along as a descriptor,
// because the VPC does not see the node's files.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Socket is where the plugin finds the VPC on its node.
const Socket = "/run/vpc.sock"

// Request is one CNI command, as far as the VPC has to do with it.
type Request struct {
	Command   string `json:"command"` // ADD or DEL
	Container string `json:"container"`
	Interface string `json:"interface"`
	// ENI is the device index; 0 is the pod's own interface, which the VPC configures, too.
	ENI       int    `json:"eni"`
	Foreign   bool   `json:"foreign,omitempty"` // a MAC of its own, as macvlan
	Pod       string `json:"pod,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// Answer is the link that was made.
type Answer struct {
	Error     string         `json:"error,omitempty"`
	MAC       string         `json:"mac,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"` // of the pod's own interface
}

// maxMessage is far above what a message needs.
const maxMessage = 64 << 10

// Call asks and waits for the answer. sandbox may be nil.
func Call(socket string, r Request, sandbox *os.File) (Answer, error) {
	raw, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = raw.Close() }()
	text, err := json.Marshal(r)
	if err != nil {
		return Answer{}, err
	}
	var rights []byte
	if sandbox != nil {
		rights = unix.UnixRights(int(sandbox.Fd()))
	}
	if _, _, err := raw.WriteMsgUnix(text, rights, nil); err != nil {
		return Answer{}, err
	}
	var a Answer
	if err := json.NewDecoder(raw).Decode(&a); err != nil {
		return Answer{}, fmt.Errorf("no answer from the VPC: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// Receive reads a request. The file is nil if none came along; the caller closes it.
func Receive(c *net.UnixConn) (Request, *os.File, error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return Request{}, nil, err
	}
	file, err := passed(rights[:rn])
	if err != nil {
		return Request{}, nil, err
	}
	var r Request
	if err := json.Unmarshal(text[:n], &r); err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return Request{}, nil, err
	}
	return r, file, nil
}

// passed is the descriptor in a control message, nil without one.
func passed(rights []byte) (*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "sandbox"), nil
}

// Reply answers.
func Reply(c *net.UnixConn, a Answer) error { return json.NewEncoder(c).Encode(a) }
