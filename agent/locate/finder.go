package locate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"

	"multus-ip-manager.io/agent/plan"
)

const (
	// patience bounds one look at metadata where EC2 can be asked instead: the wait for a token and a little more.
	patience = 2 * time.Second
	// awayFor is how long metadata is left in peace once it was away.
	awayFor = 5 * time.Minute
	// halfFor is how long metadata may know half of an ENI before EC2 is asked, and how long it then is until EC2 is asked again.
	halfFor = 10 * time.Second
	// shortHopLimit says that metadata is closed to pods where that is as it should be.
	shortHopLimit = "metadata's hop limit, which keeps pods out"
)

// Source is another place that knows the node's ENIs: EC2 itself. Its answers are as those of [Metadata].
type Source interface {
	ENIs(ctx context.Context, macs []string) ([]plan.ENI, error)
	All(ctx context.Context) ([]plan.ENI, error)
}

// Finder finds the node's ENIs by metadata, and by EC2 where metadata is closed to pods. The latter needs credentials that do not come from
// metadata (IRSA, EKS Pod Identity, keys): without such it does what [Metadata] does. EC2 is asked only when somebody asks for ENIs, and with
// whatever credentials when metadata that is there goes on to know half of an ENI.
type Finder struct {
	Metadata *Metadata
	// Connect gives EC2. Its failure is the failure of the look.
	Connect func(ctx context.Context) (Source, error)
	Log     *slog.Logger

	mu sync.Mutex
	// away is why metadata could not be had at the time since, empty when it could.
	away  string
	since time.Time
	// half is since when metadata knows half of an ENI, or when EC2 was last asked for that; zero while it knows what it is asked for.
	// last is when it was last asked.
	half, last time.Time
}

// ENIs describes the ENIs with these MACs, and tells of the primary ENI at least which subnet it is in. An unknown MAC is left out.
func (f *Finder) ENIs(ctx context.Context, macs []string) ([]plan.ENI, error) {
	return f.find(ctx,
		func(ctx context.Context) ([]plan.ENI, error) { return f.Metadata.ENIs(ctx, macs) },
		func(ctx context.Context, s Source) ([]plan.ENI, error) { return s.ENIs(ctx, macs) })
}

// All describes every ENI of the node. By EC2 alone the node is known only after one of its MACs was asked for.
func (f *Finder) All(ctx context.Context) ([]plan.ENI, error) {
	return f.find(ctx, f.Metadata.All, func(ctx context.Context, s Source) ([]plan.ENI, error) { return s.All(ctx) })
}

// Listed gives what metadata lists. Where metadata is away and need not be there, nothing is listed: to ask EC2 instead would be a call
// each minute by each pod, for nothing.
func (f *Finder) Listed(ctx context.Context, macs []string) (map[string]Listing, error) {
	if !f.Metadata.elsewhere {
		return f.Metadata.Listed(ctx, macs)
	}
	if f.gone() != "" {
		return nil, nil
	}
	listed, err := look(ctx, func(ctx context.Context) (map[string]Listing, error) { return f.Metadata.Listed(ctx, macs) })
	if isAway(ctx, err) {
		f.note(err)
		return nil, nil
	}
	return listed, err
}

func (f *Finder) find(ctx context.Context, metadata func(context.Context) ([]plan.ENI, error), other func(context.Context, Source) ([]plan.ENI, error)) ([]plan.ENI, error) {
	if !f.Metadata.elsewhere {
		enis, err := metadata(ctx)
		return f.complete(ctx, enis, err, other)
	}
	if f.gone() == "" {
		enis, err := look(ctx, metadata)
		if !isAway(ctx, err) {
			return f.complete(ctx, enis, err, other)
		}
		f.note(err)
	}
	source, err := f.Connect(ctx)
	if err != nil {
		return nil, err
	}
	enis, err := other(ctx, source)
	if err != nil {
		// Why metadata is away is told last and not wrapped: what is to be waited for, or mended, is EC2's fault.
		return nil, fmt.Errorf("find the node's ENIs by EC2: %w (asked because of %s)", err, f.gone())
	}
	return enis, nil
}

// complete gives what metadata answered, or what EC2 does where metadata has known half of an ENI for too long. That EC2 does not tell either is
// no fault of its own: metadata may know the rest soon, and not every pod may ask EC2.
func (f *Finder) complete(ctx context.Context, enis []plan.ENI, err error, ask func(context.Context, Source) ([]plan.ENI, error)) ([]plan.ENI, error) {
	if !f.halfForLong(err) {
		return enis, err
	}
	source, failure := f.Connect(ctx)
	if failure == nil {
		enis, failure = ask(ctx, source)
	}
	if half := (*IncompleteError)(nil); failure == nil && errors.As(err, &half) && !slices.ContainsFunc(enis, half.is) {
		// An ENI that is being replaced is detached for EC2 while metadata has the rest of it.
		failure = errors.New("it knows of no such ENI on this node")
	}
	if failure != nil {
		// EC2's failure is not wrapped: what is waited for is metadata.
		return nil, fmt.Errorf("%w (EC2, asked instead: %v)", err, failure) //nolint:errorlint // on purpose
	}
	f.Log.Info("metadata knows half of an ENI; the node's ENIs are asked of EC2", "error", err)
	return enis, nil
}

// halfForLong tells whether an answer of metadata is the last of many that know half of an ENI.
func (f *Finder) halfForLong(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.last = time.Now() }()
	switch {
	case !errors.Is(err, ErrIncomplete):
		f.half = time.Time{}
	case f.half.IsZero() || time.Since(f.last) > 2*halfFor: // nobody has looked for a while
		f.half = time.Now()
	case time.Since(f.half) >= halfFor:
		f.half = time.Now() // EC2 is not asked again for as long
		return true
	}
	return false
}

// look asks metadata, for no longer than is worth it.
func look[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return ask(ctx)
}

// isAway tells whether a look at metadata failed because nothing useful answered, and not because the caller gave up. Metadata that knows
// half of an ENI is there.
func isAway(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil &&
		(errors.Is(err, ErrNoMetadata) || errors.Is(err, ErrHopLimit) || errors.Is(err, context.DeadlineExceeded))
}

// note remembers that metadata is away.
func (f *Finder) note(err error) {
	f.Log.Info("no instance metadata; the node's ENIs are asked of EC2", "error", err, "for", awayFor.String())
	why := err.Error()
	if errors.Is(err, ErrHopLimit) {
		why = shortHopLimit // its cures are for pods without credentials of their own
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.since = why, time.Now()
}

// gone gives why metadata is not asked now, empty if it may be.
func (f *Finder) gone() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != "" && time.Since(f.since) >= awayFor {
		f.away = ""
	}
	return f.away
}

// named tells whether the environment has credentials that do not come from metadata: keys, a web identity (IRSA), or an endpoint of its
// own (EKS Pod Identity, ECS).
func named(env config.EnvConfig) bool {
	return env.Credentials.HasKeys() ||
		env.WebIdentityTokenFilePath != "" && env.RoleARN != "" ||
		env.ContainerCredentialsEndpoint != "" || env.ContainerCredentialsRelativePath != ""
}

// shared tells whether the SDK found credentials that do not come from metadata in a shared file. Without any it ends at metadata.
func shared(cfg aws.Config) bool {
	from, ok := cfg.Credentials.(aws.CredentialProviderSource)
	return ok && !slices.Contains(from.ProviderSources(), aws.CredentialSourceIMDS)
}
