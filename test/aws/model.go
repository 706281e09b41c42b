package aws

import (
	"fmt"
	"net/netip"
	"time"
)

// VPC is a virtual network. Adding one is optional: [Cloud.AddSubnet] makes an unknown VPC and gives it the subnet's
// own CIDR blocks.
type VPC struct {
	ID   string         // "vpc-…"
	IPv4 []netip.Prefix // CIDR blocks
	IPv6 []netip.Prefix
}

// Subnet is an IP range in one availability zone. EC2 keeps the first four addresses and the last one of each block
// for itself.
type Subnet struct {
	ID           string // "subnet-…"
	VPCID        string // default "vpc-0e0e0e0e0e0e0e0e0"
	AZ           string // availability zone, default the region's "a"
	IPv4         netip.Prefix
	IPv6         []netip.Prefix
	Tags         map[string]string
	Reservations []Reservation // subnet CIDR reservations
}

// Reservation keeps a part of a subnet from automatic assignment. An explicit one can still be assigned by naming the
// address; a prefix one is only used for prefix delegation.
type Reservation struct {
	CIDR   netip.Prefix
	Prefix bool // reservation type "prefix"; false means "explicit"
}

// Limits is what an instance type can carry.
type Limits struct {
	ENIs        int // network interfaces, all cards together
	IPv4PerENI  int // IPv4 slots of an interface, the primary included; a /28 prefix takes one
	IPv6PerENI  int // IPv6 slots of an interface; a /80 prefix takes one
	Cards       int // network cards, at least 1
	VCPUs       int
	MemoryMiB   int
	PerCardENIs []int // interfaces per card; nil: all on card 0
}

// Instance is a virtual machine with its metadata service.
type Instance struct {
	ID     string  // "i-…"
	Type   string  // default "m5.large"
	Limits *Limits // overrides the table for Type; needed for a type the table does not know
	// Role is the IAM role whose credentials the metadata service hands out. Default "node"; "-" means no role.
	Role string
	// Policy is what the role may do; nil allows everything.
	Policy *Policy
	// HopLimit is the metadata service's HttpPutResponseHopLimit, 1 to 64. Default 2.
	HopLimit int
	// TokensRequired is HttpTokens=required: a request without a session token (IMDSv1) is answered with 401.
	TokensRequired bool
	// IMDSDisabled is HttpEndpoint=disabled: the metadata service answers everything with 403.
	IMDSDisabled bool
	// InstanceTags is InstanceMetadataTags=enabled: tags are shown under meta-data/tags/instance.
	InstanceTags bool
	Tags         map[string]string
	ImageID      string
}

// ENI is an elastic network interface.
type ENI struct {
	ID          string // "eni-…"
	MAC         string // lower case; default derived from ID
	SubnetID    string
	InstanceID  string // "" = not attached
	DeviceIndex int
	NetworkCard int
	// AttachStatus is attaching, attached, detaching or detached. Default "attached" with an InstanceID.
	AttachStatus   string
	Primary        netip.Addr // primary IPv4; default: a free address of the subnet
	Secondary      []netip.Addr
	IPv6           []netip.Addr
	PrimaryIPv6    netip.Addr // one of IPv6, or added to it
	Prefixes       []netip.Prefix
	ElasticIPs     map[netip.Addr]netip.Addr // private address to public address
	SecurityGroups []string
	Tags           map[string]string
	Description    string
	Type           string // interface, efa, efa-only, …; default "interface". An efa-only interface has no address.
	// SourceDestCheckOff lets the interface send from and receive for addresses that are not its own.
	SourceDestCheckOff bool
}

// Holder says who has an address.
type Holder struct {
	ENI      string
	Instance string // "" = the interface is not attached
	Primary  bool   // primary IPv4 or primary IPv6 address of the interface
	Prefix   netip.Prefix
	// InPrefix: the address is part of a delegated Prefix, not assigned by itself.
	InPrefix bool
}

// Change is one address or delegated prefix that came to, left or moved between interfaces.
type Change struct {
	Seq     int          // 1, 2, 3, … in the order in which EC2 decided
	At      time.Time    // when it came into force in the data plane
	Block   netip.Prefix // a single address (/32 or /128) or a delegated prefix (/28 or /80)
	From    string       // ENI that had it, "" = none
	To      string       // ENI that has it now, "" = none
	Primary bool
}

// String is a one-line form for logs and test failures.
func (c Change) String() string {
	name := func(id string) string {
		if id == "" {
			return "nobody"
		}
		return id
	}
	return fmt.Sprintf("#%d %s: %s -> %s", c.Seq, c.Block, name(c.From), name(c.To))
}

// Creds is one set of AWS credentials.
type Creds struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string    // "" for a long-lived user
	Expires         time.Time // zero = never
}

// Format keeps secrets out of logs whatever the verb.
func (c Creds) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "Creds{%s, expires %s}", c.AccessKeyID, c.Expires.Format(time.RFC3339))
}
