package run

import (
	"context"
	"errors"
	"slices"
	"time"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/locate"
	"multus-ip-manager.io/agent/plan"
	"multus-ip-manager.io/agent/report"
)

// Keys of what the loop has trouble with besides addresses.
const (
	metadataTrouble = "instance metadata"
	configTrouble   = "the AWS configuration"
)

// reachEC2 makes the EC2 client, and waits for whatever that takes. Only a configuration that contradicts itself is fatal.
func (l *loop) reachEC2() {
	var b backoff
	log := faultLog{log: l.Log}
	for {
		ec2, err := l.Connect(l.life)
		if l.life.Err() != nil {
			return
		}
		if err == nil {
			l.post(func() {
				l.ec2 = ec2
				delete(l.trouble, configTrouble)
			})
			return
		}
		if errors.Is(err, apply.ErrConfiguration) {
			l.post(func() { l.fatal = &report.Failure{Code: report.Usage, Err: err} })
			return
		}
		reason := &report.Failure{Code: report.NoMetadata, Err: err}
		if blocked := l.Routes.Blocked(); blocked != nil {
			reason = &report.Failure{Code: report.NoRoute, Err: blocked}
		}
		l.post(func() { l.trouble[configTrouble] = reason })
		log.tell("waiting for the AWS configuration", reason)
		if sleep(l.life, b.pause(l.Jitter, apply.Unanswered)) != nil {
			return
		}
	}
}

// readAgain has metadata asked about a MAC again: its ENI was detached, or replaced.
func (l *loop) readAgain(mac string) {
	l.stale[mac] = true
	l.locateENIs(plan.Sort(l.snapshot, l.rules()))
}

// locateENIs asks metadata about the MACs of interfaces that are not known yet, beside the loop. What is known already is worked with
// meanwhile.
func (l *loop) locateENIs(c plan.Candidates) {
	var macs []string
	for _, mac := range macsOf(c.All()) {
		if !l.asked[mac] || l.stale[mac] {
			macs = append(macs, mac)
		}
	}
	if len(macs) == 0 {
		if l.stopAsk != nil {
			l.stopAsk()
			l.stopAsk, l.asking = nil, nil
		}
		return
	}
	if l.stopAsk != nil && !slices.ContainsFunc(macs, func(m string) bool { return !slices.Contains(l.asking, m) }) {
		return
	}
	if l.stopAsk != nil {
		l.stopAsk()
	}
	ctx, cancel := context.WithCancel(l.life)
	l.asking, l.stopAsk = macs, cancel
	// All are asked for together, because the answer is about all.
	all := macsOf(c.All())
	again := !slices.ContainsFunc(macs, func(m string) bool { return !l.stale[m] })
	l.calls.Go(func() { l.askMetadata(ctx, c, all, again) })
}

// askMetadata reads the ENIs of the candidates until each MAC is known, or surely foreign. Again tells that all of them were read before,
// so that metadata has had its time to learn of them.
func (l *loop) askMetadata(ctx context.Context, c plan.Candidates, macs []string, again bool) {
	var b backoff
	log := faultLog{log: l.Log}
	for looks, hops := 0, 0; ctx.Err() == nil; {
		enis, err := l.readENIs(ctx, macs)
		foreign := plan.Foreign(c.Wanted, enis)
		last := err != nil || len(foreign) == 0 || again || looks >= patience(foreign)
		if err == nil && last && len(foreign) > 0 {
			enis, err = l.readAll(ctx)
		}
		if err == nil {
			l.post(func() { l.learn(ctx, enis, macs, last) })
			if last {
				return
			}
			looks++
			_ = sleep(ctx, unknownMACPause)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		l.Meter.MetadataError()
		if len(c.Wanted) == 0 {
			// Only the pod's own interface has addresses, and they are the VPC CNI's unless metadata says otherwise.
			l.post(func() { l.learn(ctx, nil, macs, true) })
			return
		}
		hops++
		if !errors.Is(err, locate.ErrHopLimit) {
			hops = 0
		}
		pause := b.pause(l.Jitter, apply.Unanswered)
		var reason error = &report.Failure{Code: passingCode(err), Err: err}
		if lasting := lastingFault(err); lasting != nil {
			reason = lasting
		}
		if lastingFault(err) != nil || hops >= hopLimitTries || errors.Is(err, locate.ErrDisabled) {
			pause = slowly(l.Jitter, 0, refusedRetry, slowCap)
		}
		if blocked := l.Routes.Blocked(); blocked != nil {
			reason = &report.Failure{Code: report.NoRoute, Err: blocked}
		}
		l.post(func() { l.trouble[metadataTrouble] = reason })
		log.tell("waiting for instance metadata", reason)
		_ = sleep(ctx, pause)
	}
}

func (l *loop) readENIs(ctx context.Context, macs []string) ([]plan.ENI, error) {
	defer l.dog.begin("reading metadata")()
	return l.Locate.ENIs(ctx, macs)
}

func (l *loop) readAll(ctx context.Context) ([]plan.ENI, error) {
	defer l.dog.begin("reading metadata")()
	return l.Locate.All(ctx)
}

// learn takes in what metadata told about MACs. The last word settles those that it does not know, too.
func (l *loop) learn(asked context.Context, enis []plan.ENI, macs []string, last bool) {
	if asked.Err() != nil {
		return // others are asked for now
	}
	delete(l.trouble, metadataTrouble)
	for _, e := range enis {
		l.enis[e.MAC] = e
		l.asked[e.MAC] = true
		delete(l.stale, e.MAC)
	}
	if last {
		for _, mac := range macs {
			l.asked[mac] = true
			delete(l.stale, mac)
		}
		l.stopAsk()
		l.stopAsk, l.asking = nil, nil
	}
	l.review(false)
}

// foreignMAC is when a MAC that is no ENI's is asked about again.
type foreignMAC struct {
	due time.Time
	gap time.Duration
}

// reconsider has metadata asked again about MACs that are no ENI's, with growing gaps: it may have learned of an ENI late.
func (l *loop) reconsider(foreign []plan.Address) {
	now := time.Now()
	still := map[string]*foreignMAC{}
	for _, mac := range macsOf(foreign) {
		f := l.foreign[mac]
		if f == nil {
			f = &foreignMAC{due: now, gap: tickEvery}
		}
		if !now.Before(f.due) {
			l.stale[mac] = true
			f.due, f.gap = now.Add(f.gap), min(2*f.gap, time.Hour)
		}
		still[mac] = f
	}
	l.foreign = still
}

// tick is what a sidecar at rest does once a minute.
func (l *loop) tick() {
	if l.worked && l.Tidy != nil {
		l.start("giving memory back", stuckAfter, func(context.Context) func() {
			l.Tidy()
			return func() {}
		})
	}
	l.worked = false
	if w, ok := l.ec2.(Warmer); ok {
		l.start("keeping the way to EC2 warm", stuckAfter, func(ctx context.Context) func() {
			w.Warm(ctx)
			return func() {}
		})
	}
	for addr, until := range l.tenures {
		if time.Since(until) > tenureFor {
			delete(l.tenures, addr)
		}
	}
	c := plan.Sort(l.snapshot, l.rules())
	l.reconsider(plan.Foreign(c.Wanted, l.known()))
	l.locateENIs(c)
	l.drift()
}
