package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go/logging"

	"multus-ip-manager.io/agent/locate"
)

const (
	// attemptTimeout bounds one EC2 call, credentials included.
	attemptTimeout = 3 * time.Second
	// maxAnswer bounds an answer of EC2, in bytes.
	maxAnswer = 16 << 20
	// noManageTag marks ENIs that the VPC CNI leaves alone, with the value "true".
	noManageTag = "node.k8s.amazonaws.com/no_manage"
	// pageSize is how many ENIs one page of a search holds. In large accounts EC2 refuses searches without paging.
	pageSize = 100
)

// ErrConfiguration means that the AWS variables or files of the environment contradict themselves: no waiting will help.
var ErrConfiguration = errors.New("the AWS configuration of the environment is not usable")

// Holder is the ENI that EC2 says holds an address.
type Holder struct {
	// ENI is the network interface's id.
	ENI string
	// Primary is true for a primary private IPv4 address and a primary IPv6 address: neither can ever be moved.
	Primary bool
	// Unmanaged is true for an ENI that is tagged to be left alone by the VPC CNI.
	Unmanaged bool
	// DeviceIndex is the ENI's place on its instance, -1 when it is not attached.
	DeviceIndex int
}

// Client makes the EC2 calls of the agent. Each call is one attempt, bounded to three seconds, without any retry of the SDK's
// own; failures are [*OpError].
type Client struct {
	ec2   *ec2.Client
	creds *markedCredentials
}

// New makes a client from the SDK's default chain (environment, IRSA, EKS Pod Identity, instance role) and the SDK's variables
// for endpoints. The instance role is read through the same metadata client as the node's identity, so that one session token
// serves both. Without a Region in the environment, the node's is asked for, which may fail for as long as metadata is away.
//
// What the environment says is checked here, because the SDK would find it out with each call and waiting does not mend it.
func New(ctx context.Context, metadata *locate.Metadata, dialer locate.Dialer, log *slog.Logger, appID string) (*Client, error) {
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.DialContext = dialer.DialContext
			t.ForceAttemptHTTP2 = false
			t.TLSHandshakeTimeout = attemptTimeout
		})),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithAppID(appID),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata.Client() }),
		config.WithLogger(logging.LoggerFunc(func(level logging.Classification, format string, args ...any) {
			log.Debug("AWS SDK", "level", string(level), "message", fmt.Sprintf(format, args...))
		})),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	if cfg.Region == "" {
		if cfg.Region, err = metadata.Region(ctx); err != nil {
			return nil, err
		}
	}
	if !locate.IsRegion(cfg.Region) {
		return nil, fmt.Errorf("%w: %q is no Region (AWS_REGION)", ErrConfiguration, cfg.Region)
	}
	creds := &markedCredentials{inner: cfg.Credentials}
	cfg.Credentials = creds
	cfg.HTTPClient = wholeAnswers{cfg.HTTPClient}
	client := ec2.NewFromConfig(cfg)
	if at := client.Options().BaseEndpoint; at != nil && !locate.IsEndpoint(*at) {
		return nil, fmt.Errorf("%w: %q is no endpoint: want http://HOST or https://HOST (AWS_ENDPOINT_URL_EC2)", ErrConfiguration, *at)
	}
	return &Client{ec2: client, creds: creds}, nil
}

var _ ec2rolecreds.GetMetadataAPIClient = (*imds.Client)(nil)

// wholeAnswers reads an answer to its end before the SDK sees it. The SDK closes a body it is still reading when the last bytes come in
// a segment of their own, and takes that for a lost answer.
type wholeAnswers struct{ inner aws.HTTPClient }

// Do implements [aws.HTTPClient].
func (w wholeAnswers) Do(req *http.Request) (*http.Response, error) {
	resp, err := w.inner.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// markedCredentials makes a failure to get credentials recognisable among the failures of a call.
type markedCredentials struct{ inner aws.CredentialsProvider }

// Retrieve implements [aws.CredentialsProvider].
func (m *markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.inner.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}

// invalidate makes the next call fetch fresh credentials.
func (m *markedCredentials) invalidate() {
	if c, ok := m.inner.(*aws.CredentialsCache); ok {
		c.Invalidate()
	}
}

// Warm fetches credentials ahead of the first call. Its failure is no news: the call itself will tell.
func (c *Client) Warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, _ = c.creds.Retrieve(ctx)
}

// AssignIPv4 puts addresses on an ENI in one call, with reassign also those that another ENI holds as secondary addresses. It
// gives the addresses EC2 names in its answer. EC2 refuses all when it refuses one.
func (c *Client) AssignIPv4(ctx context.Context, eni string, addrs []netip.Addr, reassign bool) ([]netip.Addr, error) {
	var answered []netip.Addr
	err := c.call(ctx, "AssignPrivateIpAddresses", eni, addrs, func(ctx context.Context) error {
		in := &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eni, PrivateIpAddresses: texts(addrs)}
		if reassign {
			in.AllowReassignment = aws.Bool(true)
		}
		out, err := c.ec2.AssignPrivateIpAddresses(ctx, in)
		if err != nil {
			return err
		}
		if err := sameENI(eni, out.NetworkInterfaceId); err != nil {
			return err
		}
		for _, a := range out.AssignedPrivateIpAddresses {
			answered = appendAddr(answered, a.PrivateIpAddress)
		}
		return nil
	})
	return answered, err
}

// AssignIPv6 puts addresses on an ENI in one call. It never moves one: EC2 has no reassignment for IPv6.
func (c *Client) AssignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return c.call(ctx, "AssignIpv6Addresses", eni, addrs, func(ctx context.Context) error {
		out, err := c.ec2.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: &eni, Ipv6Addresses: texts(addrs)})
		if err != nil {
			return err
		}
		if err := sameENI(eni, out.NetworkInterfaceId); err != nil {
			return err
		}
		for _, text := range out.AssignedIpv6Addresses {
			if a, err := netip.ParseAddr(text); err != nil || !slices.Contains(addrs, a) {
				return fmt.Errorf("%w: it names %q", errOtherAddress, text)
			}
		}
		return nil
	})
}

// UnassignIPv6 takes addresses off an ENI. EC2 refuses all when one is not there.
func (c *Client) UnassignIPv6(ctx context.Context, eni string, addrs []netip.Addr) error {
	return c.call(ctx, "UnassignIpv6Addresses", eni, addrs, func(ctx context.Context) error {
		_, err := c.ec2.UnassignIpv6Addresses(ctx, &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: &eni, Ipv6Addresses: texts(addrs)})
		return err
	})
}

// Holders asks EC2 which ENIs of a subnet hold the addresses, all of one family. An address nobody holds is not in the answer;
// nor, for a while, may one be that was assigned a moment ago: searches lag behind assignments.
func (c *Client) Holders(ctx context.Context, subnet string, addrs []netip.Addr) (map[netip.Addr]Holder, error) {
	name := "addresses.private-ip-address"
	if addrs[0].Is6() {
		name = "ipv6-addresses.ipv6-address"
	}
	held := map[netip.Addr]Holder{}
	err := c.call(ctx, "DescribeNetworkInterfaces", "", addrs, func(ctx context.Context) error {
		pages := ec2.NewDescribeNetworkInterfacesPaginator(c.ec2, &ec2.DescribeNetworkInterfacesInput{
			Filters: []types.Filter{
				{Name: &name, Values: texts(addrs)},
				{Name: aws.String("subnet-id"), Values: []string{subnet}},
			},
			MaxResults: aws.Int32(pageSize),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return err
			}
			for _, ni := range page.NetworkInterfaces {
				noteHeld(held, ni, addrs)
			}
		}
		return nil
	})
	return held, err
}

// Unmanaged tells whether an ENI is tagged to be left alone by the VPC CNI.
func (c *Client) Unmanaged(ctx context.Context, eni string) (bool, error) {
	var unmanaged bool
	err := c.describe(ctx, eni, func(ni types.NetworkInterface) { unmanaged = tagged(ni) })
	return unmanaged, err
}

// IPv6Slots asks EC2 how many of an ENI's IPv6 slots are in use, by addresses and by delegated prefixes.
func (c *Client) IPv6Slots(ctx context.Context, eni string) (int, error) {
	var n int
	err := c.describe(ctx, eni, func(ni types.NetworkInterface) { n = len(ni.Ipv6Addresses) + len(ni.Ipv6Prefixes) })
	return n, err
}

// describe reads one ENI.
func (c *Client) describe(ctx context.Context, eni string, read func(types.NetworkInterface)) error {
	return c.call(ctx, "DescribeNetworkInterfaces", eni, nil, func(ctx context.Context) error {
		out, err := c.ec2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eni}})
		if err != nil {
			return err
		}
		for _, ni := range out.NetworkInterfaces {
			if aws.ToString(ni.NetworkInterfaceId) == eni {
				read(ni)
				return nil
			}
		}
		return fmt.Errorf("the answer does not hold %s", eni)
	})
}

// call makes one attempt.
func (c *Client) call(ctx context.Context, op, eni string, addrs []netip.Addr, do func(context.Context) error) error {
	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	err := do(attempt)
	if err == nil {
		return nil
	}
	if attempt.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no answer within %s: %w", attemptTimeout, err)
	}
	e := newOpError(op, eni, addrs, err)
	if e.Class == Expired {
		c.creds.invalidate()
	}
	return e
}

// errOtherAddress is an answer about an address nobody asked for.
var errOtherAddress = errors.New("the answer is about another address")

// errOtherENI is an answer about another ENI than the one asked for: no proof of anything.
var errOtherENI = errors.New("the answer is about another ENI")

func sameENI(asked string, answered *string) error {
	if got := aws.ToString(answered); got != asked {
		return fmt.Errorf("%w: asked for %s, answered %q", errOtherENI, asked, got)
	}
	return nil
}

func noteHeld(held map[netip.Addr]Holder, ni types.NetworkInterface, addrs []netip.Addr) {
	h := Holder{ENI: aws.ToString(ni.NetworkInterfaceId), Unmanaged: tagged(ni), DeviceIndex: -1}
	if ni.Attachment != nil && ni.Attachment.DeviceIndex != nil {
		h.DeviceIndex = int(*ni.Attachment.DeviceIndex)
	}
	note := func(text *string, primary *bool) {
		addr, err := netip.ParseAddr(aws.ToString(text))
		if err != nil {
			return
		}
		for _, a := range addrs {
			if a == addr {
				h.Primary = aws.ToBool(primary)
				held[addr] = h
			}
		}
	}
	for _, a := range ni.PrivateIpAddresses {
		note(a.PrivateIpAddress, a.Primary)
	}
	for _, a := range ni.Ipv6Addresses {
		note(a.Ipv6Address, a.IsPrimaryIpv6)
	}
}

func tagged(ni types.NetworkInterface) bool {
	for _, t := range ni.TagSet {
		if aws.ToString(t.Key) == noManageTag && strings.EqualFold(aws.ToString(t.Value), "true") {
			return true
		}
	}
	return false
}

// texts gives addresses in the canonical lower-case form that EC2's case-sensitive filters demand.
func texts(addrs []netip.Addr) []string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return s
}

func appendAddr(addrs []netip.Addr, text *string) []netip.Addr {
	if a, err := netip.ParseAddr(aws.ToString(text)); err == nil {
		return append(addrs, a)
	}
	return addrs
}
