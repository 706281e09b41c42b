package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	// CgroupRoot is the control group, in each hierarchy, that all pods of the cluster are below; each node has one below it.
	CgroupRoot = "/multus-ip-manager-cluster"
)

// hierarchies are the mounted control group hierarchies: one with version 2, one for each controller with version 1. There, a further
// one of version 2 may be mounted, without controllers, where runtimes also make groups: unified says whether it counts.
func hierarchies(unified bool) ([]string, error) {
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return []string{cgroupMount}, nil
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(cgroupMount, e.Name())
		var info unix.Statfs_t
		if err := unix.Statfs(path, &info); err != nil || !e.IsDir() {
			continue
		}
		if info.Type == unix.CGROUP_SUPER_MAGIC || unified && info.Type == unix.CGROUP2_SUPER_MAGIC {
			out = append(out, path)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no control groups are mounted below %s", cgroupMount)
	}
	return out, nil
}

// makeCgroup makes the control group of a node in every hierarchy.
func makeCgroup(node string) error {
	list, err := hierarchies(false)
	if err != nil {
		return err
	}
	for _, h := range list {
		for _, dir := range []string{filepath.Join(h, CgroupRoot), filepath.Join(h, CgroupRoot, node)} {
			if err := passControllers(filepath.Dir(dir)); err != nil {
				return err
			}
			if err := mkdirs(dir); err != nil {
				return err
			}
			if err := inheritCPUs(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// passControllers gives the groups below one its controllers. With version 2 they have none otherwise, and the kubelet does not start in
// such a group.
func passControllers(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")) //nolint:gosec // a control group
	if errors.Is(err, fs.ErrNotExist) {
		return nil // version 1: each has its hierarchy
	}
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(text)) {
		if !slices.Contains([]string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}, controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil { //nolint:gosec // exists
			return fmt.Errorf("pass the controller %s to the groups below %s: %w", controller, dir, err)
		}
	}
	return nil
}

// inheritCPUs gives a group its parent's processors and memory nodes: with version 1 it starts with none, and nothing can run in it.
func inheritCPUs(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // not the hierarchy of this controller, or version 2's root
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil && !errors.Is(err, fs.ErrPermission) { //nolint:gosec // exists
			return err
		}
	}
	return nil
}

// removeCgroups removes every control group of the cluster. Processes that are being killed hold theirs for a moment.
func removeCgroups() error {
	list, err := hierarchies(true)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var errs []error
		for _, h := range list {
			errs = append(errs, removeTree(filepath.Join(h, CgroupRoot)))
		}
		if err := errors.Join(errs...); err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(50 * time.Millisecond)
	}
}

// removeTree removes a folder of control groups, the inner ones first: only empty groups can be removed, and their files cannot.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(dirs, func(a, b string) int { return strings.Compare(b, a) })
	var errs []error
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Memory is what the kernel accounts to a container of a pod on this machine, in bytes: all of it, and what is not file cache.
func Memory(podUID, containerID string) (all, anonymous int64, err error) {
	list, err := hierarchies(false)
	if err != nil {
		return 0, 0, err
	}
	_, containerID, _ = strings.Cut(containerID, "://")
	for _, h := range list {
		err = filepath.WalkDir(filepath.Join(h, CgroupRoot), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || d.Name() != containerID || !strings.Contains(path, podUID) {
				return nil //nolint:nilerr // groups come and go
			}
			for _, file := range []string{"memory.current", "memory.usage_in_bytes"} {
				if text, err := os.ReadFile(filepath.Join(path, file)); err == nil { //nolint:gosec // a control group
					all, _ = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
					anonymous = anonymousOf(filepath.Join(path, "memory.stat"))
				}
			}
			return nil
		})
		if err != nil || all > 0 {
			return all, anonymous, err
		}
	}
	return 0, 0, fmt.Errorf("no control group of container %s", containerID)
}

// anonymousOf reads the line of a memory.stat that version 1 calls rss and version 2 anon.
func anonymousOf(path string) int64 {
	text, err := os.ReadFile(path) //nolint:gosec // a control group
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var name string
		var n int64
		if _, err := fmt.Sscan(line, &name, &n); err == nil && (name == "rss" || name == "anon") {
			return n
		}
	}
	return 0
}
