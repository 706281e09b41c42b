package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

func root() Creds { return Creds{AccessKeyID: "AKIAROOT", SecretAccessKey: "root-secret"} }

// TestSignature is what becomes of signatures. Good ones come from the SDK's own signer.
func TestSignature(t *testing.T) {
	body := form("Action=DescribeSubnets").Encode()
	tamper := func(change func(*http.Request)) func(testing.TB, *Cloud) *http.Request {
		return func(t testing.TB, _ *Cloud) *http.Request {
			r := signed(t, root(), body)
			change(r)
			return r
		}
	}
	cases := map[string]struct {
		request  func(testing.TB, *Cloud) *http.Request
		settings Settings
		status   int
		code     string
	}{
		"good": {tamper(func(*http.Request) {}), Settings{}, 200, ""},
		"good role": {func(t testing.TB, c *Cloud) *http.Request { return signed(t, c.Credentials(nodeA), body) },
			Settings{}, 200, ""},
		"wrong secret": {func(t testing.TB, _ *Cloud) *http.Request {
			return signed(t, Creds{AccessKeyID: "AKIAROOT", SecretAccessKey: "guess"}, body)
		}, Settings{}, 401, "AuthFailure"},
		"wrong secret, quirk": {func(t testing.TB, _ *Cloud) *http.Request {
			return signed(t, Creds{AccessKeyID: "AKIAROOT", SecretAccessKey: "guess"}, body)
		}, Settings{Quirks: Quirks{SignatureMismatch: true}}, 403, "SignatureDoesNotMatch"},
		"unknown key": {func(t testing.TB, _ *Cloud) *http.Request {
			return signed(t, Creds{AccessKeyID: "AKIANOBODY", SecretAccessKey: "root-secret"}, body)
		}, Settings{}, 401, "AuthFailure"},
		"role without token": {func(t testing.TB, c *Cloud) *http.Request {
			creds := c.Credentials(nodeA)
			creds.SessionToken = ""
			return signed(t, creds, body)
		}, Settings{}, 401, "AuthFailure"},
		"other token": {func(t testing.TB, c *Cloud) *http.Request {
			creds := c.Credentials(nodeA)
			creds.SessionToken = c.Credentials(nodeB).SessionToken
			return signed(t, creds, body)
		}, Settings{}, 401, "AuthFailure"},
		"expired": {func(t testing.TB, c *Cloud) *http.Request {
			creds := c.Credentials(nodeA)
			c.RotateCredentials(nodeA, true)
			return signed(t, creds, body)
		}, Settings{}, 400, "RequestExpired"},
		"expired, quirk": {func(t testing.TB, c *Cloud) *http.Request {
			creds := c.Credentials(nodeA)
			c.RotateCredentials(nodeA, true)
			return signed(t, creds, body)
		}, Settings{Quirks: Quirks{ExpiredToken: true}}, 400, "ExpiredToken"},
		"rotated, not revoked": {func(t testing.TB, c *Cloud) *http.Request {
			creds := c.Credentials(nodeA)
			c.RotateCredentials(nodeA, false)
			return signed(t, creds, body)
		}, Settings{}, 200, ""},
		"unsigned":         {tamper(func(r *http.Request) { r.Header.Del("Authorization") }), Settings{}, 400, "MissingParameter"},
		"not a signature":  {tamper(func(r *http.Request) { r.Header.Set("Authorization", "Basic eDp5") }), Settings{}, 400, "IncompleteSignature"},
		"changed body":     {tamper(func(r *http.Request) { r.Body = http.NoBody }), Settings{}, 401, "AuthFailure"},
		"changed header":   {tamper(func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }), Settings{}, 401, "AuthFailure"},
		"changed host":     {tamper(func(r *http.Request) { r.Host = "elsewhere.test" }), Settings{}, 401, "AuthFailure"},
		"changed query":    {tamper(func(r *http.Request) { r.URL.RawQuery = "DryRun=true" }), Settings{}, 401, "AuthFailure"},
		"other service":    {at("sts", "us-east-1", 0), Settings{}, 401, "AuthFailure"},
		"other region":     {at("ec2", "eu-west-1", 0), Settings{}, 401, "AuthFailure"},
		"any region":       {at("ec2", "eu-west-1", 0), Settings{AnyRegion: true}, 200, ""},
		"old, unchecked":   {at("ec2", "us-east-1", -time.Hour), Settings{}, 200, ""},
		"old":              {at("ec2", "us-east-1", -6*time.Minute), Settings{MaxClockSkew: 5 * time.Minute}, 400, "RequestExpired"},
		"from the future":  {at("ec2", "us-east-1", 6*time.Minute), Settings{MaxClockSkew: 5 * time.Minute}, 400, "RequestExpired"},
		"a little too old": {at("ec2", "us-east-1", -4*time.Minute), Settings{MaxClockSkew: 5 * time.Minute}, 200, ""},
		"query twice": {func(t testing.TB, _ *Cloud) *http.Request {
			r := httptest.NewRequest(http.MethodGet, "http://ec2.test/?Action=DescribeSubnets&Version=2016-11-15&Filter.1.Name=vpc-id&Filter.1.Value.1=b&Filter.1.Value.1=a", nil)
			sum := sha256.Sum256(nil)
			keys := sdk.Credentials{AccessKeyID: "AKIAROOT", SecretAccessKey: "root-secret"}
			if err := v4.NewSigner().SignHTTP(context.Background(), keys, r, hex.EncodeToString(sum[:]), "ec2", "us-east-1", time.Now()); err != nil {
				t.Fatal(err)
			}
			// The signer puts the query in order; a client may send it as it likes.
			r.URL.RawQuery = "Filter.1.Value.1=b&Filter.1.Value.1=a&Version=2016-11-15&Filter.1.Name=vpc-id&Action=DescribeSubnets"
			return r
		}, Settings{}, 200, ""},
		"presigned":                  {presigned(0), Settings{}, 200, ""},
		"presigned, late":            {presigned(-2 * time.Minute), Settings{}, 400, "RequestExpired"},
		"presigned, from the future": {presigned(6 * time.Minute), Settings{MaxClockSkew: 5 * time.Minute}, 400, "RequestExpired"},
		"presigned, a little early":  {presigned(4 * time.Minute), Settings{MaxClockSkew: 5 * time.Minute}, 200, ""},
		"presigned for too long":     {expires("604801"), Settings{}, 400, "IncompleteSignature"},
		"presigned for no number":    {expires("soon"), Settings{}, 400, "IncompleteSignature"},
		"host not signed": {func(t testing.TB, _ *Cloud) *http.Request {
			r := signed(t, root(), body)
			s, err := readSignature(r)
			if err != nil {
				t.Fatal(err)
			}
			s.signedHeaders = slices.DeleteFunc(s.signedHeaders, func(h string) bool { return h == "host" })
			r.Header.Set("Authorization", fmt.Sprintf("%s Credential=AKIAROOT/%s/us-east-1/ec2/aws4_request, SignedHeaders=%s, Signature=%s",
				sigAlgorithm, s.date, strings.Join(s.signedHeaders, ";"), s.compute(r, []byte(body), "root-secret")))
			return r
		}, Settings{}, 401, "AuthFailure"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newFixture(t, WithSettings(func(s *Settings) { *s = tc.settings }))
			got := send(c, tc.request(t, c))
			if got.Status != tc.status || got.Code != tc.code {
				t.Errorf("got %d %s: %s, want %d %s", got.Status, got.Code, got.Message, tc.status, tc.code)
			}
			for _, secret := range []string{"root-secret", c.Credentials(nodeA).SecretAccessKey, c.Credentials(nodeA).SessionToken} {
				if strings.Contains(got.Body+wholeJournal(t, c), secret) {
					t.Error("a secret is shown")
				}
			}
		})
	}
}

func at(service, region string, off time.Duration) func(testing.TB, *Cloud) *http.Request {
	return func(t testing.TB, _ *Cloud) *http.Request {
		return signedFor(t, root(), form("Action=DescribeSubnets").Encode(), service, region, time.Now().Add(off))
	}
}

// presigned is a GET with everything in the query. Its parameters sort differently as "name=value" than by name.
func presigned(off time.Duration) func(testing.TB, *Cloud) *http.Request {
	return func(t testing.TB, _ *Cloud) *http.Request {
		pairs := append(numbered("NetworkInterfaceId", "10.0.0.1", 0), "Action=DescribeSubnets", "X-Amz-Expires=60")
		for i := range 11 {
			pairs = append(pairs, fmt.Sprintf("Filter.1.Value.%d=a b/*~%d", i+1, i))
		}
		r := httptest.NewRequest(http.MethodGet, "http://ec2.test/?"+form(append(pairs, "Filter.1.Name=subnet-id")...).Encode(), nil)
		sum := sha256.Sum256(nil)
		uri, header, err := v4.NewSigner().PresignHTTP(context.Background(),
			sdk.Credentials{AccessKeyID: "AKIAROOT", SecretAccessKey: "root-secret"}, r, hex.EncodeToString(sum[:]), "ec2", "us-east-1", time.Now().Add(off))
		if err != nil {
			t.Fatal(err)
		}
		out := httptest.NewRequest(http.MethodGet, uri, nil)
		for k, v := range header {
			out.Header[k] = v
		}
		return out
	}
}

// expires is a presigned request whose time to live was written over.
func expires(text string) func(testing.TB, *Cloud) *http.Request {
	return func(t testing.TB, c *Cloud) *http.Request {
		r := presigned(0)(t, c)
		r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "X-Amz-Expires=60", "X-Amz-Expires="+text, 1)
		return r
	}
}

// TestSignatureVector is AWS's published example of a derived signature (the "get-vanilla" case of its test suite).
func TestSignatureVector(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "http://example.amazonaws.com/", nil)
	r.Header.Set("X-Amz-Date", "20150830T123600Z")
	s := signature{date: "20150830", region: "us-east-1", service: "service", terminator: "aws4_request",
		signedHeaders: []string{"host", "x-amz-date"}, timestamp: "20150830T123600Z"}
	got := s.compute(r, nil, "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
	if want := "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPolicy(t *testing.T) {
	cases := map[string]struct {
		policy  Policy
		quirks  Quirks
		params  []string
		allowed bool
	}{
		"empty":             {Policy{}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}, false},
		"the action":        {Policy{Allow: []Statement{{Actions: []string{"ec2:AssignPrivateIpAddresses"}}}}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}, true},
		"another action":    {Policy{Allow: []Statement{{Actions: []string{"ec2:AssignPrivateIpAddresses"}}}}, Quirks{}, []string{assign6, on + a1, "Ipv6AddressCount=1"}, false},
		"wildcard":          {Policy{Allow: []Statement{{Actions: []string{"ec2:Assign*"}}}}, Quirks{}, []string{assign6, on + a1, "Ipv6AddressCount=1"}, true},
		"the interface":     {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}, true},
		"another interface": {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{assign4, on + b1, "PrivateIpAddress.1=10.0.16.50"}, false},
		"unknown interface": {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{assign4, on + "eni-0dead", "PrivateIpAddress.1=10.0.16.50"}, false},
		"describe needs *":  {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{"Action=DescribeNetworkInterfaces"}, false},
		"tag":               {Policy{Allow: []Statement{{Tags: map[string]string{"node.k8s.amazonaws.com/no_manage": "true"}}}}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}, true},
		"no such tag":       {Policy{Allow: []Statement{{Tags: map[string]string{"node.k8s.amazonaws.com/no_manage": "true"}}}}, Quirks{}, []string{assign4, on + b1, "PrivateIpAddress.1=10.0.16.50"}, false},
		"deny wins":         {Policy{Allow: []Statement{{}}, Deny: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.50"}, false},
		"source not asked":  {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment=true"}, true},
		"source, quirk":     {Policy{Allow: []Statement{{ENIs: []string{a1}}}}, Quirks{ReassignNeedsSource: true}, []string{assign4, on + a1, "PrivateIpAddress.1=10.0.16.21", "AllowReassignment=true"}, false},
		"dry run refused":   {Policy{}, Quirks{}, []string{"Action=DescribeSubnets", "DryRun=true"}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := newFixture(t, WithSettings(func(s *Settings) { s.Quirks = tc.quirks }))
			if err := c.ChangeInstance(nodeA, func(i *Instance) { i.Policy = &tc.policy }); err != nil {
				t.Fatal(err)
			}
			user := c.AddUser("AKIAUSER", "user-secret", WithPolicy(tc.policy))
			for _, creds := range []Creds{user, c.Credentials(nodeA)} {
				got := send(c, signed(t, creds, form(tc.params...).Encode()))
				switch {
				case tc.allowed && got.Status != 200:
					t.Errorf("%s: %d %s: %s", creds.AccessKeyID, got.Status, got.Code, got.Message)
				case !tc.allowed && (got.Status != 403 || got.Code != "UnauthorizedOperation"):
					t.Errorf("%s: %d %s: %s", creds.AccessKeyID, got.Status, got.Code, got.Message)
				}
			}
		})
	}
}

func TestPolicyText(t *testing.T) {
	c := newFixture(t)
	if err := c.ChangeInstance(nodeA, func(i *Instance) { i.Policy = &Policy{} }); err != nil {
		t.Fatal(err)
	}
	got := send(c, signed(t, c.Credentials(nodeA), form(assign4, on+a1, "PrivateIpAddress.1=10.0.16.50").Encode()))
	want := "You are not authorized to perform this operation. User: arn:aws:sts::123456789012:assumed-role/node/i-0a is not " +
		"authorized to perform: ec2:AssignPrivateIpAddresses on resource: arn:aws:ec2:us-east-1:123456789012:network-interface/eni-0a1 " +
		"because no identity-based policy allows the ec2:AssignPrivateIpAddresses action. Encoded authorization failure message: "
	if !strings.HasPrefix(got.Message, want) || len(got.Message) < len(want)+40 {
		t.Errorf("got %s", got.Message)
	}
	if p := c.Journal()[0].Principal; p != "arn:aws:sts::123456789012:assumed-role/node/i-0a" {
		t.Errorf("principal %s", p)
	}
}

// TestRotation: credentials change ahead of their end, old ones work to theirs.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t, WithSettings(func(s *Settings) { s.CredentialsTTL = time.Hour }))
		status := func(creds Creds) int {
			return send(c, signed(t, creds, form("Action=DescribeSubnets").Encode())).Status
		}
		first := c.Credentials(nodeA)
		advance(39 * time.Minute)
		if c.Credentials(nodeA) != first {
			t.Error("rotated too early")
		}
		advance(2 * time.Minute)
		second := c.Credentials(nodeA)
		if second == first || status(first) != 200 || status(second) != 200 {
			t.Errorf("first %v %d, second %v %d", first, status(first), second, status(second))
		}
		advance(20 * time.Minute)
		if status(first) != 400 || status(second) != 200 {
			t.Errorf("after the first ones' end: %d, %d", status(first), status(second))
		}
	})
}

func TestCredsAreNotPrinted(t *testing.T) {
	creds := newFixture(t).Credentials(nodeA)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if s := fmt.Sprintf(verb, creds); strings.Contains(s, creds.SecretAccessKey) || strings.Contains(s, creds.SessionToken) {
			t.Errorf("%s shows a secret", verb)
		}
	}
}

// TestOldSignatureIsNotJournaled: the parameters of signature version 2, which EC2 no longer takes, are secrets, too.
func TestOldSignatureIsNotJournaled(t *testing.T) {
	c := newFixture(t)
	got := send(c, httptest.NewRequest(http.MethodGet, "http://ec2.test/?Action=DescribeSubnets&AWSAccessKeyId=AKIAROOT&Signature=s3cr3t&SecurityToken=s3cr3t", nil))
	if j := wholeJournal(t, c); got.Code != "MissingParameter" || strings.Contains(j, "s3cr3t") || !strings.Contains(j, "DescribeSubnets") {
		t.Errorf("%+v\n%s", got, j)
	}
}

// wholeJournal is every field of the journal; Call's String shows only some.
func wholeJournal(t *testing.T, c *Cloud) string {
	t.Helper()
	b, err := json.Marshal(c.Journal())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
