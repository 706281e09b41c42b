package aws

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const defaultVPC = "vpc-0e0e0e0e0e0e0e0e0"

// AddVPC adds a VPC, or replaces its CIDR blocks.
func (c *Cloud) AddVPC(v VPC) error {
	if !strings.HasPrefix(v.ID, "vpc-") {
		return fmt.Errorf("aws: VPC id %q: want vpc-…", v.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.vpcs[v.ID] = v
	return nil
}

// AddSubnet adds a subnet; its VPC is made or widened where needed. It refuses a subnet that overlaps another one of
// the VPC or that has no room for EC2's own addresses.
func (c *Cloud) AddSubnet(s Subnet) error {
	if !strings.HasPrefix(s.ID, "subnet-") {
		return fmt.Errorf("aws: subnet id %q: want subnet-…", s.ID)
	}
	if s.VPCID == "" {
		s.VPCID = defaultVPC
	}
	if s.AZ == "" {
		s.AZ = c.region + "a"
	}
	if err := s.valid(); err != nil {
		return fmt.Errorf("aws: subnet %s: %w", s.ID, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.state.subnets[s.ID]; ok {
		return fmt.Errorf("aws: subnet %s exists already", s.ID)
	}
	for _, other := range c.state.subnets {
		if other.VPCID == s.VPCID && s.overlaps(other) {
			return fmt.Errorf("aws: subnet %s overlaps %s", s.ID, other.ID)
		}
	}
	v := c.state.vpcs[s.VPCID]
	v.ID = s.VPCID
	v.IPv4 = widen(v.IPv4, s.blocksOf(false))
	v.IPv6 = widen(v.IPv6, s.IPv6)
	c.state.vpcs[v.ID] = v
	c.state.subnets[s.ID] = s
	return nil
}

func (s Subnet) valid() error {
	if !s.IPv4.IsValid() && len(s.IPv6) == 0 {
		return fmt.Errorf("needs an IPv4 or IPv6 CIDR block")
	}
	if s.IPv4.IsValid() && (!s.IPv4.Addr().Is4() || s.IPv4 != s.IPv4.Masked() || s.IPv4.Bits() < 16 || s.IPv4.Bits() > 28) {
		return fmt.Errorf("IPv4 block %s: want a network address between /16 and /28", s.IPv4)
	}
	for _, p := range s.IPv6 {
		if !p.IsValid() || !p.Addr().Is6() || p != p.Masked() || p.Bits() < 44 || p.Bits() > 64 {
			return fmt.Errorf("IPv6 block %s: want a network address between /44 and /64", p)
		}
	}
	return nil
}

func (s Subnet) overlaps(other Subnet) bool {
	for _, v6 := range []bool{false, true} {
		for _, a := range s.blocksOf(v6) {
			if slices.ContainsFunc(other.blocksOf(v6), a.Overlaps) {
				return true
			}
		}
	}
	return false
}

func widen(have, more []netip.Prefix) []netip.Prefix {
	have = slices.Clone(have)
	for _, p := range more {
		if !slices.ContainsFunc(have, func(h netip.Prefix) bool { return h.Bits() <= p.Bits() && h.Overlaps(p) }) {
			have = append(have, p)
		}
	}
	return have
}

// AddInstance adds an instance. Its availability zone is that of its first interface.
func (c *Cloud) AddInstance(i Instance) error {
	if !strings.HasPrefix(i.ID, "i-") {
		return fmt.Errorf("aws: instance id %q: want i-…", i.ID)
	}
	if i.Type == "" {
		i.Type = "m5.large"
	}
	if i.Limits == nil {
		l, ok := limitsOf(i.Type)
		if !ok {
			return fmt.Errorf("aws: instance %s: type %q is not in the table, so it needs Limits", i.ID, i.Type)
		}
		i.Limits = &l
	}
	if i.Role == "" {
		i.Role = "node"
	}
	if i.HopLimit == 0 {
		i.HopLimit = 2
	}
	if i.HopLimit < 1 || i.HopLimit > 64 {
		return fmt.Errorf("aws: instance %s: hop limit %d: want 1 to 64", i.ID, i.HopLimit)
	}
	if i.ImageID == "" {
		i.ImageID = "ami-0123456789abcdef0"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.state.instances[i.ID]; ok {
		return fmt.Errorf("aws: instance %s exists already", i.ID)
	}
	c.state.instances[i.ID] = i
	return nil
}

// ChangeInstance changes an instance's metadata options, role, policy, tags or limits while it runs.
func (c *Cloud) ChangeInstance(id string, change func(*Instance)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.state.instances[id]
	if !ok {
		return fmt.Errorf("aws: no instance %s", id)
	}
	limits := *i.Limits
	i.Limits, i.Tags = &limits, maps.Clone(i.Tags)
	change(&i)
	if i.ID != id || i.Limits == nil || i.HopLimit < 1 || i.HopLimit > 64 {
		return fmt.Errorf("aws: instance %s: want the same id, limits and a hop limit from 1 to 64", id)
	}
	c.state.instances[id] = i
	return nil
}

// AddENI adds an interface with its addresses, attached if it names an instance. It refuses what EC2 could not have:
// addresses outside the subnet or held by another interface, more than the instance type allows, a taken device index.
func (c *Cloud) AddENI(e ENI) error {
	if err := c.addENI(e); err != nil {
		return fmt.Errorf("aws: interface %s: %w", e.ID, err)
	}
	c.plane.flush()
	return nil
}

func (c *Cloud) addENI(cfg ENI) error {
	if !strings.HasPrefix(cfg.ID, "eni-") {
		return fmt.Errorf("want an id eni-…")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.state.enis[cfg.ID]; ok {
		return fmt.Errorf("exists already")
	}
	sub, ok := c.state.subnets[cfg.SubnetID]
	if !ok {
		return fmt.Errorf("no subnet %q", cfg.SubnetID)
	}
	if err := c.normalize(&cfg, sub); err != nil {
		return err
	}
	edits, err := c.state.birth(cfg, sub)
	if err != nil {
		return err
	}
	e := &eni{ENI: cfg, attached: time.Now()}
	e.Secondary, e.IPv6, e.Prefixes, e.ElasticIPs = nil, nil, nil, nil
	e.Primary, e.PrimaryIPv6 = netip.Addr{}, netip.Addr{}
	if err := c.state.seat(e, cfg); err != nil {
		return err
	}
	c.history.remember(cfg.ID, nil, time.Now())
	c.state.enis[cfg.ID] = e
	c.commitNew(cfg, edits)
	return nil
}

// commitNew commits a new interface's addresses and associates its Elastic IPs.
func (c *Cloud) commitNew(cfg ENI, edits []edit) {
	edits = c.state.located(edits)
	c.state.apply(edits)
	e := c.state.enis[cfg.ID].clone()
	for i := range e.v4 {
		e.v4[i].eip = cfg.ElasticIPs[e.v4[i].addr]
	}
	c.state.enis[cfg.ID] = e
	now := time.Now()
	c.history.prune(now, c.settings)
	c.plane.enqueue(edits, now.Add(c.settings.Delays.DataPlane))
}

// normalize fills defaults in.
func (c *Cloud) normalize(cfg *ENI, sub Subnet) error {
	if cfg.MAC == "" {
		sum := sha256.Sum256([]byte(cfg.ID))
		cfg.MAC = net.HardwareAddr(append([]byte{0x02}, sum[:5]...)).String()
	}
	mac, err := net.ParseMAC(cfg.MAC)
	if err != nil {
		return fmt.Errorf("MAC: %w", err)
	}
	cfg.MAC = mac.String()
	for _, other := range c.state.enis {
		if other.MAC == cfg.MAC && c.state.vpcOf(other) == sub.VPCID {
			return fmt.Errorf("MAC %s is %s's", cfg.MAC, other.ID)
		}
	}
	if cfg.Type == "" {
		cfg.Type = "interface"
	}
	if cfg.AttachStatus == "" && cfg.InstanceID != "" {
		cfg.AttachStatus = "attached"
	}
	if cfg.PrimaryIPv6.IsValid() && !slices.Contains(cfg.IPv6, cfg.PrimaryIPv6) {
		cfg.IPv6 = append([]netip.Addr{cfg.PrimaryIPv6}, cfg.IPv6...)
	}
	if !cfg.Primary.IsValid() && sub.IPv4.IsValid() && cfg.Type != "efa-only" {
		picked, refusal := c.state.pick(sub, false, 1)
		if refusal != nil {
			return refusal
		}
		cfg.Primary = picked[0]
	}
	cfg.Tags = maps.Clone(cfg.Tags)
	return nil
}

// birth is the edits that give a new interface its addresses.
func (s *state) birth(cfg ENI, sub Subnet) ([]edit, error) {
	var edits []edit
	add := func(p netip.Prefix, primary bool) {
		edits = append(edits, edit{block: p, to: cfg.ID, primary: primary})
	}
	if cfg.Primary.IsValid() {
		add(single(cfg.Primary), true)
	}
	for _, a := range cfg.Secondary {
		add(single(a), false)
	}
	for _, a := range cfg.IPv6 {
		add(single(a), a == cfg.PrimaryIPv6)
	}
	for _, p := range cfg.Prefixes {
		add(p, false)
	}
	seen := map[netip.Prefix]bool{}
	for _, ed := range edits {
		if seen[ed.block] {
			return nil, fmt.Errorf("%s is listed twice", ed.block)
		}
		seen[ed.block] = true
		if err := s.available(cfg, sub, ed.block); err != nil {
			return nil, err
		}
	}
	return edits, nil
}

func (s *state) available(cfg ENI, sub Subnet, block netip.Prefix) error {
	if !block.IsSingleIP() {
		if _, err := s.checkPrefixes(&eni{ENI: ENI{ID: cfg.ID}}, sub, []netip.Prefix{block}); err != nil {
			return err
		}
		if block.Bits() != delegationBits(block.Addr()) {
			return fmt.Errorf("prefix %s: want a /28 or an /80", block)
		}
		return nil
	}
	if err := fits(sub, block.Addr()); err != nil {
		return fmt.Errorf("%s: %w", block.Addr(), err)
	}
	if h, taken := s.holder(sub.VPCID, block.Addr()); taken {
		return fmt.Errorf("%s is held by %s", block.Addr(), h.ENI)
	}
	return nil
}

// seat checks an attachment: the instance, its zone, its slots.
func (s *state) seat(e *eni, cfg ENI) error {
	if e.InstanceID == "" {
		return nil
	}
	inst, ok := s.instances[e.InstanceID]
	if !ok {
		return fmt.Errorf("no instance %q", e.InstanceID)
	}
	v4, v6 := 0, len(cfg.IPv6)
	if cfg.Primary.IsValid() {
		v4 = 1 + len(cfg.Secondary)
	}
	for _, p := range cfg.Prefixes {
		if p.Addr().Is6() {
			v6++
		} else {
			v4++
		}
	}
	if v4 > inst.Limits.IPv4PerENI || v6 > inst.Limits.IPv6PerENI {
		return fmt.Errorf("%d IPv4 and %d IPv6 slots: %s allows %d and %d", v4, v6, inst.Type,
			inst.Limits.IPv4PerENI, inst.Limits.IPv6PerENI)
	}
	return s.deviceFree(e, inst)
}

func (s *state) deviceFree(e *eni, inst Instance) error {
	count := 1
	for _, other := range s.enis {
		if other.InstanceID != inst.ID || other.ID == e.ID {
			continue
		}
		count++
		if other.DeviceIndex == e.DeviceIndex && other.NetworkCard == e.NetworkCard {
			return fmt.Errorf("device index %d of card %d is %s's", e.DeviceIndex, e.NetworkCard, other.ID)
		}
		if s.subnets[other.SubnetID].AZ != s.subnets[e.SubnetID].AZ {
			return fmt.Errorf("subnet %s is in another availability zone than %s", e.SubnetID, inst.ID)
		}
	}
	if count > inst.Limits.ENIs {
		return fmt.Errorf("%s allows %d interfaces", inst.Type, inst.Limits.ENIs)
	}
	return nil
}

// Attach attaches a free interface to an instance (hot-plug).
func (c *Cloud) Attach(eniID, instanceID string, deviceIndex int) error {
	return c.change(eniID, func(e *eni) error {
		if e.InstanceID != "" {
			return fmt.Errorf("attached to %s", e.InstanceID)
		}
		e.InstanceID, e.DeviceIndex, e.AttachStatus, e.attached = instanceID, deviceIndex, "attached", time.Now()
		return c.state.seat(e, e.export())
	})
}

// Detach detaches an interface from its instance. It keeps its addresses.
func (c *Cloud) Detach(eniID string) error {
	return c.change(eniID, func(e *eni) error {
		e.InstanceID, e.AttachStatus = "", ""
		return nil
	})
}

// ChangeENI changes tags, security groups, description, attachment status or source/destination check of an
// interface. Addresses are changed with [Cloud.Assign] and [Cloud.Unassign].
func (c *Cloud) ChangeENI(eniID string, change func(*ENI)) error {
	return c.change(eniID, func(e *eni) error {
		cfg := e.ENI
		cfg.Tags = maps.Clone(e.Tags)
		change(&cfg)
		if cfg.ID != e.ID || cfg.SubnetID != e.SubnetID || cfg.InstanceID != e.InstanceID || cfg.MAC != e.MAC {
			return fmt.Errorf("id, MAC, subnet and instance cannot be changed in place")
		}
		e.ENI = cfg
		return nil
	})
}

func (c *Cloud) change(eniID string, change func(*eni) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.state.enis[eniID]
	if !ok {
		return fmt.Errorf("aws: no interface %s", eniID)
	}
	e := old.clone()
	if err := change(e); err != nil {
		return fmt.Errorf("aws: interface %s: %w", eniID, err)
	}
	now := time.Now()
	c.history.remember(eniID, old, now)
	c.state.enis[eniID] = e
	c.history.prune(now, c.settings)
	return nil
}

// DeleteENI takes an interface away with all its addresses.
func (c *Cloud) DeleteENI(eniID string) error {
	err := func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		e, ok := c.state.enis[eniID]
		if !ok {
			return fmt.Errorf("aws: no interface %s", eniID)
		}
		var edits []edit
		for _, h := range slices.Concat(e.v4, e.v6) {
			edits = append(edits, edit{block: single(h.addr), from: eniID, primary: h.primary})
		}
		for _, p := range e.prefixes {
			edits = append(edits, edit{block: p, from: eniID})
		}
		c.commit(edits)
		if len(edits) == 0 {
			c.history.remember(eniID, e, time.Now())
		}
		delete(c.state.enis, eniID)
		return nil
	}()
	c.plane.flush()
	return err
}

// Assign gives addresses to an interface as an operator with all permissions would, moving secondary ones from
// others. It is not in the journal and meets no fault and no throttling.
func (c *Cloud) Assign(eniID string, addrs ...netip.Addr) error {
	return c.operate(addrs, func(v6 bool, texts []string) (outcome, *APIError) {
		if !v6 {
			return decideAssign(c.state, wish{eni: eniID, addrs: texts, allowReassign: true}, c.settings.Quirks)
		}
		var gone []edit
		if e, ok := c.state.enis[eniID]; ok {
			gone = c.state.evict(e, addrs)
		}
		c.commit(gone)
		return decideAssign(c.state, wish{v6: true, eni: eniID, addrs: texts}, Quirks{})
	})
}

// evict is the edits that take IPv6 addresses from other interfaces.
func (s *state) evict(e *eni, addrs []netip.Addr) []edit {
	var out []edit
	for _, a := range addrs {
		h, ok := s.holder(s.vpcOf(e), a)
		if a.Is6() && ok && !h.Primary && !h.InPrefix && h.ENI != e.ID {
			out = append(out, edit{block: single(a), from: h.ENI})
		}
	}
	return out
}

// Unassign takes secondary addresses from an interface, as Assign gives them.
func (c *Cloud) Unassign(eniID string, addrs ...netip.Addr) error {
	return c.operate(addrs, func(v6 bool, texts []string) (outcome, *APIError) {
		return decideUnassign(c.state, farewell{v6: v6, eni: eniID, addrs: texts}, c.settings.Quirks)
	})
}

func (c *Cloud) operate(addrs []netip.Addr, decide func(v6 bool, texts []string) (outcome, *APIError)) error {
	defer c.plane.flush()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v6 := range []bool{false, true} {
		var texts []string
		for _, a := range addrs {
			if a.Is6() == v6 {
				texts = append(texts, a.String())
			}
		}
		if len(texts) == 0 {
			continue
		}
		out, refusal := decide(v6, texts)
		if refusal != nil {
			return fmt.Errorf("aws: %w", refusal)
		}
		c.commit(out.edits)
	}
	return nil
}
