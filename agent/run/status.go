package run

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"multus-ip-manager.io/agent/apply"
	"multus-ip-manager.io/agent/report"
)

// ask gives the loop's present status. The loop itself answers, so a loop that is stuck has none.
func (l *loop) ask(ctx context.Context) (report.Status, error) {
	answer := make(chan report.Status, 1)
	select {
	case l.inbox <- func() { answer <- l.status() }:
		return <-answer, nil
	case <-l.over:
		return report.Status{}, errors.New("the agent is ending")
	case <-ctx.Done():
		return report.Status{}, ctx.Err()
	}
}

func (l *loop) status() report.Status {
	ready, err := l.readiness()
	s := report.Status{
		Mode: string(l.Settings.Mode), Namespace: l.Settings.Pod.Namespace, Pod: l.Settings.Pod.Name, Started: l.started, Ready: ready,
	}
	if err != nil {
		s.Reason = err.Error()
	}
	if l.missing != nil {
		s.Waiting = append(s.Waiting, l.missing.Error())
	}
	for what, err := range l.trouble {
		s.Waiting = append(s.Waiting, what+": "+err.Error())
	}
	slices.Sort(s.Waiting)
	for _, e := range l.addresses {
		if !e.here() {
			continue
		}
		a := report.AddressStatus{
			Address: e.addr.String(), Interface: e.link, ENI: e.decision.ENI.ID, Subnet: e.decision.ENI.SubnetID,
			Origin: report.OriginFloating, State: e.state, Holder: e.holder, Since: e.since, Attempts: e.attempts,
		}
		var call *apply.OpError
		if e.state == report.StateWaiting && errors.As(e.reason, &call) {
			a.Fault = call.Class.String()
		}
		if e.pod {
			a.Origin = report.OriginPod
		}
		switch {
		case e.state == report.StateAssigned || e.state == report.StateRouted:
		case e.open():
			a.Reason = l.explain(e)
		case e.reason != nil:
			a.Reason = e.reason.Error()
		}
		s.Addresses = append(s.Addresses, a)
	}
	slices.SortFunc(s.Addresses, func(a, b report.AddressStatus) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Address, b.Address))
	})
	return s
}
