package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multus-ip-manager.io/test/aws"
	"multus-ip-manager.io/test/bench/measure/measured"
	"multus-ip-manager.io/test/binaries"
	"multus-ip-manager.io/test/ns"
	"multus-ip-manager.io/test/podlab"
	"multus-ip-manager.io/test/world"
)

// suite is what all benchmarks share: the built programs, and the summary they write into.
type suite struct {
	bin     string
	summary summary
	m       *testing.M
}

// shared is set once, before any benchmark; benchmarks run one after the other.
var shared = &suite{}

// Run builds what is measured, measures, and prints the summary.
func (s *suite) Run() int {
	dir, err := binaries.Build(context.Background(), "agent", "test/bench/measure", "test/bench/sample")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	s.bin = dir
	s.summary.begin()
	code := s.m.Run()
	s.summary.write(os.Stdout)
	return code
}

func TestMain(m *testing.M) {
	shared.m = m
	ns.Main(shared)
}

// program is something that assigns a pod's addresses when it is started in the pod.
type program struct {
	name    string
	command []string
	polls   bool // as a sidecar it looks from time to time
}

func agent() program {
	return program{name: "agent init", command: []string{filepath.Join(shared.bin, "agent")}}
}

func agentSidecar() program { return program{name: "agent sidecar", command: agent().command} }

func sampleInGo() program {
	return program{name: "sample in Go", command: []string{filepath.Join(shared.bin, "sample")}, polls: true}
}

// sampleInPython needs Debian's Python with boto3, and "ip". The error says what is missing.
func sampleInPython(ctx context.Context) (program, error) {
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(ctx, python, "-c", "import boto3").Run(); err != nil {
		return program{}, fmt.Errorf("%s with boto3 is not there: %w", python, err)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return program{}, err
	}
	script, err := os.ReadFile("sample/sample.py")
	if err != nil {
		return program{}, err
	}
	path := filepath.Join(shared.bin, "sample.py") // where another user may read and run it
	script = append([]byte("#!"+python+"\n"), script...)
	return program{name: "sample in Python", command: []string{path}, polls: true}, os.WriteFile(path, script, 0o755) //nolint:gosec // as the comment says
}

// rig is one pod that is started again and again.
type rig struct {
	*testing.B
	world *world.World
	pod   *world.Pod
}

// interfaces are a pod's addresses by the device index of the ENI.
type interfaces map[int][]string

// startWorld starts the world of a file, whose EC2 takes that long to answer, until the benchmark ends.
func startWorld(b *testing.B, file string, latency time.Duration) *world.World {
	b.Helper()
	spec, err := world.Load(file)
	if err != nil {
		b.Fatal(err)
	}
	w, err := world.Start(b.Context(), spec, world.Options{Cloud: []aws.Option{aws.WithSettings(func(s *aws.Settings) { s.Latency = latency })}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.Error(err)
		}
	})
	return w
}

// newRig starts a world with a pod.
func newRig(b *testing.B, latency time.Duration, links interfaces) *rig {
	b.Helper()
	w := startWorld(b, "testdata/world.yaml", latency)
	pod := world.PodSpec{Name: "app", Namespace: "telco", Node: "one"}
	for eni := range 3 {
		if addrs, ok := links[eni]; ok {
			n := world.Network{ENI: eni}
			for _, a := range addrs {
				n.Addresses = append(n.Addresses, netip.MustParsePrefix(a))
			}
			pod.Networks = append(pod.Networks, n)
		}
	}
	p, err := w.AddPod(pod)
	if err != nil {
		b.Fatal(err)
	}
	return &rig{B: b, world: w, pod: p}
}

// start is one start of a program in the pod.
type start struct {
	measured.Result
	calls []aws.Call
	imds  int
}

// above is the time beyond what EC2 itself took.
func (s start) above() time.Duration { return s.Wall - CriticalPath(s.calls) }

// run starts a program and waits for its end; every address must be on its ENI then.
func (r *rig) run(p program) start {
	r.Helper()
	command, err := json.Marshal(p.command)
	if err != nil {
		r.Fatal(err)
	}
	c, err := podlab.Container(r.pod, podlab.Start{
		Program: filepath.Join(shared.bin, "measure"),
		Env:     []string{measured.Variable + "=" + string(command)},
	})
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Minute)
	defer cancel()
	calls, lookups := len(r.world.Cloud().Journal()), len(r.world.Cloud().IMDSJournal())
	ended, err := c.Run(ctx)
	if err != nil || ended.ExitCode != 0 {
		r.Fatalf("%s: exit code %d, %v, output:\n%s", p.name, ended.ExitCode, err, ended.Output)
	}
	var s start
	lines := strings.Split(strings.TrimSpace(ended.Output), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s.Result); err != nil {
		r.Fatalf("%s: no measurement in its output: %v\n%s", p.name, err, ended.Output)
	}
	s.calls, s.imds = r.journals(ctx, calls, lookups)
	for eni, a := range r.addresses() {
		if h, _ := r.world.Cloud().Holder(a); h.ENI != eni {
			r.Fatalf("%s: %s is on %q, want %s; output:\n%s", p.name, a, h.ENI, eni, ended.Output)
		}
	}
	return s
}

// journals gives the EC2 calls, and the number of requests to metadata, since there were so many. Answers that are still on their
// way when a program exits are waited for.
func (r *rig) journals(ctx context.Context, calls, lookups int) (made []aws.Call, imds int) {
	r.Helper()
	err := r.world.Cloud().WaitJournal(ctx, func(all []aws.Call) bool {
		made = all[calls:]
		for _, c := range made {
			if !c.Done() {
				return false
			}
		}
		return true
	})
	if err != nil {
		r.Fatal(err)
	}
	return made, len(r.world.Cloud().IMDSJournal()) - lookups
}

// addresses are the pod's addresses with their ENIs.
func (r *rig) addresses() func(yield func(eni string, a netip.Addr) bool) {
	return func(yield func(string, netip.Addr) bool) {
		for _, n := range r.pod.Networks() {
			for _, p := range n.Addresses {
				if !yield(r.pod.ENI(n.Interface), p.Addr()) {
					return
				}
			}
		}
	}
}

// forget takes the addresses off their ENIs, as before the pod's first start.
func (r *rig) forget() {
	r.Helper()
	for eni, a := range r.addresses() {
		if err := r.world.Cloud().Unassign(eni, a); err != nil {
			r.Fatal(err)
		}
	}
}

// budget fails the benchmark when a start made more EC2 calls than it may: a count is no matter of the machine.
func (r *rig) budget(s start) {
	r.Helper()
	if over := OverBudget(s.calls); len(over) > 0 {
		r.Errorf("calls beyond one per ENI and address family: %v", over)
	}
}
