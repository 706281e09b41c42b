package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Messages name where the credentials come from; in the order in which the SDK looks.
func TestSourceOf(t *testing.T) {
	const arn, agent = "arn:aws:iam::123456789012:role/teams/Telco/NetworkFunctionsInTheCore", "http://169.254.170.23/v1/credentials"
	tests := map[string]struct {
		env        map[string]string
		name, file string
		cure       bool
	}{
		"nothing":              {},
		"keys":                 {env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ROLE_ARN": arn, "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}},
		"IRSA":                 {env: map[string]string{"AWS_ROLE_ARN": arn, "AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_CONTAINER_CREDENTIALS_FULL_URI": agent}, name: " for " + arn, file: "/t", cure: true},
		"Pod Identity":         {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": agent, endpointTokenFile: "/p"}, name: " from EKS Pod Identity", file: "/p", cure: true},
		"Pod Identity by IPv6": {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://[fd00:ec2::23]/v1/credentials"}, name: " from EKS Pod Identity", cure: true},
		"a profile":            {env: map[string]string{"AWS_PROFILE": "mine", "AWS_CONTAINER_CREDENTIALS_FULL_URI": agent, endpointTokenFile: "/p"}},
		"an ECS path":          {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2", "AWS_CONTAINER_CREDENTIALS_FULL_URI": agent, endpointTokenFile: "/p"}},
		"another endpoint":     {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:80/"}, name: " from http://127.0.0.1:80/"},
		"another agent's name": {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.231/"}, name: " from http://169.254.170.231/"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, key := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
				"AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", endpointTokenFile} {
				t.Setenv(key, tt.env[key])
			}
			s, err := identity()
			if (tt.file != "") != errors.Is(err, ErrConfiguration) || s.name != tt.name || s.file != tt.file || (s.cure != "") != tt.cure {
				t.Errorf("%+v, %v", s, err)
			}
			// The name is shown whole; only what a service answered is scrubbed.
			text := (&credentialsError{err: errors.New("why"), from: s}).Error()
			if !strings.HasPrefix(text, "get AWS credentials"+tt.name+": ") || !strings.Contains(text, "why") {
				t.Error(text)
			}
		})
	}
}

// A token that is not there does not come; it is told before anything is asked for.
func TestTokenFile(t *testing.T) {
	dir := t.TempDir()
	there, missing := filepath.Join(dir, "there"), filepath.Join(dir, "missing")
	if err := os.WriteFile(there, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (source{variable: "V", file: there}).check(); err != nil {
		t.Error(err)
	}
	err := (source{variable: "V", file: missing}).check()
	if !errors.Is(err, ErrConfiguration) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "(V)") || !strings.Contains(err.Error(), missing) {
		t.Errorf("%v", err)
	}
	podIdentity(t, "http://example.com")
	t.Setenv(endpointTokenFile, missing)
	n := &network{}
	defer n.stop()
	if _, err := New(t.Context(), nil, n, slog.New(slog.DiscardHandler), "test"); !errors.Is(err, ErrConfiguration) {
		t.Errorf("%v", err)
	}
}

// What the EKS Pod Identity agent answers is plain text, with EKS's code in it where EKS refused.
func TestPodIdentityRefusals(t *testing.T) {
	passed := func(code string) string { return "[4b8b9d3e-6a3e-4f4e]: (" + code + "): why, fault: client" }
	tests := map[string]struct {
		status int
		text   string
		want   Class
		code   string
	}{
		"the role may not be taken":    {400, passed("AccessDeniedException"), Denied, "AccessDeniedException"},
		"no association yet":           {404, passed(unknownAssociation), NoCredentials, unknownAssociation},
		"a token that is none":         {400, passed("InvalidTokenException"), Denied, "InvalidTokenException"},
		"a token that is too old":      {400, passed("ExpiredTokenException"), Expired, "ExpiredTokenException"},
		"EKS throttles":                {429, passed("ThrottlingException"), Throttled, "ThrottlingException"},
		"the agent throttles":          {429, "Too Many Requests", Throttled, ""},
		"EKS is away":                  {503, passed("ServiceUnavailableException"), NoCredentials, "ServiceUnavailableException"},
		"the agent finds it too old":   {400, "Service account token failed basic claim validations: token is expired", NoCredentials, ""},
		"a code elsewhere in a text":   {400, "see (AccessDeniedException): no", NoCredentials, ""},
		"an agent that cannot say":     {500, "unexpected", NoCredentials, ""},
		"a code that is not known":     {400, passed("SurpriseException"), NoCredentials, "SurpriseException"},
		"a path that it does not have": {404, "404 page not found", NoCredentials, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, tt.text, tt.status) }))
			t.Cleanup(server.Close)
			w := &wire{status: 200}
			w.client(t, false)
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL)
			c := newTestClient(t, &refusingEC2{}, slog.New(slog.DiscardHandler))
			defer c.Close()
			err := assign(t, c)
			var op *OpError
			if !errors.As(err, &op) || op.Class != tt.want || op.Code != tt.code {
				t.Errorf("class %s, want %s: %v", ClassOf(err), tt.want, err)
			}
		})
	}
}

// A refusal that may pass is believed when it has lasted, and only then the cure is told.
func TestRefusalsThatMayPass(t *testing.T) {
	for _, code := range []string{badIdentityToken, unknownAssociation} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{key: "A", life: time.Hour, err: apiError(code, http.StatusBadRequest, "no")}
				k := &keptCredentials{inner: i, from: source{name: " for somebody", cure: "do this"}}
				want := func(class Class) {
					t.Helper()
					_, err := k.Retrieve(t.Context())
					if e := newOpError("Assign", "eni-1", nil, err); e.Class != class || strings.Contains(e.Error(), "do this") != (class == Denied) {
						t.Errorf("class %s, want %s: %v", e.Class, class, e)
					}
				}
				want(NoCredentials)
				pass(refusalPatience - time.Millisecond)
				want(NoCredentials)
				pass(time.Millisecond)
				want(Denied)
				i.err = apiError("Throttling", http.StatusBadRequest, "later")
				want(Throttled)
				i.err = apiError(code, http.StatusBadRequest, "no")
				want(NoCredentials) // it has begun anew
				pass(refusalPatience)
				want(Denied)
				i.err = nil
				if _, err := k.Retrieve(t.Context()); err != nil {
					t.Error(err)
				}
				k.invalidate("A")
				i.err = apiError(code, http.StatusBadRequest, "no")
				want(NoCredentials)
				i.err = apiError("AccessDenied", http.StatusForbidden, "no")
				want(Denied) // at once
				i.err = fmt.Errorf("wrapped: %w", context.DeadlineExceeded)
				want(NoCredentials) // and nothing was sent to EC2
			})
		})
	}
}

// The codes that only services for credentials have.
func TestCredentialCodes(t *testing.T) {
	for code, want := range map[string]Class{"IDPRejectedClaim": Denied, "RegionDisabledException": Denied, "ValidationError": Denied, "PackedPolicyTooLarge": NoCredentials} {
		if got := (&credentialsError{err: apiError(code, http.StatusBadRequest, "why")}).class(); got != want {
			t.Errorf("%s: class %s, want %s", code, got, want)
		}
	}
}
