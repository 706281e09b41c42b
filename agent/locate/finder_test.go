package locate

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/test/pipes"
)

func TestListed(t *testing.T) {
	t.Parallel()
	s := &imdsServer{keys: node(), needToken: true}
	s.keys[base(mac1)+"local-ipv4s"] = "10.0.1.10\n10.0.1.5\nnone\n"
	s.keys[base(mac1)+"ipv6s"] = "2001:DB8:0:1::5"
	drop(mac2, "interface-id")(s.keys)
	got, err := s.start(t).Listed(t.Context(), []string{mac1, mac2, "fa:ce:00:00:00:01"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Listing{mac1: {ENI: "eni-1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.5"), netip.MustParseAddr("10.0.1.10"), netip.MustParseAddr("2001:db8:0:1::5")}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	for _, g := range s.gets {
		if strings.Contains(g, mac0) {
			t.Errorf("%s was read, nobody asked for it", g)
		}
	}
	s = &imdsServer{hook: func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}}
	if got, err := s.start(t).Listed(t.Context(), []string{mac1}); !errors.Is(err, ErrNoMetadata) {
		t.Errorf("lists %v, %v", got, err)
	}
	// A MAC is asked about as metadata writes it, and told as the kernel does.
	s = &imdsServer{keys: node()}
	rename(s.keys, mac1, "02:AA:00:00:00:01")
	if got, err := s.start(t).Listed(t.Context(), []string{"02:aa:00:00:00:01"}); err != nil || got["02:aa:00:00:00:01"].ENI != "eni-1" {
		t.Errorf("lists %v, %v", got, err)
	}
}

// ec2Source is EC2 as a place that knows the ENIs.
type ec2Source struct {
	calls int
	err   error
	mac   string // of the ENI that it knows
}

func (e *ec2Source) ENIs(context.Context, []string) ([]plan.ENI, error) {
	e.calls++
	return []plan.ENI{{ID: "eni-by-ec2", MAC: e.mac, DeviceIndex: 1}}, e.err
}

func (e *ec2Source) All(ctx context.Context) ([]plan.ENI, error) { return e.ENIs(ctx, nil) }

// finder makes one over the metadata and the source, for a pod with IRSA or without.
func finder(m *Metadata, s *ec2Source) *Finder {
	return &Finder{Metadata: m, Connect: func(context.Context) (Source, error) { return s, nil }, Log: slog.New(slog.DiscardHandler)}
}

// irsa sets the environment of a pod with a web identity, or of one with nothing.
func irsa(t *testing.T, has bool) {
	t.Helper()
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	for _, key := range []string{"AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"} {
		t.Setenv(key, "")
	}
	if has {
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
		t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/telco")
	}
}

// Without metadata, EC2 is asked, if there are credentials that do not come from metadata. Otherwise the fault of metadata is the answer.
func TestFinder(t *testing.T) {
	tests := map[string]struct {
		s       *imdsServer
		env     map[string]string
		closed  error // what it is without other credentials; nil: metadata answers
		waits   time.Duration
		waiting error // an error that EC2 does not help with
	}{
		"metadata answers":          {s: &imdsServer{keys: node()}},
		"hop limit":                 {s: &imdsServer{keys: node(), mute: true, needToken: true}, closed: ErrHopLimit, waits: tokenTimeout},
		"hop limit, but version 1":  {s: &imdsServer{keys: node(), mute: true}, waits: tokenTimeout},
		"disabled for the pod":      {s: &imdsServer{keys: node()}, env: map[string]string{"AWS_EC2_METADATA_DISABLED": "true"}, closed: ErrDisabled},
		"disabled on the instance":  {s: &imdsServer{tokenStatus: 403, hook: refuse(403)}, closed: ErrNoMetadata},
		"broken":                    {s: &imdsServer{hook: refuse(500)}, closed: ErrNoMetadata},
		"no answer at all":          {s: &imdsServer{mute: true, hook: hang}, closed: ErrNoMetadata, waits: patience},
		"knows half of the ENI yet": {s: &imdsServer{keys: halfNode()}, waiting: ErrIncomplete},
	}
	for name, tt := range tests {
		for _, elsewhere := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", IRSA", false: ""}[elsewhere], func(t *testing.T) {
				irsa(t, elsewhere)
				for k, v := range tt.env {
					t.Setenv(k, v)
				}
				s := &imdsServer{keys: tt.s.keys, tokenStatus: tt.s.tokenStatus, mute: tt.s.mute, needToken: tt.s.needToken, hook: tt.s.hook}
				s.inBubble(t, func(t *testing.T, m *Metadata) {
					source := &ec2Source{}
					f := finder(m, source)
					started := time.Now()
					enis, err := f.oneByOne(t.Context())
					took := time.Since(started)
					switch {
					case tt.waiting != nil:
						if !errors.Is(err, tt.waiting) || source.calls != 0 {
							t.Errorf("%v, EC2 asked %d times", err, source.calls)
						}
					case tt.closed == nil:
						if err != nil || len(enis) == 0 || enis[0].ID == "eni-by-ec2" {
							t.Errorf("%v, %v", enis, err)
						}
					case elsewhere:
						if err != nil || source.calls != 1 || took != tt.waits {
							t.Errorf("%v, EC2 asked %d times, after %s, want %s", err, source.calls, took, tt.waits)
						}
					default:
						if !errors.Is(err, tt.closed) || source.calls != 0 {
							t.Errorf("%v, want %v; EC2 asked %d times", err, tt.closed, source.calls)
						}
					}
				})
			})
		}
	}
}

// oneByOne looks without reading side by side, which virtual time cannot follow in the SDK while a token is waited for.
func (f *Finder) oneByOne(ctx context.Context) ([]plan.ENI, error) {
	return f.find(ctx, func(ctx context.Context) ([]plan.ENI, error) {
		if _, err := f.Metadata.macs(ctx); err != nil {
			return nil, err
		}
		return f.Metadata.ENIs(ctx, []string{mac1})
	}, func(ctx context.Context, s Source) ([]plan.ENI, error) { return s.ENIs(ctx, []string{mac1}) })
}

func halfNode() map[string]string {
	k := node()
	drop(mac1, "interface-id")(k)
	return k
}

func refuse(status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true }
}

func hang(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }

// Metadata that is away is left in peace for some minutes, and then tried again.
func TestFinderRemembers(t *testing.T) {
	irsa(t, true)
	var asked atomic.Int32
	var broken atomic.Bool
	s := &imdsServer{keys: node()}
	broken.Store(true)
	s.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		asked.Add(1)
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		source := &ec2Source{}
		f := finder(m, source)
		for range 4 {
			if enis, err := f.All(t.Context()); err != nil || enis[0].ID != "eni-by-ec2" {
				t.Fatalf("%v, %v", enis, err)
			}
			if listed, err := f.Listed(t.Context(), []string{mac1}); err != nil || len(listed) != 0 {
				t.Errorf("lists %v, %v", listed, err)
			}
			pass(time.Minute)
		}
		if asked.Load() > 2 || source.calls != 4 {
			t.Errorf("metadata was asked %d times, EC2 %d times", asked.Load(), source.calls)
		}
		before := asked.Load()
		broken.Store(false)
		pass(awayFor)
		if enis, err := f.ENIs(t.Context(), []string{mac1}); err != nil || len(enis) != 2 || enis[1].ID != "eni-1" || asked.Load() == before {
			t.Errorf("%v, %v", enis, err)
		}
		if listed, err := f.Listed(t.Context(), []string{mac1}); err != nil || listed[mac1].ENI != "eni-1" {
			t.Errorf("lists %v, %v", listed, err)
		}
		broken.Store(true)
		if listed, err := f.Listed(t.Context(), []string{mac1}); err != nil || len(listed) != 0 {
			t.Errorf("away again: lists %v, %v", listed, err)
		}
		before = asked.Load()
		if _, err := f.All(t.Context()); err != nil || asked.Load() != before {
			t.Errorf("asked again after the listing failed: %v", err)
		}
	})
}

// EC2's own fault keeps its meaning: metadata's is told, and is not what is waited for. A caller that gives up is no fault of metadata.
func TestFinderFaults(t *testing.T) {
	irsa(t, true)
	denied := errors.New("denied")
	s := &imdsServer{hook: refuse(500)}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		var log bytes.Buffer
		f := finder(m, &ec2Source{err: denied})
		f.Log = slog.New(slog.NewTextHandler(&log, nil))
		for range 3 {
			if _, err := f.All(t.Context()); !errors.Is(err, denied) || errors.Is(err, ErrNoMetadata) || !strings.Contains(err.Error(), ErrNoMetadata.Error()) {
				t.Errorf("%v", err)
			}
		}
		if n := strings.Count(log.String(), "asked of EC2"); n != 1 {
			t.Errorf("told %d times", n)
		}
		f = finder(m, nil)
		f.Connect = func(context.Context) (Source, error) { return nil, ErrHopLimit }
		if _, err := f.All(t.Context()); !errors.Is(err, ErrHopLimit) {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f = finder(m, &ec2Source{})
		if _, err := f.All(ctx); !errors.Is(err, context.Canceled) || f.gone() != "" {
			t.Errorf("%v, remembers %q", err, f.gone())
		}
		// A failure without other credentials is the caller's to see, for the drift check too.
		f.Metadata.elsewhere = false
		if _, err := f.Listed(t.Context(), nil); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("%v", err)
		}
	})
}

// The caller's own deadline says nothing about metadata.
func TestFinderCallersDeadline(t *testing.T) {
	irsa(t, true)
	s := &imdsServer{hook: hang}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		source := &ec2Source{}
		f := finder(m, source)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := f.All(ctx); !errors.Is(err, context.DeadlineExceeded) || f.gone() != "" || source.calls != 0 {
			t.Errorf("%v, remembers %q, EC2 asked %d times", err, f.gone(), source.calls)
		}
	})
}

func TestElsewhere(t *testing.T) {
	const keys = "aws_access_key_id = AKIA\naws_secret_access_key = s\n"
	tests := map[string]struct {
		env map[string]string
		// credentials and config are the texts of the shared files; empty: there is none.
		credentials, config string
		want                bool
	}{
		"nothing":                    {want: false},
		"IRSA":                       {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn"}, want: true},
		"a token without a role":     {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, want: false},
		"EKS Pod Identity":           {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"}, want: true},
		"ECS":                        {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}, want: true},
		"keys":                       {env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s"}, want: true},
		"half of them":               {env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIA"}, want: false},
		"a Region is no credential":  {env: map[string]string{"AWS_REGION": "eu-central-1"}, want: false},
		"keys of a file":             {credentials: "[default]\n" + keys, want: true},
		"keys of a profile":          {credentials: "[telco]\n" + keys, env: map[string]string{"AWS_PROFILE": "telco"}, want: true},
		"keys of another profile":    {credentials: "[telco]\n" + keys, want: false},
		"keys of a configuration":    {config: "[default]\n" + keys, want: true},
		"a profile that is missing":  {env: map[string]string{"AWS_PROFILE": "telco"}, want: false},
		"a configuration and no key": {config: "[default]\nregion = eu-central-1\n", want: false},
		"a program":                  {config: "[default]\ncredential_process = /bin/false\n", want: true},
		"a role by keys":             {config: "[default]\nrole_arn = arn:aws:iam::123456789012:role/telco\nsource_profile = k\n[profile k]\n" + keys, want: true},
		"a role by metadata": {config: "[default]\nrole_arn = arn:aws:iam::123456789012:role/telco\ncredential_source = Ec2InstanceMetadata\n",
			want: false},
		"a file that is none": {config: "<html>", want: false},
		"IRSA, and a profile that is missing": {want: true,
			env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn", "AWS_PROFILE": "telco"}},
		"IRSA, and certificates that are missing": {want: true,
			env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn", "AWS_CA_BUNDLE": "/nowhere"}},
		"an endpoint of a name that is none": {want: true, env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://credentials.invalid/v1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			irsa(t, false)
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			for variable, text := range map[string]string{"AWS_SHARED_CREDENTIALS_FILE": tt.credentials, "AWS_CONFIG_FILE": tt.config} {
				if text != "" {
					t.Setenv(variable, file(t, text))
				}
			}
			m, err := New(pipes.New())
			if err != nil || m.elsewhere != tt.want {
				t.Errorf("%t, want %t (%v)", m.elsewhere, tt.want, err)
			}
		})
	}
}

// file writes a file of the test's own.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Metadata that goes on to know half of an ENI is not waited for alone: EC2 is asked, seldom, and what it does not tell is metadata's to tell.
func TestFinderHalfForLong(t *testing.T) {
	irsa(t, false)
	s := &imdsServer{keys: halfNode()}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		source := &ec2Source{mac: mac1}
		f := finder(m, source)
		look := func(asked int, want error) {
			t.Helper()
			enis, err := f.oneByOne(t.Context())
			if !errors.Is(err, want) || source.calls != asked || want == nil && (len(enis) == 0 || enis[0].ID != "eni-by-ec2") {
				t.Errorf("%v, %v, want %v; EC2 asked %d times, want %d", enis, err, want, source.calls, asked)
			}
		}
		look(0, ErrIncomplete)
		pass(halfFor - time.Second)
		look(0, ErrIncomplete)
		pass(time.Second)
		look(1, nil)
		look(1, ErrIncomplete) // not again at once
		pass(halfFor)
		source.err = errors.New("denied")
		look(2, ErrIncomplete)
		// EC2 does not have it on this node: it is not taken for an unknown one.
		source.err, source.mac = nil, mac0
		pass(halfFor)
		look(3, ErrIncomplete)
		pass(halfFor)
		f.Connect = func(context.Context) (Source, error) { return nil, ErrNoMetadata }
		look(3, ErrIncomplete)
		// An answer between starts the time anew, and so does a time in which nobody looks.
		f.Connect, source.mac = func(context.Context) (Source, error) { return source, nil }, mac1
		pass(halfFor)
		if _, err := f.All(t.Context()); err != nil {
			t.Fatal(err)
		}
		look(3, ErrIncomplete)
		pass(2*halfFor + 1)
		look(3, ErrIncomplete)
		pass(halfFor)
		look(4, nil)
	})
}

// What EC2 says is told with what metadata says, whose fault it stays.
func TestFinderTellsBoth(t *testing.T) {
	irsa(t, false)
	s := &imdsServer{keys: halfNode()}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		denied := errors.New("not authorized: allow ec2:DescribeNetworkInterfaces")
		f := finder(m, &ec2Source{err: denied})
		_, first := f.oneByOne(t.Context())
		pass(halfFor)
		_, err := f.oneByOne(t.Context())
		if first == nil || err == nil || !strings.HasPrefix(err.Error(), first.Error()) || !strings.Contains(err.Error(), denied.Error()) ||
			!errors.Is(err, ErrIncomplete) || errors.Is(err, denied) {
			t.Errorf("%v, then %v", first, err)
		}
	})
}

// Without a Region in the environment and behind a hop limit, both cures are named.
func TestRegionBehindAHopLimit(t *testing.T) {
	s := &imdsServer{keys: node(), mute: true, needToken: true}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		_, err := m.Region(t.Context())
		if !errors.Is(err, ErrHopLimit) || !strings.Contains(err.Error(), "hop limit") || !strings.Contains(err.Error(), "AWS_REGION") {
			t.Errorf("%v", err)
		}
	})
}

// What is no metadata may be anything, credentials too: no answer is quoted.
func TestAnswersAreNotQuoted(t *testing.T) {
	const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	s := &imdsServer{hook: func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = w.Write([]byte(secret))
		return true
	}}
	s.inBubble(t, func(t *testing.T, m *Metadata) {
		for name, read := range map[string]func(context.Context) error{
			"Region": func(ctx context.Context) error { _, err := m.Region(ctx); return err },
			"blocks": func(ctx context.Context) error { _, err := m.prefixes(ctx, keyOf(mac1, "ipv4-prefix")); return err },
		} {
			if err := read(t.Context()); err == nil || strings.Contains(err.Error(), secret[:8]) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }
