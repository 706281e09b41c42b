package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
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
	maxAnswer = 2 << 20
	// noManageTag marks ENIs that the VPC CNI leaves alone, with the value "true".
	noManageTag = "node.k8s.amazonaws.com/no_manage"
	// pageSize is how many ENIs one page of a search holds. In large accounts EC2 refuses searches without paging.
	pageSize = 100
	// searchSize is how many addresses one search may name: EC2 takes 200 values of all filters together.
	searchSize = 190
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
	creds *keptCredentials
	line  *line
	log   *slog.Logger
	node  node
}

// Option changes what [New] makes.
type Option func(*ec2.Options)

// New makes a client from the SDK's default chain (environment, IRSA, EKS Pod Identity, instance role) and the SDK's variables
// for endpoints. The instance role is read through the same metadata client as the node's identity, so that one session token
// serves both. Without a Region in the environment, the node's is asked for, which may fail for as long as metadata is away.
//
// What the environment says is checked here, because the SDK would find it out with each call and waiting does not mend it.
func New(ctx context.Context, metadata *locate.Metadata, dialer locate.Dialer, log *slog.Logger, appID string, options ...Option) (*Client, error) {
	exchange := &tokenExchange{}
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithHTTPClient(sdkClient(dialer)),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithAppID(appID),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata.Client() }),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = endpointClient(dialer) }),
		config.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) { o.Client = exchange }),
		// How long credentials are used is decided here, not by what the SDK would cut off them.
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 0 }),
		config.WithLogger(logging.LoggerFunc(func(level logging.Classification, format string, args ...any) {
			log.Debug("AWS SDK", "level", string(level), "message", fmt.Sprintf(format, args...))
		})),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	from, err := identity()
	if err != nil {
		return nil, err
	}
	if cfg.Region == "" {
		if cfg.Region, err = metadata.Region(ctx); err != nil {
			return nil, err
		}
	}
	if !locate.IsRegion(cfg.Region) {
		return nil, fmt.Errorf("%w: %q is no Region (AWS_REGION)", ErrConfiguration, cfg.Region)
	}
	exchange.by(cfg)
	return newClient(ctx, cfg, from, dialer, log, options)
}

// identity tells where the credentials come from, and finds out what is missing for that.
func identity() (source, error) {
	env, err := config.NewEnvConfig()
	if err != nil {
		return source{}, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	from := sourceOf(env)
	return from, from.check()
}

// newClient makes a client of the SDK's configuration.
func newClient(ctx context.Context, cfg aws.Config, from source, dialer locate.Dialer, log *slog.Logger, options []Option) (*Client, error) {
	c := &Client{creds: &keptCredentials{inner: cfg.Credentials, from: from}, log: log, node: newNode()}
	cfg.Credentials = c.creds
	at, err := endpointOf(ctx, ec2.NewFromConfig(cfg).Options())
	if err != nil {
		return nil, err
	}
	client, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("the SDK made an HTTP client of type %T", cfg.HTTPClient)
	}
	if c.line, err = newLine(client.GetTransport(), dialer, at); err != nil {
		return nil, fmt.Errorf("%w: %w (HTTPS_PROXY)", ErrConfiguration, err)
	}
	cfg.HTTPClient = wholeAnswers{c.line}
	c.ec2 = ec2.NewFromConfig(cfg, func(o *ec2.Options) {
		for _, option := range options {
			option(o)
		}
	})
	return c, nil
}

// endpointOf finds out where the SDK will send its requests.
func endpointOf(ctx context.Context, o ec2.Options) (*url.URL, error) {
	if at := o.BaseEndpoint; at != nil && !locate.IsEndpoint(*at) {
		return nil, fmt.Errorf("%w: %q is no endpoint: want http://HOST or https://HOST (AWS_ENDPOINT_URL_EC2)", ErrConfiguration, *at)
	}
	endpoint, err := o.EndpointResolverV2.ResolveEndpoint(ctx, ec2.EndpointParameters{
		Region:       &o.Region,
		UseDualStack: aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
		UseFIPS:      aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		Endpoint:     o.BaseEndpoint,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: no EC2 endpoint: %w", ErrConfiguration, err)
	}
	return &endpoint.URI, nil
}

var _ ec2rolecreds.GetMetadataAPIClient = (*imds.Client)(nil)

// Warm makes the next call one round trip: credentials that end soon are replaced, and a connection to EC2 is established without
// sending anything on it. It is called at the start and then once a minute. Its failure is no news: the call itself will tell.
func (c *Client) Warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for what, warm := range map[string]func(context.Context) error{"credentials": c.creds.warm, "connection": c.line.warm} {
		wg.Go(func() {
			if err := warm(ctx); err != nil {
				c.log.Debug("cannot prepare the next EC2 call", "what", what, "error", scrub(err.Error()))
			}
		})
	}
	wg.Wait()
}

// Close gives up the connections that are kept. Calls still work, each with a connection of its own.
func (c *Client) Close() { c.line.close() }

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

// UnassignIPv4 takes secondary addresses off an ENI. EC2 refuses all when one is not there.
func (c *Client) UnassignIPv4(ctx context.Context, eni string, addrs []netip.Addr) error {
	return c.call(ctx, "UnassignPrivateIpAddresses", eni, addrs, func(ctx context.Context) error {
		_, err := c.ec2.UnassignPrivateIpAddresses(ctx, &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &eni, PrivateIpAddresses: texts(addrs)})
		return err
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
	held := map[netip.Addr]Holder{}
	for some := range slices.Chunk(addrs, searchSize) {
		if err := c.search(ctx, subnet, some, held); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// search notes the holders of as many addresses as one request may ask for.
func (c *Client) search(ctx context.Context, subnet string, addrs []netip.Addr, held map[netip.Addr]Holder) error {
	name := "addresses.private-ip-address"
	if addrs[0].Is6() {
		name = "ipv6-addresses.ipv6-address"
	}
	return c.call(ctx, "DescribeNetworkInterfaces", "", addrs, func(ctx context.Context) error {
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
	var used string
	var reached bool
	err := do(context.WithValue(context.WithValue(attempt, usedKey{}, &used), reachedKey{}, &reached))
	if err == nil {
		return nil
	}
	if attempt.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no %s within %s: %w", map[bool]string{true: "answer", false: "connection"}[reached], attemptTimeout, err)
	}
	e := newOpError(op, eni, addrs, err)
	if e.Class == Unanswered && !reached {
		e.Class = Unsent
	}
	if e.Class == Expired || e.Code == authFailure {
		c.creds.invalidate(used)
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
