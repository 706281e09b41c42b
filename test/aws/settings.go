package aws

import (
	"maps"
	"time"
)

// Settings are the switches that a test may turn at any time with [Cloud.Tune].
type Settings struct {
	// Throttle puts the token buckets into force. Off by default.
	Throttle bool
	// Buckets replaces or adds buckets by name (an action's name, or "<action>/unfiltered").
	Buckets map[string]Bucket
	// Delays are how late the answers and the data plane follow an assignment.
	Delays Delays
	// Quirks choose between behaviours where AWS's own is not known.
	Quirks Quirks
	// Latency is added to every EC2 call, before it takes effect. A client that gives up meanwhile does not undo it.
	Latency time.Duration
	// MaxClockSkew is how far a request's date may be from now; 0 turns the check off. AWS allows 5 minutes.
	MaxClockSkew time.Duration
	// ClockOffset is how far AWS's clock is ahead of this machine's: with it a client's clock seems to be wrong. It counts where
	// signatures and credentials are checked, in the credentials' end and in EC2's Date headers.
	ClockOffset time.Duration
	// AnyRegion accepts signatures for every region, not only the cloud's.
	AnyRegion bool
	// CredentialsTTL is how long the credentials of an instance's role live; new ones are handed out when a third of
	// it is left. Default 6 h.
	CredentialsTTL time.Duration
	// SessionTTL is how long credentials of pods' roles live, whatever is asked for; 0: what is asked of STS (an hour by default), and six
	// hours from Pod Identity.
	SessionTTL time.Duration
	// UnpaginatedLimit is the number of interfaces above which an unfiltered, unpaginated describe is refused with
	// OperationNotPermitted, as EC2 does in big accounts. 0 = never.
	UnpaginatedLimit int
	// FreezeIMDS stops the metadata service's network view where it is, until it is cleared.
	FreezeIMDS bool
	// FreezeDescribe does the same for DescribeNetworkInterfaces and DescribeInstances.
	FreezeDescribe bool
}

// Delays are propagation delays, from the moment EC2 decides. AWS remaps asynchronously and publishes no figures; the
// metadata service has been seen minutes behind.
type Delays struct {
	Describe  time.Duration // DescribeNetworkInterfaces, DescribeInstances
	IMDS      time.Duration // network/interfaces/macs/…
	DataPlane time.Duration // Watch
}

// Quirks are the open questions about EC2. The zero value is the most likely answer to each.
type Quirks struct {
	// IPv6HeldCode is the error code for an IPv6 address that another interface has.
	// Default InvalidParameterValue; the other candidate is InvalidIPAddress.InUse.
	IPv6HeldCode string
	// IPv6SameENIFails refuses an IPv6 address that the interface already has; default: success, not in the answer.
	IPv6SameENIFails bool
	// IPv4SameENIFails refuses an IPv4 address that the interface already has unless AllowReassignment is set.
	IPv4SameENIFails bool
	// IPv4AnswerNewOnly lists only newly assigned addresses in the answer; default: all that were asked for.
	IPv4AnswerNewOnly bool
	// IPv6LimitCode is the error code for too many IPv6 addresses. Default PrivateIpAddressLimitExceeded.
	IPv6LimitCode string
	// IPv6UnassignCode is the error code for unassigning an IPv6 address the interface does not have.
	// Default InvalidParameterValue.
	IPv6UnassignCode string
	// ReassignNeedsSource asks for permission on the interface that loses an address, too.
	ReassignNeedsSource bool
	// SignatureMismatch answers a wrong signature with SignatureDoesNotMatch (403), not AuthFailure (401).
	SignatureMismatch bool
	// ExpiredToken answers expired credentials with ExpiredToken, not RequestExpired.
	ExpiredToken bool
	// IMDSIPv6NeedsAddress hides the IPv6 CIDR keys of an interface that has no IPv6 address.
	IMDSIPv6NeedsAddress bool
	// BusyAttachmentFails refuses assignments on an attaching or detaching interface with IncorrectState.
	BusyAttachmentFails bool
}

func (s Settings) clone() Settings {
	s.Buckets = maps.Clone(s.Buckets)
	return s
}

// Option configures a [Cloud].
type Option func(*Cloud)

// WithRegion sets the region, default us-east-1.
func WithRegion(region string) Option { return func(c *Cloud) { c.region = region } }

// WithAccount sets the twelve-digit account number, default 123456789012.
func WithAccount(account string) Option { return func(c *Cloud) { c.account = account } }

// WithSeed sets the seed of everything that looks random: credentials, tokens, percentage faults.
func WithSeed(seed uint64) Option { return func(c *Cloud) { c.seed = seed } }

// WithJournalLimit bounds the memory of a long run: each journal keeps only that many of the newest calls. Their numbers go on.
func WithJournalLimit(calls int) Option { return func(c *Cloud) { c.journalLimit = max(0, calls) } }

// WithSettings changes the initial settings.
func WithSettings(change func(*Settings)) Option { return func(c *Cloud) { change(&c.settings) } }

// WithThrottling puts EC2's published token buckets into force.
func WithThrottling() Option { return WithSettings(func(s *Settings) { s.Throttle = true }) }
