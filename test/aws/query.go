package aws

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxBody is more than any of the calls needs; EC2 limits requests, too.
const maxBody = 1 << 20

// maxParams bounds the work that one request can cause.
const maxParams = 20000

// maxFilters is EC2's limit on filters in one call.
const maxFilters = 200

// params are the parameters of one request.
type params struct {
	values url.Values
	err    *APIError // the first malformed value
}

// parseParams reads the query and a form body. Signature parameters are left out.
func parseParams(rawQuery string, body []byte) (url.Values, *APIError) {
	out := url.Values{}
	for _, raw := range []string{rawQuery, strings.TrimSpace(string(body))} {
		if strings.Count(raw, "&") > maxParams {
			return nil, badRequest("MalformedQueryString", "The query string contains too many parameters")
		}
		values, err := url.ParseQuery(raw)
		if err != nil {
			return nil, badRequest("MalformedQueryString", "The query string contains a syntax error")
		}
		for k, v := range values {
			if !strings.HasPrefix(strings.ToLower(k), "x-amz-") {
				out[k] = append(out[k], v...)
			}
		}
	}
	return out, nil
}

func (p *params) has(name string) bool { return p.values.Has(name) }

func (p *params) text(name string) string { return p.values.Get(name) }

func (p *params) fail(err *APIError) {
	if p.err == nil {
		p.err = err
	}
}

func (p *params) boolean(name string) bool {
	switch strings.ToLower(p.text(name)) {
	case "":
		return false
	case "true", "1":
		return true
	case "false", "0":
		return false
	}
	p.fail(invalidValue("invalid value for parameter %s: %s", name, p.text(name)))
	return false
}

// number is nil for an absent parameter.
func (p *params) number(name string) *int {
	if p.text(name) == "" {
		return nil
	}
	n, err := strconv.ParseInt(p.text(name), 10, 32)
	if err != nil {
		p.fail(invalidValue("invalid value for parameter %s: %s", name, p.text(name)))
		return nil
	}
	v := int(n)
	return &v
}

// list reads name.1, name.2, … in the order of their numbers, gaps allowed.
func (p *params) list(name string) []string {
	type item struct {
		n     int
		value string
	}
	var items []item
	for k, values := range p.values {
		rest, ok := strings.CutPrefix(k, name+".")
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(rest); err == nil {
			items = append(items, item{n, values[0]})
		}
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(a.n, b.n) })
	var out []string
	for _, it := range items {
		out = append(out, it.value)
	}
	return out
}

// known refuses parameters that the action does not have. A list's name allows "name.1" and "name.1.Field".
func (p *params) known(names []string) *APIError {
	for _, k := range sortedKeys(p.values) {
		base, _, _ := strings.Cut(k, ".")
		if !slices.Contains(names, base) && !slices.Contains(commonParams(), base) {
			return badRequest("UnknownParameter", "The parameter %s is not recognized", k)
		}
	}
	return nil
}

// commonParams are allowed in every request.
func commonParams() []string {
	return []string{"Action", "Version", "AWSAccessKeyId", "Signature", "SignatureVersion", "SignatureMethod", "Timestamp",
		"Expires", "SecurityToken"}
}

// filter is one Filter.N: the name, and values of which one must match.
type filter struct {
	name   string
	values []string
}

// filters reads Filter.N.Name and Filter.N.Value.M.
func (p *params) filters() []filter {
	numbers := map[int]bool{}
	for k := range p.values {
		parts := strings.Split(k, ".")
		if parts[0] != "Filter" {
			continue
		}
		n, err := 0, error(nil)
		if len(parts) > 1 {
			n, err = strconv.Atoi(parts[1])
		}
		if err != nil || len(parts) < 3 || parts[2] != "Name" && parts[2] != "Value" {
			p.fail(badRequest("UnknownParameter", "The parameter %s is not recognized", k))
			continue
		}
		numbers[n] = true
	}
	if len(numbers) > maxFilters {
		p.fail(badRequest("FilterLimitExceeded", "The maximum number of filters specified on a single call is %d", maxFilters))
		return nil
	}
	var out []filter
	for n := range numbers {
		prefix := "Filter." + strconv.Itoa(n)
		f := filter{name: p.text(prefix + ".Name"), values: p.list(prefix + ".Value")}
		switch {
		case f.name == "":
			p.fail(badRequest("InvalidParameter", "The filter name is missing"))
		case len(f.values) == 0:
			p.fail(badRequest("InvalidParameterValue", "The filter '%s' has no value", f.name))
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b filter) int { return cmp.Compare(a.name, b.name) })
	return out
}
