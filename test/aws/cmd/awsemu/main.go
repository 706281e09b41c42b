// Command awsemu runs the EC2 and metadata service emulator by itself: one endpoint each of EC2, STS and EKS Pod Identity, and one metadata
// endpoint per instance, on loopback, until it is interrupted. By default there is one instance with some interfaces; -config takes
// a YAML file with any number of subnets, instances and interfaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"multus-ip-manager.io/test/aws"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "awsemu:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

// usage is the beginning of the help text.
const usage = `awsemu emulates EC2's address assignment, the instance metadata service, and what gives pods credentials of their own: STS and
EKS Pod Identity. It prints what to export and serves until it is interrupted:

  awsemu >awsemu.env &
  . ./awsemu.env
  aws ec2 describe-network-interfaces --endpoint-url "$AWS_ENDPOINT_URL_EC2"

Credentials are those of the first instance's role, which clients fetch from its metadata service by themselves. With
-token-dir there are tokens of a pod, too, and what to export for a role of its own. A
cloud of one's own is a YAML file; its fields are those of the Go package test/aws (VPC, Subnet, Instance, ENI):

  subnets:
  - {id: subnet-1, ipv4: 10.0.1.0/24, ipv6: ["fd00:1::/64"]}
  instances:
  - {id: i-1, type: m5.large, tokensRequired: true}
  roles:
  - {name: pods, trusts: ["telco:*", pods.eks.amazonaws.com], policy: {allow: [{actions: ["ec2:Assign*", "ec2:Describe*"]}]}}
  associations: {"telco:app": pods}
  interfaces:
  - {id: eni-1, subnetID: subnet-1, instanceID: i-1, deviceIndex: 0, primary: 10.0.1.10, secondary: [10.0.1.11]}
  users:
  - {accessKeyId: AKIA1, secretAccessKey: secret, policy: {allow: [{actions: ["ec2:Describe*"]}]}}

`

// options are the command line.
type options struct {
	config, listen, imdsListen string
	stsListen, podListen       string
	tokenDir                   string
	serviceAccount             [2]string // namespace and name
	region, instanceType       string
	enis, hopLimit             int
	ipv6, tokens, throttle     bool
	strictRegion               bool
	quiet                      bool
}

func parse(args []string, errOut io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("awsemu", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.Usage = func() {
		fmt.Fprint(errOut, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.config, "config", "", "YAML file with subnets, instances, interfaces and users; replaces the default instance")
	fs.StringVar(&o.listen, "listen", "127.0.0.1:0", "address of the EC2 endpoint")
	fs.StringVar(&o.imdsListen, "imds-listen", "127.0.0.1:0", "address of the first instance's metadata service; others get free ports of the same host")
	fs.StringVar(&o.stsListen, "sts-listen", "127.0.0.1:0", "address of the STS endpoint")
	fs.StringVar(&o.podListen, "pod-identity-listen", "127.0.0.1:0", "address of the EKS Pod Identity agent")
	fs.StringVar(&o.tokenDir, "token-dir", "", "directory to write the tokens of a pod to, for STS and for EKS Pod Identity")
	account := fs.String("service-account", "default:default", "the pod's service account, namespace:name")
	fs.StringVar(&o.region, "region", "us-east-1", "AWS region")
	fs.StringVar(&o.instanceType, "type", "m5.large", "instance type of the default instance")
	fs.IntVar(&o.enis, "enis", 3, "interfaces of the default instance")
	fs.BoolVar(&o.ipv6, "ipv6", true, "give the default subnets IPv6 blocks, too")
	fs.IntVar(&o.hopLimit, "hop-limit", 2, "hop limit of the default instance's token answers, 1 to 64")
	fs.BoolVar(&o.tokens, "imdsv2-only", false, "default instance: refuse metadata requests without a token")
	fs.BoolVar(&o.throttle, "throttle", false, "enforce EC2's published token buckets")
	fs.BoolVar(&o.strictRegion, "strict-region", false, "refuse signatures made for another region")
	fs.BoolVar(&o.quiet, "quiet", false, "do not log calls")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var named bool
	o.serviceAccount[0], o.serviceAccount[1], named = strings.Cut(*account, ":")
	switch {
	case !named:
		return o, fmt.Errorf("-service-account %q: want namespace:name", *account)
	case o.region == "":
		return o, errors.New("-region: want a region")
	case o.enis < 1 || o.enis > 256:
		return o, fmt.Errorf("-enis %d: want 1 to 256", o.enis)
	case o.hopLimit < 1:
		return o, fmt.Errorf("-hop-limit %d: want 1 to 64", o.hopLimit) // package aws would take 0 for its default
	}
	if o.config != "" {
		var lost []string
		fs.Visit(func(f *flag.Flag) {
			if slices.Contains([]string{"enis", "hop-limit", "imdsv2-only", "ipv6", "type"}, f.Name) {
				lost = append(lost, "-"+f.Name)
			}
		})
		if len(lost) > 0 {
			return o, fmt.Errorf("%s: these are about the default instance, which -config replaces", strings.Join(lost, " "))
		}
	}
	return o, nil
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	o, err := parse(args, errOut)
	if err != nil {
		return err
	}
	spec := defaultSpec(o)
	if o.config != "" {
		if spec, err = load(o.config); err != nil {
			return err
		}
	}
	cloud, err := spec.build(o)
	if err != nil {
		return err
	}
	return serve(ctx, cloud, spec, o, out, errOut)
}

// serve opens all listeners, prints what to export and serves until ctx ends or one of them fails.
func serve(ctx context.Context, cloud *aws.Cloud, spec spec, o options, out, errOut io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()

	at := urls{}
	for _, p := range []struct {
		name, listen string
		handler      http.Handler
		url          *string
	}{
		{"EC2 endpoint", o.listen, cloud.EC2(), &at.ec2},
		{"STS endpoint", o.stsListen, cloud.STS(), &at.sts},
		{"EKS Pod Identity agent", o.podListen, cloud.PodIdentity(), &at.podIdentity},
	} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.listen)
		if err != nil {
			cancel(nil)
			return fmt.Errorf("%s: %w", p.name, err)
		}
		*p.url = "http://" + l.Addr().String()
		wg.Go(func() {
			if err := serveHTTP(ctx, l, p.handler); err != nil {
				cancel(fmt.Errorf("%s: %w", p.name, err))
			}
		})
	}

	for i, inst := range spec.Instances {
		address := o.imdsListen
		if i > 0 {
			host, _, _ := net.SplitHostPort(o.imdsListen)
			address = net.JoinHostPort(host, "0")
		}
		il, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			cancel(nil)
			return fmt.Errorf("metadata service of %s: %w", inst.ID, err)
		}
		at.imds = append(at.imds, endpoint{inst.ID, "http://" + il.Addr().String() + "/"})
		wg.Go(func() {
			if err := cloud.ServeIMDS(ctx, il, inst.ID); err != nil {
				cancel(err)
			}
		})
	}
	files, err := writeTokens(cloud, o)
	if err == nil {
		err = announce(out, cloud, spec, at, files)
	}
	if err != nil {
		cancel(nil)
		return err
	}
	if !o.quiet {
		wg.Go(func() { follow(ctx, cloud, slog.New(slog.NewTextHandler(errOut, nil))) })
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// endpoint is one instance's metadata service. Its URL ends in a slash: botocore appends paths without one.
type endpoint struct{ instance, url string }

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// urls are where everything is served.
type urls struct {
	ec2, sts, podIdentity string
	imds                  []endpoint
}

// announce prints variables for a shell to evaluate, and what there is as comments.
func announce(out io.Writer, cloud *aws.Cloud, spec spec, at urls, files tokens) error {
	p := &printer{w: out}
	p.line("export AWS_REGION=%s AWS_DEFAULT_REGION=%s", cloud.Region(), cloud.Region())
	p.line("export AWS_ENDPOINT_URL_EC2=%s  # older tools: --endpoint-url", at.ec2)
	p.line("export AWS_ENDPOINT_URL_STS=%s", at.sts)
	for i, e := range at.imds {
		prefix := ""
		if i > 0 {
			prefix = "# "
		}
		p.line("%sexport AWS_EC2_METADATA_SERVICE_ENDPOINT=%s  # %s", prefix, e.url, e.instance)
	}
	if len(spec.Users) > 0 {
		p.line("# or, without the instance's role:")
	}
	for _, u := range spec.Users {
		p.line("# export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s", u.AccessKeyID, u.SecretAccessKey)
	}
	if len(spec.Roles) > 0 && files != (tokens{}) {
		p.line("# or, as a pod with a role of its own: IRSA, then EKS Pod Identity")
		p.line("# export AWS_ROLE_ARN=arn:aws:iam::%s:role/%s AWS_WEB_IDENTITY_TOKEN_FILE=%s", cloud.Account(), spec.Roles[0].Name, files.sts)
		p.line("# export AWS_CONTAINER_CREDENTIALS_FULL_URI=%s/v1/credentials AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=%s", at.podIdentity, files.podIdentity)
	}
	for _, e := range cloud.ENIs() {
		where := "not attached"
		if e.InstanceID != "" {
			where = fmt.Sprintf("device %d of %s", e.DeviceIndex, e.InstanceID)
		}
		p.line("# %s  %s  %s  %s  %s", e.ID, e.MAC, where, e.SubnetID, e.Primary)
	}
	return p.err
}

// printer remembers the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// follow logs each EC2 call when it ends.
func follow(ctx context.Context, cloud *aws.Cloud, log *slog.Logger) {
	cloud.Follow(ctx, func(c aws.Call) {
		log.Info("call", "seq", c.Seq, "action", c.Action, "eni", c.ENI, "addresses", c.Addresses,
			"principal", c.Principal, "status", c.Status, "code", c.Code, "took", c.End.Sub(c.Start))
	})
}
