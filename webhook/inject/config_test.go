package inject_test

import (
	"strings"
	"testing"

	"multus-ip-manager.io/agent/settings"
	"multus-ip-manager.io/webhook/inject"
)

func TestDefaultConfigIsValid(t *testing.T) {
	if err := inject.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestParseConfig(t *testing.T) {
	c, err := inject.ParseConfig([]byte(`{"image":"example.com/a:1","agent":{"deadline":"10m"},"resources":{"init":{"memory":"64Mi"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := inject.Resources{CPU: "20m", Memory: "64Mi", GuaranteedCPU: "500m"}
	if c.Mode != settings.Init || c.Resources[settings.Init] != want || c.Resources[settings.Sidecar].GuaranteedCPU != "100m" {
		t.Errorf("%+v", c)
	}
	container, err := c.Container(settings.Init, inject.Burstable)
	if err != nil || !strings.Contains(string(container), `"args":["init","--deadline=10m"]`) {
		t.Errorf("%s, %v", container, err)
	}
}

func TestConfigErrors(t *testing.T) {
	for name, tt := range map[string]struct{ in, say string }{
		"not JSON":                 {`image: x`, "configuration"},
		"unknown key":              {`{"imege":"x"}`, "imege"},
		"two values":               {`{} {}`, "more than one"},
		"unknown mode":             {`{"mode":"daemon"}`, "init, sidecar, node"},
		"mode not available":       {`{"mode":"node"}`, "not available yet"},
		"pull policy":              {`{"imagePullPolicy":"Sometimes"}`, "IfNotPresent"},
		"unknown agent setting":    {`{"agent":{"dedline":"1m"}}`, "--dedline"},
		"bad agent setting":        {`{"agent":{"deadline":"soon"}}`, "a duration from 1s to 24h"},
		"variable without a name":  {`{"env":[{"value":"x"}]}`, "env[0]"},
		"variable of the agent":    {`{"env":[{"name":"MIM_NETWORKS","value":"x"}]}`, "belongs to the agent"},
		"variable twice":           {`{"env":[{"name":"A","value":"x"},{"name":"A","value":"y"}]}`, "set twice"},
		"resources, unknown mode":  {`{"resources":{"daemon":{}}}`, "resources"},
		"resources, bad CPU":       {`{"resources":{"init":{"cpu":"lots"}}}`, "resources.init.cpu"},
		"resources, bad memory":    {`{"resources":{"init":{"memory":"1"}}}`, "resources.init.memory"},
		"resources, pinned core":   {`{"resources":{"init":{"guaranteedCPU":"1"}}}`, "whole number of cores"},
		"resources, pinned 1000m":  {`{"resources":{"init":{"guaranteedCPU":"1000m"}}}`, "whole number of cores"},
		"resources, bad guarantee": {`{"resources":{"init":{"guaranteedCPU":"x"}}}`, "resources.init.guaranteedCPU"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := inject.ParseConfig([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("%v lacks %q", err, tt.say)
			}
		})
	}
}

func TestConfigErrorsAreAllNamed(t *testing.T) {
	_, err := inject.ParseConfig([]byte(`{"mode":"x","imagePullPolicy":"y","agent":{"deadline":"z"}}`))
	for _, want := range []string{"mode", "imagePullPolicy", "--deadline"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}
