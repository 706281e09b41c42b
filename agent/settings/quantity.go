package settings

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Quantity is an exact Kubernetes quantity. Kubernetes' own type would bring
// its API machinery into the agent; only parsing and comparing is needed here.
type Quantity struct{ value *big.Rat }

// maxExponent bounds decimal exponents: anything larger is no amount of CPU or
// memory, and 1e999999999 must not cost memory.
const maxExponent = 30

// ParseQuantity reads a quantity as Kubernetes writes it: a decimal number,
// then a decimal suffix (n u m k M G T P E), a binary suffix (Ki Mi Gi Ti Pi
// Ei), or a decimal exponent (e3).
func ParseQuantity(s string) (Quantity, error) {
	number, suffix := splitNumber(s)
	scale, ok := scaleOf(suffix)
	value := new(big.Rat)
	if ok && number != "" {
		_, ok = value.SetString(number)
	}
	if !ok || number == "" {
		return Quantity{}, fmt.Errorf("%q is not a quantity", Shorten(s))
	}
	return Quantity{value.Mul(value, scale)}, nil
}

// splitNumber divides "1.5Gi" into "1.5" and "Gi"; the number is "" when it is
// malformed or absurdly long.
func splitNumber(s string) (number, suffix string) {
	const most = 40
	end, digits, points := 0, 0, 0
scan:
	for ; end < len(s); end++ {
		switch c := s[end]; {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			points++
		case (c == '+' || c == '-') && end == 0:
		default:
			break scan
		}
	}
	if digits == 0 || digits > most || points > 1 {
		return "", s[end:]
	}
	// "5." and ".5" are quantities, but not to math/big in every form.
	number = strings.TrimSuffix(s[:end], ".")
	return number, s[end:]
}

// scaleOf is the factor a suffix stands for.
func scaleOf(suffix string) (*big.Rat, bool) {
	const decimal, binary = "numkMGTPE", "KMGTPE"
	switch {
	case suffix == "":
		return big.NewRat(1, 1), true
	case len(suffix) == 1 && strings.Contains(decimal, suffix):
		exponent := 3 * (strings.Index(decimal, suffix) - 3)
		if exponent >= 0 {
			exponent += 3 // there is no suffix for 10^0
		}
		return power10(exponent), true
	case len(suffix) == 2 && suffix[1] == 'i' && strings.Contains(binary, suffix[:1]):
		return new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*(1+strings.Index(binary, suffix[:1]))))), true
	case suffix[0] == 'e' || suffix[0] == 'E':
		exponent, err := strconv.Atoi(suffix[1:])
		if err != nil || exponent < -maxExponent || exponent > maxExponent {
			return nil, false
		}
		return power10(exponent), true
	}
	return nil, false
}

func power10(exponent int) *big.Rat {
	p := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exponent, -exponent))), nil)
	if exponent < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), p)
	}
	return new(big.Rat).SetInt(p)
}

// Cmp is -1, 0 or 1 as q is less than, equal to or greater than other.
func (q Quantity) Cmp(other Quantity) int { return q.value.Cmp(other.value) }

// Sign is -1, 0 or 1 as q is negative, zero or positive.
func (q Quantity) Sign() int { return q.value.Sign() }

// IsWhole tells whether q is an integer: of a CPU quantity, whole cores.
func (q Quantity) IsWhole() bool { return q.value.IsInt() }

// steps tells whether q is a multiple of 1/n.
func (q Quantity) steps(n int64) bool {
	return new(big.Rat).Mul(q.value, big.NewRat(n, 1)).IsInt()
}

// ParseCPU reads the CPU annotation: 1m to 64 cores in steps of 1m. Kubernetes
// rounds finer amounts up without saying so.
func ParseCPU(s string) (Quantity, error) {
	return quantityBetween(s, big.NewRat(1, 1000), big.NewRat(64, 1), 1000)
}

// ParseMemory reads the memory annotation: 16 MiB, below which the agent is
// killed before it can say why, to 64 GiB, in whole bytes.
func ParseMemory(s string) (Quantity, error) {
	return quantityBetween(s, big.NewRat(16<<20, 1), big.NewRat(64<<30, 1), 1)
}

func quantityBetween(s string, least, most *big.Rat, steps int64) (Quantity, error) {
	q, err := ParseQuantity(s)
	switch {
	case err != nil:
		return q, err
	case q.value.Cmp(least) < 0 || q.value.Cmp(most) > 0:
		return q, fmt.Errorf("%q is out of range", Shorten(s))
	case !q.steps(steps):
		return q, fmt.Errorf("%q is finer than can be had", Shorten(s))
	}
	return q, nil
}

// Key is a text that is the same for equal quantities, however they are written.
func (q Quantity) Key() string { return q.value.RatString() }
