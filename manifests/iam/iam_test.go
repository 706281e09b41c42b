// Package iam holds no code: its test keeps the policies beside it equal to what the agent does.
package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	agentFolder  = "../../agent"
	region       = "REGION"
	multusENI    = "arn:aws:ec2:REGION:ACCOUNT_ID:network-interface/*"
	multusENITag = "aws:ResourceTag/node.k8s.amazonaws.com/no_manage"
)

type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid, Effect string
	Action      list
	Resource    list
	Condition   map[string]map[string]list
}

// list is a JSON string or a list of them: IAM takes both.
type list []string

func (l *list) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*l = list{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

func read(t *testing.T, file string) policy {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields() // IAM refuses a policy with a key it does not know
	var p policy
	if err := d.Decode(&p); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	// IAM's limit for a managed policy, white space not counted.
	if n := len(regexp.MustCompile(`\s`).ReplaceAll(data, nil)); n > 6144 {
		t.Errorf("%s has %d characters, IAM takes 6144", file, n)
	}
	return p
}

func (p policy) actions() []string {
	var all []string
	for _, s := range p.Statement {
		all = append(all, s.Action...)
	}
	slices.Sort(all)
	return all
}

func TestActions(t *testing.T) {
	assign := []string{
		"ec2:AssignIpv6Addresses", "ec2:AssignPrivateIpAddresses", "ec2:DescribeNetworkInterfaces", "ec2:UnassignIpv6Addresses",
	}
	for file, want := range map[string][]string{
		"init.json":    assign,
		"sidecar.json": append(slices.Clone(assign), "ec2:UnassignPrivateIpAddresses"),
	} {
		t.Run(file, func(t *testing.T) {
			if got := read(t, file).actions(); !slices.Equal(got, want) {
				t.Errorf("actions are %q, want %q", got, want)
			}
		})
	}
}

// What can be changed is named by tag and VPC; what can only be read, EC2 cannot name.
func TestConditions(t *testing.T) {
	for _, file := range []string{"init.json", "sidecar.json"} {
		t.Run(file, func(t *testing.T) {
			p := read(t, file)
			if p.Version != "2012-10-17" {
				t.Errorf("version is %q; with the older one conditions on tags mean nothing", p.Version)
			}
			for _, s := range p.Statement {
				if s.Effect != "Allow" {
					t.Errorf("%s: effect is %q", s.Sid, s.Effect)
				}
				reads := !slices.ContainsFunc(s.Action, func(a string) bool { return !strings.HasPrefix(a, "ec2:Describe") })
				if reads {
					if got := s.Condition["StringEquals"]["ec2:Region"]; !slices.Equal(got, list{region}) {
						t.Errorf("%s: Region is %q, want one", s.Sid, got)
					}
					continue
				}
				if !slices.Equal(s.Resource, list{multusENI}) {
					t.Errorf("%s: resource is %q, want %q", s.Sid, s.Resource, multusENI)
				}
				if got := s.Condition["StringEquals"][multusENITag]; !slices.Equal(got, list{"true"}) {
					t.Errorf("%s: %s is %q, want true: the VPC CNI's interfaces must stay out of reach", s.Sid, multusENITag, got)
				}
				if got := s.Condition["ArnEquals"]["ec2:Vpc"]; len(got) != 1 {
					t.Errorf("%s: VPC is %q, want one", s.Sid, got)
				}
			}
		})
	}
}

// The agent's code is the other side: whatever request it can build must be allowed, and no mode is allowed what nothing calls.
func TestAgentCallsWhatIsAllowed(t *testing.T) {
	notCalledYet := []string{"ec2:UnassignPrivateIpAddresses"} // releases addresses, which mode init never does
	called := calls(t)
	allowed := read(t, "sidecar.json").actions()
	for _, action := range called {
		if !slices.Contains(allowed, action) {
			t.Errorf("the agent calls %s and sidecar.json does not allow it", action)
		}
	}
	for _, action := range allowed {
		if !slices.Contains(called, action) && !slices.Contains(notCalledYet, action) {
			t.Errorf("sidecar.json allows %s and the agent does not call it", action)
		}
	}
}

// calls returns the EC2 actions for which the in-pod agent has code, sorted.
func calls(t *testing.T) []string {
	t.Helper()
	input := regexp.MustCompile(`\bec2\.([A-Z][A-Za-z0-9]*)Input\b`)
	var actions []string
	err := filepath.WalkDir(agentFolder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && path == filepath.Join(agentFolder, "node"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range input.FindAllStringSubmatch(string(data), -1) {
			actions = append(actions, "ec2:"+m[1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(actions) == 0 {
		t.Fatal("no EC2 request is built in the agent's code: this test looks for the wrong thing")
	}
	slices.Sort(actions)
	return slices.Compact(actions)
}

func TestReadmeNamesEveryFile(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) != 2 {
		t.Fatalf("policies are %q (%v), want two", files, err)
	}
	for _, file := range files {
		if !strings.Contains(string(readme), "`"+file+"`") {
			t.Errorf("README.md does not mention %s", file)
		}
		for _, action := range read(t, file).actions() {
			if !strings.Contains(string(readme), "`"+strings.TrimPrefix(action, "ec2:")+"`") {
				t.Errorf("README.md does not say what %s is for", action)
			}
		}
	}
}
