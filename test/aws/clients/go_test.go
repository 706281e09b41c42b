package clients

import (
	"context"
	"errors"
	"io"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"multus-ip-manager.io/test/aws"
)

// TestGoSDK is a round trip of every action with the default configuration chain.
func TestGoSDK(t *testing.T) {
	e := start(t)
	for _, kv := range [][2]string{{"AWS_REGION", region}, {"AWS_ENDPOINT_URL_EC2", e.ec2}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT", e.imds},
		{"HOME", t.TempDir()}, {"AWS_ACCESS_KEY_ID", ""}, {"AWS_SECRET_ACCESS_KEY", ""}, {"AWS_PROFILE", ""}, {"NO_PROXY", "*"}} {
		t.Setenv(kv[0], kv[1])
	}
	ctx := t.Context()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		t.Fatal(err)
	}
	client := ec2.NewFromConfig(cfg)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	equal := func(want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}

	a4, err := client.AssignPrivateIpAddresses(ctx, &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: sdk.String(eni1),
		PrivateIpAddresses: []string{"10.0.1.20", "10.0.1.21"}, AllowReassignment: sdk.Bool(true)})
	check(err)
	equal(eni1, *a4.NetworkInterfaceId)
	equal(2, len(a4.AssignedPrivateIpAddresses))
	equal("10.0.1.21", *a4.AssignedPrivateIpAddresses[1].PrivateIpAddress)

	a6, err := client.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: sdk.String(eni1), Ipv6Addresses: []string{"fd00:1::20"}})
	check(err)
	equal([]string{"fd00:1::20"}, a6.AssignedIpv6Addresses)

	p6, err := client.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: sdk.String(eni1), Ipv6Prefixes: []string{"fd00:1:0:0:7::/80"}})
	check(err)
	equal([]string{"fd00:1:0:0:7::/80"}, p6.AssignedIpv6Prefixes)

	p4, err := client.AssignPrivateIpAddresses(ctx, &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: sdk.String(eni1), Ipv4Prefixes: []string{"10.0.1.64/28"}})
	check(err)
	equal("10.0.1.64/28", *p4.AssignedIpv4Prefixes[0].Ipv4Prefix)

	describe := ec2.NewDescribeNetworkInterfacesPaginator(client, &ec2.DescribeNetworkInterfacesInput{MaxResults: sdk.Int32(5),
		Filters: []types.Filter{{Name: sdk.String("ipv6-addresses.ipv6-address"), Values: []string{"fd00:1::20"}}, {Name: sdk.String("subnet-id"), Values: []string{"subnet-0a000000000000001"}}}})
	page, err := describe.NextPage(ctx)
	check(err)
	equal(1, len(page.NetworkInterfaces))
	n := page.NetworkInterfaces[0]
	equal([]any{eni1, "02:00:00:00:00:01", instance, int32(1), types.NetworkInterfaceStatusInUse, types.AttachmentStatusAttached, 3, 1, 1, 1},
		[]any{*n.NetworkInterfaceId, *n.MacAddress, *n.Attachment.InstanceId, *n.Attachment.DeviceIndex, n.Status, n.Attachment.Status,
			len(n.PrivateIpAddresses), len(n.Ipv6Addresses), len(n.Ipv4Prefixes), len(n.Ipv6Prefixes)})
	equal(true, *n.PrivateIpAddresses[0].Primary)

	u6, err := client.UnassignIpv6Addresses(ctx, &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: sdk.String(eni1), Ipv6Addresses: []string{"fd00:1::20"}})
	check(err)
	equal([]string{"fd00:1::20"}, u6.UnassignedIpv6Addresses)
	_, err = client.UnassignPrivateIpAddresses(ctx, &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: sdk.String(eni1), PrivateIpAddresses: []string{"10.0.1.20"}})
	check(err)

	subnets, err := client.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{SubnetIds: []string{"subnet-0a000000000000001"}})
	check(err)
	equal("fd00:1::/64", *subnets.Subnets[0].Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlock)
	equal(types.SubnetCidrBlockStateCodeAssociated, subnets.Subnets[0].Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlockState.State)
	// 256 minus five reserved, two primaries, one secondary and a /28.
	equal(int32(256-5-2-1-16), *subnets.Subnets[0].AvailableIpAddressCount)
	instances, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{instance}})
	check(err)
	equal(3, len(instances.Reservations[0].Instances[0].NetworkInterfaces))
	kinds, err := client.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"m5.large"}})
	check(err)
	equal(int32(10), *kinds.InstanceTypes[0].NetworkInfo.Ipv4AddressesPerInterface)
}

// TestGoSDKErrors is how refusals and lost answers look to a client of the SDK.
func TestGoSDKErrors(t *testing.T) {
	e := start(t)
	user := e.cloud.AddUser("AKIAUSER", "secret")
	client := ec2.New(ec2.Options{Region: region, BaseEndpoint: sdk.String(e.ec2), RetryMaxAttempts: 1,
		Credentials: sdk.CredentialsProviderFunc(func(context.Context) (sdk.Credentials, error) {
			return sdk.Credentials{AccessKeyID: user.AccessKeyID, SecretAccessKey: user.SecretAccessKey}, nil
		})})
	assign := func() error {
		_, err := client.AssignPrivateIpAddresses(t.Context(), &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: sdk.String(eni1), PrivateIpAddresses: []string{"10.0.1.5"}})
		return err
	}
	var api smithy.APIError
	var resp *awshttp.ResponseError
	err := assign()
	if !errors.As(err, &api) || api.ErrorCode() != "InvalidParameterValue" || api.ErrorMessage() != "[10.0.1.5] assigned, but move is not allowed." {
		t.Errorf("%v", err)
	}
	if !errors.As(err, &resp) || resp.HTTPStatusCode() != 400 || len(resp.ServiceRequestID()) != 36 {
		t.Errorf("%v", err)
	}
	e.cloud.Faults().Add(aws.Fault{Kind: aws.FaultThrottle, Times: 1})
	if err := assign(); !errors.As(err, &api) || api.ErrorCode() != "RequestLimitExceeded" {
		t.Errorf("%v", err)
	}
	e.cloud.Faults().Add(aws.Fault{Kind: aws.FaultDrop, Times: 1})
	if err := assign(); !errors.Is(err, io.EOF) {
		t.Errorf("dropped: %v", err)
	}
	_, err = client.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{DryRun: sdk.Bool(true)})
	if !errors.As(err, &api) || api.ErrorCode() != "DryRunOperation" {
		t.Errorf("%v", err)
	}
}

// TestGoIMDS reads the metadata with the SDK's client, by session token.
func TestGoIMDS(t *testing.T) {
	e := start(t)
	client := imds.New(imds.Options{Endpoint: e.imds, EnableFallback: sdk.FalseTernary})
	out, err := client.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: "network/interfaces/macs/02:00:00:00:00:01/interface-id"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(out.Content); err != nil || string(b) != eni1 {
		t.Errorf("%q %v", b, err)
	}
	doc, err := client.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil || doc.Region != region || doc.InstanceID != instance {
		t.Errorf("%+v %v", doc, err)
	}
	if r, err := client.GetRegion(t.Context(), nil); err != nil || r.Region != region {
		t.Errorf("%+v %v", r, err)
	}
	for _, c := range e.cloud.IMDSJournal() {
		if c.Status != 200 {
			t.Errorf("%v", c)
		}
	}
}
