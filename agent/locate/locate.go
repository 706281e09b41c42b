// Package locate finds out which ENIs the node has, from the instance metadata service (IMDS).
//
// Metadata is asked for identity: which ENI has which MAC, device number, subnet and delegated prefixes. Its lists of addresses are stale
// both ways, so they are read only for [Metadata.Listed]. Where metadata is closed to pods, or goes on to know half of an ENI, a [Finder]
// asks EC2 instead.
package locate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"multus-ip-manager.io/agent/plan"
)

// parallelReads bounds the requests under way at once. All link-local services of an ENI share 1024 packets a second.
const parallelReads = 8

// ErrHopLimit means that the instance's metadata answers only with a session token, and that the answer with the token never
// arrives: it is sent with the instance's hop limit, which is too small for a pod.
var ErrHopLimit = errors.New("the metadata service demands a session token (IMDSv2) and its answer with the token does not reach this pod: " +
	"raise the instance's metadata hop limit (HttpPutResponseHopLimit) to 2 or more, or give the pod credentials of its own " +
	"(IRSA, EKS Pod Identity) and AWS_REGION")

// ErrIncomplete means that metadata lists a MAC without saying yet all of which ENI it is: the ENI is being attached, or replaced. The
// error that wraps it is an [*IncompleteError].
var ErrIncomplete = errors.New("metadata does not tell yet which ENI has the MAC")

// IncompleteError names the MAC of which metadata knows half.
type IncompleteError struct {
	// MAC is in lower case.
	MAC string
	// Primary tells that an interface of the pod does not have it, but that it may be the node's primary ENI's while no other is.
	Primary bool
}

// Error names the MAC and why it matters.
func (e *IncompleteError) Error() string {
	if e.Primary {
		return fmt.Sprintf("%v: %s, which may be that of the node's primary ENI", ErrIncomplete, e.MAC)
	}
	return fmt.Sprintf("%v: %s", ErrIncomplete, e.MAC)
}

// Unwrap gives [ErrIncomplete].
func (*IncompleteError) Unwrap() error { return ErrIncomplete }

// is tells whether an ENI is the one in question.
func (e *IncompleteError) is(eni plan.ENI) bool {
	return eni.MAC == e.MAC || e.Primary && isPrimary(eni)
}

// ErrNoMetadata means that nothing, or nothing useful, answered at the metadata address.
var ErrNoMetadata = errors.New("no EC2 instance metadata")

// ErrDisabled means that the environment forbids the use of metadata. No waiting will help.
var ErrDisabled = fmt.Errorf("%w: AWS_EC2_METADATA_DISABLED is set: unset it, or give the pod credentials of its own "+
	"(IRSA, EKS Pod Identity) and AWS_REGION", ErrNoMetadata)

// Metadata reads what the node's IMDS tells.
type Metadata struct {
	client   *imds.Client
	token    *tokenTransport
	disabled bool
	// elsewhere tells that the environment or a shared file has credentials that do not come from metadata.
	elsewhere bool
}

// Region gives the node's AWS Region. Metadata that has no key of it has it in the instance identity document, or as the beginning of the
// zone's name.
func (m *Metadata) Region(ctx context.Context) (string, error) {
	region, err := m.value(ctx, "placement/region")
	if err == nil && region == "" {
		region, err = m.regionElsewhere(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("read the Region, because AWS_REGION is not set: %w", err)
	}
	if !IsRegion(region) {
		// What it holds is not shown: nobody knows what a service that is no metadata gives away.
		return "", fmt.Errorf("read the Region: %w: neither placement/region nor the instance identity document nor "+
			"placement/availability-zone names one; set AWS_REGION", ErrNoMetadata)
	}
	return region, nil
}

// zones finds the Region in the name of an availability, local or wavelength zone: us-east-1 in us-east-1a, us-gov-west-1 in us-gov-west-1a,
// us-west-2 in us-west-2-lax-1a.
var zones = regexp.MustCompile(`^[a-z]+(-[a-z]+)+-[0-9]+`)

// regionElsewhere gives the Region by what is there besides its own key; empty if nothing is. A place that fails is no fault where another
// tells.
func (m *Metadata) regionElsewhere(ctx context.Context) (string, error) {
	const path = "instance-identity/document"
	document, failure := m.read(ctx, path, func(ctx context.Context) (io.ReadCloser, error) {
		out, err := m.client.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: path})
		if err != nil {
			return nil, err
		}
		return out.Content, nil
	})
	var told struct {
		Region string `json:"region"`
	}
	if json.Unmarshal([]byte(document), &told) == nil && IsRegion(told.Region) {
		return told.Region, nil
	}
	zone, err := m.value(ctx, "placement/availability-zone")
	if region := zones.FindString(zone); region != "" && IsRegion(zone) {
		return region, nil
	}
	return "", errors.Join(failure, err)
}

// regions are names such as eu-central-1 and us-gov-west-1; the name becomes part of a host's name.
var regions = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// IsRegion tells whether the text can be the name of an AWS Region.
func IsRegion(s string) bool { return len(s) <= 63 && regions.MatchString(s) }

// IsEndpoint tells whether the text can be the address of an HTTP service.
func IsEndpoint(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

// ENIs describes the ENIs with these MACs, and tells of the primary ENI at least which subnet it is in: the VPC CNI draws from that
// one. A MAC that metadata does not know is left out of the answer; one that it knows half of is [ErrIncomplete], and so is a primary ENI
// that it knows half of.
func (m *Metadata) ENIs(ctx context.Context, macs []string) ([]plan.ENI, error) {
	var listed []string
	var primary string
	err := parallel(ctx,
		func(ctx context.Context) (err error) { listed, err = m.macs(ctx); return err },
		func(ctx context.Context) (err error) { primary, err = m.value(ctx, "mac"); return err },
	)
	if err != nil {
		return nil, err
	}
	asks := func(mac string) bool { return slices.Contains(macs, mac) }
	var first, rest []string
	for _, as := range listed {
		if strings.EqualFold(as, primary) || asks(strings.ToLower(as)) {
			first = append(first, as)
		} else {
			rest = append(rest, as)
		}
	}
	enis, err := m.describe(ctx, first, asks)
	if err == nil {
		enis, err = complete(enis, asks)
	}
	if err == nil && len(rest) > 0 && !slices.ContainsFunc(enis, isPrimary) {
		// Metadata does not name the primary ENI, or names another: it is among the rest, if anywhere.
		var others []plan.ENI
		if others, err = m.describe(ctx, rest, asks); err == nil {
			enis, err = complete(append(enis, others...), asks)
		}
	}
	return slices.DeleteFunc(enis, func(e plan.ENI) bool { return !isPrimary(e) && !asks(e.MAC) }), err
}

func isPrimary(e plan.ENI) bool { return e.DeviceIndex == 0 }

// All describes every ENI of the node.
func (m *Metadata) All(ctx context.Context) ([]plan.ENI, error) {
	listed, err := m.macs(ctx)
	if err != nil {
		return nil, err
	}
	enis, err := m.describe(ctx, listed, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	return complete(enis, func(string) bool { return false })
}

// macs lists the MACs as metadata writes them, which is how it must be asked about them.
func (m *Metadata) macs(ctx context.Context) ([]string, error) {
	lines, err := m.lines(ctx, "network/interfaces/macs/")
	if err != nil {
		return nil, fmt.Errorf("list the node's ENIs: %w", err)
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("list the node's ENIs: %w: the list of MACs is empty", ErrNoMetadata)
	}
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "/")
	}
	return lines, nil
}

// describe reads who the ENIs are and, of those that whole names, everything else. What metadata does not tell is left empty.
func (m *Metadata) describe(ctx context.Context, macs []string, whole func(mac string) bool) ([]plan.ENI, error) {
	enis := make([]plan.ENI, len(macs))
	var reads []func(context.Context) error
	for i, as := range macs {
		enis[i].MAC = strings.ToLower(as)
		reads = append(reads, m.identity(&enis[i], as)...)
		if whole(enis[i].MAC) {
			reads = append(reads, m.blocks(&enis[i], as)...)
		}
	}
	if err := parallel(ctx, reads...); err != nil {
		return nil, err
	}
	return enis, nil
}

// complete gives the ENIs that metadata tells enough of, by device number. Metadata lists ENIs that are being attached or were just detached
// with half of their keys. One that needed names, to which an interface of the pod belongs, must be waited for, and so must one that may be
// the primary ENI while no other is; the rest count as unknown.
func complete(enis []plan.ENI, needed func(mac string) bool) ([]plan.ENI, error) {
	half := func(e plan.ENI) bool { return e.ID == "" || e.SubnetID == "" || e.DeviceIndex < 0 }
	primary := slices.ContainsFunc(enis, func(e plan.ENI) bool { return isPrimary(e) && !half(e) })
	for _, e := range enis {
		if half(e) && needed(e.MAC) {
			return nil, &IncompleteError{MAC: e.MAC}
		}
		if half(e) && !primary && e.DeviceIndex <= 0 {
			return nil, &IncompleteError{MAC: e.MAC, Primary: true}
		}
	}
	enis = slices.DeleteFunc(enis, half)
	slices.SortFunc(enis, func(a, b plan.ENI) int { return a.DeviceIndex - b.DeviceIndex })
	return enis, nil
}

// identity are the requests that tell who an ENI is. Each writes a field of its own, so they may run side by side.
func (m *Metadata) identity(e *plan.ENI, as string) []func(context.Context) error {
	text := func(key string, into *string) func(context.Context) error {
		return func(ctx context.Context) (err error) {
			*into, err = m.value(ctx, keyOf(as, key))
			return err
		}
	}
	return []func(context.Context) error{
		text("interface-id", &e.ID),
		text("subnet-id", &e.SubnetID),
		func(ctx context.Context) error {
			s, err := m.value(ctx, keyOf(as, "device-number"))
			if err != nil {
				return err
			}
			if e.DeviceIndex, err = strconv.Atoi(s); err != nil {
				e.DeviceIndex = -1
			}
			return nil
		},
	}
}

// blocks are the requests that tell which addresses an ENI can have, and has by delegation.
func (m *Metadata) blocks(e *plan.ENI, as string) []func(context.Context) error {
	var mu sync.Mutex
	into := func(key string, all *[]netip.Prefix) func(context.Context) error {
		return func(ctx context.Context) error {
			ps, err := m.prefixes(ctx, keyOf(as, key))
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			*all = append(*all, ps...)
			slices.SortFunc(*all, netip.Prefix.Compare)
			return nil
		}
	}
	return []func(context.Context) error{
		into("subnet-ipv4-cidr-block", &e.Subnets),
		into("subnet-ipv6-cidr-blocks", &e.Subnets),
		into("ipv4-prefix", &e.Prefixes),
		into("ipv6-prefix", &e.Prefixes),
	}
}

func keyOf(mac, key string) string { return "network/interfaces/macs/" + mac + "/" + key }

func (m *Metadata) prefixes(ctx context.Context, key string) ([]netip.Prefix, error) {
	lines, err := m.lines(ctx, key)
	if err != nil {
		return nil, err
	}
	var ps []netip.Prefix
	for _, l := range lines {
		p, err := netip.ParsePrefix(l)
		if err != nil {
			return nil, fmt.Errorf("metadata %s: %w: it holds no CIDR block", key, ErrNoMetadata)
		}
		ps = append(ps, p.Masked())
	}
	return ps, nil
}

func (m *Metadata) lines(ctx context.Context, key string) ([]string, error) {
	s, err := m.value(ctx, key)
	return strings.Fields(s), err
}

// value reads one key. A key that is not there (404) is an empty value: metadata omits what an ENI does not have, such as IPv6
// blocks.
func (m *Metadata) value(ctx context.Context, key string) (string, error) {
	return m.read(ctx, key, func(ctx context.Context) (io.ReadCloser, error) {
		out, err := m.client.GetMetadata(ctx, &imds.GetMetadataInput{Path: key})
		if err != nil {
			return nil, err
		}
		return out.Content, nil
	})
}

// read reads what get asks for, which messages call by the key's name. What is not there (404) is empty.
func (m *Metadata) read(ctx context.Context, key string, get func(context.Context) (io.ReadCloser, error)) (string, error) {
	if m.disabled {
		return "", fmt.Errorf("metadata %s: %w", key, ErrDisabled)
	}
	var status atomic.Int32
	ctx = context.WithValue(ctx, statusKey{}, &status)
	content, err := get(ctx)
	if err != nil && status.Load() == http.StatusUnauthorized && !m.token.lost.Load() {
		// Tokens arrive, but the one the request carried is no longer valid.
		content, err = get(ctx)
	}
	if err != nil {
		demanded := status.Load() == http.StatusUnauthorized
		return m.explain(ctx, key, demanded, err)
	}
	defer content.Close()
	body, err := io.ReadAll(io.LimitReader(content, 1<<20))
	if err != nil {
		return "", fmt.Errorf("metadata %s: %w: %w", key, ErrNoMetadata, err)
	}
	return strings.TrimSpace(string(body)), nil
}

// explain makes of the SDK's error what callers act on. demanded tells that the request was refused for want of a valid token.
func (m *Metadata) explain(ctx context.Context, key string, demanded bool, err error) (string, error) {
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusNotFound {
		return "", nil
	}
	if demanded && m.token.lost.Load() {
		return "", fmt.Errorf("metadata %s: %w", key, ErrHopLimit)
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return "", fmt.Errorf("metadata %s: %w: %w", key, ErrNoMetadata, err)
}

// parallel runs the functions, a bounded number at once, and gives the first error after all have ended.
func parallel(ctx context.Context, fns ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, parallelReads)
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := fn(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
