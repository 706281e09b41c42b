package aws

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// facets are what filters can ask about one item: the filter's name to the item's values. A filter that asks for an
// absent facet matches nothing; a filter whose name no item could have is refused.
type facets map[string][]string

// matches applies filters: all of them, each by any of its values, with wildcards, case-sensitive.
func (f facets) matches(filters []filter) bool {
	for _, want := range filters {
		if !slices.ContainsFunc(f[want.name], func(have string) bool {
			return slices.ContainsFunc(want.values, func(pattern string) bool { return wildcard(pattern, have) })
		}) {
			return false
		}
	}
	return true
}

// allow refuses filters with names that the action does not know. Tag filters are known to all.
func allow(filters []filter, names []string) *APIError {
	for _, f := range filters {
		if f.name != "tag-key" && !strings.HasPrefix(f.name, "tag:") && !slices.Contains(names, f.name) {
			return invalidValue("The filter '%s' is invalid", f.name)
		}
	}
	return nil
}

func (f facets) tags(tags map[string]string) {
	for k, v := range tags {
		f["tag:"+k] = []string{v}
		f["tag-key"] = append(f["tag-key"], k)
	}
}

// page is what a describe call asks for, ids apart.
type page struct {
	filters []filter
	max     int // 0 = all
	after   string
	stamp   string // what the token is bound to
}

// token is the content of a NextToken. It names the last item rather than a position, so that a listing stays right
// while interfaces come and go.
type token struct {
	After string `json:"a"`
	Stamp string `json:"s"`
}

// page reads filters and pagination. least and most bound MaxResults; ids are the explicit ids of the call, which EC2
// does not allow together with MaxResults.
func (q *request) page(ids []string, idsName string, least, most int) (page, *APIError) {
	p := page{filters: q.filters()}
	sum := sha256.Sum256([]byte(fmt.Sprint(q.text("Action"), p.filters, ids)))
	p.stamp = hexString(sum[:6])
	if n := q.number("MaxResults"); n != nil {
		p.max = *n
		switch {
		case len(ids) > 0 && idsName != "":
			return p, badRequest(codeInvalidCombination, "The parameter %s cannot be used with the parameter maxResults", idsName)
		case p.max < least:
			return p, invalidValue("Value ( %d ) for parameter maxResults is invalid. Expecting a value greater than %d.", p.max, least)
		case p.max > most:
			return p, invalidValue("Value ( %d ) for parameter maxResults is invalid. Expecting a value less than %d.", p.max, most)
		}
	}
	if text := q.text("NextToken"); text != "" {
		var t token
		raw, err := base64.URLEncoding.DecodeString(text)
		if err != nil || json.Unmarshal(raw, &t) != nil || t.Stamp != p.stamp {
			return p, badRequest("InvalidPaginationToken", "The pagination token is invalid")
		}
		p.after = t.After
	}
	return p, q.err
}

// cut returns the page's ids out of the sorted ids of all matching items, and the next token.
func (p page) cut(ids []string) (out []string, next string) {
	if p.after != "" {
		i, found := slices.BinarySearch(ids, p.after)
		if found {
			i++
		}
		ids = ids[i:]
	}
	if p.max == 0 || len(ids) <= p.max {
		return ids, ""
	}
	ids = ids[:p.max]
	raw, err := json.Marshal(token{After: ids[len(ids)-1], Stamp: p.stamp})
	if err != nil {
		return ids, ""
	}
	return ids, base64.URLEncoding.EncodeToString(raw)
}

// chosen checks explicit ids against what exists and returns all ids where there are none.
func chosen[V any](ids []string, all map[string]V, missing func(ids ...string) *APIError) ([]string, *APIError) {
	if len(ids) == 0 {
		return sortedKeys(all), nil
	}
	var gone []string
	for _, id := range ids {
		if _, ok := all[id]; !ok {
			gone = append(gone, id)
		}
	}
	if len(gone) > 0 {
		return nil, missing(gone...)
	}
	return slices.Compact(slices.Sorted(slices.Values(ids))), nil
}

// shaped refuses ids that cannot be ids.
func shaped(ids []string, prefix, code string) *APIError {
	for _, id := range ids {
		if !strings.HasPrefix(id, prefix) {
			return badRequest(code, "Invalid id: %q (expecting \"%s...\")", id, prefix)
		}
	}
	return nil
}
