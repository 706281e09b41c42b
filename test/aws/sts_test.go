package aws

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const podRoleARN = "arn:aws:iam::123456789012:role/pods"

// withRole is the fixture with a role that pods of telco:app may take in both ways.
func withRole(t testing.TB, opts ...Option) *Cloud {
	t.Helper()
	c := newFixture(t, opts...)
	if arn := c.PutRole(Role{Name: "pods", Trusts: []string{"telco:*", AudiencePodIdentity}}); arn != podRoleARN {
		t.Fatalf("ARN %s", arn)
	}
	c.Associate("telco:app", "pods")
	return c
}

func (c *Cloud) tokenFor(audience string) string {
	return c.ServiceAccountToken(TokenRequest{Namespace: "telco", ServiceAccount: "app", PodUID: "u-1", Audience: audience})
}

// login asks STS, with changes to a good request ("k=v", "k=" takes it away).
func login(c *Cloud, changes ...string) reply {
	v := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {podRoleARN}, "RoleSessionName": {"s-1"},
		"WebIdentityToken": {c.tokenFor(AudienceSTS)}}
	for _, ch := range changes {
		k, val, _ := strings.Cut(ch, "=")
		if v.Set(k, val); val == "" {
			v.Del(k)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "http://sts.test/", strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return sendTo(c.STS(), r)
}

func sendTo(h http.Handler, r *http.Request) reply {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	out := reply{Status: w.Code, Body: w.Body.String(), Header: w.Header()}
	var e stsErrorXML
	if w.Code >= 300 && xml.Unmarshal(w.Body.Bytes(), &e) == nil {
		out.Code, out.Message = e.Code, e.Message
	}
	return out
}

// credsOf reads an answer of STS.
func credsOf(t testing.TB, r reply) Creds {
	t.Helper()
	var a struct {
		Result struct {
			Key     string    `xml:"Credentials>AccessKeyId"`
			Secret  string    `xml:"Credentials>SecretAccessKey"`
			Token   string    `xml:"Credentials>SessionToken"`
			Expires time.Time `xml:"Credentials>Expiration"`
		} `xml:"AssumeRoleWithWebIdentityResult"`
	}
	if err := xml.Unmarshal([]byte(r.Body), &a); err != nil || r.Status != 200 {
		t.Fatalf("%v: %d %s", err, r.Status, r.Body)
	}
	return Creds{AccessKeyID: a.Result.Key, SecretAccessKey: a.Result.Secret, SessionToken: a.Result.Token, Expires: a.Result.Expires}
}

// Credentials of a role are verified by EC2, have the role's policy as it is now, and end.
func TestWebIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withRole(t)
		creds := credsOf(t, login(c))
		if life := time.Until(creds.Expires); life < 59*time.Minute || life > time.Hour {
			t.Errorf("they live %s", life)
		}
		assign := func() reply {
			return send(c, signed(t, creds, form(assign4, on+a1, "PrivateIpAddress.1=10.0.16.50").Encode()))
		}
		if r := assign(); r.Status != 200 {
			t.Errorf("%d %s", r.Status, r.Message)
		}
		if p := c.Journal()[0].Principal; p != "arn:aws:sts::123456789012:assumed-role/pods/s-1" {
			t.Errorf("principal %s", p)
		}
		c.PutRole(Role{Name: "pods", Policy: &Policy{}, Trusts: []string{"telco:app"}})
		if r := assign(); r.Code != "UnauthorizedOperation" || !strings.Contains(r.Message, "assumed-role/pods/s-1") {
			t.Errorf("%s: %s", r.Code, r.Message)
		}
		advance(61 * time.Minute)
		if r := assign(); r.Code != "RequestExpired" {
			t.Errorf("after their end: %s", r.Code)
		}
		creds = credsOf(t, login(c, "DurationSeconds=900"))
		if life := time.Until(creds.Expires); life > 15*time.Minute {
			t.Errorf("they live %s", life)
		}
		c.EndSessions("pods")
		if r := assign(); r.Code != "RequestExpired" {
			t.Errorf("ended: %s", r.Code)
		}
		c.Tune(func(s *Settings) { s.SessionTTL = 3 * time.Second })
		if life := time.Until(credsOf(t, login(c)).Expires); life > 3*time.Second {
			t.Errorf("they live %s", life)
		}
	})
}

func TestWebIdentityRefusals(t *testing.T) {
	token := func(change func(*TokenRequest)) func(*Cloud) string {
		return func(c *Cloud) string {
			r := TokenRequest{Namespace: "telco", ServiceAccount: "app", Audience: AudienceSTS}
			change(&r)
			return "WebIdentityToken=" + c.ServiceAccountToken(r)
		}
	}
	plain := func(text string) func(*Cloud) string { return func(*Cloud) string { return text } }
	forged := func(change string) func(*Cloud) string {
		return func(c *Cloud) string {
			parts := strings.Split(c.tokenFor(AudienceSTS), ".")
			payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
			old, now, _ := strings.Cut(change, ">")
			parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(string(payload), old, now)))
			return "WebIdentityToken=" + strings.Join(parts, ".")
		}
	}
	for name, tc := range map[string]struct {
		change func(*Cloud) string
		status int
		code   string
		words  string
	}{
		"good":                {plain("RoleSessionName=other"), 200, "", ""},
		"too old":             {token(func(r *TokenRequest) { r.TTL = time.Nanosecond }), 400, "ExpiredTokenException", "Token expired"},
		"for somebody else":   {token(func(r *TokenRequest) { r.Audience = "vault" }), 400, "InvalidIdentityToken", "audience"},
		"of another account":  {token(func(r *TokenRequest) { r.Namespace = "other" }), 403, "AccessDenied", "sts:AssumeRoleWithWebIdentity"},
		"no token":            {plain("WebIdentityToken="), 400, "ValidationError", "webIdentityToken"},
		"no JWT":              {plain("WebIdentityToken=abc"), 400, "InvalidIdentityToken", "not a valid JWT"},
		"no JSON":             {plain("WebIdentityToken=a.b.c"), 400, "InvalidIdentityToken", "not a valid JWT"},
		"forged subject":      {forged("telco:app>telco:adm"), 400, "InvalidIdentityToken", "signature"},
		"another cluster":     {forged("oidc.eks>oidc.other"), 400, "InvalidIdentityToken", "No OpenIDConnect provider"},
		"no such role":        {plain("RoleArn=arn:aws:iam::123456789012:role/none"), 403, "AccessDenied", "Not authorized"},
		"another account's":   {plain("RoleArn=arn:aws:iam::999999999999:role/pods"), 403, "AccessDenied", "Not authorized"},
		"another path":        {plain("RoleArn=arn:aws:iam::123456789012:role/x/pods"), 403, "AccessDenied", "Not authorized"},
		"no ARN":              {plain("RoleArn=pods"), 400, "ValidationError", "ARN"},
		"no session":          {plain("RoleSessionName="), 400, "ValidationError", "roleSessionName"},
		"too short":           {plain("DurationSeconds=899"), 400, "ValidationError", "900"},
		"too long":            {plain("DurationSeconds=3601"), 400, "ValidationError", "MaxSessionDuration"},
		"no number":           {plain("DurationSeconds=x"), 400, "MalformedInput", "DurationSeconds"},
		"another action":      {plain("Action=AssumeRole"), 400, "InvalidAction", "AssumeRole"},
		"another version":     {plain("Version=2016-11-15"), 400, "NoSuchVersion", "2016-11-15"},
		"unsigned but secret": {plain("Action=GetCallerIdentity"), 400, "MissingParameter", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := withRole(t)
			r := login(c, tc.change(c))
			if r.Status != tc.status || r.Code != tc.code || !strings.Contains(r.Message, tc.words) {
				t.Errorf("%d %s: %s", r.Status, r.Code, r.Message)
			}
			call := c.CredentialsJournal()[0]
			if call.Status != tc.status || call.Code != tc.code || !call.Done() || len(c.Journal()) != 0 {
				t.Errorf("journal: %v", call)
			}
			journal, err := json.Marshal(c.CredentialsJournal())
			if err != nil || strings.Contains(string(journal), "eyJ") {
				t.Errorf("the journal shows a token: %s, %v", journal, err)
			}
		})
	}
}

func TestCallerIdentity(t *testing.T) {
	c := withRole(t)
	creds := credsOf(t, login(c))
	body := "Action=GetCallerIdentity&Version=2011-06-15"
	who := func(service string) reply {
		return sendTo(c.STS(), signedFor(t, creds, body, service, "us-east-1", time.Now()))
	}
	if r := who("sts"); r.Status != 200 || !strings.Contains(r.Body, "<Arn>arn:aws:sts::123456789012:assumed-role/pods/s-1</Arn>") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := who("ec2"); r.Code != "AuthFailure" {
		t.Errorf("signed for EC2: %d %s", r.Status, r.Body)
	}
}

// Faults meet requests for credentials as any other; throttling has each service's own words.
func TestFaultsOfCredentials(t *testing.T) {
	agent := func(c *Cloud) reply { return podIdentity(c, c.tokenFor(AudiencePodIdentity), nil) }
	for name, tc := range map[string]struct {
		fault        Fault
		sts, pod     int
		code, answer string
	}{
		"throttled":     {Fault{Kind: FaultThrottle, Times: 1}, 400, 429, "Throttling", "Too Many Requests\n"},
		"provider away": {Fault{Kind: FaultError, Times: 1, Status: 400, Code: "IDPCommunicationError", Message: "later"}, 400, 400, "IDPCommunicationError", "(IDPCommunicationError): later, fault: client\n"},
		"broken":        {Fault{Kind: FaultError, Times: 1, AfterApply: true}, 500, 500, "InternalError", "(InternalError): An internal error has occurred, fault: server\n"},
		"by the role":   {Fault{Kind: FaultThrottle, Times: 1, Principal: podRoleARN, Action: "STS:Assume*"}, 400, 200, "Throttling", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := withRole(t)
			f := c.Faults().Add(tc.fault)
			if r := login(c); r.Status != tc.sts || r.Code != tc.code {
				t.Errorf("STS: %d %s: %s", r.Status, r.Code, r.Message)
			}
			f.Remove()
			c.Faults().Add(tc.fault)
			if r := agent(c); r.Status != tc.pod || !strings.HasSuffix(r.Body, tc.answer) {
				t.Errorf("Pod Identity: %d %s", r.Status, r.Body)
			}
			if login(c).Status != 200 && tc.pod != 200 || agent(c).Status != 200 {
				t.Error("it lasts")
			}
		})
	}
	c := withRole(t)
	c.Faults().Add(Fault{Kind: FaultDrop})
	for _, try := range []func(){func() { login(c) }, func() { agent(c) }} {
		func() {
			defer func() {
				if r := recover(); r != http.ErrAbortHandler { //nolint:errorlint // a panic's value
					t.Errorf("dropped: %v", r)
				}
			}()
			try()
		}()
	}
	if err := c.WaitCredentialsJournal(t.Context(), func(cs []Call) bool { return len(cs) == 2 && cs[1].Done() && cs[1].Status == 0 }); err != nil {
		t.Error(err)
	}
}

// podIdentity asks the agent of a node.
func podIdentity(c *Cloud, token string, change func(*http.Request)) reply {
	r := httptest.NewRequest(http.MethodGet, "http://169.254.170.23/v1/credentials", nil)
	r.Header.Set("Authorization", token)
	if change != nil {
		change(r)
	}
	return sendTo(c.PodIdentity(), r)
}

func TestPodIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withRole(t)
		give := func(uid string) Creds {
			t.Helper()
			r := podIdentity(c, c.ServiceAccountToken(TokenRequest{Namespace: "telco", ServiceAccount: "app", PodUID: uid, Audience: AudiencePodIdentity}), nil)
			var a podCreds
			if err := json.Unmarshal([]byte(r.Body), &a); err != nil || r.Header.Get("Content-Type") != "application/json" || a.AccountID != "123456789012" {
				t.Fatalf("%v: %d %s", err, r.Status, r.Body)
			}
			return Creds{AccessKeyID: a.AccessKeyID, SecretAccessKey: a.SecretAccessKey, SessionToken: a.Token, Expires: a.Expiration}
		}
		first := give("u-1")
		status := func(creds Creds) reply {
			return send(c, signed(t, creds, form("Action=DescribeSubnets").Encode()))
		}
		if r := status(first); r.Status != 200 || c.Journal()[0].Principal != "arn:aws:sts::123456789012:assumed-role/pods/eks-cluster-u-1" {
			t.Errorf("%d %v", r.Status, c.Journal())
		}
		if give("u-2") == first || give("u-1") != first {
			t.Error("a pod's credentials are not its own")
		}
		advance(4*time.Hour - time.Minute)
		if give("u-1") != first {
			t.Error("replaced too early")
		}
		advance(2 * time.Minute)
		second := give("u-1")
		if second == first || status(first).Status != 200 || status(second).Status != 200 {
			t.Errorf("not replaced ahead of their end")
		}
		c.EndSessions("pods")
		if r := status(second); r.Code != "RequestExpired" || give("u-1") == second {
			t.Errorf("ended: %s", r.Code)
		}
	})
}

func TestPodIdentityRefusals(t *testing.T) {
	good := TokenRequest{Namespace: "telco", ServiceAccount: "app", PodUID: "u-1", Audience: AudiencePodIdentity}
	for name, tc := range map[string]struct {
		token  func(*TokenRequest)
		cloud  func(*Cloud)
		change func(*http.Request)
		status int
		words  string
	}{
		"good":                    {status: 200, words: `"AccountId":"123456789012"`},
		"by IPv6":                 {change: func(r *http.Request) { r.Host = "[fd00:ec2::23]" }, status: 200},
		"by loopback":             {change: func(r *http.Request) { r.Host = "127.0.0.1:4711" }, status: 200},
		"by another name":         {change: func(r *http.Request) { r.Host = "attacker.test" }, status: 403, words: "Access Denied. Called agent through invalid address"},
		"another path":            {change: func(r *http.Request) { r.URL.Path = "/v2" }, status: 404, words: "404"},
		"no token":                {change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 400, words: "cannot be empty"},
		"no JWT":                  {change: func(r *http.Request) { r.Header.Set("Authorization", "x") }, status: 400, words: "(InvalidTokenException)"},
		"too old":                 {token: func(r *TokenRequest) { r.TTL = time.Nanosecond }, status: 400, words: "token is expired"},
		"for somebody else":       {token: func(r *TokenRequest) { r.Audience = AudienceSTS }, status: 400, words: "(InvalidTokenException)"},
		"not associated":          {token: func(r *TokenRequest) { r.ServiceAccount = "other" }, status: 404, words: "(ResourceNotFoundException)"},
		"no longer":               {cloud: func(c *Cloud) { c.Associate("telco:app", "") }, status: 404, words: "(ResourceNotFoundException)"},
		"a role that trusts none": {cloud: func(c *Cloud) { c.PutRole(Role{Name: "pods"}) }, status: 400, words: "(AccessDeniedException): Unauthorized Exception! EKS does not have permissions"},
		"a role that is gone":     {cloud: func(c *Cloud) { c.Associate("telco:app", "gone") }, status: 400, words: "(AccessDeniedException)"},
	} {
		t.Run(name, func(t *testing.T) {
			c := withRole(t)
			if tc.cloud != nil {
				tc.cloud(c)
			}
			request := good
			if tc.token != nil {
				tc.token(&request)
			}
			r := podIdentity(c, c.ServiceAccountToken(request), tc.change)
			if r.Status != tc.status || !strings.Contains(r.Body, tc.words) {
				t.Errorf("%d %s", r.Status, r.Body)
			}
			if call := c.CredentialsJournal()[0]; call.Status != tc.status || call.Action != "PodIdentity:GET" || (call.Code == "") != (tc.status == 200) {
				t.Errorf("journal: %v", call)
			}
		})
	}
}
