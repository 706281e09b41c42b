package clients

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"multus-ip-manager.io/test/aws"
)

const roleARN = "arn:aws:iam::123456789012:role/pods"

// token makes the role that pods may take, and a token for one audience.
func (e endpoints) token(audience string) string {
	e.cloud.PutRole(aws.Role{Name: "pods", Trusts: []string{"telco:app", aws.AudiencePodIdentity}})
	e.cloud.Associate("telco:app", "pods")
	return e.cloud.ServiceAccountToken(aws.TokenRequest{Namespace: "telco", ServiceAccount: "app", PodUID: "u-1", Audience: audience})
}

// calledBy asserts that the last call to EC2 was signed by a session of the role.
func (e endpoints) calledBy(t *testing.T, session string) {
	t.Helper()
	calls := e.cloud.Journal()
	if len(calls) == 0 || !strings.HasPrefix(calls[len(calls)-1].Principal, "arn:aws:sts::123456789012:assumed-role/pods/"+session) {
		t.Errorf("calls %v", calls)
	}
}

// TestGoIdentities is the default chain of Go's SDK with what the EKS webhooks put into a pod.
func TestGoIdentities(t *testing.T) {
	e := start(t)
	for name, tt := range map[string]struct {
		audience, variable, session string
		env                         map[string]string
	}{
		"IRSA": {aws.AudienceSTS, "AWS_WEB_IDENTITY_TOKEN_FILE", "s-1",
			map[string]string{"AWS_ROLE_ARN": roleARN, "AWS_ROLE_SESSION_NAME": "s-1", "AWS_ENDPOINT_URL_STS": e.sts}},
		"Pod Identity": {aws.AudiencePodIdentity, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "eks-cluster-u-1",
			map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": e.pods + "v1/credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(file, []byte(e.token(tt.audience)), 0o600); err != nil {
				t.Fatal(err)
			}
			for k, v := range map[string]string{"AWS_REGION": region, "AWS_ENDPOINT_URL_EC2": e.ec2, "HOME": t.TempDir(), "AWS_ACCESS_KEY_ID": "",
				"AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "NO_PROXY": "*", "AWS_EC2_METADATA_DISABLED": "true", tt.variable: file} {
				t.Setenv(k, v)
			}
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			cfg, err := config.LoadDefaultConfig(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ec2.NewFromConfig(cfg).DescribeSubnets(t.Context(), nil); err != nil {
				t.Error(err)
			}
			e.calledBy(t, tt.session)
			creds, err := cfg.Credentials.Retrieve(t.Context())
			if err != nil || creds.AccountID != "123456789012" || !creds.CanExpire {
				t.Errorf("account %q, end %v, %v", creds.AccountID, creds.Expires, err)
			}
		})
	}
}

//go:embed testdata/identity.py
var identityScript string

// TestBoto3Identities is what Debian's boto3 makes of STS and of Pod Identity's endpoint.
func TestBoto3Identities(t *testing.T) {
	e := start(t)
	python := pythonWithBoto3(t, e)
	out, errOut, ok := run(t, e, identityScript, python, "-", e.ec2, e.sts, e.pods, roleARN, e.token(aws.AudienceSTS), e.token(aws.AudiencePodIdentity))
	if !ok || !strings.HasSuffix(out, "all well\n") {
		t.Fatalf("%s%s", out, errOut)
	}
}

// pythonWithBoto3 finds an interpreter.
func pythonWithBoto3(t *testing.T, e endpoints) string {
	t.Helper()
	for _, name := range []string{"/usr/bin/python3", "python3"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		// An interpreter of a version manager may shadow the one that the distribution's boto3 belongs to.
		if _, _, ok := run(t, e, "import boto3", path, "-"); ok {
			return path
		}
	}
	t.Skip("no python3 that can import boto3; " + install)
	return ""
}

// TestAWSCLIIdentity takes a role by token as an operator would who looks for a fault in its trust policy.
func TestAWSCLIIdentity(t *testing.T) {
	cli := awsCLI(t)
	e := start(t)
	out, errOut, ok := run(t, e, "", cli, "--endpoint-url", e.sts, "--output", "text", "sts", "assume-role-with-web-identity", "--role-arn", roleARN,
		"--role-session-name", "s-1", "--web-identity-token", e.token(aws.AudienceSTS), "--query", "[AssumedRoleUser.Arn,SubjectFromWebIdentityToken]")
	if want := "arn:aws:sts::123456789012:assumed-role/pods/s-1\tsystem:serviceaccount:telco:app\n"; !ok || out != want {
		t.Errorf("%q %s", out, errOut)
	}
}
