package apply

import (
	"context"
	"errors"
	"regexp"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/middleware"
)

// What [OnRequest] tells in place of EC2's error code.
const (
	codeOK         = "OK"
	codeTimeout    = "timeout"
	codeUnanswered = "unanswered"
)

// OnRequest has a function called after each request to EC2, from any goroutine: with the EC2 action, with EC2's error code ("OK" for
// success, "timeout" when the attempt's time ran out, "unanswered" for any other request without an answer of EC2) and with how long it
// took. A call that got no credentials sends no request.
func OnRequest(tell func(op, code string, took time.Duration)) Option {
	return func(o *ec2.Options) {
		o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error {
			// Outermost of those that see the answer, so that it is understood already.
			return s.Deserialize.Add(middleware.DeserializeMiddlewareFunc("meter", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
				middleware.DeserializeOutput, middleware.Metadata, error,
			) {
				started := time.Now()
				out, metadata, err := next.HandleDeserialize(ctx, in)
				tell(awsmiddleware.GetOperationName(ctx), meterCode(ctx, err), time.Since(started))
				return out, metadata, err
			}), middleware.Before)
		})
	}
}

// wellFormed are texts that can be an error code. Anything else comes from somebody else and would be a metric of its own each time.
var wellFormed = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]{0,63}$`)

func meterCode(ctx context.Context, err error) string {
	code := codeOf(err)
	switch {
	case err == nil:
		return codeOK
	case wellFormed.MatchString(code) && code != unknownCode:
		return code
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return codeTimeout
	default:
		return codeUnanswered
	}
}
