package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount shows Source, a file or directory of this process, at Target to one command. Target may be missing as long as its
// parent exists, so that /dev/termination-log works. Who may write is decided by Source's own permission bits: kubelet's
// termination log has mode 0666.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// privateMounts gives the calling thread a mount namespace of its own with mounts in it.
func privateMounts(mounts []Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return forbidden(fmt.Errorf("make mount namespace: %w", err))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
	}
	return nil
}

func (m Mount) do() error {
	source, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Target); errors.Is(err, fs.ErrNotExist) {
		if err := makeTarget(m.Target, source.IsDir()); err != nil {
			return err
		}
	}
	if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	return unix.Mount("", m.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// makeTarget makes something to mount on where there is nothing, without touching the file system below: the parent directory
// is replaced by an empty one in memory that shows all the old entries and the new one.
func makeTarget(target string, dir bool) error {
	parent := filepath.Dir(target)
	old, err := os.OpenFile(parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }()
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", parent, "tmpfs", unix.MS_NOSUID, "mode=0755,size=64k"); err != nil {
		return err
	}
	for _, e := range entries {
		if err := keepEntry(fmt.Sprintf("%s/%s", selfFD(old), e.Name()), filepath.Join(parent, e.Name()), e); err != nil {
			return err
		}
	}
	return emptyEntry(target, dir)
}

// keepEntry shows the old entry at its place in the new directory.
func keepEntry(from, at string, e fs.DirEntry) error {
	if e.Type()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(to, at)
	}
	if err := emptyEntry(at, e.IsDir()); err != nil {
		return err
	}
	return unix.Mount(from, at, "", unix.MS_BIND|unix.MS_REC, "")
}

func emptyEntry(path string, dir bool) error {
	if dir {
		return os.Mkdir(path, 0o755) //nolint:gosec // everyone may pass, as in /dev
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // a place to mount on
	if err != nil {
		return err
	}
	return f.Close()
}
