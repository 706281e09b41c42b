package apply

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
)

const (
	// credentialsMargin is how long credentials must be valid still to be used for a call.
	credentialsMargin = 30 * time.Second
	// credentialsAhead is how long before their end new ones are fetched beside them. AWS has new ones five minutes before that at the
	// latest.
	credentialsAhead = 10 * time.Minute
	// credentialsStretch is how much longer the instance role's credentials are used while metadata gives none. Those it gave are valid
	// for hours, of which the SDK takes one; EC2 tells when they are really too old.
	credentialsStretch = 5 * time.Minute
)

// errNoKeys is an answer that was taken for credentials and holds none.
var errNoKeys = errors.New("the answer holds no keys")

// keptCredentials keeps credentials and fetches new ones before the old ones end, so that no call waits for it. The SDK's own cache
// would fetch them at the end, when a call needs them.
type keptCredentials struct {
	inner aws.CredentialsProvider
	// from is where they come from, for messages.
	from source

	mu sync.Mutex
	// refused is since when there has been a refusal that may pass, zero when there is none.
	refused time.Time
	// held are the newest credentials, without keys when there are none. They are used until the time until, if they end at all.
	held  aws.Credentials
	until time.Time
	fetch *fetch
}

// fetch is one fetch under way, for all who wait for it. Its outcome is written before done is closed.
type fetch struct {
	done  chan struct{}
	creds aws.Credentials
	err   error
}

// usedKey is the key under which a context carries where to note which access key a request was signed with, a [*string].
type usedKey struct{}

// Retrieve implements [aws.CredentialsProvider]. A failure is a [*credentialsError], recognisable among the failures of a call.
func (k *keptCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := k.get(ctx, credentialsMargin)
	if err != nil {
		return c, k.failure(err)
	}
	if used, ok := ctx.Value(usedKey{}).(*string); ok {
		*used = c.AccessKeyID
	}
	return c, nil
}

// failure says what was asked for in vain.
func (k *keptCredentials) failure(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &credentialsError{err: err, from: k.from, early: time.Since(k.refused) < refusalPatience}
}

// warm fetches credentials if those that are held will end soon.
func (k *keptCredentials) warm(ctx context.Context) error {
	_, err := k.get(ctx, credentialsAhead)
	return err
}

// get gives the credentials that are held if they last long enough, else what a fetch brings.
func (k *keptCredentials) get(ctx context.Context, left time.Duration) (aws.Credentials, error) {
	k.mu.Lock()
	if k.lasts(left) {
		defer k.mu.Unlock()
		return k.held, nil
	}
	f := k.fetch
	if f == nil {
		f = &fetch{done: make(chan struct{})}
		k.fetch = f
		// It goes on without its caller: credentials that come too late for one call are there for the next.
		go k.run(context.WithoutCancel(ctx), f)
	}
	k.mu.Unlock()
	select {
	case <-f.done:
		return f.creds, f.err
	case <-ctx.Done():
		return aws.Credentials{}, ctx.Err()
	}
}

// lasts tells whether there are credentials that may be used for so long.
func (k *keptCredentials) lasts(left time.Duration) bool {
	return k.held.HasKeys() && (!k.held.CanExpire || time.Until(k.until) > left)
}

func (k *keptCredentials) run(ctx context.Context, f *fetch) {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	if cache, ok := k.inner.(*aws.CredentialsCache); ok {
		cache.Invalidate() // or it would give what it has
	}
	creds, err := k.inner.Retrieve(ctx)
	if err == nil && !creds.HasKeys() {
		err = errNoKeys
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch code, _ := verdictOf(err); {
	case !mayPass(code):
		k.refused = time.Time{}
	case k.refused.IsZero():
		k.refused = time.Now()
	}
	f.creds, f.err = k.settle(creds, err)
	k.fetch = nil
	close(f.done)
}

// settle decides what to use after a fetch.
func (k *keptCredentials) settle(creds aws.Credentials, err error) (aws.Credentials, error) {
	switch {
	case err == nil && k.held.HasKeys() && creds.CanExpire && creds.Expires.Before(k.held.Expires):
		// There are none newer yet.
	case err == nil:
		k.held, k.until = creds, creds.Expires
	case k.held.HasKeys() && k.held.Source == ec2rolecreds.ProviderName:
		if stretched := time.Now().Add(credentialsStretch); stretched.After(k.until) {
			k.until = stretched
		}
	case !k.lasts(0):
		return aws.Credentials{}, err
	}
	return k.held, nil
}

// invalidate makes the next call fetch fresh credentials, unless those that were too old have been replaced already.
func (k *keptCredentials) invalidate(used string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held.AccessKeyID == used {
		k.held = aws.Credentials{}
	}
}
