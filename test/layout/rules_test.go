package layout

import (
	"slices"
	"strings"
	"testing"
)

// house is a graph that keeps all rules; a test breaks it.
func house() Graph {
	g := Graph{}
	for path, imports := range map[string][]string{
		"agent":          {"agent/plan", "agent/apply", "agent/settings", "os", "net"},
		"agent/apply":    {"github.com/aws/aws-sdk-go-v2/service/ec2"},
		"agent/plan":     {"net/netip", "fmt"},
		"agent/settings": {"net", "log/slog"},
		"agent/node":     {"k8s.io/client-go/kubernetes", "agent/plan"},
		"webhook":        {"webhook/inject", "certs", "sigs.k8s.io/controller-runtime", "os"},
		"webhook/inject": {"agent/settings", "k8s.io/api/core/v1"},
		"certs":          {"k8s.io/client-go/kubernetes"},
		"test/aws":       {"net/http"},
		"test/demo":      {"test/aws", "agent/settings", "webhook/inject"},
	} {
		g.set(path, imports...)
	}
	g["fmt"] = Package{ImportPath: "fmt", Imports: []string{"os"}, Standard: true}
	return g
}

// set replaces a package of the module; folders of the module are written without it.
func (g Graph) set(folder string, imports ...string) {
	p := Package{ImportPath: own(folder)}
	for _, i := range imports {
		top, _, _ := strings.Cut(i, "/")
		if slices.Contains([]string{"agent", "webhook", "certs", "test"}, top) {
			i = own(i)
		}
		p.Imports = append(p.Imports, i)
	}
	g[p.ImportPath] = p
}

func TestImportRulesCatch(t *testing.T) {
	const (
		noIO       = "decisions do no I/O"
		noClient   = "pods carry no Kubernetes client"
		noTests    = "the product does not need its tests"
		oneShared  = "agent and webhook share their settings"
		theFolders = "packages lie where the layout says"
	)
	for name, tt := range map[string]struct {
		folder  string
		imports []string
		rule    string // the one rule that is broken, "" for none
		tells   string
	}{
		"nothing broken":                  {"agent/report", []string{"os"}, "", ""},
		"plan reads files":                {"agent/plan", []string{"os"}, noIO, "agent/plan does I/O"},
		"plan opens sockets":              {"agent/plan", []string{"net"}, noIO, "imports net"},
		"inject runs programs":            {"webhook/inject", []string{"os/exec"}, noIO, "imports os/exec"},
		"inject speaks HTTP":              {"webhook/inject", []string{"net/http"}, noIO, "imports net/http"},
		"inject's import does":            {"agent/settings", []string{"net", "os"}, noIO, "agent/settings imports os"},
		"inject by a library":             {"webhook/inject", []string{"k8s.io/client-go/rest"}, noIO, "imports k8s.io/client-go/rest"},
		"plan calls EC2":                  {"agent/plan", []string{"agent/apply"}, noIO, "aws-sdk-go-v2/service/ec2"},
		"agent has a client":              {"agent", []string{"k8s.io/client-go/kubernetes"}, noClient, "k8s.io/client-go"},
		"agent has one below":             {"agent/apply", []string{"sigs.k8s.io/yaml"}, noClient, "sigs.k8s.io/yaml"},
		"an unused package":               {"agent/spare", []string{"k8s.io/api/core/v1"}, noClient, "k8s.io/api/core/v1"},
		"agent imports daemon":            {"agent", []string{"agent/node"}, noClient, "k8s.io/client-go"},
		"certs imports a test":            {"certs", []string{"test/aws"}, noTests, "certs imports " + own("test/aws")},
		"webhook plans":                   {"webhook", []string{"agent/plan"}, oneShared, "agent/plan"},
		"a shared helper":                 {"certs", []string{"agent/plan"}, oneShared, "agent/plan"},
		"a new top folder":                {"pkg/util", nil, theFolders, "pkg/util"},
		"a package in the top":            {"", nil, theFolders, Module},
		"names that only begin like ours": {"certs", []string{"testing", "k8s.io/api"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := house()
			g.set(tt.folder, tt.imports...)
			for rule, check := range ImportRules() {
				got := strings.Join(check(g), "\n")
				if rule == tt.rule && (got == "" || !strings.Contains(got, tt.tells)) {
					t.Errorf("%q says %q, want something with %q", rule, got, tt.tells)
				}
				if rule != tt.rule && got != "" {
					t.Errorf("%q says %q, want nothing", rule, got)
				}
			}
		})
	}
}

func TestUndocumentedTargets(t *testing.T) {
	const makefile = `
export A := x
.PHONY: help
help: ## list
	@echo a: b
test: unit ## test
secret: help
VERSION ?= x:y
name:=value
`
	if got := UndocumentedTargets(makefile, "help   list\ntest   test\n"); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("undocumented are %q, want secret", got)
	}
}

func TestUnwanted(t *testing.T) {
	text := "fine\n// TO" + "DO later\n\ttime.Sle" + "ep(1)\ncd /ro" + "ot/x\n"
	if got := Unwanted("a_test.go", text); len(got) != 3 || !strings.HasPrefix(got[1], "a_test.go:3: ") {
		t.Errorf("in a test: %q, want lines 2, 3 and 4", got)
	}
	if got := Unwanted("a.go", text); len(got) != 2 {
		t.Errorf("in a program: %q, want lines 2 and 4: a program may wait", got)
	}
}
