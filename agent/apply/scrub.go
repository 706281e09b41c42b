package apply

import "regexp"

// Words after which nothing of a text about credentials is shown, and runs of characters that may be a part of credentials: access key
// ids, signed tokens, and what is as long as a secret key without a character that a secret key cannot have.
var (
	secretNames = regexp.MustCompile(`(?is)["']?(secret_?access_?key|session_?token|"token"|access_?key_?id|authorization:).*`)
	secretRuns  = regexp.MustCompile(`(AKIA|ASIA)[A-Z0-9]{8,}|eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*|[A-Za-z0-9+/=]{30,}`)
)

// scrub takes out of an error's text what may be a part of credentials: the SDK quotes answers that it does not understand.
func scrub(text string) string {
	text = secretNames.ReplaceAllString(text, "(not shown)")
	return secretRuns.ReplaceAllString(text, "(not shown)")
}
