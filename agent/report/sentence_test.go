package report

import (
	"strings"
	"testing"
)

func TestSentence(t *testing.T) {
	address := func(addr, origin, state, reason string) AddressStatus {
		return AddressStatus{Address: addr, Interface: "net1", Origin: origin, State: state, Reason: reason}
	}
	assigned := address("10.0.4.80", OriginPod, StateAssigned, "")
	waiting := address("10.0.4.81", OriginPod, StateWaiting, "throttled")
	lost := address("10.0.4.9", OriginFloating, StateLost, "")
	lost.Holder = "eni-7"
	for name, tt := range map[string]struct {
		status Status
		want   string
	}{
		"nothing to do":   {Status{Ready: true}, "ready: no address to assign"},
		"one":             {Status{Ready: true, Addresses: []AddressStatus{assigned}}, "ready: 1 address is routed to this pod"},
		"a routed prefix": {Status{Ready: true, Addresses: []AddressStatus{assigned, address("10.0.4.82", OriginPod, StateRouted, "")}}, "ready: 2 addresses are routed to this pod"},
		"some elsewhere":  {Status{Ready: true, Addresses: []AddressStatus{assigned, lost}}, "ready: 1 address is routed to this pod, 1 not"},
		"its own reason": {Status{Reason: "10.0.4.81 on net1 waits: throttled", Addresses: []AddressStatus{waiting}},
			"not ready: 10.0.4.81 on net1 waits: throttled"},
		"no reason":      {Status{Addresses: []AddressStatus{assigned, waiting, lost}}, "not ready: 10.0.4.81 on net1 is waiting: throttled"},
		"no reason, why": {Status{}, "not ready: the agent gives no reason"},
		"pending":        {Status{Addresses: []AddressStatus{address("10.0.4.9", OriginFloating, StatePending, "")}}, "not ready: 10.0.4.9 on net1 is pending"},
		"what came with the pod is elsewhere": {Status{Addresses: []AddressStatus{{Address: "10.0.4.80", Origin: OriginPod, State: StateLost, Holder: "eni-7", Reason: "claimed later"}}},
			"not ready: 10.0.4.80 is lost: claimed later (eni-7 holds it)"},
		"not an address": {Status{Waiting: []string{"metadata: no answer"}}, "not ready: metadata: no answer"},
		"many": {Status{Addresses: []AddressStatus{waiting, waiting, waiting, waiting}, Waiting: []string{"metadata"}},
			"not ready: " + strings.Repeat("10.0.4.81 on net1 is waiting: throttled; ", 3) + "and 2 more"},
		"more than a line": {Status{Reason: "two\nlines\x1b[2J"}, "not ready: two lines?[2J"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.status.Sentence(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	for want, a := range map[string]AddressStatus{
		"":                       {State: StateAssigned},
		"full":                   {Reason: "full"},
		"eni-7 holds it":         {Holder: "eni-7"},
		"older (eni-7 holds it)": {Holder: "eni-7", Reason: "older"},
		"eni-7 claimed it":       {Holder: "eni-7", Reason: "eni-7 claimed it"},
	} {
		if got := a.Explain(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		" a \t b\r\nc ":            "a b c",
		"\x1b]0;title\x07x":        "?]0;title?x",
		"a\u009b2Jb":               "a?2Jb",
		"right\u202eleft":          "right?left",
		"not UTF-8 \xff":           "not UTF-8 \ufffd",
		"größer … no-break\u00a0x": "größer … no-break x",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}
