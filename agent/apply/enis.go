package apply

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"multus-ip-manager.io/agent/plan"
)

// nodeAge is how long EC2's answer about the node's ENIs serves for a further look at the same ENIs, and for a look at a MAC that it does
// not hold: such looks come twice a second.
const nodeAge = 2 * time.Second

// errTwoInstances means that the MACs of the pod are those of ENIs of different instances. EC2 promises no more than that a MAC is unique
// where its frames can be seen.
var errTwoInstances = errors.New("the MACs belong to ENIs of more than one instance, so the node cannot be told by them")

// node is what is known of the node from EC2.
type node struct {
	// turn holds a token while the rest may be read or changed.
	turn chan struct{}
	// instance is the node's instance id, found by the MACs of its ENIs; a pod never leaves its node.
	instance string
	// enis are its ENIs as EC2 listed them at the time read.
	enis []plan.ENI
	read time.Time
}

func newNode() node { return node{turn: make(chan struct{}, 1)} }

// ENIs gives the node's ENIs with these MACs and its primary ENI, as [locate.Metadata.ENIs] does, for where metadata cannot be had. The CIDR
// blocks of the subnets are not among what is told: EC2 itself judges then whether an address fits.
//
// The first answer takes two requests: the MACs lead to the instance, the instance to all its ENIs. The second one pays: without the primary
// ENI nobody knows which subnet the VPC CNI draws from, and every address's holder and every ENI's tags would have to be read. Each further
// answer takes one.
func (c *Client) ENIs(ctx context.Context, macs []string) ([]plan.ENI, error) {
	asked := func(e plan.ENI) bool { return slices.Contains(macs, e.MAC) }
	enis, err := c.nodeENIs(ctx, macs, func(known []plan.ENI) bool {
		for _, mac := range macs {
			if !slices.ContainsFunc(known, func(e plan.ENI) bool { return e.MAC == mac }) {
				return true // it was not there a moment ago, either
			}
		}
		return false
	})
	return slices.DeleteFunc(enis, func(e plan.ENI) bool { return e.DeviceIndex != 0 && !asked(e) }), err
}

// All gives every ENI of the node, once one of its MACs was found by [Client.ENIs]; none before.
func (c *Client) All(ctx context.Context) ([]plan.ENI, error) {
	return c.nodeENIs(ctx, nil, func([]plan.ENI) bool { return true })
}

// nodeENIs reads the node's ENIs, or gives those of a moment ago where these will do.
func (c *Client) nodeENIs(ctx context.Context, macs []string, recentWillDo func([]plan.ENI) bool) ([]plan.ENI, error) {
	select {
	case c.node.turn <- struct{}{}:
		defer func() { <-c.node.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !c.node.read.IsZero() && time.Since(c.node.read) < nodeAge && recentWillDo(c.node.enis) {
		return slices.Clone(c.node.enis), nil
	}
	if c.node.instance == "" {
		instance, err := c.instanceWith(ctx, macs)
		if err != nil {
			return nil, err
		}
		if c.node.instance = instance; instance == "" {
			c.node.enis, c.node.read = nil, time.Now()
			return nil, nil
		}
	}
	enis, err := c.attached(ctx, "attachment.instance-id", []string{c.node.instance})
	if err != nil {
		return nil, err
	}
	c.node.enis, c.node.read = nil, time.Now()
	for _, ni := range enis {
		c.node.enis = append(c.node.enis, eniOf(ni))
	}
	slices.SortFunc(c.node.enis, func(a, b plan.ENI) int { return a.DeviceIndex - b.DeviceIndex })
	return slices.Clone(c.node.enis), nil
}

// instanceWith finds the instance that has ENIs with these MACs, "" when none has.
func (c *Client) instanceWith(ctx context.Context, macs []string) (string, error) {
	if len(macs) == 0 {
		return "", nil
	}
	enis, err := c.attached(ctx, "mac-address", macs)
	if err != nil {
		return "", err
	}
	var instance string
	for _, ni := range enis {
		id := aws.ToString(ni.Attachment.InstanceId)
		if instance != "" && id != instance {
			return "", fmt.Errorf("find the node: %w: %s and %s", errTwoInstances, instance, id)
		}
		instance = id
	}
	return instance, nil
}

// attached describes the ENIs that a filter finds and that are attached to an instance.
func (c *Client) attached(ctx context.Context, filter string, values []string) ([]types.NetworkInterface, error) {
	var found []types.NetworkInterface
	err := c.call(ctx, "DescribeNetworkInterfaces", "", nil, func(ctx context.Context) error {
		found = nil
		pages := ec2.NewDescribeNetworkInterfacesPaginator(c.ec2, &ec2.DescribeNetworkInterfacesInput{
			Filters:    []types.Filter{{Name: &filter, Values: values}},
			MaxResults: aws.Int32(pageSize),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return err
			}
			for _, ni := range page.NetworkInterfaces {
				if a := ni.Attachment; a != nil && aws.ToString(a.InstanceId) != "" && a.DeviceIndex != nil && ni.NetworkInterfaceId != nil && ni.SubnetId != nil {
					found = append(found, ni)
				}
			}
		}
		return nil
	})
	return found, err
}

func eniOf(ni types.NetworkInterface) plan.ENI {
	e := plan.ENI{
		ID:          aws.ToString(ni.NetworkInterfaceId),
		MAC:         strings.ToLower(aws.ToString(ni.MacAddress)),
		DeviceIndex: int(aws.ToInt32(ni.Attachment.DeviceIndex)),
		SubnetID:    aws.ToString(ni.SubnetId),
	}
	note := func(text *string) {
		if p, err := netip.ParsePrefix(aws.ToString(text)); err == nil {
			e.Prefixes = append(e.Prefixes, p.Masked())
		}
	}
	for _, p := range ni.Ipv4Prefixes {
		note(p.Ipv4Prefix)
	}
	for _, p := range ni.Ipv6Prefixes {
		note(p.Ipv6Prefix)
	}
	slices.SortFunc(e.Prefixes, netip.Prefix.Compare)
	return e
}
