package clients

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"multus-ip-manager.io/test/aws"
)

const (
	instance = "i-0a000000000000001"
	eni1     = "eni-0a000000000000001"
	eni2     = "eni-0a000000000000002"
	region   = "eu-central-1"
)

// endpoints is a running emulator.
type endpoints struct {
	cloud     *aws.Cloud
	ec2, imds string
	// sts and pods are STS and a Pod Identity agent.
	sts, pods string
}

// start serves a cloud with one instance (three interfaces, two of them in one subnet) on loopback.
func start(t *testing.T) endpoints {
	t.Helper()
	c := aws.New(aws.WithRegion(region))
	pods := aws.Subnet{ID: "subnet-0a000000000000001", IPv4: netip.MustParsePrefix("10.0.1.0/24"), IPv6: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")}}
	for _, err := range []error{
		c.AddSubnet(aws.Subnet{ID: "subnet-0a000000000000000", IPv4: netip.MustParsePrefix("10.0.0.0/24")}),
		c.AddSubnet(pods),
		c.AddInstance(aws.Instance{ID: instance, TokensRequired: true}),
		c.AddENI(aws.ENI{ID: "eni-0a000000000000000", SubnetID: "subnet-0a000000000000000", InstanceID: instance}),
		c.AddENI(aws.ENI{ID: eni1, SubnetID: pods.ID, InstanceID: instance, DeviceIndex: 1, MAC: "02:00:00:00:00:01"}),
		c.AddENI(aws.ENI{ID: eni2, SubnetID: pods.ID, InstanceID: instance, DeviceIndex: 2, MAC: "02:00:00:00:00:02",
			Primary: netip.MustParseAddr("10.0.1.5"), Tags: map[string]string{"a b": "c&<d>"}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	out := endpoints{cloud: c}
	ctx, cancel := context.WithCancel(context.Background())
	listen := func(serve func(net.Listener) error) string {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- serve(l) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return "http://" + l.Addr().String() + "/"
	}
	serve := func(h http.Handler) string {
		return listen(func(l net.Listener) error {
			srv := &http.Server{Handler: h}
			defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
			if err := srv.Serve(l); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	out.ec2, out.sts, out.pods = serve(c.EC2()), serve(c.STS()), serve(c.PodIdentity())
	out.imds = listen(func(l net.Listener) error { return c.ServeIMDS(ctx, l, instance) })
	return out
}

// env is what a client needs to find the emulator and nothing else: credentials come from the metadata service.
func (e endpoints) env(home string) []string {
	return []string{"PATH=/usr/bin:/bin", "HOME=" + home, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region,
		"AWS_ENDPOINT_URL_EC2=" + e.ec2, "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + e.imds, "AWS_PAGER=", "NO_PROXY=*"}
}
