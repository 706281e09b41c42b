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
}

// run makes attempts until all addresses are settled. Calls are bounded by ctx, pauses end with waiting too.
func (w *worker) run(ctx, waiting context.Context, ds []plan.Decision) []failure {
	eni := ds[0].ENI
	log := faultLog{log: w.Log.With("eni", eni.ID)}
	claims := make([]apply.Claim, len(ds))
	for i, d := range ds {
		claims[i] = apply.Claim{Addr: d.Address.Addr, ENI: eni.ID, Subnet: eni.SubnetID, CheckHolder: d.CheckHolder, CheckENI: d.CheckENI}
	}
	w.Log.Info("assigning addresses", "eni", eni.ID, "mac", eni.MAC, "subnet", eni.SubnetID, "addresses", addrsOf(ds))
	applier := apply.Applier{EC2: w.ec2, Log: w.Log, AllowPrimaryENI: w.Settings.AllowPrimaryENI}
	var failures []failure
	var b backoff
	var before error
	var grace bool
	for {
		started := time.Now()
		outcomes := applier.Attempt(ctx, eni.ID, eni.SubnetID, claims)
		claims = claims[:0:0]
		var last error
		for _, o := range outcomes {
			switch o.Verdict {
			case apply.Done:
				w.Log.Info("address assigned", "address", o.Claim.Addr, "eni", eni.ID, "duration", time.Since(started).Round(time.Microsecond).String())
			case apply.Rejected:
				w.Log.Error("address refused", "address", o.Claim.Addr, "eni", eni.ID, "error", o.Err)
				failures = append(failures, failure{report.AddressRefused, o.Err})
			case apply.Forbidden:
				failures = append(failures, failure{report.Permission, o.Err})
			case apply.Again, apply.Yielded:
				// An address that came with the pod is the pod's by its IPAM's word, so a newer claim by somebody else is a
				// conflict to be waited out, not an end.
				claims = append(claims, o.Claim)
				last = heavier(last, o.Err)
			}
		}
		if len(failures) > 0 {
			w.permanent()
		}
		if len(claims) == 0 {
			return failures
		}
		last = telling(ctx, before, last)
		before = last
		if blocked := w.Routes.Blocked(); blocked != nil && !grace {
			w.permanent()
			return append(failures, failure{report.NoRoute, blocked})
		}
		log.tell("waiting to try again", last, "addresses", claimed(claims))
		pace := apply.ClassOf(last)
		if grace {
			pace = apply.Unanswered
		}
		if err := sleep(waiting, b.pause(pace)); err != nil {
			owed := slices.DeleteFunc(slices.Clone(claims), func(c apply.Claim) bool { return !c.Owed() })
			if len(owed) == 0 || grace {
				return append(failures, failure{codeAtDeadline(last), last})
			}
			if len(owed) < len(claims) {
				failures = append(failures, failure{codeAtDeadline(last), last})
			}
			// These were taken off other ENIs and are on none: that must be put right whatever else has failed.
			w.Log.Warn("going on for addresses that were taken off another ENI", "eni", eni.ID, "addresses", claimed(owed), "for", moveGrace.String())
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), moveGrace)
			defer cancel()
			claims, waiting, grace, b, before = owed, ctx, true, backoff{}, nil
			continue
		}
		if apply.ClassOf(last) == apply.Gone {
			eni = w.relocate(ctx, eni)
			for i := range claims {
				claims[i].ENI, claims[i].Subnet = eni.ID, eni.SubnetID
			}
		}
	}
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
