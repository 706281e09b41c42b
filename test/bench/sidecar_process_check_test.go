package bench

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestExamine(t *testing.T) {
	cat := exec.CommandContext(t.Context(), "cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := examine(cat.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	living, err := examine(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(); err != nil {
		t.Fatal(err)
	}
	parent, err := examine(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !child.childless || living.childless || parent.childless {
		t.Errorf("childless: cat %v, while it runs %v, after its end %v; want true, false, false", child.childless, living.childless, parent.childless)
	}
	if parent.cpu <= 0 || parent.cpu > time.Hour || parent.threads < 1 || parent.switches < 1 {
		t.Errorf("this process: %+v", parent)
	}
	// The kernel adds up the first of these lazily, so they are equal only about.
	if d := parent.rss - parent.anon - parent.file; d < -1 || d > 1 || parent.pss <= 0 || parent.pss > parent.rss+1 {
		t.Errorf("the parts of the resident set: %+v", parent)
	}
}
