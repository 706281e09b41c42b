package certs

import (
	"crypto/x509"
	"testing"
	"time"

	registrationv1 "k8s.io/api/admissionregistration/v1"
)

// seen is the view of a configuration with one entry for each bundle; each CA has been trusted since then.
func seen(since time.Time, bundles ...bundle) view {
	conf := &registrationv1.MutatingWebhookConfiguration{}
	for _, b := range bundles {
		conf.Webhooks = append(conf.Webhooks, registrationv1.MutatingWebhook{ClientConfig: registrationv1.WebhookClientConfig{CABundle: b.encode()}})
	}
	return view{}.next(conf, since, false)
}

func TestDecide(t *testing.T) {
	const settle = 30 * time.Second
	now := epoch.Add(24 * time.Hour)
	c := cas(t, 3)
	first, second, third := c[0], c[1], c[2]
	expired := NewTestCA(t, epoch, now.Add(-time.Second)).Cert()
	future := NewTestCA(t, now.Add(5*time.Minute), now.AddDate(1, 0, 0)).Cert()
	ending := NewTestCA(t, epoch.Add(-time.Hour), now.Add(time.Minute)).Cert()
	long := now.Add(-time.Hour)
	rest := now.Add(lookAgain)

	for name, tc := range map[string]struct {
		v               view
		serving, stored *x509.Certificate
		publish         bundle
		promote         bool
		wake            time.Time
	}{
		"nothing is known yet":                   {wake: rest},
		"no configuration":                       {v: view{synced: true}, stored: first, wake: rest},
		"the first CA is published":              {v: seen(long, nil, nil), stored: first, publish: bundle{first}, wake: rest},
		"the first CA serves once trusted":       {v: seen(now, bundle{first}), stored: first, promote: true, wake: rest},
		"at rest":                                {v: seen(long, bundle{first}), serving: first, stored: first, wake: rest},
		"a new CA is published beside the old":   {v: seen(long, bundle{first}), serving: first, stored: second, publish: bundle{first, second}, wake: rest},
		"a published CA settles first":           {v: seen(now.Add(-settle+time.Second), bundle{first, second}), serving: first, stored: second, wake: now.Add(time.Second)},
		"a settled CA serves":                    {v: seen(now.Add(-settle), bundle{first, second}), serving: first, stored: second, promote: true, wake: rest},
		"one entry without the CA holds it back": {v: seen(long, bundle{first, second}, bundle{first}), serving: first, stored: second, publish: bundle{first, second}, wake: rest},
		"a fresh replica waits like the others":  {v: seen(now, bundle{first, second}), stored: second, wake: now.Add(settle)},
		"our CA was removed by somebody":         {v: seen(long, bundle{second}), serving: first, stored: first, publish: bundle{first, second}, wake: rest},
		"the configuration was made anew":        {v: seen(now, nil), serving: first, stored: first, publish: bundle{first}, wake: rest},
		"no waiting when ours is refused anyway": {v: seen(now, bundle{second, third}), serving: first, stored: second, publish: bundle{first, second, third}, promote: true, wake: rest},
		"no waiting when ours has expired":       {v: seen(now, bundle{expired, second, third}), serving: expired, stored: second, publish: bundle{second, third}, promote: true, wake: rest},
		"an expired CA is never served":          {v: seen(long, bundle{first, expired}), serving: first, stored: expired, publish: bundle{first}, wake: rest},
		"a CA of the future waits for its time":  {v: seen(long, bundle{first, future}), serving: first, stored: future, wake: now.Add(5*time.Minute + settle)},
		"the end of a CA is not slept through":   {v: seen(long, bundle{ending, first}), serving: first, stored: first, wake: now.Add(time.Minute + time.Second)},
		"garbage is cleaned away":                {v: withGarbage(seen(long, bundle{first})), serving: first, stored: first, publish: bundle{first}, wake: rest},
		"an unreadable Secret changes nothing":   {v: seen(long, bundle{first}), serving: first, wake: rest},
	} {
		t.Run(name, func(t *testing.T) {
			d := decide(now, tc.v, tc.serving, tc.stored, settle)
			if string(d.publish.encode()) != string(tc.publish.encode()) {
				t.Errorf("publishes %d CAs, want %d", len(d.publish), len(tc.publish))
			}
			if d.promote != tc.promote {
				t.Errorf("promote = %v, want %v", d.promote, tc.promote)
			}
			if !d.wake.Equal(tc.wake) {
				t.Errorf("looks again after %s, want %s", d.wake.Sub(now), tc.wake.Sub(now))
			}
		})
	}
}

func withGarbage(v view) view {
	v.entries[0].raw += "garbage"
	return v
}

func TestTrustedSince(t *testing.T) {
	c := cas(t, 2)
	old, young := c[0], c[1]
	conf := func(b bundle) *registrationv1.MutatingWebhookConfiguration {
		return &registrationv1.MutatingWebhookConfiguration{Webhooks: []registrationv1.MutatingWebhook{
			{ClientConfig: registrationv1.WebhookClientConfig{CABundle: b.encode()}}}}
	}
	start := epoch.Add(100 * time.Hour)
	v := view{}.next(conf(bundle{old}), start, true)
	if got := v.trustedSince[string(old.Raw)]; !got.Equal(old.NotBefore) {
		t.Errorf("a CA found at the start: since %s, want its own beginning", got)
	}
	v = v.next(conf(bundle{old, young}), start.Add(time.Second), false)
	v = v.next(conf(bundle{old, young}), start.Add(time.Minute), false)
	if got := v.trustedSince[string(young.Raw)]; !got.Equal(start.Add(time.Second)) {
		t.Errorf("a CA that was added: since %s, want when it was first seen", got)
	}
	v = v.next(conf(bundle{old}), start.Add(time.Hour), false)
	v = v.next(conf(bundle{old, young}), start.Add(2*time.Hour), false)
	if got := v.trustedSince[string(young.Raw)]; !got.Equal(start.Add(2 * time.Hour)) {
		t.Errorf("a CA that was gone in between: since %s, want when it came back", got)
	}
}
