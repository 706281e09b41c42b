package chart

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"multus-ip-manager.io/test/plane"
	"multus-ip-manager.io/test/tools"
)

// readmeCommand returns the block of commands of the README that begins so.
func readmeCommand(t *testing.T, begins string) string {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md")) //nolint:gosec // the repository's own
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		if strings.HasPrefix(block[1], begins) {
			return block[1]
		}
	}
	t.Fatalf("no block of the README begins with %s", begins)
	return ""
}

// Without Helm: the README's command is that of the file's own head, ready to be typed.
func TestReadmeInstallsThePlainYAML(t *testing.T) {
	if got := strings.TrimSpace(readmeCommand(t, "sed ")); !strings.Contains(plainHead, "\n#   "+got+"\n") {
		t.Errorf("the README says %s, and not what the head of manifests/install.yaml says", got)
	}
}

// The README's way to trust a CA of one's own adds it to what is trusted: the replicas that run need that until they are replaced.
func TestReadmeAppendsACA(t *testing.T) {
	kubectl, err := plane.Binary("kubectl")
	_, errJQ := exec.LookPath("jq")
	if err := errors.Join(err, errJQ); err != nil {
		t.Skipf("the command needs kubectl and jq, and no other test needs both: %v", err)
	}
	i := install(t, nil)
	ca := newStub(t).ca()
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600), os.Symlink(kubectl, filepath.Join(dir, "kubectl"))); err != nil {
		t.Fatal(err)
	}
	command := readmeCommand(t, "kubectl get mutatingwebhookconfiguration ")
	// The first time there is none, the second time there is one.
	for times := range 2 {
		cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", command) //nolint:gosec // the README's
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "KUBECONFIG="+i.plane.Kubeconfig, "PATH="+dir+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, entry := range i.configuration(t).Webhooks {
			if got := bytes.Count(entry.ClientConfig.CABundle, ca); got != times+1 {
				t.Errorf("%s: %d CAs, want %d", entry.Name, got, times+1)
			}
		}
	}
	before := i.configuration(t).Webhooks[0].ClientConfig.CABundle
	if _, err := i.helm.Upgrade(t.Context(), i.release); err != nil {
		t.Fatal(err)
	}
	i.checkTrust(t, "upgrade", before)
}
