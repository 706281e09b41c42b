package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// unprivilegedID is the uid and gid an unprivileged command can run as: UnprivilegedID where it is mapped and may be taken,
// else 0, the only one of a user namespace with a single uid.
func unprivilegedID() (int, error) {
	uids, err := os.ReadFile("/proc/thread-self/uid_map")
	if err != nil {
		return 0, err
	}
	gids, err := os.ReadFile("/proc/thread-self/gid_map")
	if err != nil {
		return 0, err
	}
	if !mapped(string(uids), UnprivilegedID) || !mapped(string(gids), UnprivilegedID) {
		return 0, nil
	}
	return UnprivilegedID, nil
}

// mapped reports whether id has an entry in a uid_map or gid_map.
func mapped(idMap string, id uint64) bool {
	for line := range strings.Lines(idMap) {
		var inside, outside, size uint64
		if n, _ := fmt.Sscan(line, &inside, &outside, &size); n == 3 && id >= inside && id-inside < size {
			return true
		}
	}
	return false
}

// securebits: execve gives uid 0 nothing, ambient capabilities cannot be raised, and neither can be undone
// (linux/securebits.h: NOROOT, NO_CAP_AMBIENT_RAISE, each with its lock).
const securebits = 1<<0 | 1<<1 | 1<<6 | 1<<7

// dropPrivileges takes all privileges from the calling thread, and with them from the programs it starts. The order matters:
// each step needs a capability that a later one takes away. Raw system calls, because Go's setters change all threads.
func dropPrivileges(id int) error {
	for c := uintptr(0); c < 64; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // beyond the last capability
			break
		}
		if err != nil {
			return fmt.Errorf("empty the bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0); err != nil {
		return fmt.Errorf("set securebits: %w", err)
	}
	if id != 0 {
		if err := setIDs(uintptr(id)); err != nil { // positive
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("empty the ambient set: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("empty the capability sets: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// setIDs changes the calling thread's uid and gid and takes its other groups away.
func setIDs(id uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("clear groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("set gid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("set uid: %w", errno)
	}
	return nil
}

// reachable reports whether every directory above path lets everyone pass. Test binaries and caches usually lie below
// directories of mode 0700; a command whose file UnprivilegedID cannot reach is started by a descriptor opened before.
func reachable(path string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

// selfFD is a path by which a process that inherited f's descriptor can execute it.
func selfFD(f *os.File) string {
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	runtime.KeepAlive(f)
	return path
}
