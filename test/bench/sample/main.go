// Command sample does what the AWS Python sample for Multus pods does, in Go: it is what the agent is measured against where the language
// is to make no difference. It describes the instance and the subnet of each of its ENIs, finds each local address's ENI by the CIDR
// block, and assigns; for IPv6 it first searches the holders and releases the addresses there. Told "sidecar" it goes on: it lists the
// addresses every half second and does the same for those that are new.
//
// It is kinder than the sample in these ways: it reads the addresses from the kernel and not from the output of "ip a", it has
// goroutines where the sample has child processes, it ends with an error when a call failed, and as a sidecar tries again with the next
// list, and an address that has gone and comes back is new.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// answerSize holds every answer. The SDK releases a request's body while net/http may still look for its end, which closes the
// connection: where the answer is back within microseconds and longer than the buffer, its rest is lost and the SDK tries again half a
// second later. EC2 is never that fast, so this must not be counted against the sample.
const answerSize = 64 << 10

// pause is the sample's, between two lists.
const pause = 500 * time.Millisecond

// filterValues is how many values EC2 takes in one search.
const filterValues = 200

func main() {
	if err := run(context.Background(), slices.Contains(os.Args[1:], "sidecar")); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stay bool) error {
	identity, err := imds.New(imds.Options{}).GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return err
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(identity.Region))
	if err != nil {
		return err
	}
	client := ec2.NewFromConfig(cfg, func(o *ec2.Options) {
		o.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.ReadBufferSize = answerSize })
	})
	enis, err := attached(ctx, client, identity.InstanceID)
	if err != nil {
		return err
	}
	if stay {
		return follow(ctx, client, enis)
	}
	wanted, err := local(enis)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return errors.New("no address is in a subnet of an ENI")
	}
	return assign(ctx, client, wanted)
}

// follow lists the addresses for ever and assigns those that are new.
func follow(ctx context.Context, client *ec2.Client, enis map[netip.Prefix]string) error {
	assigned := map[netip.Addr]bool{}
	for {
		here, err := local(enis)
		if err != nil {
			return err
		}
		still, fresh := map[netip.Addr]bool{}, map[string][]netip.Addr{}
		for eni, addrs := range here {
			for _, a := range addrs {
				if still[a] = assigned[a]; !assigned[a] {
					fresh[eni] = append(fresh[eni], a)
				}
			}
		}
		assigned = still
		if err := assign(ctx, client, fresh); err != nil {
			fmt.Fprintln(os.Stderr, "sample:", err)
		} else {
			for _, addrs := range fresh {
				for _, a := range addrs {
					assigned[a] = true
				}
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// assign makes the calls for addresses, by ENI.
func assign(ctx context.Context, client *ec2.Client, wanted map[string][]netip.Addr) error {
	if err := each(wanted, func(eni string, addrs []netip.Addr) error {
		return assign4(ctx, client, eni, only(addrs, netip.Addr.Is4))
	}); err != nil {
		return err
	}
	return move6(ctx, client, wanted)
}

// attached maps the CIDR blocks of the instance's ENIs to the ENIs, without device 0.
func attached(ctx context.Context, client *ec2.Client, instance string) (map[netip.Prefix]string, error) {
	out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{instance}})
	if err != nil {
		return nil, err
	}
	if len(out.Reservations) != 1 || len(out.Reservations[0].Instances) != 1 {
		return nil, fmt.Errorf("instance %s is not described", instance)
	}
	blocks := map[netip.Prefix]string{}
	for _, eni := range out.Reservations[0].Instances[0].NetworkInterfaces {
		if eni.Attachment == nil || aws.ToInt32(eni.Attachment.DeviceIndex) == 0 {
			continue
		}
		subnets, err := client.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{SubnetIds: []string{aws.ToString(eni.SubnetId)}})
		if err != nil {
			return nil, err
		}
		for _, s := range subnets.Subnets {
			texts := []*string{s.CidrBlock}
			for _, a := range s.Ipv6CidrBlockAssociationSet {
				texts = append(texts, a.Ipv6CidrBlock)
			}
			for _, text := range texts {
				if block, err := netip.ParsePrefix(aws.ToString(text)); err == nil {
					blocks[block] = aws.ToString(eni.NetworkInterfaceId)
				}
			}
		}
	}
	return blocks, nil
}

// local gives the global addresses of all interfaces but eth0, by the ENI whose block is the address's own network.
func local(enis map[netip.Prefix]string) (map[string][]netip.Addr, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	wanted := map[string][]netip.Addr{}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || link.Name == "eth0" || !p.Addr().IsGlobalUnicast() {
				continue
			}
			if eni, ok := enis[p.Masked()]; ok {
				wanted[eni] = append(wanted[eni], p.Addr())
			}
		}
	}
	return wanted, nil
}

// move6 takes the IPv6 addresses from whoever has them, then assigns them.
func move6(ctx context.Context, client *ec2.Client, wanted map[string][]netip.Addr) error {
	var six []string
	for _, addrs := range wanted {
		six = append(six, texts(only(addrs, netip.Addr.Is6))...)
	}
	if len(six) == 0 {
		return nil
	}
	for values := range slices.Chunk(six, filterValues) {
		out, err := client.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{
			Filters: []types.Filter{{Name: aws.String("ipv6-addresses.ipv6-address"), Values: values}},
		})
		if err != nil {
			return err
		}
		for _, holder := range out.NetworkInterfaces {
			if _, err := client.UnassignIpv6Addresses(ctx, &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: holder.NetworkInterfaceId, Ipv6Addresses: values}); err != nil {
				return err
			}
		}
	}
	return each(wanted, func(eni string, addrs []netip.Addr) error {
		return assign6(ctx, client, eni, only(addrs, netip.Addr.Is6))
	})
}

func assign4(ctx context.Context, client *ec2.Client, eni string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	_, err := client.AssignPrivateIpAddresses(ctx, &ec2.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: &eni, PrivateIpAddresses: texts(addrs), AllowReassignment: aws.Bool(true),
	})
	return err
}

func assign6(ctx context.Context, client *ec2.Client, eni string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	_, err := client.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: &eni, Ipv6Addresses: texts(addrs)})
	return err
}

// each works on all ENIs at once.
func each(wanted map[string][]netip.Addr, do func(eni string, addrs []netip.Addr) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for eni, addrs := range wanted {
		wg.Go(func() {
			err := do(eni, addrs)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func only(addrs []netip.Addr, keep func(netip.Addr) bool) []netip.Addr {
	var kept []netip.Addr
	for _, a := range addrs {
		if keep(a) {
			kept = append(kept, a)
		}
	}
	return kept
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
