package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/webhook/inject"
)

// renderChart gives the objects of a release; the error is the chart's.
func renderChart(t *testing.T, release plane.Release) ([]*unstructured.Unstructured, error) {
	t.Helper()
	helm, err := plane.NewHelm(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if release.Chart, err = plane.ChartDir(); err != nil {
		t.Fatal(err)
	}
	manifests, err := helm.Template(t.Context(), release)
	if err != nil {
		return nil, err
	}
	objects, err := plane.Decode([]byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	return objects, nil
}

// chartArgs are the arguments that the chart gives to the webhook with these settings of the agent; the error is the chart's.
func chartArgs(t *testing.T, agent map[string]any) ([]string, error) {
	t.Helper()
	objects, err := renderChart(t, plane.Release{Name: "mim", Namespace: "mim", Values: map[string]any{"agent": agent}})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
			args, _, _ := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
			return args[1:], nil // after the command
		}
	}
	t.Fatal("no Deployment was rendered")
	return nil, nil
}

// What the chart renders, at the ends of what it takes, is what the webhook takes, and means what the value says.
func TestChartValuesAreTaken(t *testing.T) {
	type set = map[string]any
	flag := func(name, value string) map[string]string { return map[string]string{name: value} }
	for name, tt := range map[string]struct {
		agent set
		want  map[string]string
	}{
		"nothing":             {set{}, nil},
		"shortest deadline":   {set{"deadline": "1s"}, flag("deadline", "1s")},
		"longest deadline":    {set{"deadline": "24h"}, flag("deadline", "24h")},
		"in seconds":          {set{"deadline": "86400s"}, flag("deadline", "86400s")},
		"in minutes":          {set{"deadline": "1440m"}, flag("deadline", "1440m")},
		"in all units":        {set{"deadline": "23h59m60s"}, flag("deadline", "23h59m60s")},
		"zero hours":          {set{"deadline": "0h0m1s"}, flag("deadline", "0h0m1s")},
		"lowest port":         {set{"metricsPort": 1024, "mode": "sidecar"}, flag("metrics-port", "1024")},
		"highest port":        {set{"metricsPort": 65535}, flag("metrics-port", "65535")},
		"switches":            {set{"allowPrimaryENI": true, "mapBySubnet": true}, map[string]string{"allow-primary-eni": "true", "map-by-subnet": "true"}},
		"subnets":             {set{"vpcCNISubnets": []string{"subnet-0", "subnet--"}}, flag("vpc-cni-subnets", "subnet-0,subnet--")},
		"logs":                {set{"logLevel": "error", "logFormat": "text"}, map[string]string{"log-level": "error", "log-format": "text"}},
		"variables":           {set{"env": []set{{"name": "_", "value": ""}, {"name": "A_MIM_", "value": "a=b, \"c\"\n"}, {"name": "a", "value": "{{"}}}, nil},
		"image and no policy": {set{"image": set{"repository": "a:5000/b", "tag": strings.Repeat("t", 128), "pullPolicy": ""}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			args, err := chartArgs(t, tt.agent)
			if err != nil {
				t.Fatal(err)
			}
			config, err := parse(t, args...).injection()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := inject.New(config); err != nil {
				t.Errorf("%q: %v", args, err)
			}
			if diff := cmp.Diff(tt.want, config.Agent); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			variables, _ := tt.agent["env"].([]set)
			for i, v := range variables {
				if got := config.Env[i]; got.Name != v["name"] || got.Value != v["value"] {
					t.Errorf("variable %v became %q", v, got)
				}
			}
		})
	}
}

// What the webhook refuses, the chart refuses first, and says why.
func TestChartRefusesWhatTheWebhookRefuses(t *testing.T) {
	type set = map[string]any
	tests := map[string]set{}
	for _, deadline := range []string{"0", "0s", "500ms", "0.5s", "999ms", "24h1s", "24h1ms", "1441m", "86401s", "48h", "99999h", "-1s", "1d", "s", "1", "1 s", "010x"} {
		tests["deadline "+deadline] = set{"deadline": deadline}
	}
	for _, v := range settings.Env() {
		tests["variable "+v.Name] = set{"env": []set{{"name": v.Name, "value": "a"}}}
	}
	for _, port := range []int{1, 1023, 65536} {
		tests[fmt.Sprint("metrics port ", port)] = set{"metricsPort": port}
	}
	for name, agent := range tests {
		t.Run(name, func(t *testing.T) {
			config := inject.DefaultConfig()
			key := "metricsPort"
			if deadline, ok := agent["deadline"]; ok {
				config.Agent, key = map[string]string{"deadline": deadline.(string)}, "agent.deadline is"
			} else if port, ok := agent["metricsPort"]; ok {
				config.Agent = map[string]string{"metrics-port": fmt.Sprint(port)}
			} else {
				variable := agent["env"].([]set)[0]["name"].(string)
				config.Env, key = []inject.EnvVar{{Name: variable}}, "agent.env names "+variable
			}
			// 0 means never to the agent, which the chart says by "", the default of a sidecar; it is not for init.
			if _, err := inject.New(config); err == nil && name != "deadline 0" && name != "deadline 0s" {
				t.Error("the webhook takes it")
			}
			if args, err := chartArgs(t, agent); err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("the chart says %v (%q), want %q", err, args, key)
			}
		})
	}
}
