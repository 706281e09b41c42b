package aws

import "slices"

// row is a line of the instance type table: AWS's published interface limits.
type row struct {
	name                     string
	enis, perENI, vcpus, gib int
	cards                    []int // interfaces per network card; nil: one card
}

// limitsOf returns the limits of an instance type that the table knows.
func limitsOf(instanceType string) (Limits, bool) {
	rows := typeTable()
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == instanceType })
	if i < 0 {
		return Limits{}, false
	}
	return rows[i].limits(), true
}

func (r row) limits() Limits {
	l := Limits{ENIs: r.enis, IPv4PerENI: r.perENI, IPv6PerENI: r.perENI, Cards: max(1, len(r.cards)),
		VCPUs: r.vcpus, MemoryMiB: r.gib * 1024, PerCardENIs: r.cards}
	if len(l.PerCardENIs) == 0 {
		l.PerCardENIs = []int{r.enis}
	}
	return l
}

// InstanceTypes lists the types that have limits of their own, sorted.
func InstanceTypes() []string {
	var names []string
	for _, r := range typeTable() {
		names = append(names, r.name)
	}
	slices.Sort(names)
	return names
}

// typeTable is AWS's "maximum IP addresses per network interface" for common worker types. IPv4 and IPv6 limits are
// equal for all of them.
func typeTable() []row {
	return []row{
		{"t3.nano", 2, 2, 2, 1, nil},
		{"t3.micro", 2, 2, 2, 1, nil},
		{"t3.small", 3, 4, 2, 2, nil},
		{"t3.medium", 3, 6, 2, 4, nil},
		{"t3.large", 3, 12, 2, 8, nil},
		{"t3.xlarge", 4, 15, 4, 16, nil},
		{"t3.2xlarge", 4, 15, 8, 32, nil},
		{"t4g.medium", 3, 6, 2, 4, nil},
		{"t4g.large", 3, 12, 2, 8, nil},
		{"m5.large", 3, 10, 2, 8, nil},
		{"m5.xlarge", 4, 15, 4, 16, nil},
		{"m5.2xlarge", 4, 15, 8, 32, nil},
		{"m5.4xlarge", 8, 30, 16, 64, nil},
		{"m5.8xlarge", 8, 30, 32, 128, nil},
		{"m5.12xlarge", 8, 30, 48, 192, nil},
		{"m5.16xlarge", 15, 50, 64, 256, nil},
		{"m5.24xlarge", 15, 50, 96, 384, nil},
		{"m5.metal", 15, 50, 96, 384, nil},
		{"m5n.2xlarge", 4, 15, 8, 32, nil},
		{"m5n.24xlarge", 15, 50, 96, 384, nil},
		{"m6i.large", 3, 10, 2, 8, nil},
		{"m6i.xlarge", 4, 15, 4, 16, nil},
		{"m6i.2xlarge", 4, 15, 8, 32, nil},
		{"m6i.4xlarge", 8, 30, 16, 64, nil},
		{"m6i.8xlarge", 8, 30, 32, 128, nil},
		{"m6i.12xlarge", 8, 30, 48, 192, nil},
		{"m6i.16xlarge", 15, 50, 64, 256, nil},
		{"m6i.24xlarge", 15, 50, 96, 384, nil},
		{"m6i.32xlarge", 15, 50, 128, 512, nil},
		{"m6g.large", 3, 10, 2, 8, nil},
		{"m6g.4xlarge", 8, 30, 16, 64, nil},
		{"m7i.large", 3, 10, 2, 8, nil},
		{"m7i.4xlarge", 8, 30, 16, 64, nil},
		{"c5.large", 3, 10, 2, 4, nil},
		{"c5.xlarge", 4, 15, 4, 8, nil},
		{"c5.2xlarge", 4, 15, 8, 16, nil},
		{"c5.4xlarge", 8, 30, 16, 32, nil},
		{"c5.9xlarge", 8, 30, 36, 72, nil},
		{"c5.18xlarge", 15, 50, 72, 144, nil},
		{"c5n.2xlarge", 4, 15, 8, 21, nil},
		{"c5n.18xlarge", 15, 50, 72, 192, nil},
		{"c6i.large", 3, 10, 2, 4, nil},
		{"c6i.4xlarge", 8, 30, 16, 32, nil},
		{"c6i.32xlarge", 15, 50, 128, 256, nil},
		{"c6in.32xlarge", 16, 50, 128, 256, []int{8, 8}},
		{"r5.large", 3, 10, 2, 16, nil},
		{"r5.4xlarge", 8, 30, 16, 128, nil},
		{"r6i.large", 3, 10, 2, 16, nil},
		{"r6i.32xlarge", 15, 50, 128, 1024, nil},
		{"p4d.24xlarge", 60, 50, 96, 1152, []int{15, 15, 15, 15}},
	}
}
