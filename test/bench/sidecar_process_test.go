package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// vitals are what the kernel knows of a running process.
type vitals struct {
	// cpu is its CPU time, of threads that have ended too, to the nanosecond. That of its children is apart, and in ticks of 10 ms.
	cpu, children time.Duration
	// switches is how often its threads were taken from a CPU: about how often they were woken.
	switches float64
	threads  float64
	// Resident memory in MiB: all, what is its own, what is mapped from files (mostly its program, of which containers from one image on
	// a node share one copy), and the proportional share.
	rss, anon, file, pss float64
	// childless is true when it has, and had, no child.
	childless bool
}

// examine reads the vitals of a process.
func examine(pid int) (vitals, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	v := vitals{}
	var err error
	if v.cpu, err = processCPU(pid); err != nil {
		return v, err
	}
	status, err := keyed(dir + "status")
	if err != nil {
		return v, err
	}
	rollup, err := keyed(dir + "smaps_rollup")
	if err != nil {
		return v, err
	}
	v.rss, v.anon, v.file, v.pss = status.number("VmRSS")/1024, status.number("RssAnon")/1024, status.number("RssFile")/1024, rollup.number("Pss")/1024
	v.threads = status.number("Threads")
	tasks, err := filepath.Glob(dir + "task/*")
	if err != nil {
		return v, err
	}
	living := ""
	for _, task := range tasks {
		s, err := keyed(task + "/status")
		if err != nil {
			return v, err
		}
		v.switches += s.number("voluntary_ctxt_switches") + s.number("nonvoluntary_ctxt_switches")
		children, err := os.ReadFile(task + "/children")
		if err != nil {
			return v, err
		}
		living += string(children)
	}
	faults, ticks, err := ofChildren(dir + "stat")
	v.children = time.Duration(ticks) * 10 * time.Millisecond
	// A child that has ended was waited for, which adds its page faults (there is none without) to the parent's account, or is a zombie,
	// which is listed, or else the parent ignores SIGCHLD.
	ignored, perr := strconv.ParseUint(status["SigIgn"], 16, 64)
	v.childless = living == "" && faults == 0 && ignored>>(unix.SIGCHLD-1)&1 == 0
	return v, errors.Join(err, perr)
}

// examine reads the vitals of the program.
func (l *follower) examine() vitals {
	l.Helper()
	v, err := examine(l.Pid())
	if err != nil {
		l.Fatalf("%s: %v", l.program.name, err)
	}
	return v
}

// processCPU is the CPU time of a process so far, by the kernel's clock of it (a nanosecond's resolution, where /proc has 10 ms).
func processCPU(pid int) (time.Duration, error) {
	const wholeProcess = 2                   // CPUCLOCK_SCHED of a process, as clock_getcpuclockid makes it
	clock := int32((^pid)<<3 | wholeProcess) //nolint:gosec // process ids have 22 bits
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// table is a file of /proc with a key in each line.
type table map[string]string

func keyed(path string) (table, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := table{}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			t[key] = strings.TrimSpace(value)
		}
	}
	return t, nil
}

// number is a value without its unit; what is not there is 0.
func (t table) number(key string) float64 {
	text, _, _ := strings.Cut(t[key], " ")
	n, _ := strconv.ParseFloat(text, 64)
	return n
}

// ofChildren gives the page faults and the CPU time, in ticks, of the children that a process has waited for.
func ofChildren(path string) (faults, ticks int, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	// The second field is the name, in parentheses, and may hold anything.
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:]) // the first is field 3
	if len(fields) < 15 {
		return 0, 0, fmt.Errorf("%s has %d fields", path, len(fields))
	}
	var n [4]int
	for i, field := range []int{11, 13, 16, 17} { // cminflt, cmajflt, cutime, cstime
		if n[i], err = strconv.Atoi(fields[field-3]); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	return n[0] + n[1], n[2] + n[3], nil
}
