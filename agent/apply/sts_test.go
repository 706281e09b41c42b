package apply

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// noting notes what is dialled on a network.
type noting struct {
	to    *network
	mu    sync.Mutex
	asked []string
}

func (n *noting) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	n.asked = append(n.asked, address)
	n.mu.Unlock()
	return n.to.DialContext(ctx, network, address)
}

func (n *noting) dialled(address string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.asked, address)
}

// stsAnswer is STS's answer to an exchange of tokens.
const stsAnswer = `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/r/s</Arn>
	<AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>AKIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
	<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`

// STS is asked where the environment says, also where one variable says it for all services.
func TestSTSEndpoint(t *testing.T) {
	const region = "sts.eu-central-1.amazonaws.com:443"
	tests := map[string]struct {
		env  map[string]string
		want string
	}{
		"the Region's":               {nil, region},
		"of all services":            {map[string]string{"AWS_ENDPOINT_URL": "http://all.example.com"}, "all.example.com:80"},
		"its own":                    {map[string]string{"AWS_ENDPOINT_URL_STS": "http://sts.example.com"}, "sts.example.com:80"},
		"its own before all others'": {map[string]string{"AWS_ENDPOINT_URL": "http://all.example.com", "AWS_ENDPOINT_URL_STS": "http://sts.example.com"}, "sts.example.com:80"},
		"EC2's":                      {map[string]string{"AWS_ENDPOINT_URL_EC2": "http://ec2.example.com"}, region},
		"ignored":                    {map[string]string{"AWS_ENDPOINT_URL": "http://all.example.com", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, region},
		"the Region is metadata's": {map[string]string{"AWS_REGION": "", "AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://metadata.example.com"},
			"sts.ap-south-2.amazonaws.com:443"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			podIdentity(t, "")
			token := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(token, []byte("x.y.z"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
			t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			n := &network{}
			defer n.stop()
			n.serve("metadata.example.com:80", nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ap-south-2") })
			d := &noting{to: n}
			var exchanged, signed atomic.Bool
			for _, host := range []string{"all", "sts", "ec2"} {
				n.serve(host+".example.com:80", nil, func(w http.ResponseWriter, r *http.Request) {
					_ = r.ParseForm()
					if r.PostForm.Get("Action") == "AssumeRoleWithWebIdentity" {
						exchanged.Store(r.PostForm.Get("WebIdentityToken") == "x.y.z" && r.Header.Get("Authorization") == "")
						_, _ = io.WriteString(w, stsAnswer)
						return
					}
					signed.Store(strings.Contains(r.Header.Get("Authorization"), "AKIAROLE"))
					_, _ = io.WriteString(w, assigned)
				})
			}
			c := newTestClient(t, d, slog.New(slog.DiscardHandler))
			defer c.Close()
			err := assign(t, c)
			if !d.dialled(tt.want) {
				t.Errorf("dialled %q, want %s among them: %v", d.asked, tt.want, err)
			}
			if strings.HasSuffix(tt.want, ".example.com:80") && !exchanged.Load() || tt.want == "all.example.com:80" && (err != nil || !signed.Load()) {
				t.Errorf("exchanged: %t, signed: %t, %v", exchanged.Load(), signed.Load(), err)
			}
		})
	}
}
