// Package run holds the agent's loops: what is done in which order, what is waited for, and when it is over.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/observe"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
	"multus-ip-manager.io/agent/settings"
)

// Observer reads the pod's network namespace. [observe.Namespace] is the real one.
type Observer interface {
	Snapshot(ctx context.Context) (plan.Snapshot, error)
}

// Locator knows the node's ENIs. [*locate.Finder] is the real one.
type Locator interface {
	ENIs(ctx context.Context, macs []string) ([]plan.ENI, error)
	All(ctx context.Context) ([]plan.ENI, error)
}

// RouteWatch notices connections that the pod's own routes swallow. [*observe.Guard] is the real one.
type RouteWatch interface {
	Manage(links map[int]string)
	Blocked() *observe.RouteError
}

// Agent is one agent with everything it works with.
type Agent struct {
	Settings settings.Agent
	Observe  Observer
	Locate   Locator
	// Connect makes the EC2 client. It may have to ask metadata for the Region, so it may fail for a while.
	Connect func(ctx context.Context) (apply.EC2, error)
	Routes  RouteWatch
	Log     *slog.Logger
	// Jitter spreads what many agents do.
	Jitter Jitter
}

// errDeadline is the cause of a context that ended at the agent's deadline.
var errDeadline = errors.New("the deadline has passed")

const (
	// hopLimitTries is how often in a row metadata must behave as with a hop limit that is too small before that is believed: a
	// single lost packet looks the same.
	hopLimitTries = 3
	// unknownMACLooks is how often metadata is read again for a MAC it does not know: it lags behind the attachment of an ENI.
	unknownMACLooks = 10
	// sharedMACLooks is the same for an interface that surely has the MAC of one of the node's: about ten seconds, not five.
	sharedMACLooks = 20
	// unknownMACPause lies between those looks.
	unknownMACPause = 500 * time.Millisecond
	// tellEvery is how often a fault that lasts is logged again.
	tellEvery = 30 * time.Second
)

// Init assigns the addresses that the pod has now, and returns once EC2's own answers say that each is on its ENI. The error is a
// [*report.Failure].
func (a *Agent) Init(ctx context.Context) error {
	started := time.Now()
	if a.Settings.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, a.Settings.Deadline, errDeadline)
		defer cancel()
	}
	snapshot, err := a.Observe.Snapshot(ctx)
	if err != nil {
		return report.Fail(report.GaveUp, "read the pod's addresses: %w", err)
	}
	if err := a.shortfall(snapshot, a.expectation()); err != nil {
		return err
	}
	rules := a.rules()
	candidates := plan.Sort(snapshot, rules)
	if len(candidates.All()) == 0 {
		a.tell(ctx, plan.Plan{Skipped: candidates.Skipped})
		a.Log.Info("no address to assign: no managed interface has a global address")
		return nil
	}
	a.manage(candidates.Wanted)
	ec2 := a.connectAhead(ctx, candidates)

	enis, err := a.locate(ctx, candidates)
	if err != nil {
		return err
	}
	p := candidates.Plan(enis, rules)
	a.tell(ctx, p)
	if len(p.Assign) == 0 && len(p.Refused) == 0 {
		a.Log.Info("no address to assign", "routed", len(p.Routed), "skipped", len(p.Skipped))
		return nil
	}
	if err := a.assign(ctx, ec2, p); err != nil {
		return err
	}
	a.Log.Info("all addresses are on their ENIs", "addresses", len(p.Assign), "duration", time.Since(started).Round(time.Microsecond).String())
	return nil
}

func (a *Agent) rules() plan.Rules {
	s := a.Settings
	return plan.Rules{
		PodIPs:          s.Pod.IPs,
		Interfaces:      s.Interfaces,
		Ignore:          s.Ignore,
		AllowPrimaryENI: s.AllowPrimaryENI,
		MapBySubnet:     s.MapBySubnet,
		VPCCNISubnets:   s.VPCCNISubnets,
	}
}

// expectation gives the interfaces that the pod asked for. The interfaces setting, where given, says which of them exist as interfaces at
// all.
func (a *Agent) expectation() (want plan.Expectation) {
	if len(a.Settings.Interfaces) > 0 {
		want.Names = a.Settings.Interfaces
	} else {
		if a.Settings.NetworksErr != nil {
			a.Log.Warn("the networks annotation cannot be read, so its interfaces are not checked", "error", a.Settings.NetworksErr)
		}
		for _, n := range a.Settings.Networks {
			if n.Interface == "" {
				want.Unnamed++
			} else {
				want.Names = append(want.Names, n.Interface)
			}
		}
	}
	return want
}

// shortfall checks that Multus made the interfaces.
func (a *Agent) shortfall(s plan.Snapshot, want plan.Expectation) error {
	short := plan.Missing(s, a.Settings.Pod.IPs, want)
	if !short.Any() {
		return nil
	}
	missing := short.Names
	if short.Unnamed > 0 {
		missing = append(missing, fmt.Sprintf("%d unnamed", short.Unnamed))
	}
	return report.Fail(report.InterfaceMissing, "interfaces that the pod asked for are missing (%s): Multus was not ready when the pod's sandbox was made, "+
		"and interfaces do not come later: delete the pod; a network that makes no interface (VFIO, DPDK) is left out by naming the others in the annotation %s",
		strings.Join(missing, ", "), settings.KeyInterfaces)
}

// manage names the interfaces whose addresses do not work yet, for the check of the agent's own routes.
func (a *Agent) manage(wanted []plan.Address) {
	links := map[int]string{}
	for _, w := range wanted {
		links[w.Link.Index] = w.Link.Name
	}
	a.Routes.Manage(links)
}

// locate reads the ENIs the candidates need, and waits for metadata that is away.
func (a *Agent) locate(ctx context.Context, c plan.Candidates) ([]plan.ENI, error) {
	macs := macsOf(c.All())
	var b backoff
	var last error
	hops := 0
	log := faultLog{log: a.Log}
	for looks := 0; ; {
		enis, err := a.Locate.ENIs(ctx, macs)
		if err == nil && len(plan.Foreign(c.Wanted, enis)) > 0 {
			enis, err = a.Locate.All(ctx)
			if foreign := plan.Foreign(c.Wanted, enis); err == nil && looks < patience(foreign) {
				looks++
				last = fmt.Errorf("no ENI of this node has the MAC of %s yet", foreign[0].Link)
				log.tell("waiting for instance metadata", last)
				if stop := sleep(ctx, unknownMACPause); stop != nil {
					return nil, a.stopped(stop, report.NoMetadata, last)
				}
				continue
			}
		}
		if err == nil {
			return enis, nil
		}
		if len(c.Wanted) == 0 {
			// Only the pod's own interface has addresses, and they are the VPC CNI's unless metadata says otherwise.
			a.Log.Info("no metadata; the pod's own interface is taken for the VPC CNI's", "error", err)
			return nil, nil
		}
		if blocked := a.Routes.Blocked(); blocked != nil {
			return nil, &report.Failure{Code: report.NoRoute, Err: blocked}
		}
		if lasting := lastingFault(err); lasting != nil {
			return nil, lasting
		}
		if last = telling(ctx, last, err); errors.Is(last, locate.ErrHopLimit) {
			hops++
		} else {
			hops = 0
		}
		if hops == hopLimitTries || errors.Is(last, locate.ErrDisabled) {
			return nil, &report.Failure{Code: report.NoMetadata, Err: last}
		}
		log.tell("waiting for instance metadata", last)
		if stop := sleep(ctx, b.pause(a.Jitter, apply.Unanswered)); stop != nil {
			return nil, a.stopped(stop, passingCode(last), last)
		}
	}
}

// passingCode is the code of a look for ENIs that is still in vain at the deadline: where EC2 was asked in place of metadata, the fault is
// EC2's or that of the pod's own credentials.
func passingCode(err error) report.Code {
	var op *apply.OpError
	if errors.As(err, &op) {
		return report.GaveUp
	}
	return report.NoMetadata
}

// lastingFault is the failure of a look for ENIs that waiting does not mend, where EC2 was asked in place of metadata; nil for any other.
func lastingFault(err error) error {
	switch {
	case errors.Is(err, apply.ErrConfiguration):
		return &report.Failure{Code: report.Usage, Err: err}
	case apply.ClassOf(err) == apply.Denied:
		return &report.Failure{Code: report.Permission, Err: err}
	}
	return nil
}

// patience is how often metadata is read again for these addresses on interfaces with unknown MACs.
func patience(foreign []plan.Address) int {
	switch {
	case !slices.ContainsFunc(foreign, func(a plan.Address) bool { return a.Link.MAC != "" }):
		return 0 // none, or links such as tunnels, which have no MAC that metadata could learn
	case slices.ContainsFunc(foreign, func(a plan.Address) bool { return a.Link.SharesMAC() }):
		return sharedMACLooks
	default:
		return unknownMACLooks
	}
}

// telling chooses the fault to report: an attempt that was cut off by the agent's own end says less than the one before it.
func telling(ctx context.Context, before, now error) error {
	if ctx.Err() != nil && before != nil {
		return before
	}
	return now
}

func macsOf(addrs []plan.Address) []string {
	var macs []string
	for _, w := range addrs {
		if w.Link.MAC != "" && !slices.Contains(macs, w.Link.MAC) {
			macs = append(macs, w.Link.MAC)
		}
	}
	return macs
}

// stopped is the failure of an agent that was interrupted while it waited for last to pass.
func (a *Agent) stopped(cause error, code report.Code, last error) error {
	if errors.Is(cause, errDeadline) {
		return report.Fail(code, "gave up after %s: %w", a.Settings.Deadline, last)
	}
	return report.Fail(report.GaveUp, "told to stop while waiting: %w", last)
}

// tell logs the plan. What is left alone as a matter of course is for those who look for it; what somebody may have expected to be
// assigned is a warning.
func (a *Agent) tell(ctx context.Context, p plan.Plan) {
	for _, d := range p.Skipped {
		level := slog.LevelDebug
		if d.Reason == plan.ReasonDADFailed || d.Reason == plan.ReasonDuplicate || d.Reason == plan.ReasonForeignNetwork && d.Address.Link.SharesMAC() {
			level = slog.LevelWarn
		}
		a.Log.Log(ctx, level, "address left alone", "address", d.Address.Addr, "interface", d.Address.Link.Name, "reason", d.Reason, "explanation", d.Explain())
	}
	for _, d := range p.Routed {
		a.Log.Info("address is routed already", "address", d.Address.Addr, "interface", d.Address.Link.Name, "eni", d.ENI.ID, "reason", d.Reason)
	}
	for _, d := range p.Refused {
		a.Log.Error("address refused", "address", d.Address.Addr, "interface", d.Address.Link.Name, "eni", d.ENI.ID, "reason", d.Reason, "explanation", d.Explain())
	}
}

// assign works through the plan, ENIs side by side. A fault that cannot pass, on whichever ENI, ends the waiting of all; calls
// under way are finished first, and every good address has had its attempt.
func (a *Agent) assign(ctx context.Context, ahead func() (apply.EC2, error), p plan.Plan) error {
	if len(p.Assign) == 0 {
		return a.worst(ctx, refusals(p))
	}
	ec2, err := a.connect(ctx, ahead)
	if err != nil {
		return err
	}
	waiting, stopWaiting := context.WithCancelCause(ctx)
	defer stopWaiting(nil)
	if len(p.Refused) > 0 {
		stopWaiting(errPermanent)
	}
	byENI := map[string][]plan.Decision{}
	for _, d := range p.Assign {
		byENI[d.ENI.ID] = append(byENI[d.ENI.ID], d)
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		failures = refusals(p)
	)
	for _, ds := range byENI {
		wg.Go(func() {
			w := worker{Agent: a, ec2: ec2, permanent: func() { stopWaiting(errPermanent) }}
			fs := w.run(ctx, waiting, ds)
			mu.Lock()
			defer mu.Unlock()
			failures = append(failures, fs...)
		})
	}
	wg.Wait()
	if len(failures) == 0 {
		return nil
	}
	return a.worst(ctx, failures)
}

// refusals are the failures that the plan alone tells.
func refusals(p plan.Plan) []failure {
	var failures []failure
	for _, d := range p.Refused {
		failures = append(failures, failure{code: report.AddressRefused, err: errors.New(d.Explain())})
	}
	return failures
}

// errPermanent is the cause of waiting that was cut short because success has become impossible.
var errPermanent = errors.New("another fault cannot pass")

// connectAhead makes the EC2 client while metadata is still being read for the plan: Region, credentials and the node's identity
// come from the same place, side by side. The function it gives waits for the outcome.
func (a *Agent) connectAhead(ctx context.Context, c plan.Candidates) func() (apply.EC2, error) {
	if len(c.Wanted) == 0 {
		return func() (apply.EC2, error) { return a.Connect(ctx) }
	}
	type outcome struct {
		ec2 apply.EC2
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		ec2, err := a.Connect(ctx)
		done <- outcome{ec2, err}
	}()
	return func() (apply.EC2, error) {
		o := <-done
		return o.ec2, o.err
	}
}

// connect waits for the EC2 client made ahead, and for metadata that is away. The Region is asked of metadata when the
// environment does not tell it.
func (a *Agent) connect(ctx context.Context, try func() (apply.EC2, error)) (apply.EC2, error) {
	var b backoff
	var last error
	log := faultLog{log: a.Log}
	for {
		ec2, err := try()
		if err == nil {
			return ec2, nil
		}
		if errors.Is(err, apply.ErrConfiguration) {
			return nil, &report.Failure{Code: report.Usage, Err: err}
		}
		if blocked := a.Routes.Blocked(); blocked != nil {
			return nil, &report.Failure{Code: report.NoRoute, Err: blocked}
		}
		last = telling(ctx, last, err)
		log.tell("waiting for the AWS configuration", last)
		if stop := sleep(ctx, b.pause(a.Jitter, apply.Unanswered)); stop != nil {
			return nil, a.stopped(stop, report.NoMetadata, last)
		}
		try = func() (apply.EC2, error) { return a.Connect(ctx) }
	}
}

// failure is one reason why the pod cannot start.
type failure struct {
	code report.Code
	err  error
}

// severity orders the causes when there are several: what the operator has to mend first comes first.
var severity = []report.Code{report.Permission, report.NoRoute, report.AddressRefused, report.ENIFull, report.NoMetadata, report.GaveUp}

// worst makes one failure of several, named after the gravest.
func (a *Agent) worst(ctx context.Context, failures []failure) error {
	slices.SortStableFunc(failures, func(x, y failure) int {
		return slices.Index(severity, x.code) - slices.Index(severity, y.code)
	})
	code := failures[0].code
	var texts []string
	for _, f := range failures {
		// What only waited when something else ended the agent is no cause.
		if t := f.err.Error(); f.code == code && !slices.Contains(texts, t) {
			texts = append(texts, t)
		}
	}
	err := errors.New(strings.Join(texts, "; "))
	switch code {
	case report.GaveUp, report.ENIFull, report.NoMetadata:
		return a.stopped(context.Cause(ctx), code, err)
	default:
		return &report.Failure{Code: code, Err: err}
	}
}

// faultLog logs a fault when it is new, and again after a while, so that a log shows a long outage without being filled by it.
type faultLog struct {
	log  *slog.Logger
	text string
	at   time.Time
}

func (f *faultLog) tell(what string, err error, args ...any) {
	text := what + sameness(err)
	if text == f.text && time.Since(f.at) < tellEvery {
		return
	}
	f.text, f.at = text, time.Now()
	f.log.Warn(what, append([]any{"error", err}, args...)...)
}

// sameness is what two faults have in common that are the same to a reader: not the request id, which every answer of EC2 has anew,
// and not the port a broken connection came from.
func sameness(err error) string {
	var op *apply.OpError
	if errors.As(err, &op) {
		return op.Op + op.ENI + op.Code + op.Class.String()
	}
	return err.Error()
}

// addrsOf lists the addresses of decisions, for log lines.
func addrsOf(ds []plan.Decision) []netip.Addr {
	addrs := make([]netip.Addr, len(ds))
	for i, d := range ds {
		addrs[i] = d.Address.Addr
	}
	return addrs
}
