package plane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"multus-ip-manager.io/test/tools"
)

// AssetsVariable names the folder that holds kube-apiserver and etcd (and helm, kubectl where wanted), for people who
// have them already. It is the variable that controller-runtime's envtest uses.
const AssetsVariable = "KUBEBUILDER_ASSETS"

// Binary returns the path of a control plane binary or tool: from the folder that KUBEBUILDER_ASSETS names where it is
// set and holds it, else from the cache that `make tools` fills.
func Binary(name string) (string, error) {
	assets := os.Getenv(AssetsVariable)
	if assets != "" {
		path := filepath.Join(assets, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("look for %s in %s: %w", name, AssetsVariable, err)
		}
	}
	path, err := tools.Path(name)
	if err == nil || assets == "" {
		return path, err
	}
	return "", fmt.Errorf("%s is not in %s=%s, and %w", name, AssetsVariable, assets, err)
}
