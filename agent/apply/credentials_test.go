package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
)

// issuer is a source of credentials. Its fields may be changed between fetches.
type issuer struct {
	fetched int
	key     string
	life    time.Duration
	source  string
	err     error
	// mu guards took, which is how long a fetch takes.
	mu   sync.Mutex
	took time.Duration
}

func (i *issuer) takes(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.took = d
}

func (i *issuer) Retrieve(ctx context.Context) (aws.Credentials, error) {
	i.fetched++
	i.mu.Lock()
	took := i.took
	i.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return aws.Credentials{}, ctx.Err()
	}
	if i.err != nil {
		return aws.Credentials{}, i.err
	}
	return aws.Credentials{AccessKeyID: i.key, SecretAccessKey: "s", Source: i.source, CanExpire: i.life > 0, Expires: time.Now().Add(i.life)}, nil
}

func TestKeptCredentials(t *testing.T) {
	away := errors.New("away")
	tests := map[string]func(t *testing.T, i *issuer, k *keptCredentials){
		"used until shortly before the end, then fetched": func(t *testing.T, i *issuer, k *keptCredentials) {
			mustGive(t, k, "A", i, 1)
			pass(time.Hour - credentialsMargin - time.Second)
			i.key = "B"
			mustGive(t, k, "A", i, 1)
			pass(time.Second)
			mustGive(t, k, "B", i, 2)
		},
		"replaced ahead of the end": func(t *testing.T, i *issuer, k *keptCredentials) {
			mustGive(t, k, "A", i, 1)
			pass(time.Hour - credentialsAhead - time.Second)
			i.key = "B"
			mustWarm(t, k, nil, i, 1)
			pass(time.Second)
			mustWarm(t, k, nil, i, 2)
			mustGive(t, k, "B", i, 2)
		},
		"kept while no new ones are there": func(t *testing.T, i *issuer, k *keptCredentials) {
			mustGive(t, k, "A", i, 1)
			pass(55 * time.Minute)
			i.key, i.life = "OLDER", time.Minute
			mustWarm(t, k, nil, i, 2)
			mustGive(t, k, "A", i, 2)
		},
		"kept while none can be had": func(t *testing.T, i *issuer, k *keptCredentials) {
			mustGive(t, k, "A", i, 1)
			pass(55 * time.Minute)
			i.err = away
			mustWarm(t, k, nil, i, 2)
			mustGive(t, k, "A", i, 2)
			pass(5*time.Minute - 10*time.Second)
			mustGive(t, k, "A", i, 3) // in the last half minute a call asks for new ones first
			pass(10 * time.Second)
			mustFail(t, k, away)
		},
		"the instance role's are used on while metadata is away": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.source = ec2rolecreds.ProviderName
			mustGive(t, k, "A", i, 1)
			i.err = away
			pass(2 * time.Hour)
			mustGive(t, k, "A", i, 2)
			pass(time.Minute)
			mustGive(t, k, "A", i, 2) // without asking each time
			i.err, i.key = nil, "B"
			mustWarm(t, k, nil, i, 3)
			mustGive(t, k, "B", i, 3)
		},
		"that end soon, after others were used beyond their end": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.source = ec2rolecreds.ProviderName
			mustGive(t, k, "A", i, 1)
			i.err = away
			pass(2 * time.Hour)
			mustGive(t, k, "A", i, 2)
			i.err, i.key, i.life = nil, "B", 2*time.Minute
			mustWarm(t, k, nil, i, 3)
			mustGive(t, k, "B", i, 3)
		},
		"without an end": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.life = 0
			mustGive(t, k, "A", i, 1)
			pass(1000 * time.Hour)
			mustWarm(t, k, nil, i, 1)
			mustGive(t, k, "A", i, 1)
		},
		"that look too old from the start": func(t *testing.T, i *issuer, k *keptCredentials) {
			// The node's clock is ahead. EC2 judges, not the clock.
			i.life = time.Nanosecond
			mustGive(t, k, "A", i, 1)
			mustGive(t, k, "A", i, 2)
		},
		"without keys": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.key = ""
			mustFail(t, k, errNoKeys)
		},
		"called too old by EC2": func(t *testing.T, i *issuer, k *keptCredentials) {
			mustGive(t, k, "A", i, 1)
			k.invalidate("another")
			mustGive(t, k, "A", i, 1)
			i.key, i.life = "B", time.Minute
			k.invalidate("A")
			mustGive(t, k, "B", i, 2)
			k.invalidate("B")
			i.err = away
			mustFail(t, k, away)
		},
		"one fetch for all who wait": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.took = time.Second
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { mustGive(t, k, "A", i, 1) })
			}
			wg.Go(func() { mustWarm(t, k, nil, i, 1) })
			wg.Wait()
		},
		"late for one call, there for the next": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.took = 4 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
			defer cancel()
			if _, err := k.Retrieve(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			pass(time.Second)
			mustGive(t, k, "A", i, 1)
		},
		"a fetch that hangs is given up": func(t *testing.T, i *issuer, k *keptCredentials) {
			i.takes(15 * time.Second)
			started := time.Now()
			mustFail(t, k, context.DeadlineExceeded)
			if took := time.Since(started); took != credentialsTimeout {
				t.Errorf("after %s", took)
			}
			i.takes(0)
			pass(6 * time.Second) // the SDK's cache does not give it up
			mustGive(t, k, "A", i, 2)
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{key: "A", life: time.Hour}
				// The SDK's own cache is in between, as it is in fact.
				run(t, i, &keptCredentials{inner: aws.NewCredentialsCache(i)})
			})
		})
	}
}

// A caller that gives up does not end the fetch, whatever the provider thinks of the caller's end.
func TestCredentialsOutliveTheirCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{key: "A", life: time.Hour, took: 4 * time.Second}
		k := &keptCredentials{inner: i}
		ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
		defer cancel()
		if _, err := k.Retrieve(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		mustGive(t, k, "A", i, 1)
	})
}

// Credentials are used to their end: the SDK would cut five minutes off those of EKS Pod Identity.
func TestCredentialsAreUsedToTheirEnd(t *testing.T) {
	podIdentity(t, "http://example.com")
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		defer n.stop()
		fetched := 0
		end := time.Now().Add(8 * time.Minute)
		n.serve("169.254.170.23:80", nil, func(w http.ResponseWriter, _ *http.Request) {
			fetched++
			_, _ = fmt.Fprintf(w, `{"AccessKeyId":"AKIA","SecretAccessKey":"s","Token":"t","Expiration":%q}`, end.Format(time.RFC3339))
		})
		n.serve("example.com:80", nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, assigned) })
		c := newTestClient(t, n, slog.New(slog.DiscardHandler))
		defer c.Close()
		for range 7 {
			if err := assign(t, c); err != nil || fetched != 1 {
				t.Errorf("fetched %d times: %v", fetched, err)
			}
			pass(time.Minute)
		}
	})
}

// A service for credentials that swallows a request is asked again: neither a call nor all further ones wait for it.
func TestCredentialsServiceHangs(t *testing.T) {
	podIdentity(t, "http://example.com")
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		defer n.stop()
		fetched := 0
		n.serve("169.254.170.23:80", nil, func(w http.ResponseWriter, r *http.Request) {
			if fetched++; fetched == 1 {
				<-r.Context().Done()
				return
			}
			_, _ = fmt.Fprint(w, `{"AccessKeyId":"AKIA","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}`)
		})
		n.serve("example.com:80", nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, assigned) })
		c := newTestClient(t, n, slog.New(slog.DiscardHandler))
		defer c.Close()
		started := time.Now()
		var took []time.Duration
		err := errors.New("not asked yet")
		for err != nil && time.Since(started) < time.Minute {
			err = assign(t, c)
			took = append(took, time.Since(started))
		}
		if err != nil || took[0] != attemptTimeout || took[len(took)-1] != credentialsTimeout {
			t.Errorf("attempts ended after %v: %v", took, err)
		}
	})
}

func mustGive(t *testing.T, k *keptCredentials, key string, i *issuer, fetched int) {
	t.Helper()
	var used string
	c, err := k.Retrieve(context.WithValue(t.Context(), usedKey{}, &used))
	if err != nil || c.AccessKeyID != key || used != key || i.fetched != fetched {
		t.Errorf("gives %q (noted as %q) after %d fetches, want %q after %d: %v", c.AccessKeyID, used, i.fetched, key, fetched, err)
	}
}

func mustWarm(t *testing.T, k *keptCredentials, want error, i *issuer, fetched int) {
	t.Helper()
	if err := k.warm(t.Context()); !errors.Is(err, want) || i.fetched != fetched {
		t.Errorf("%d fetches, want %d: %v", i.fetched, fetched, err)
	}
}

func mustFail(t *testing.T, k *keptCredentials, want error) {
	t.Helper()
	var marked *credentialsError
	if _, err := k.Retrieve(t.Context()); !errors.Is(err, want) || !errors.As(err, &marked) {
		t.Errorf("%v, want %v", err, want)
	}
}

// Whatever a service answers to a request for credentials, no part of credentials comes into an error or a log.
func TestCredentialsAreNeverQuoted(t *testing.T) {
	const (
		id, secret, token = "ASIAQWERTYUIOPASDFGH", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "IQoJb3JpZ2luX2VjEBAaCXVzLWVhc3QtMSJHMEUCIQDx"
		jwt               = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL29pZGMifQ.c2lnbmF0dXJl"
	)
	whole := fmt.Sprintf(`{"Code":"Success","AccessKeyId":%q,"SecretAccessKey":%q,"Token":%q,"Expiration":"2099-01-01T00:00:00Z"}`, id, secret, token)
	answers := map[string]struct {
		status int
		body   string
	}{
		"credentials with an error":         {400, whole},
		"credentials, cut off":              {200, whole[:len(whole)-40]},
		"credentials without quotes":        {200, strings.ReplaceAll(whole, `"`, "")},
		"the secret as the time of the end": {200, fmt.Sprintf(`{"Code":"Success","AccessKeyId":%q,"SecretAccessKey":"","Token":"","Expiration":%q}`, id, secret)},
		"the token as the time of the end":  {200, fmt.Sprintf(`{"Code":"Success","Expiration":%q}`, token)},
		"the secret as the error's code":    {200, fmt.Sprintf(`{"Code":%q,"Message":%q}`, secret, token)},
		"the secret alone":                  {200, secret},
		"the secret alone, with an error":   {500, secret + "\n" + token},
		"a token that was sent":             {401, "token " + jwt + " is not valid"},
		"a header that was sent":            {401, "Authorization: " + secret[:20]},
		"lines":                             {200, "AccessKeyId=" + id + "\nSecretAccessKey=" + secret + "\n"},
	}
	for name, tt := range answers {
		for _, role := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, role=%t", name, role), func(t *testing.T) {
				for _, contentType := range []string{"text/plain", "application/json"} {
					var log bytes.Buffer
					server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Method == http.MethodPut {
							w.WriteHeader(http.StatusForbidden)
							return
						}
						w.Header().Set("Content-Type", contentType)
						w.WriteHeader(tt.status)
						_, _ = w.Write([]byte(tt.body))
					}))
					t.Cleanup(server.Close)
					(&wire{status: 200, role: role}).client(t, false)
					t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.URL)
					if !role {
						t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL)
					}
					c := newTestClient(t, &refusingEC2{}, slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
					c.Warm(t.Context())
					err := assign(t, c)
					if err == nil {
						t.Fatal("succeeds")
					}
					for _, said := range []string{err.Error(), log.String()} {
						for _, part := range []string{id, secret[:20], secret[20:], token[:20], jwt[:20], "SecretAccessKey\":"} {
							if strings.Contains(said, part) {
								t.Errorf("holds %q: %s", part, said)
							}
						}
					}
				}
			})
		}
	}
}

// What helps is not scrubbed away.
func TestScrubKeepsWhatHelps(t *testing.T) {
	for _, text := range []string{
		"operation error STS: AssumeRoleWithWebIdentity, https response error StatusCode: 403, RequestID: 4b8b9d3e-6a3e-4f4e-9d3a-0f6b1c2d3e4f, api error AccessDenied: " +
			"Not authorized to perform sts:AssumeRoleWithWebIdentity",
		"no EC2 IMDS role found, operation error ec2imds: GetMetadata, http response error StatusCode: 404, request to EC2 IMDS failed",
		`Get "http://169.254.169.254/latest/meta-data/iam/security-credentials/": dial tcp 169.254.169.254:80: connect: connection refused`,
		"(AccessDeniedException): Unauthorized Exception! EKS does not have permissions to assume the associated role arn:aws:iam::123456789012:role/eksctl-telco-nodegroup-NodeInstanceRole-1ABCDEFGH",
		"failed to read authorization token from /var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token: no such file",
	} {
		if got := scrub(text); got != text {
			t.Errorf("%s\nbecomes %s", text, got)
		}
	}
}
