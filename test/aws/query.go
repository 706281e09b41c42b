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

// maxFilterValues is EC2's limit on filter values in one call, all filters together.
const maxFilterValues = 200

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
		if n, ok := index(rest); ok {
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

// index reads a list's position as clients write it: digits alone, so that no two spellings mean the same element.
func index(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == text
}

// known refuses parameters that the action does not have. What would be read by nobody (a list without a position, a
// position on something that is no list) is refused, too: a client that writes it believes that it asked for something.
func (p *params) known(names []string) *APIError {
	for _, k := range sortedKeys(p.values) {
		base, rest, nested := strings.Cut(k, ".")
		name := base
		if nested {
			name += ".N"
		}
		position, field, _ := strings.Cut(rest, ".")
		_, ok := index(position)
		// The fields of filters are looked at where filters are read.
		if nested && (!ok || field != "" && base != "Filter") || !slices.Contains(names, name) && !slices.Contains(commonParams(), name) {
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
	values := 0
	for k := range p.values {
		parts := strings.Split(k, ".")
		if parts[0] != "Filter" {
			continue
		}
		var field string
		n, ok := 0, len(parts) > 2
		if ok {
			n, ok = index(parts[1])
			field = strings.Join(parts[2:], ".")
		}
		if position, isValue := strings.CutPrefix(field, "Value."); ok && isValue {
			_, ok = index(position)
			values++
		} else if field != "Name" {
			ok = false
		}
		if !ok {
			p.fail(badRequest("UnknownParameter", "The parameter %s is not recognized", k))
			continue
		}
		numbers[n] = true
	}
	if values > maxFilterValues {
		p.fail(badRequest("FilterLimitExceeded", "The maximum number of filter values specified on a single call is %d", maxFilterValues))
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
