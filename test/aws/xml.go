package aws

// set is a list element that is written even when it is empty, as EC2 does for most: clients of other languages then
// see an empty list instead of none.
type set[T any] struct {
	Item []T `xml:"item"`
}

// add appends to a list element that is left out when it is empty.
func add[T any](s *set[T], v T) *set[T] {
	if s == nil {
		s = &set[T]{}
	}
	s.Item = append(s.Item, v)
	return s
}

// meta is the first element of every answer.
type meta struct {
	RequestID string `xml:"requestId"`
}

func (m *meta) setRequestID(id string) { m.RequestID = id }

type plainXML struct {
	meta
	Return bool `xml:"return"`
}

type assignedXML struct {
	Address string `xml:"privateIpAddress"`
}

type prefix4XML struct {
	Prefix string `xml:"ipv4Prefix"`
}

type prefix6XML struct {
	Prefix string `xml:"ipv6Prefix"`
}

type assignIPv4XML struct {
	meta
	ENI       string           `xml:"networkInterfaceId"`
	Addresses set[assignedXML] `xml:"assignedPrivateIpAddressesSet"`
	Prefixes  *set[prefix4XML] `xml:"assignedIpv4PrefixSet"`
	Return    bool             `xml:"return"`
}

type assignIPv6XML struct {
	meta
	ENI       string       `xml:"networkInterfaceId"`
	Addresses set[string]  `xml:"assignedIpv6Addresses"`
	Prefixes  *set[string] `xml:"assignedIpv6PrefixSet"`
}

type unassignIPv6XML struct {
	meta
	ENI       string       `xml:"networkInterfaceId"`
	Addresses set[string]  `xml:"unassignedIpv6Addresses"`
	Prefixes  *set[string] `xml:"unassignedIpv6PrefixSet"`
}

type tagXML struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

type groupXML struct {
	ID   string `xml:"groupId"`
	Name string `xml:"groupName"`
}

type associationXML struct {
	PublicIP      string `xml:"publicIp"`
	PublicDNSName string `xml:"publicDnsName"`
	Owner         string `xml:"ipOwnerId"`
}

type privateIPXML struct {
	Address     string          `xml:"privateIpAddress"`
	DNSName     string          `xml:"privateDnsName,omitempty"`
	Primary     bool            `xml:"primary"`
	Association *associationXML `xml:"association"`
}

type ipv6XML struct {
	Address string `xml:"ipv6Address"`
	Primary bool   `xml:"isPrimaryIpv6"`
}

type attachmentXML struct {
	ID                  string `xml:"attachmentId"`
	Instance            string `xml:"instanceId,omitempty"`
	Owner               string `xml:"instanceOwnerId,omitempty"`
	DeviceIndex         int    `xml:"deviceIndex"`
	NetworkCardIndex    int    `xml:"networkCardIndex"`
	Status              string `xml:"status"`
	AttachTime          string `xml:"attachTime"`
	DeleteOnTermination bool   `xml:"deleteOnTermination"`
}

type eniXML struct {
	ID               string            `xml:"networkInterfaceId"`
	Subnet           string            `xml:"subnetId"`
	VPC              string            `xml:"vpcId"`
	AZ               string            `xml:"availabilityZone,omitempty"`
	Description      string            `xml:"description"`
	Owner            string            `xml:"ownerId"`
	RequesterManaged bool              `xml:"requesterManaged"`
	Status           string            `xml:"status"`
	MAC              string            `xml:"macAddress"`
	PrivateIP        string            `xml:"privateIpAddress,omitempty"`
	PrivateDNSName   string            `xml:"privateDnsName,omitempty"`
	SourceDestCheck  bool              `xml:"sourceDestCheck"`
	Groups           set[groupXML]     `xml:"groupSet"`
	Attachment       *attachmentXML    `xml:"attachment"`
	Association      *associationXML   `xml:"association"`
	Tags             *set[tagXML]      `xml:"tagSet"`
	PrivateIPs       set[privateIPXML] `xml:"privateIpAddressesSet"`
	IPv6             set[ipv6XML]      `xml:"ipv6AddressesSet"`
	IPv6Address      string            `xml:"ipv6Address,omitempty"`
	Prefixes4        *set[prefix4XML]  `xml:"ipv4PrefixSet"`
	Prefixes6        *set[prefix6XML]  `xml:"ipv6PrefixSet"`
	InterfaceType    string            `xml:"interfaceType"`
}

type describeENIsXML struct {
	meta
	Items     set[eniXML] `xml:"networkInterfaceSet"`
	NextToken string      `xml:"nextToken,omitempty"`
}

type subnetCIDR6XML struct {
	Association string `xml:"associationId"`
	CIDR        string `xml:"ipv6CidrBlock"`
	State       string `xml:"ipv6CidrBlockState>state"`
}

type subnetXML struct {
	ID           string              `xml:"subnetId"`
	ARN          string              `xml:"subnetArn"`
	State        string              `xml:"state"`
	Owner        string              `xml:"ownerId"`
	VPC          string              `xml:"vpcId"`
	CIDR         string              `xml:"cidrBlock,omitempty"`
	CIDR6        set[subnetCIDR6XML] `xml:"ipv6CidrBlockAssociationSet"`
	Available    int                 `xml:"availableIpAddressCount"`
	AZ           string              `xml:"availabilityZone"`
	AZID         string              `xml:"availabilityZoneId"`
	DefaultForAZ bool                `xml:"defaultForAz"`
	MapPublicIP  bool                `xml:"mapPublicIpOnLaunch"`
	AssignIPv6   bool                `xml:"assignIpv6AddressOnCreation"`
	IPv6Native   bool                `xml:"ipv6Native"`
	Tags         set[tagXML]         `xml:"tagSet"`
}

type describeSubnetsXML struct {
	meta
	Items     set[subnetXML] `xml:"subnetSet"`
	NextToken string         `xml:"nextToken,omitempty"`
}

type stateXML struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

type placementXML struct {
	AZ      string `xml:"availabilityZone"`
	Group   string `xml:"groupName"`
	Tenancy string `xml:"tenancy"`
}

type metadataOptionsXML struct {
	State        string `xml:"state"`
	HTTPTokens   string `xml:"httpTokens"`
	HopLimit     int    `xml:"httpPutResponseHopLimit"`
	HTTPEndpoint string `xml:"httpEndpoint"`
	IPv6         string `xml:"httpProtocolIpv6"`
	InstanceTags string `xml:"instanceMetadataTags"`
}

type instanceXML struct {
	ID              string             `xml:"instanceId"`
	Image           string             `xml:"imageId"`
	State           stateXML           `xml:"instanceState"`
	PrivateDNSName  string             `xml:"privateDnsName"`
	DNSName         string             `xml:"dnsName"`
	Type            string             `xml:"instanceType"`
	LaunchTime      string             `xml:"launchTime"`
	Placement       placementXML       `xml:"placement"`
	Subnet          string             `xml:"subnetId,omitempty"`
	VPC             string             `xml:"vpcId,omitempty"`
	PrivateIP       string             `xml:"privateIpAddress,omitempty"`
	SourceDestCheck bool               `xml:"sourceDestCheck"`
	Groups          set[groupXML]      `xml:"groupSet"`
	Architecture    string             `xml:"architecture"`
	Tags            set[tagXML]        `xml:"tagSet"`
	Hypervisor      string             `xml:"hypervisor"`
	ENIs            set[instanceENI]   `xml:"networkInterfaceSet"`
	Metadata        metadataOptionsXML `xml:"metadataOptions"`
}

// instanceENI is an interface inside an instance: like the describe call's, but without tags, and its attachment does
// not name the instance again.
type instanceENI struct{ eniXML }

type reservationXML struct {
	ID        string           `xml:"reservationId"`
	Owner     string           `xml:"ownerId"`
	Groups    set[groupXML]    `xml:"groupSet"`
	Instances set[instanceXML] `xml:"instancesSet"`
}

type describeInstancesXML struct {
	meta
	Items     set[reservationXML] `xml:"reservationSet"`
	NextToken string              `xml:"nextToken,omitempty"`
}

type networkCardXML struct {
	Index   int `xml:"networkCardIndex"`
	Maximum int `xml:"maximumNetworkInterfaces"`
}

type networkInfoXML struct {
	Maximum       int                 `xml:"maximumNetworkInterfaces"`
	MaximumCards  int                 `xml:"maximumNetworkCards"`
	DefaultCard   int                 `xml:"defaultNetworkCardIndex"`
	Cards         set[networkCardXML] `xml:"networkCards"`
	IPv4PerENI    int                 `xml:"ipv4AddressesPerInterface"`
	IPv6PerENI    int                 `xml:"ipv6AddressesPerInterface"`
	IPv6Supported bool                `xml:"ipv6Supported"`
	ENASupport    string              `xml:"enaSupport"`
}

type instanceTypeXML struct {
	Name              string         `xml:"instanceType"`
	CurrentGeneration bool           `xml:"currentGeneration"`
	BareMetal         bool           `xml:"bareMetal"`
	Hypervisor        string         `xml:"hypervisor,omitempty"`
	VCPUs             int            `xml:"vCpuInfo>defaultVCpus"`
	MemoryMiB         int            `xml:"memoryInfo>sizeInMiB"`
	Network           networkInfoXML `xml:"networkInfo"`
}

type describeTypesXML struct {
	meta
	Items     set[instanceTypeXML] `xml:"instanceTypeSet"`
	NextToken string               `xml:"nextToken,omitempty"`
}
