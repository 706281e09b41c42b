package apply

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	// badIdentityToken is STS's code for a token of the pod's service account that it does not accept.
	badIdentityToken = "InvalidIdentityToken"
	// unknownAssociation is EKS's code for a service account that it has no Pod Identity association of.
	unknownAssociation = "ResourceNotFoundException"
	// refusalPatience is how long a refusal must last that may pass before it is believed. STS refuses tokens also while it cannot fetch the
	// cluster's public keys, and the SDKs try again then, too; an association is known everywhere only some seconds after it was made.
	refusalPatience = 5 * time.Second
	// endpointTokenFile is the one variable of the chain that the SDK reads only when credentials are asked for.
	endpointTokenFile = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" //nolint:gosec // the name of a variable
)

// podIdentityAgent is the beginning of the address of a node's EKS Pod Identity agent.
var podIdentityAgent = regexp.MustCompile(`^http://(169\.254\.170\.23|\[fd00:ec2::23\])[:/]`)

// source is where credentials come from, as far as the environment tells it: what messages name, so that a reader knows what to look at.
// Its zero value is any other, such as the instance's role.
type source struct {
	// name follows the words "AWS credentials".
	name string
	// cure is what to do when they are refused for good.
	cure string
	// variable names the file with the pod's token, and is set to file; both are empty where there is none.
	variable, file string
}

// sourceOf tells the source, in the order in which the SDK's chain looks at the environment. A profile of a shared configuration file comes
// before the container endpoints; where the environment names one, nothing is said.
func sourceOf(env config.EnvConfig) source {
	switch at := env.ContainerCredentialsEndpoint; {
	case env.Credentials.HasKeys():
		return source{}
	case env.WebIdentityTokenFilePath != "":
		return source{name: " for " + env.RoleARN, variable: "AWS_WEB_IDENTITY_TOKEN_FILE", file: env.WebIdentityTokenFilePath,
			cure: "the role must exist, and its trust policy must let the pod's service account take it (sts:AssumeRoleWithWebIdentity) " +
				"by the account's OIDC provider of this cluster"}
	case env.SharedConfigProfile != "" || env.ContainerCredentialsRelativePath != "":
		return source{}
	case podIdentityAgent.MatchString(at):
		return source{name: " from EKS Pod Identity", variable: endpointTokenFile, file: os.Getenv(endpointTokenFile),
			cure: "the pod's service account needs a Pod Identity association with a role that trusts pods.eks.amazonaws.com for sts:AssumeRole and " +
				"sts:TagSession"}
	case at != "":
		return source{name: " from " + at, variable: endpointTokenFile, file: os.Getenv(endpointTokenFile)}
	}
	return source{}
}

// check tells whether the pod's token is there. Projected volumes are filled before a pod's containers start and stay until they have
// ended, so a file that is missing does not come.
func (s source) check() error {
	if s.file == "" {
		return nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return fmt.Errorf("%w: the pod's token cannot be read (%s): %w; what sets the variable must mount the token's volume into this container, readable for its user",
			ErrConfiguration, s.variable, err)
	}
	return f.Close()
}

// tokenExchange is the client of STS that the SDK exchanges the pod's token for credentials with (IRSA). The SDK would make its own before
// it has read AWS_ENDPOINT_URL and before the Region is known from metadata.
type tokenExchange struct{ *sts.Client }

// by makes the client of a finished configuration. The request is not signed.
func (t *tokenExchange) by(cfg aws.Config) {
	cfg.Credentials = nil
	t.Client = sts.NewFromConfig(cfg)
}

// credentialsError marks a failure to get credentials, which happens before anything is sent to EC2.
type credentialsError struct {
	err  error
	from source
	// early tells that the refusal has not lasted for long.
	early bool
}

// Error implements error. The source's own words need no scrubbing.
func (e *credentialsError) Error() string {
	text := "get AWS credentials" + e.from.name + ": " + scrub(strings.TrimSpace(e.err.Error()))
	if e.from.cure != "" && e.class() == Denied {
		text += "; " + e.from.cure
	}
	return text
}

// Unwrap gives the cause.
func (e *credentialsError) Unwrap() error { return e.err }

// credentialCodes are the codes that only services for credentials have.
var credentialCodes = map[string]Class{
	"IDPRejectedClaim":        Denied,
	"RegionDisabledException": Denied,
	"ValidationError":         Denied, // a role's ARN that is none
	unknownAssociation:        Denied,
	"InvalidTokenException":   Denied,
}

// mayPass tells the refusals that are believed only when they last.
func mayPass(code string) bool { return code == badIdentityToken || code == unknownAssociation }

// class tells "there is none for you" from "could not ask". A role that is missing from metadata is a 404, a role that may not
// be assumed is STS's AccessDenied. Whatever it is, nothing was sent to EC2, so that it is certain what the call did: nothing.
func (e *credentialsError) class() Class {
	code, status := verdictOf(e.err)
	if _, throttled := retry.DefaultThrottleErrorCodes[code]; throttled || status == http.StatusTooManyRequests {
		return Throttled // a mass start asks for credentials, too
	}
	if e.early && mayPass(code) {
		return NoCredentials
	}
	for _, table := range []map[string]Class{credentialCodes, codes} {
		if c, known := table[code]; known && c.Certain() {
			return c
		}
	}
	var metadata *smithyhttp.ResponseError
	if status == http.StatusNotFound && errors.As(e.err, &metadata) {
		return Denied
	}
	return NoCredentials
}

// passedOn is how the EKS Pod Identity agent begins its plain text where EKS refused: the request's id and the code.
var passedOn = regexp.MustCompile(`^\[[^\]]*\]: \((\w+)\): `)

// verdictOf gives the code and the HTTP status of the refusal, as far as there are such.
func verdictOf(err error) (code string, status int) {
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) {
		status = answer.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		if code = api.ErrorCode(); code == "" {
			if m := passedOn.FindStringSubmatch(api.ErrorMessage()); m != nil {
				code = m[1]
			}
		}
	}
	return code, status
}
