package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/kubelet"
	"multus-ip-manager.io/test/world"
)

// podRole is the role of the pods of these tests.
const podRole = "multus-ip-manager"

// identity is one way in which EKS gives a pod credentials of its own: what its webhook puts into the pod's containers.
type identity struct {
	audience string
	// requests are the requests for credentials, as the cloud's journal calls them.
	requests string
	env      func(l *lab, token string) []string
	// named is what a message about credentials names: what an operator has to look at.
	named string
}

// identities are both ways, by the names that EKS gives them.
func identities() map[string]identity {
	region := func(l *lab) []string {
		return []string{"AWS_STS_REGIONAL_ENDPOINTS=regional", "AWS_DEFAULT_REGION=" + l.cloud.Region(), "AWS_REGION=" + l.cloud.Region()}
	}
	return map[string]identity{
		"IRSA": {audience: aws.AudienceSTS, requests: "STS:AssumeRoleWithWebIdentity", named: "arn:aws:iam::123456789012:role/" + podRole,
			env: func(l *lab, token string) []string {
				return append(region(l), "AWS_ROLE_ARN=arn:aws:iam::123456789012:role/"+podRole, "AWS_WEB_IDENTITY_TOKEN_FILE="+token, "AWS_ENDPOINT_URL_STS="+l.world.STSEndpoint())
			}},
		"Pod Identity": {audience: aws.AudiencePodIdentity, requests: "PodIdentity:GET", named: "Pod Identity",
			env: func(l *lab, token string) []string {
				return append(region(l), "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="+token)
			}},
	}
}

// identified is a pod with credentials of its own, on a node whose metadata is closed to pods.
type identified struct {
	*lab
	identity
	pod   *world.Pod
	token string // the file
}

// identified builds the world: hop limit 1, tokens required, and a role that trusts the pod's service account.
func (i identity) start(t *testing.T, opts ...aws.Option) *identified {
	t.Helper()
	l := start(t, func(s *world.Spec) {
		s.Nodes[0].IMDS, s.Nodes[0].HopLimit, s.Nodes[0].PodIdentity = world.IMDSRequired, 1, true
	}, opts...)
	l.cloud.PutRole(aws.Role{Name: podRole, Trusts: []string{"telco:app", aws.AudiencePodIdentity}})
	l.cloud.Associate("telco:app", podRole)
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // the container runs as another user
			t.Fatal(err)
		}
	}
	e := &identified{lab: l, identity: i, pod: l.pod(dual()), token: filepath.Join(dir, "token")}
	e.project(aws.TokenRequest{})
	return e
}

// project puts a new token into the pod, as the kubelet does: the file is replaced at once.
func (e *identified) project(r aws.TokenRequest) {
	e.Helper()
	r.Namespace, r.ServiceAccount, r.PodUID = "telco", "app", "5e1f"
	if r.Audience == "" {
		r.Audience = e.audience
	}
	if err := os.WriteFile(e.token+".new", []byte(e.cloud.ServiceAccountToken(r)), 0o644); err != nil { //nolint:gosec // as the kubelet's
		e.Fatal(err)
	}
	if err := os.Rename(e.token+".new", e.token); err != nil {
		e.Fatal(err)
	}
}

func (e *identified) how() how { return how{env: e.env(e.lab, e.token)} }

// init runs the agent in mode init.
func (e *identified) init(change ...func(*how)) kubelet.Result {
	e.Helper()
	h := e.how()
	for _, c := range change {
		c(&h)
	}
	r := e.run(e.pod, h)
	e.silent(r.Output + r.Message)
	return r
}

// asked is how often credentials were asked for.
func (e *identified) asked() int { return count(e.cloud.CredentialsJournal(), e.requests) }

// silent asserts that no part of a token or of credentials is shown.
func (l *lab) silent(text string) {
	l.Helper()
	if found := regexp.MustCompile(`eyJ\S{4}|ASIA\w{4}|IQoJ\S{4}`).FindString(text); found != "" {
		l.Errorf("a secret is shown: %s…", found)
	}
}

// each runs a test for both identities.
func each(t *testing.T, test func(t *testing.T, i identity)) {
	t.Helper()
	for name, i := range identities() {
		t.Run(name, func(t *testing.T) { test(t, i) })
	}
}

// Metadata closed to pods is no obstacle with credentials of the pod's own: they are asked for once, and two searches find the node
// and its ENIs.
func TestIdentityWithMetadataClosed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, i identity) {
		t.Run("init", func(t *testing.T) {
			e := i.start(t)
			e.done(e.init())
			e.called(describe, describe, assign4, assign6)
			e.signed()
		})
		t.Run("sidecar", func(t *testing.T) {
			e := i.start(t)
			s := e.sidecar(e.pod, e.how())
			s.ready()
			s.adds(vips()...)
			e.holds(s.eni("net1"), vip4, vip6)
			e.signed()
			s.stop()
			e.nowhere("10.0.4.80", "fd50:0:0:4::80")
			e.silent(s.Output())
		})
	})
}

// signed asserts that credentials were asked for once, that every call was made with them, and that metadata told nothing.
func (e *identified) signed() {
	e.Helper()
	if n := e.asked(); n != 1 {
		e.Errorf("asked for credentials %d times: %v", n, e.cloud.CredentialsJournal())
	}
	for _, c := range e.cloud.Journal() {
		if !strings.HasPrefix(c.Principal, "arn:aws:sts::123456789012:assumed-role/"+podRole+"/") {
			e.Errorf("%v", c)
		}
	}
	for _, c := range e.cloud.IMDSJournal() {
		if c.Status == 200 && c.Action == "IMDS:GET" {
			e.Errorf("metadata answered: %v", c)
		}
	}
}

// The cluster replaces a token long before its end, and the agent reads the file each time: credentials that end soon are replaced
// with the token of now, and no call is ever made with credentials that have ended.
func TestIdentityTokenIsRotated(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, i identity) {
		// In the last half minute of credentials a call gets new ones first.
		e := i.start(t, aws.WithSettings(func(s *aws.Settings) { s.SessionTTL = 31 * time.Second }))
		e.project(aws.TokenRequest{TTL: 10 * time.Second})
		began := time.Now()
		s := e.sidecar(e.pod, e.how())
		s.ready()
		old, err := os.ReadFile(e.token)
		if err != nil {
			t.Fatal(err)
		}
		e.project(aws.TokenRequest{})
		e.until("the first token has not ended", func(context.Context) error {
			if time.Since(began) < 11*time.Second {
				return errors.New("not yet")
			}
			return nil
		})
		if now, err := os.ReadFile(e.token); err != nil || slices.Equal(now, old) {
			t.Fatalf("the token is the same, %v", err)
		}
		before := e.asked()
		s.adds(vips()...)
		e.holds(s.eni("net1"), vip4, vip6)
		if e.asked() == before {
			t.Error("credentials that end soon were not replaced")
		}
		for _, c := range append(e.cloud.CredentialsJournal(), e.cloud.Journal()...) {
			if c.Done() && c.Status != 200 { // an address is on its ENI before EC2 has answered
				t.Errorf("%v", c)
			}
		}
		e.silent(s.Output())
	})
}

// Credentials that EC2 calls too old are replaced, once.
func TestIdentityExpiresInTheMiddle(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, i identity) {
		e := i.start(t)
		s := e.sidecar(e.pod, e.how())
		s.ready()
		e.cloud.EndSessions(podRole)
		s.adds(vips()...)
		e.holds(s.eni("net1"), vip4, vip6)
		if n := e.asked(); n != 2 {
			t.Errorf("asked for credentials %d times: %v", n, e.cloud.CredentialsJournal())
		}
	})
}

// identityFaults are what passes where credentials come from.
func identityFaults() map[string]aws.Fault {
	return map[string]aws.Fault{
		"throttled": {Kind: aws.FaultThrottle},
		"away":      {Kind: aws.FaultDrop},
		"broken":    {Kind: aws.FaultError, Status: 503, Code: "ServiceUnavailable", Message: "down for a while"},
	}
}

// What passes is waited out.
func TestIdentityFaultsThatPass(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, i identity) {
		faults := identityFaults()
		faults["token too old"] = aws.Fault{Kind: aws.FaultError, Status: 400, Code: "ExpiredTokenException", Message: "Token expired"}
		if i.audience == aws.AudienceSTS {
			faults["provider away"] = aws.Fault{Kind: aws.FaultError, Status: 400, Code: "IDPCommunicationError", Message: "the provider did not answer"}
			faults["no key yet"] = aws.Fault{Kind: aws.FaultError, Status: 400, Code: "InvalidIdentityToken", Message: "Couldn't retrieve verification key"}
		} else {
			faults["not associated yet"] = aws.Fault{Kind: aws.FaultError, Status: 404, Code: "ResourceNotFoundException", Message: "not found"}
		}
		for name, f := range faults {
			t.Run(name, func(t *testing.T) {
				e := i.start(t)
				f.Action, f.Times = i.requests, 2
				e.cloud.Faults().Add(f)
				e.done(e.init())
				e.on("one", 1, "10.0.4.80", "fd50:0:0:4::80")
			})
		}
	})
}

// What lasts is told: in the status of a sidecar that goes on when it is over, and at init's deadline with the fault as the reason and
// the exit code of what may pass.
func TestIdentityFaultsAreTold(t *testing.T) {
	t.Parallel()
	words := map[string]map[string]string{
		"throttled": {"IRSA": "Throttling", "Pod Identity": "Too Many Requests"},
		"away":      {"IRSA": "EOF", "Pod Identity": "EOF"},
		"broken":    {"IRSA": "down for a while", "Pod Identity": "down for a while"},
	}
	for kind, i := range identities() {
		for name, f := range identityFaults() {
			f.Action = i.requests
			t.Run(kind+", sidecar, "+name, func(t *testing.T) {
				e := i.start(t)
				s := e.sidecar(e.pod, e.how())
				s.ready()
				e.cloud.Faults().Add(f)
				e.cloud.EndSessions(podRole)
				s.adds(netip.MustParsePrefix(vip4 + "/32"))
				s.waits(vip4, words[name][kind])
				s.waits(vip4, i.named)
				cleared(e.lab)
				e.holds(s.eni("net1"), vip4)
				e.silent(s.Output())
			})
			t.Run(kind+", init, "+name, func(t *testing.T) {
				e := i.start(t)
				e.cloud.Faults().Add(f)
				r := e.init(func(h *how) { h.annotations = map[string]string{"multus-ip-manager.io/deadline": "3s"} })
				e.fails(r, report.GaveUp, "gave up after 3s", "get AWS credentials", i.named, words[name][kind])
				if n := e.asked(); n < 2 {
					t.Errorf("asked %d times", n)
				}
			})
		}
	}
}

// lasting is what waiting does not mend, with what must be said of it.
type lasting struct {
	sabotage func(e *identified)
	code     report.Code
	words    map[string][]string // by identity; none: it does not concern that one
}

func lastingFaults() map[string]lasting {
	both := func(words ...string) map[string][]string {
		return map[string][]string{"IRSA": words, "Pod Identity": words}
	}
	return map[string]lasting{
		"the role lacks an action": {func(e *identified) {
			e.cloud.PutRole(aws.Role{Name: podRole, Trusts: []string{"telco:app", aws.AudiencePodIdentity},
				Policy: &aws.Policy{Allow: []aws.Statement{{Actions: []string{"ec2:Describe*", "ec2:AssignIpv6Addresses"}}}}})
		}, report.Permission, both("UnauthorizedOperation", "assumed-role/"+podRole, assign4, "eni-", "10.0.4.80")},
		"the role lacks the search": {func(e *identified) {
			e.cloud.PutRole(aws.Role{Name: podRole, Trusts: []string{"telco:app", aws.AudiencePodIdentity},
				Policy: &aws.Policy{Allow: []aws.Statement{{Actions: []string{"ec2:Assign*"}}}}})
		}, report.Permission, both("UnauthorizedOperation", "assumed-role/"+podRole, describe)},
		"the role trusts nobody": {func(e *identified) { e.cloud.PutRole(aws.Role{Name: podRole}) }, report.Permission, map[string][]string{
			"IRSA":         {"AccessDenied", ":role/" + podRole, "must exist", "trust", "sts:AssumeRoleWithWebIdentity"},
			"Pod Identity": {"AccessDeniedException", "does not have permissions to assume", "association", "trust", "pods.eks.amazonaws.com"}}},
		"there is no such association": {func(e *identified) { e.cloud.Associate("telco:app", "") }, report.Permission, map[string][]string{
			"Pod Identity": {"ResourceNotFoundException", "association"}}},
		"the token is for somebody else": {func(e *identified) { e.project(aws.TokenRequest{Audience: "vault"}) }, report.Permission, map[string][]string{
			"IRSA": {"InvalidIdentityToken", ":role/" + podRole, "OIDC provider"}, "Pod Identity": {"InvalidTokenException"}}},
		"there is no token": {func(e *identified) {
			if err := os.Remove(e.token); err != nil {
				e.Fatal(err)
			}
		}, report.Usage, map[string][]string{
			"IRSA":         {"AWS_WEB_IDENTITY_TOKEN_FILE", "/token", "no such file"},
			"Pod Identity": {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token", "no such file"}}},
		"the token is not ours to read": {func(e *identified) {
			if err := os.Chmod(e.token, 0); err != nil {
				e.Fatal(err)
			}
		}, report.Usage, both("TOKEN_FILE", "/token", "permission denied")},
	}
}

// What cannot pass ends init soon, with one line that names what is to be mended.
func TestIdentityFaultsThatLast(t *testing.T) {
	t.Parallel()
	for kind, i := range identities() {
		for name, f := range lastingFaults() {
			if f.words[kind] == nil {
				continue
			}
			t.Run(kind+", "+name, func(t *testing.T) {
				e := i.start(t)
				f.sabotage(e)
				r := e.init()
				e.fails(r, f.code, f.words[kind]...)
				if contains(r.Message, "raise the instance's") {
					t.Error("the cure of another fault is told: metadata is closed as it should be")
				}
				if r.Duration > 20*time.Second {
					t.Errorf("took %s to say so", r.Duration)
				}
				e.nowhere("10.0.4.80")
			})
		}
	}
}

// A sidecar stays up where init gives up, is not ready, says why, and does not hammer where credentials come from.
func TestIdentityFaultsThatLastInASidecar(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, i identity) {
		e := i.start(t)
		e.cloud.PutRole(aws.Role{Name: podRole})
		s := e.sidecar(e.pod, e.how())
		e.until("the probe does not say why", func(ctx context.Context) error {
			r, err := s.Exec(ctx, "ready")
			if err == nil && (r.ExitCode == 0 || !contains(r.Output, i.named) || !contains(r.Output, "trust")) {
				err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Output)
			}
			return err
		})
		before := e.asked()
		e.rest(3*time.Second, "10.0.4.80")
		if n := e.asked() - before; n > 3 {
			t.Errorf("asked for credentials %d times in three seconds", n)
		}
		select {
		case <-s.Done():
			t.Error("it ended")
		default:
		}
		e.silent(s.Output())
	})
}

// A Multus route that leads to where credentials come from by an interface that cannot work yet.
func TestRouteToCredentialsByManagedInterface(t *testing.T) {
	t.Parallel()
	for kind, to := range map[string]string{"IRSA": "10.255.255.2", "Pod Identity": "169.254.170.23"} {
		t.Run(kind, func(t *testing.T) {
			e := identities()[kind].start(t)
			if err := e.pod.Remove(); err != nil {
				t.Fatal(err)
			}
			n := network(1, "10.0.4.80/22")
			n.Routes = []netip.Prefix{netip.MustParsePrefix(to + "/32")}
			e.pod = e.podOn("one", "routed", n)
			e.fails(e.init(), report.NoRoute, "net1", to)
		})
	}
}

// Without the Region in the environment there is no way to EC2 where metadata is closed; both cures are named.
func TestIdentityWithoutARegion(t *testing.T) {
	e := identities()["IRSA"].start(t)
	r := e.init(func(h *how) {
		h.env = slices.DeleteFunc(h.env, func(v string) bool { return strings.Contains(v, "REGION=") })
	})
	e.fails(r, report.NoMetadata, "hop limit", "AWS_REGION")
	e.called()
}
