package chart

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/webhook/inject"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { os.Exit(plane.Main(m)) }

const (
	releaseName      = "mim"
	releaseNamespace = "mim-system"
)

func offlineHelm(t *testing.T) (*plane.Helm, string) {
	t.Helper()
	helm, err := plane.NewHelm(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := plane.ChartDir()
	if err != nil {
		t.Fatal(err)
	}
	return helm, dir
}

func values(t *testing.T, name string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "values", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func render(t *testing.T, v any) string {
	t.Helper()
	helm, dir := offlineHelm(t)
	out, err := helm.Template(t.Context(), plane.Release{Name: releaseName, Namespace: releaseNamespace, Chart: dir, Values: v})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func valueSets(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "values", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("value sets: %v, %v", files, err)
	}
	for i, file := range files {
		files[i] = strings.TrimSuffix(filepath.Base(file), ".yaml")
	}
	return files
}

func TestGolden(t *testing.T) {
	sets := valueSets(t)
	for _, name := range sets {
		t.Run(name, func(t *testing.T) {
			got := render(t, values(t, name))
			file := filepath.Join("testdata", "golden", name+".yaml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (go test ./test/chart -update makes it)", err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("render differs from %s (-want +got); if it is meant: go test ./test/chart -update\n%s", file, diff)
			}
		})
	}
	golden, err := filepath.Glob(filepath.Join("testdata", "golden", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range golden {
		if !slices.Contains(sets, strings.TrimSuffix(filepath.Base(file), ".yaml")) {
			t.Errorf("%s belongs to no value set", file)
		}
	}
}

func TestLint(t *testing.T) {
	helm, dir := offlineHelm(t)
	for _, name := range valueSets(t) {
		out, err := helm.Lint(t.Context(), plane.Release{Chart: dir, Values: values(t, name)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for line := range strings.Lines(out) {
			// Linting knows no release and no opinion of ours on icons.
			if strings.HasPrefix(line, "[") && !strings.Contains(line, "icon is recommended") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

// Whoever renders keys or bundles tears them apart from what is served at the next upgrade.
func TestNoSecretsAndNoBundles(t *testing.T) {
	for _, name := range valueSets(t) {
		out := render(t, values(t, name))
		for _, object := range decode(t, out) {
			if object.GetKind() == "Secret" {
				t.Errorf("%s renders Secret %s", name, object.GetName())
			}
		}
		if strings.Contains(out, "caBundle:") {
			t.Errorf("%s renders a caBundle", name)
		}
		if again := render(t, values(t, name)); again != out {
			t.Errorf("%s renders differently each time: GitOps tools would never rest", name)
		}
	}
}

func decode(t *testing.T, manifests string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := plane.Decode([]byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func configuration(t *testing.T, manifests string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	for _, object := range decode(t, manifests) {
		if object.GetKind() != "MutatingWebhookConfiguration" {
			continue
		}
		out := &admissionregistrationv1.MutatingWebhookConfiguration{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, out, true); err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Fatal("no webhook configuration was rendered")
	return nil
}

// The chart's entries and the paths that the webhook serves are two lists of the same thing.
func TestEntriesAreThePathsOfTheWebhook(t *testing.T) {
	got := map[string]string{} // path: the selector's words about the mode
	for _, entry := range configuration(t, render(t, nil)).Webhooks {
		var words []string
		for _, expression := range entry.NamespaceSelector.MatchExpressions {
			if expression.Key == settings.KeyMode {
				words = append(words, string(expression.Operator)+" "+strings.Join(expression.Values, ","))
			}
		}
		got[*entry.ClientConfig.Service.Path] = strings.TrimSpace(strings.Join(words, "; "))
	}
	want := map[string]string{}
	var modes []string
	for _, mode := range settings.Modes() {
		modes = append(modes, string(mode))
	}
	for _, path := range inject.Paths() {
		switch {
		case path.Label != "":
			want[path.Path] = "In " + path.Label
		case path.NamespaceMode == inject.NamespaceNone:
			want[path.Path] = "DoesNotExist"
		default:
			want[path.Path] = "Exists ; NotIn " + strings.Join(modes, ",")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("webhook/inject serves (-), the chart has (+):\n%s", diff)
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"https://192.0.2.1:9443":     "https://192.0.2.1:9443/mutate",
		"https://192.0.2.1:9443/":    "https://192.0.2.1:9443/mutate",
		"https://hook.example.com":   "https://hook.example.com/mutate",
		"https://[2001:db8::1]:9443": "https://[2001:db8::1]:9443/mutate",
	} {
		out := render(t, map[string]any{"webhook": map[string]any{"url": url}})
		config := configuration(t, out)
		if got := *config.Webhooks[0].ClientConfig.URL; got != want {
			t.Errorf("%s: called at %s, want %s", url, got, want)
		}
		for _, object := range decode(t, out) {
			if slices.Contains([]string{"Deployment", "Service", "PodDisruptionBudget"}, object.GetKind()) {
				t.Errorf("%s: renders a %s although the webhook runs elsewhere", url, object.GetKind())
			}
		}
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	type set = map[string]any
	long := strings.Repeat("a", 64)
	tests := map[string]struct {
		values set
		says   string // part of the message
	}{
		"misspelt at the top":          {set{"replicas": 3}, "replicas"},
		"misspelt inside":              {set{"webhook": set{"uri": "https://a"}}, "uri"},
		"number as text":               {set{"replicaCount": "2"}, "replicaCount"},
		"negative replicas":            {set{"replicaCount": -1}, "replicaCount"},
		"boolean as text":              {set{"hostNetwork": "true"}, "hostNetwork"},
		"unknown mode":                 {set{"agent": set{"mode": "daemon"}}, "mode"},
		"a mode that is not there yet": {set{"agent": set{"mode": "node"}}, "mode"},
		"empty mode":                   {set{"agent": set{"mode": ""}}, "mode"},
		"metrics at a system's port":   {set{"agent": set{"metricsPort": 80}}, "metricsPort"},
		"deadline without unit":        {set{"agent": set{"deadline": "90"}}, "from 1s to 24h"},
		"deadline too long":            {set{"agent": set{"deadline": "48h"}}, "from 1s to 24h"},
		"deadline too long by a bit":   {set{"agent": set{"deadline": "23h59m61s"}}, "from 1s to 24h"},
		"deadline too short":           {set{"agent": set{"deadline": "500ms"}}, "from 1s to 24h"},
		"deadline of nothing":          {set{"agent": set{"deadline": "0s"}}, "from 1s to 24h"},
		"environment of the agent":     {set{"agent": set{"env": []set{{"name": "MIM_POD_NAME", "value": "a"}}}}, "MIM_POD_NAME"},
		"environment twice":            {set{"agent": set{"env": []set{{"name": "A", "value": "a"}, {"name": "A", "value": "b"}}}}, "agent.env names A twice"},
		"also where it runs elsewhere": {set{"agent": set{"deadline": "48h"}, "webhook": set{"url": "https://a"}}, "from 1s to 24h"},
		"a port twice":                 {set{"ports": set{"health": 9443}}, "must differ"},
		"subnets as text":              {set{"agent": set{"vpcCNISubnets": "subnet-1,subnet-2"}}, "vpcCNISubnets"},
		"not a subnet":                 {set{"agent": set{"vpcCNISubnets": []string{"10.0.0.0/8"}}}, "vpcCNISubnets"},
		"environment as map":           {set{"agent": set{"env": set{"A": "b"}}}, "env"},
		"environment without value":    {set{"agent": set{"env": []set{{"name": "A"}}}}, "value"},
		"environment with a number":    {set{"agent": set{"env": []set{{"name": "A", "value": 1}}}}, "value"},
		"environment with a bad name":  {set{"agent": set{"env": []set{{"name": "A=B", "value": ""}}}}, "name"},
		"plain http":                   {set{"webhook": set{"url": "http://192.0.2.1"}}, "url"},
		"url with a query":             {set{"webhook": set{"url": "https://a?b"}}, "url"},
		"url with a user":              {set{"webhook": set{"url": "https://a@b"}}, "url"},
		"url with a path":              {set{"webhook": set{"url": "https://a/b"}}, "without a path"},
		"url with a path's beginning":  {set{"webhook": set{"url": "https://a//"}}, "without a path"},
		"failure policy":               {set{"webhook": set{"failurePolicy": "fail"}}, "failurePolicy"},
		"timeout the server refuses":   {set{"webhook": set{"timeoutSeconds": 31}}, "timeoutSeconds"},
		"namespace name too long":      {set{"webhook": set{"excludedNamespaces": []string{long}}}, "excludedNamespaces"},
		"unknown source":               {set{"certs": set{"source": "vault"}}, "source"},
		"secret without a name":        {set{"certs": set{"source": "secret"}}, "certs.secretName"},
		"tag in the repository":        {set{"image": set{"repository": "a@sha256"}}, "repository"},
		"short digest":                 {set{"image": set{"digest": "sha256:12"}}, "digest"},
		"pull policy":                  {set{"image": set{"pullPolicy": "Sometimes"}}, "pullPolicy"},
		"pull secret as text":          {set{"imagePullSecrets": []string{"a"}}, "imagePullSecrets"},
		"port":                         {set{"ports": set{"webhook": 70000}}, "webhook"},
		"port of a system's":           {set{"ports": set{"webhook": 1023}}, "/ports/webhook"},
		"health at a system's port":    {set{"ports": set{"health": 80}}, "/ports/health"},
		"the Service's own port":       {set{"ports": set{"metrics": 443}}, "/ports/metrics"},
		"all may be drained":           {set{"podDisruptionBudget": set{"maxUnavailable": 2}}, "end all 2 replicas"},
		"nearly all, rounded up":       {set{"podDisruptionBudget": set{"maxUnavailable": "67%"}, "replicaCount": 3}, "end all 3 replicas"},
		"variable twice":               {set{"extraEnv": []set{{"name": "A", "value": "a"}, {"name": "A", "value": "b"}}}, "extraEnv names A twice"},
		"shorter than cert-manager's":  {set{"certs": set{"source": "cert-manager", "certManager": set{"duration": "59m59s", "renewBefore": "10m"}}}, "below 1h"},
		"renewed too late":             {set{"certs": set{"source": "cert-manager", "certManager": set{"renewBefore": "4m59s"}}}, "below 5m"},
		"memory limit in words":        {set{"resources": set{"limits": set{"memory": "1.5Gi"}}}, "resources.limits.memory"},
		"grace shorter than the drain": {set{"terminationGracePeriodSeconds": 12}, "terminationGracePeriodSeconds"},
		"a label of the chart's":       {set{"commonLabels": set{"app.kubernetes.io/name": "a"}}, "commonLabels sets app.kubernetes.io/name"},
		"the same on pods":             {set{"podLabels": set{"app.kubernetes.io/component": "a"}}, "podLabels sets app.kubernetes.io/component"},
		"label with a space":           {set{"commonLabels": set{"a": "b c"}}, "commonLabels/a"},
		"key of a label":               {set{"podLabels": set{"a b": "c"}}, "'a b'"},
		"annotation that is a boolean": {set{"commonAnnotations": set{"a": true}}, "commonAnnotations/a"},
		"sidecars without metrics":     {set{"metrics": set{"podMonitor": set{"enabled": true}}}, "agent.metricsPort"},
		"interval without unit":        {set{"metrics": set{"serviceMonitor": set{"interval": "30"}}}, "interval"},
		"no way to the API server":     {set{"networkPolicy": set{"apiServerPorts": []int{}}}, "apiServerPorts"},
		"address without length":       {set{"networkPolicy": set{"apiServerCIDRs": []string{"192.0.2.1"}}}, "apiServerCIDRs"},
		"test in two namespaces":       {set{"helmTest": set{"namespace": "a,b"}}, "helmTest/namespace"},
		"toleration misspelt":          {set{"tolerations": []set{{"keys": "a"}}}, "keys"},
		"spread without a topology":    {set{"topologySpreadConstraints": []set{{"maxSkew": 1}}}, "topologyKey"},
		"affinity misspelt":            {set{"affinity": set{"podAffinities": set{}}}, "podAffinities"},
		"variable without a name":      {set{"extraEnv": []set{{"value": "a"}}}, "'name'"},
		"always due":                   {set{"certs": set{"source": "cert-manager", "certManager": set{"duration": "30m", "renewBefore": "1800s"}}}, "longer than renewBefore"},
		"outlives the CA":              {set{"certs": set{"source": "cert-manager", "certManager": set{"duration": "8760h0m1s"}}}, "8760h at most"},
		"no service account":           {set{"serviceAccount": set{"create": false}}, "serviceAccount.name"},
	}
	helm, dir := offlineHelm(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := helm.Template(t.Context(), plane.Release{Name: releaseName, Namespace: releaseNamespace, Chart: dir, Values: test.values})
			if err == nil {
				t.Fatalf("was rendered:\n%s", out)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want a message that names %s", err, test.says)
			}
		})
	}
}

// Each cluster version from the floor on is accepted, with the suffixes that providers add; older ones are refused.
func TestKubernetesVersions(t *testing.T) {
	helm, dir := offlineHelm(t)
	for version, want := range map[string]bool{
		"v1.29.9": false, "v1.30.0": true, "v1.30.0-eks-0a1b2c": true, "v1.36.3": true, "v1.40.0-gke.1": true,
	} {
		_, err := helm.Template(t.Context(), plane.Release{
			Name: releaseName, Namespace: releaseNamespace, Chart: dir, Args: []string{"--kube-version", version},
		})
		if (err == nil) != want {
			t.Errorf("%s: got %v, want accepted=%v", version, err, want)
		}
	}
}

// A CA of somebody else's lives as long as it likes; the release's own allows for a year.
func TestLongCertificates(t *testing.T) {
	type set = map[string]any
	for _, certManager := range []set{
		{"duration": "8760h"}, {"duration": "87600h1m", "issuerRef": set{"name": "company"}}, {"duration": "1h0m1s", "renewBefore": "60m"}, {"duration": "60m", "renewBefore": "5m"},
	} {
		if only(t, render(t, set{"certs": set{"source": "cert-manager", "certManager": certManager}}), "Deployment") == nil {
			t.Errorf("%v: nothing was rendered", certManager)
		}
	}
}

func TestGoMemLimitFollowsTheMemoryLimit(t *testing.T) {
	for limit, want := range map[any]string{
		"128Mi": "120795955", "1Gi": "966367641", "200M": "180000000", 1000000: "900000", nil: "", "0": "", "0Mi": "", 0: "",
	} {
		limits := map[string]any{"memory": limit}
		out := render(t, map[string]any{"resources": map[string]any{"limits": limits}})
		var values []string
		if want != "" {
			values = []string{want}
		}
		if diff := cmp.Diff(values, memLimits(t, out)); diff != "" {
			t.Errorf("limit %v: GOMEMLIMIT (-want +got):\n%s", limit, diff)
		}
	}
}

// memLimits are the values of GOMEMLIMIT in the webhook's container: where there are two, no upgrade can change either.
func memLimits(t *testing.T, manifests string) []string {
	t.Helper()
	var out []string
	for _, variable := range typed[appsv1.Deployment](t, only(t, manifests, "Deployment")).Spec.Template.Spec.Containers[0].Env {
		if variable.Name == "GOMEMLIMIT" {
			out = append(out, variable.Value)
		}
	}
	return out
}

// Whoever sets a variable of the chart's own has it instead, also beside a limit that the chart would not understand.
func TestExtraEnvWins(t *testing.T) {
	type set = map[string]any
	for _, limit := range []string{"128Mi", "1.5Gi"} {
		out := render(t, set{
			"resources": set{"limits": set{"memory": limit}},
			"extraEnv":  []set{{"name": "A", "value": "b"}, {"name": "GOMEMLIMIT", "value": "100MiB"}, {"name": "C", "value": "d"}},
		})
		if diff := cmp.Diff([]string{"100MiB"}, memLimits(t, out)); diff != "" {
			t.Errorf("GOMEMLIMIT beside a limit of %s (-want +got):\n%s", limit, diff)
		}
	}
}
