package admission

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/admission/cases"
	"multus-ip-manager.io/webhook/inject"
)

// Each case of the table, through the API server: the decision, the pod that comes out, what the client and the audit log are told, and
// that nothing changes the second time.
func TestCases(t *testing.T) {
	all, err := cases.All()
	if err != nil {
		t.Fatal(err)
	}
	plain := shared.namespace(t, nil)
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			if c.Want.Action == "" {
				t.Fatal("the case has no golden file")
			}
			one := &oneCase{Case: c, T: t, plain: plain, namespace: shared.namespace(t, c.NamespaceLabels())}
			if err := json.Unmarshal(c.Object, &one.object); err != nil {
				t.Fatal(err)
			}
			if one.asked, err = c.Asked(); err != nil {
				t.Fatal(err)
			}
			one.run()
		})
	}
}

// oneCase is one case in its namespace.
type oneCase struct {
	cases.Case
	*testing.T

	namespace string
	plain     string // a namespace that is not opted in
	object    map[string]any
	asked     bool
}

func (c *oneCase) run() {
	if c.Operation == "UPDATE" {
		c.update()
		return
	}
	a := c.post(c.namespace, c.object, false)
	c.checkCalls(1)
	switch {
	case c.asked && c.Want.Action == inject.ActionDeny:
		c.checkDenied(a)
		return
	case c.APIServer != "":
		if !apierrors.IsInvalid(a.err) {
			c.Errorf("the API server accepted it (%v), although %s", a.err, c.APIServer)
		}
		return
	case a.err != nil:
		c.Fatal(a.err)
	}
	c.checkWarnings(a)
	c.checkObject(a)
	if c.asked {
		c.checkAudit()
	}
	if len(c.Want.Patch) > 0 {
		c.checkSecondTime(a)
	}
}

// post creates an object in a namespace.
func (c *oneCase) post(namespace string, object map[string]any, dryRun bool) answer {
	object = maps.Clone(object)
	meta := maps.Clone(object["metadata"].(map[string]any))
	meta["namespace"] = namespace
	object["metadata"] = meta
	return shared.post(c.Context(), namespace, c.Resource, object, dryRun)
}

// update changes a pod that is there.
func (c *oneCase) update() {
	a := c.post(c.namespace, c.object, false)
	if a.err != nil {
		c.Fatal(a.err)
	}
	a.pod.Labels = pairs{"changed": "yes"}
	if err := shared.plane.Client.Update(c.Context(), a.pod); err != nil {
		c.Fatal(err)
	}
	if got := shared.calls(c.T, c.namespace); len(got) != 1 {
		c.Errorf("creation and update together asked %v, want one question", got)
	}
}

// checkCalls sees what the webhook was asked and what it decided.
func (c *oneCase) checkCalls(times int) {
	c.Helper()
	got := shared.calls(c.T, c.namespace)
	if !c.asked {
		times = 0
	}
	if len(got) != times {
		c.Errorf("the webhook was asked %d times (%v), want %d", len(got), got, times)
	}
	for _, call := range got {
		if call.Outcome != c.Want.Action || call.Reason != c.Want.Reason || call.Mode != string(c.Want.Mode) {
			c.Errorf("decided %v, want %s %s (%s)", call, c.Want.Action, c.Want.Reason, c.Want.Mode)
		}
	}
}

// here writes the case's namespace where the expectation does.
func (c *oneCase) here(text string) string {
	return strings.ReplaceAll(text, c.namespace, cases.Namespace)
}

func (c *oneCase) checkDenied(a answer) {
	c.Helper()
	entry := c.entry()
	want := `admission webhook "` + entry + `" denied the request: ` + c.Want.Message
	if got := c.here(denial(a.err)); got != want {
		c.Errorf("got %q, want %q (%v)", got, want, a.err)
	}
	code := http.StatusForbidden
	if c.Want.Reason == inject.BadRequest {
		code = http.StatusBadRequest
	}
	e := shared.audit.of(c.T, c.namespace)
	if e.ResponseStatus.Code != code {
		c.Errorf("HTTP status %d, want %d", e.ResponseStatus.Code, code)
	}
	if diff := cmp.Diff(c.Want.Audit, said(e, entry)); diff != "" {
		c.Errorf("audit annotations (-want +got):\n%s", diff)
	}
}

// checkWarnings sees that the client is told the same as in the table. The API server has warnings of its own.
func (c *oneCase) checkWarnings(a answer) {
	c.Helper()
	var got []string
	for _, w := range a.warnings {
		if strings.HasPrefix(w, inject.WarningPrefix) {
			got = append(got, c.here(w))
		}
	}
	var want []string
	if c.asked {
		want = c.Want.Warnings
	}
	if diff := cmp.Diff(want, got); diff != "" {
		c.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// checkObject compares the object with what the API server makes of the same object where nothing is injected, after the expected
// patch: so everything of the user's is as it would be without us, whatever fields it has.
func (c *oneCase) checkObject(a answer) {
	c.Helper()
	want := c.post(c.plain, c.patched(), true)
	if want.err != nil {
		c.Fatalf("without the webhook, after the expected patch: %v", want.err)
	}
	if diff := cmp.Diff(c.comparable(want.object), c.comparable(a.object)); diff != "" {
		c.Errorf("(-want +got)\n%s", diff)
	}
	if c.Resource != "pods" {
		return
	}
	if c.Want.Action == inject.ActionAdjust {
		return // the class is what is repaired: see TestResourcesFollowTheClass
	}
	unchanged := c.post(c.plain, c.object, true)
	if unchanged.err != nil {
		c.Fatal(unchanged.err)
	}
	announced := slices.ContainsFunc(c.Want.Warnings, func(w string) bool { return strings.Contains(w, "BestEffort pod Burstable") })
	if before, after := unchanged.pod.Status.QOSClass, a.pod.Status.QOSClass; before != after && !announced {
		c.Errorf("the pod's QoS class was %s and is %s", before, after)
	}
}

// patched is the case's object after the expected patch.
func (c *oneCase) patched() map[string]any {
	c.Helper()
	if len(c.Want.Patch) == 0 || !c.asked {
		return c.object
	}
	patch, err := jsonpatch.DecodePatch(c.Want.Patch)
	if err != nil {
		c.Fatal(err)
	}
	text, err := patch.Apply(c.Object)
	if err != nil {
		c.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(text, &out); err != nil {
		c.Fatal(err)
	}
	return out
}

// comparable leaves out what differs from one object to the next.
func (c *oneCase) comparable(object map[string]any) map[string]any {
	object = maps.Clone(object)
	meta := maps.Clone(object["metadata"].(map[string]any))
	for _, key := range []string{"uid", "creationTimestamp", "managedFields", "namespace", "resourceVersion", "name"} {
		delete(meta, key)
	}
	object["metadata"] = meta
	if c.Resource == "services" {
		spec := maps.Clone(object["spec"].(map[string]any))
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
		object["spec"] = spec
	}
	return object
}

// entry is the name of the webhook's entry for the case's namespace.
func (c *oneCase) entry() string {
	name := string(c.NamespaceMode)
	if c.NamespaceMode == inject.NamespaceNone {
		name = "default"
	}
	return name + "." + strings.TrimSuffix(settings.Prefix, "/")
}

func (c *oneCase) checkAudit() {
	c.Helper()
	if diff := cmp.Diff(c.Want.Audit, said(shared.audit.of(c.T, c.namespace), c.entry())); diff != "" {
		c.Errorf("audit annotations (-want +got):\n%s", diff)
	}
}

// checkSecondTime creates the pod that came out once more.
func (c *oneCase) checkSecondTime(a answer) {
	c.Helper()
	again := maps.Clone(a.object)
	delete(again, "status")
	again["metadata"] = map[string]any{
		"name": "again", "labels": a.pod.Labels, "annotations": a.pod.Annotations, "generateName": a.pod.GenerateName, "ownerReferences": a.pod.OwnerReferences,
	}
	second := c.post(c.namespace, again, true)
	if second.err != nil {
		c.Fatal(second.err)
	}
	if diff := cmp.Diff(c.comparable(a.object)["spec"], second.object["spec"]); diff != "" {
		c.Errorf("injected a second time (-first +second)\n%s", diff)
	}
	if diff := cmp.Diff(a.pod.Annotations, second.pod.Annotations); diff != "" {
		c.Errorf("annotated a second time (-first +second)\n%s", diff)
	}
	got := shared.calls(c.T, c.namespace)
	if last := got[len(got)-1]; last.Reason != inject.AlreadyInjected || last.Outcome != inject.ActionKeep || !last.DryRun {
		c.Errorf("the second time it decided %+v", last)
	}
}
