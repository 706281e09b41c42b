package certs

import (
	"bytes"
	"crypto/x509"
	"slices"
	"testing"
	"time"
)

// epoch is a time in whole seconds, as certificates have them.
var epoch = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// cas makes n CAs, each made an hour after the one before and valid for a year.
func cas(t *testing.T, n int) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for i := range n {
		from := epoch.Add(time.Duration(i) * time.Hour)
		all = append(all, NewTestCA(t, from, from.AddDate(1, 0, 0)).Cert())
	}
	return all
}

func TestBundleIsTheSameWhateverTheOrder(t *testing.T) {
	c := cas(t, 3)
	a := bundle{}.successor(epoch, c[2], c[0], c[1], c[0])
	b := bundle{c[0]}.successor(epoch, c[1], c[2])
	if !bytes.Equal(a.encode(), b.encode()) || len(a) != 3 {
		t.Errorf("the same CAs in another order make another bundle: %d and %d certificates", len(a), len(b))
	}
	if got := parseBundle(a.encode()); !bytes.Equal(got.encode(), a.encode()) {
		t.Errorf("a bundle is not read as it was written")
	}
}

func TestDamagedBundleYieldsWhatIsLeft(t *testing.T) {
	c := cas(t, 2)
	good := bundle{c[0]}.encode()
	damaged := bundle{c[1]}.encode()
	copy(damaged[40:], "AAAAAAAA")
	for name, data := range map[string][]byte{
		"noise around":      slices.Concat([]byte("noise\n"), good, []byte("more")),
		"broken neighbour":  slices.Concat(damaged, good),
		"another PEM block": slices.Concat([]byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"), good),
	} {
		if got := parseBundle(data); len(got) != 1 || !got.contains(c[0]) {
			t.Errorf("%s: got %d certificates, want the good one", name, len(got))
		}
	}
	if got := parseBundle([]byte("garbage")); len(got) != 0 {
		t.Errorf("garbage: got %d certificates", len(got))
	}
}

func TestSuccessorForgetsOnlyTheExpired(t *testing.T) {
	c := cas(t, 2)
	end := c[0].NotAfter
	for now, want := range map[time.Time]int{epoch: 2, end: 2, end.Add(time.Second): 1} {
		if got := (bundle{c[0]}).successor(now, c[1]); len(got) != want {
			t.Errorf("at %s: %d CAs, want %d", now, len(got), want)
		}
	}
}

func TestSuccessorIsBounded(t *testing.T) {
	c := cas(t, maxBundle+3)
	got := bundle(c).successor(epoch, c[0], c[1])
	if len(got) != maxBundle {
		t.Fatalf("%d CAs, want %d", len(got), maxBundle)
	}
	for _, i := range []int{0, 1, len(c) - 1} {
		if !got.contains(c[i]) {
			t.Errorf("CA %d is needed or young, and is gone", i)
		}
	}
	if got.contains(c[2]) {
		t.Errorf("the oldest CA that nobody needs is still there")
	}
}
