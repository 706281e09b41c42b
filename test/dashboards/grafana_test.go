package dashboards

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// names of the dashboards' files.
func names() []string { return []string{"webhook", "agents"} }

type dashboard struct {
	UID, Title, Description string
	SchemaVersion           int
	Panels                  []panel
	Templating              struct{ List []variable }
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []target
	FieldConfig              struct{ Defaults struct{ Unit string } }
}

type (
	datasource struct{ Type, UID string }
	target     struct {
		RefID, Expr, LegendFormat string
		Datasource                datasource
	}
	variable struct {
		Name, Type, Definition string
		Datasource             datasource
	}
)

func load(t *testing.T, name string) dashboard {
	t.Helper()
	var d dashboard
	decode(t, read(t, folder+name+".json"), &d)
	return d
}

// Whoever imports a dashboard chooses the data source once, and understands each panel by itself.
func TestDashboards(t *testing.T) {
	uids := map[string]bool{}
	ours := datasource{"prometheus", "${datasource}"}
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			d := load(t, name)
			if d.UID == "" || uids[d.UID] || d.Title == "" || d.Description == "" || d.SchemaVersion == 0 {
				t.Errorf("uid %q, title %q, description %q, schema %d", d.UID, d.Title, d.Description, d.SchemaVersion)
			}
			uids[d.UID] = true
			if v := d.Templating.List[0]; v.Name != "datasource" || v.Type != "datasource" {
				t.Errorf("the first variable is %+v", v)
			}
			for _, v := range d.Templating.List[1:] {
				if v.Datasource != ours {
					t.Errorf("variable %s asks %+v", v.Name, v.Datasource)
				}
			}
			ids := map[int]bool{}
			cells := map[[2]int]string{}
			for _, p := range d.Panels {
				if ids[p.ID] || p.Title == "" {
					t.Errorf("panel %d %q: id or title", p.ID, p.Title)
				}
				ids[p.ID] = true
				p.place(t, cells)
				if p.Type == "row" {
					continue
				}
				if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource != ours || len(p.Targets) == 0 {
					t.Errorf("panel %q: description %q, unit %q, data source %+v, %d targets", p.Title, p.Description, p.FieldConfig.Defaults.Unit, p.Datasource, len(p.Targets))
				}
				for _, q := range p.Targets {
					if q.Datasource != ours || q.RefID == "" {
						t.Errorf("panel %q: %+v", p.Title, q)
					}
				}
			}
		})
	}
}

// place notes the cells of the grid that the panel takes.
func (p panel) place(t *testing.T, cells map[[2]int]string) {
	t.Helper()
	if p.GridPos.W < 1 || p.GridPos.H < 1 || p.GridPos.X+p.GridPos.W > 24 {
		t.Errorf("panel %q lies at %+v", p.Title, p.GridPos)
	}
	for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
		for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
			if other := cells[[2]int{x, y}]; other != "" {
				t.Fatalf("panel %q lies over %q", p.Title, other)
			}
			cells[[2]int{x, y}] = p.Title
		}
	}
}

var (
	labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	legendLabel = regexp.MustCompile(`{{(\w+)}}`)
	grouped     = regexp.MustCompile(`by \(([^)]*)\)`)
)

// asked is one expression and where it stands.
type asked struct{ where, text string }

// expressions gives what a dashboard asks, with Grafana's own variables replaced as Grafana does.
func (d dashboard) expressions(t *testing.T) []asked {
	t.Helper()
	variables := []string{"$__rate_interval", "5m", "$__range", "6h"}
	for _, v := range d.Templating.List {
		variables = append(variables, "$"+v.Name, ".*")
	}
	replace := func(text string) string {
		out := strings.NewReplacer(variables...).Replace(text)
		if strings.Contains(out, "$") {
			t.Errorf("%s: an unknown variable in %s", d.UID, text)
		}
		return out
	}
	var all []asked
	for _, v := range d.Templating.List[1:] {
		m := labelValues.FindStringSubmatch(v.Definition)
		if m == nil {
			t.Fatalf("%s: variable %s is defined as %s", d.UID, v.Name, v.Definition)
		}
		all = append(all, asked{d.UID + ", variable " + v.Name, "count by (" + m[2] + ") (" + replace(m[1]) + ")"})
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all = append(all, asked{d.UID + ", panel " + p.Title, replace(q.Expr)})
			for _, m := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !q.has(m[1]) {
					t.Errorf("%s, panel %s: no series has the label %s of the legend", d.UID, p.Title, m[1])
				}
			}
		}
	}
	return all
}

// has tells whether the result's series have a label, for a legend: of an aggregation those by which it groups are left.
func (q target) has(label string) bool {
	outermost := grouped.FindStringSubmatch(q.Expr)
	if outermost == nil {
		return strings.Contains(targetLabels, " "+label+" ")
	}
	return slices.Contains(strings.Split(outermost[1], ", "), label)
}
