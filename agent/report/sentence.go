package report

import (
	"fmt"
	"strings"
	"unicode"
)

// named is how many addresses a sentence names before it counts.
const named = 3

// Sentence says in one line whether the agent is ready, and if not which address waits for what.
func (s Status) Sentence() string {
	if !s.Ready {
		return "not ready: " + s.why()
	}
	routed := 0
	for _, a := range s.Addresses {
		if a.Routed() {
			routed++
		}
	}
	switch others := len(s.Addresses) - routed; {
	case len(s.Addresses) == 0:
		return "ready: no address to assign"
	case others > 0:
		return fmt.Sprintf("ready: %s routed to this pod, %d not", are(routed), others)
	default:
		return fmt.Sprintf("ready: %s routed to this pod", are(routed))
	}
}

func are(n int) string {
	if n == 1 {
		return "1 address is"
	}
	return fmt.Sprintf("%d addresses are", n)
}

// Routed tells whether the VPC delivers packets for the address to the pod, by all that the agent knows.
func (a AddressStatus) Routed() bool { return a.State == StateAssigned || a.State == StateRouted }

// why is the agent's own reason; where it gives none, what its addresses wait for, and what else it waits for.
func (s Status) why() string {
	if s.Reason != "" {
		return Clean(s.Reason)
	}
	var waiting []string
	for _, a := range s.Addresses {
		if a.Routed() || a.Origin != OriginPod && a.State != StatePending && a.State != StateWaiting {
			continue // a floating address that another ENI holds is in order: its owner is elsewhere
		}
		waiting = append(waiting, a.wait())
	}
	waiting = append(waiting, s.Waiting...)
	if len(waiting) == 0 {
		return "the agent gives no reason"
	}
	if more := len(waiting) - named; more > 0 {
		waiting = append(waiting[:named:named], fmt.Sprintf("and %d more", more))
	}
	return Clean(strings.Join(waiting, "; "))
}

func (a AddressStatus) wait() string {
	what := a.Address
	if a.Interface != "" {
		what += " on " + a.Interface
	}
	what += " is " + a.State
	if why := a.Explain(); why != "" {
		what += ": " + why
	}
	return what
}

// Explain is the reason with the other holder, "" for an address that is routed to the pod.
func (a AddressStatus) Explain() string {
	switch {
	case a.Holder == "" || strings.Contains(a.Reason, a.Holder):
		return a.Reason
	case a.Reason == "":
		return a.Holder + " holds it"
	}
	return a.Reason + " (" + a.Holder + " holds it)"
}

// Clean makes one line of a text that may come from anybody in the pod: it can neither break a table nor speak to a terminal.
func Clean(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
