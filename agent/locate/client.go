package locate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

const (
	// tokenTimeout bounds the wait for a session token (IMDSv2) before the agent goes on without one (IMDSv1). The SDK alone
	// would spend five seconds on it.
	tokenTimeout = time.Second
	// requestTimeout bounds every other request to metadata.
	requestTimeout = 2 * time.Second
)

// Dialer is what a [http.Transport] needs to open connections.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// New makes a client of the node's metadata service. The endpoint is IMDS's own unless the SDK's variables say otherwise
// (AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE, AWS_EC2_METADATA_V1_DISABLED, AWS_EC2_METADATA_DISABLED), or
// a shared configuration file does.
func New(dialer Dialer) (*Metadata, error) {
	settings, elsewhere, err := load()
	if err != nil {
		return nil, err
	}
	token := &tokenTransport{base: &http.Transport{
		// Metadata is link-local: a proxy must never see these requests, they carry credentials.
		Proxy:               nil,
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: parallelReads,
		IdleConnTimeout:     5 * time.Second,
	}}
	var options imds.Options
	client := imds.NewFromConfig(aws.Config{ConfigSources: settings.ConfigSources}, func(o *imds.Options) {
		o.HTTPClient = &http.Client{Transport: token}
		// The SDK would wait up to a second between attempts. What is worth a second attempt at once is known here, what is
		// worth a later one to the caller.
		o.Retryer = aws.NopRetryer{}
		options = *o
	})
	if at := options.Endpoint; at != "" && !IsEndpoint(at) {
		return nil, fmt.Errorf("%q is no endpoint: want http://HOST (AWS_EC2_METADATA_SERVICE_ENDPOINT, or ec2_metadata_service_endpoint in the "+
			"shared configuration file)", at)
	}
	return &Metadata{client: client, token: token, disabled: options.ClientEnableState == imds.ClientDisabled, elsewhere: elsewhere}, nil
}

// load reads the environment and the shared configuration files, and tells whether there are credentials that do not come from metadata.
// Only what contradicts itself in the environment is a fault here: what is wrong in the files, or lacks for the credentials, is told when they
// are needed, and metadata may be had without.
//
// Nothing here waits for anybody: the one mode that would ask metadata is not used, and where the environment names credentials, none are
// made, so that no host of theirs is looked up.
func load() (cfg aws.Config, elsewhere bool, err error) {
	env, err := config.NewEnvConfig()
	if err != nil {
		return aws.Config{}, false, err
	}
	elsewhere = named(env)
	options := []func(*config.LoadOptions) error{config.WithDefaultsMode(aws.DefaultsModeStandard)}
	if elsewhere {
		options = append(options, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	}
	cfg, err = config.LoadDefaultConfig(context.Background(), options...)
	if err != nil {
		return aws.Config{ConfigSources: []any{env}}, elsewhere, nil //nolint:nilerr // as above
	}
	return cfg, elsewhere || shared(cfg), nil
}

// Client is the SDK's client, so that credentials and identity share one token and one connection.
func (m *Metadata) Client() *imds.Client { return m.client }

// tokenTransport bounds the wait for a session token. When none comes, it answers the SDK with 403, on which the SDK goes on
// without tokens; a 401 to that makes the SDK ask for a token again.
type tokenTransport struct {
	base http.RoundTripper
	// lost is set while requests for a token go without an answer.
	lost atomic.Bool
	// lostAt is when (in Unix nanoseconds) the last request for a token was given up.
	lostAt atomic.Int64
}

// queueTime is how soon after a request for a token was given up another one is answered alike without being sent. The SDK asks for
// tokens one after the other, so requests that began together would each wait their own second.
const queueTime = 50 * time.Millisecond

// statusKey is the key under which a context carries where to note the HTTP status of the answer, an [*atomic.Int32]: the SDK's errors
// do not let the status of an answer through that refuses a token.
type statusKey struct{}

// RoundTrip implements [http.RoundTripper].
func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	timeout := requestTimeout
	if req.Method == http.MethodPut {
		if t.lost.Load() && time.Since(time.Unix(0, t.lostAt.Load())) < queueTime {
			return withoutToken(req), nil
		}
		timeout = tokenTimeout
	}
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	resp, err := t.base.RoundTrip(req.WithContext(ctx))
	if err == nil {
		err = slurp(resp)
	}
	if req.Method == http.MethodPut {
		switch {
		case err == nil && resp.StatusCode == http.StatusBadRequest:
			// The SDK takes this for a fault of its own and gives up, but version 1 may be there.
			return withoutToken(req), nil
		case err == nil:
			t.lost.Store(false)
		case ctx.Err() != nil && req.Context().Err() == nil:
			t.lostAt.Store(time.Now().UnixNano())
			t.lost.Store(true)
			return withoutToken(req), nil
		}
		// A request the caller gave up says nothing about the service.
	}
	if err != nil {
		return nil, err
	}
	if req.Method != http.MethodPut {
		if note, ok := req.Context().Value(statusKey{}).(*atomic.Int32); ok {
			note.Store(int32(resp.StatusCode)) //nolint:gosec // three digits
		}
	}
	return resp, nil
}

// withoutToken is the answer that makes the SDK go on as with IMDSv1.
func withoutToken(req *http.Request) *http.Response {
	return &http.Response{
		Status: "403 no answer to the request for a token", StatusCode: http.StatusForbidden,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: http.NoBody, Request: req,
	}
}

// slurp reads the body while the request's timeout still holds, so that the caller cannot be kept waiting by it.
func slurp(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if closeErr := resp.Body.Close(); err == nil {
		err = closeErr
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return err
}
