package run

import (
	"context"
	"slices"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

// moveGrace is how long an agent that is told to stop, or has failed otherwise, goes on for an address between two ENIs. It is well
// within the time that the kubelet gives a pod to end (30 s).
const moveGrace = 15 * time.Second

// worker puts addresses on one ENI. One call at a time is under way for it.
type worker struct {
	*Agent
	ec2 apply.EC2
	// permanent tells all workers that success has become impossible.
	permanent func()

	eni      plan.ENI
	failures []failure
}

// claimOf makes the claim of an address that came with the pod.
func claimOf(d plan.Decision) apply.Claim {
	return apply.Claim{Addr: d.Address.Addr, ENI: d.ENI.ID, Subnet: d.ENI.SubnetID, CheckHolder: d.CheckHolder, CheckENI: d.CheckENI, PrimaryUnknown: d.PrimaryUnknown}
}

// run makes attempts until all addresses are settled. Calls are bounded by ctx, pauses end with waiting too.
func (w *worker) run(ctx, waiting context.Context, ds []plan.Decision) []failure {
	w.eni = ds[0].ENI
	claims := make([]apply.Claim, len(ds))
	for i, d := range ds {
		claims[i] = claimOf(d)
	}
	w.Log.Info("assigning addresses", "eni", w.eni.ID, "mac", w.eni.MAC, "subnet", w.eni.SubnetID, "addresses", addrsOf(ds))
	left, last := w.settle(ctx, waiting, claims, apply.ClassOf)
	owed := slices.DeleteFunc(slices.Clone(left), func(c apply.Claim) bool { return !c.Owed() })
	if len(owed) < len(left) {
		w.fail(codeAtDeadline(last), last)
	}
	if len(owed) == 0 {
		return w.failures
	}
	// These were taken off other ENIs and are on none: that must be put right whatever else has failed.
	w.Log.Warn("going on for addresses that were taken off another ENI", "eni", w.eni.ID, "addresses", claimed(owed), "for", moveGrace.String())
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveGrace)
	defer cancel()
	if left, last = w.settle(grace, grace, owed, func(error) apply.Class { return apply.Unanswered }); len(left) > 0 {
		w.fail(codeAtDeadline(last), last)
	}
	return w.failures
}

// settle makes attempts until no claim is open or waiting ends; then it gives those that are still open, and the fault they wait
// for. pace says by which class of fault to choose the pause.
func (w *worker) settle(ctx, waiting context.Context, claims []apply.Claim, pace func(error) apply.Class) (left []apply.Claim, last error) {
	applier := apply.Applier{EC2: w.ec2, Log: w.Log, AllowPrimaryENI: w.Settings.AllowPrimaryENI}
	log := faultLog{log: w.Log.With("eni", w.eni.ID)}
	var b backoff
	for {
		before := last
		claims, last = w.attempt(ctx, applier, claims)
		if len(w.failures) > 0 {
			w.permanent()
		}
		if len(claims) == 0 {
			return nil, nil
		}
		last = telling(ctx, before, last)
		if blocked := w.Routes.Blocked(); blocked != nil && !slices.ContainsFunc(claims, apply.Claim.Owed) {
			w.permanent()
			w.fail(report.NoRoute, blocked)
			return nil, nil
		}
		log.tell("waiting to try again", last, "addresses", claimed(claims))
		if err := sleep(waiting, b.pause(w.Jitter, pace(last))); err != nil {
			return claims, last
		}
		if apply.ClassOf(last) == apply.Gone {
			w.eni = w.relocate(ctx, w.eni)
			for i := range claims {
				claims[i].ENI, claims[i].Subnet = w.eni.ID, w.eni.SubnetID
			}
		}
	}
}

// attempt makes one attempt and notes what is settled. It gives the claims that are still open, and the fault to wait for.
func (w *worker) attempt(ctx context.Context, applier apply.Applier, claims []apply.Claim) (open []apply.Claim, last error) {
	started := time.Now()
	for _, o := range applier.Attempt(ctx, w.eni.ID, w.eni.SubnetID, claims) {
		switch o.Verdict {
		case apply.Done:
			w.Log.Info("address assigned", "address", o.Claim.Addr, "eni", w.eni.ID, "duration", time.Since(started).Round(time.Microsecond).String())
		case apply.Rejected:
			w.Log.Error("address refused", "address", o.Claim.Addr, "eni", w.eni.ID, "error", o.Err)
			w.fail(report.AddressRefused, o.Err)
		case apply.Forbidden:
			w.fail(report.Permission, o.Err)
		case apply.Again, apply.Yielded:
			// An address that came with the pod is the pod's by its IPAM's word, so a newer claim by somebody else is a
			// conflict to be waited out, not an end.
			open = append(open, o.Claim)
			last = heavier(last, o.Err)
		}
	}
	return open, last
}

func (w *worker) fail(code report.Code, err error) {
	w.failures = append(w.failures, failure{code, err})
}

// relocate asks metadata again who has the MAC: an ENI that is being replaced comes back under another id.
func (w *worker) relocate(ctx context.Context, eni plan.ENI) plan.ENI {
	enis, err := w.Locate.ENIs(ctx, []string{eni.MAC})
	if err != nil {
		w.Log.Warn("cannot read metadata again", "mac", eni.MAC, "error", err)
		return eni
	}
	for _, e := range enis {
		if e.MAC == eni.MAC {
			return e
		}
	}
	return eni
}

// heavier chooses, of two faults of one attempt, the one to wait for: the slower to pass.
func heavier(a, b error) error {
	if a == nil || weight(b) > weight(a) {
		return b
	}
	return a
}

func weight(err error) int {
	switch apply.ClassOf(err) {
	case apply.Full:
		return 2
	case apply.Throttled, apply.Contested:
		return 1
	default:
		return 0
	}
}

// codeAtDeadline gives the exit code for a fault that did not pass in time.
func codeAtDeadline(last error) report.Code {
	if apply.ClassOf(last) == apply.Full {
		return report.ENIFull
	}
	return report.GaveUp
}

func claimed(claims []apply.Claim) []string {
	s := make([]string, len(claims))
	for i, c := range claims {
		s[i] = c.Addr.String()
	}
	return s
}
