"""Grammars for decimal numbers between bounds, and for multiples: exactly, digit by digit.

A float of 64 bits distinguishes decimals of 15 digits. Next to an exclusive bound no more digits are allowed, so that no
decimal is read as the bound itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from llamafu.generation.grammar.rules import char_class, integers, literal, union

if TYPE_CHECKING:
    from llamafu.generation.grammar.rules import Rules

_EXACT_DIGITS = 15
INTEGER_DIGITS = 19
"""Digits of whole numbers without bounds: as many as 64 bits hold."""
MOST_LISTED = 2000
"""The most multiples between two bounds that are listed one by one."""
MOST_DIVISOR = 300
"""The largest divisor that is supported without bounds."""
_MOST_REMAINDERS = 30
_EXACT = Context(prec=5000)


@dataclass(frozen=True)
class Bound:
    """A limit of a range; `strict` when it is not in the range itself."""

    value: Decimal
    strict: bool = False

    @property
    def decimals(self) -> int:
        """How many digits it has after the point."""
        return len(_split(self.value.copy_abs())[1])

    @property
    def exact_decimals(self) -> int:
        """How many digits after the point a number next to it may have."""
        return max(0, _EXACT_DIGITS - len(_split(self.value.copy_abs())[0].lstrip("0")))


def decimal(value: float) -> Decimal:
    """Return the decimal that a number of a JSON text is written as."""
    return Decimal(repr(value) if isinstance(value, float) else value)


def decimals_between(rules: Rules, low: Bound | None, high: Bound | None, *, places: int | None = None) -> str:
    """Return alternatives for the decimals within bounds, of at most `places` digits after the point; "" for none.

    Without a bound they have up to 15 digits before the point, or one more than the other bound.
    """
    given = [bound for bound in (low, high) if bound is not None]
    if places is None:
        places = max([*(b.decimals for b in given if not b.strict), min(b.exact_decimals for b in given)])
        places = min([places, *(b.exact_decimals for b in given if b.strict)])
    far = 10 ** max([_EXACT_DIGITS, *(len(_split(b.value.copy_abs())[0]) + 1 for b in given)]) - 1
    low, high = low or Bound(Decimal(-far)), high or Bound(Decimal(far))
    if low.value > high.value or (low.value == high.value and (low.strict or high.strict)):
        return ""
    options: list[str] = []
    if low.value < 0:  # -0 is left to 0
        near = Bound(high.value.copy_negate(), high.strict) if high.value < 0 else Bound(Decimal(0), strict=True)
        options += [f'"-" {each}' for each in _magnitudes(rules, near, Bound(low.value.copy_negate(), low.strict), places)]
    if high.value >= 0:
        options += _magnitudes(rules, low if low.value >= 0 else Bound(Decimal(0)), high, places)
    return " | ".join(options)


def multiples(rules: Rules, step: Decimal, low: Bound | None, high: Bound | None) -> str | None:
    """Return alternatives for the multiples of `step` within bounds, "" for none, None where there are too many to list."""
    if low is not None and high is not None:
        first, last = _counts(step, low, high)
        if last - first < MOST_LISTED:
            return " | ".join(literal(_written(_EXACT.multiply(step, count))) for count in range(first, last + 1))
    _, digits, exponent = step.normalize(_EXACT).as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - it is finite
    if digits == (1,) and exponent <= 0:
        return _rounded(rules, -exponent, low, high)
    if high is not None or not (low is None or (low.value == 0 and not low.strict)):
        return None
    body = _unbounded(rules, step, int("".join(map(str, digits))), -exponent)
    return body and f'"0" | {"" if low else """"-"?"""} {rules.add("multiple", body)}'


def _rounded(rules: Rules, places: int, low: Bound | None, high: Bound | None) -> str:
    """Return alternatives for the numbers with `places` decimals within bounds."""
    if not places:
        low, high = _whole(low, ceiling=True), _whole(high, ceiling=False)
    return decimals_between(rules, low, high, places=places)


def _unbounded(rules: Rules, step: Decimal, digits: int, places: int) -> str | None:
    """Return the body for all multiples without a sign; None where no list of endings describes them."""
    if places <= 0:
        return _divisible(rules, int(step)) if step <= MOST_DIVISOR else None
    if 10**places % digits or 10**places > 10 * MOST_LISTED:
        return None
    endings = (literal(f"{count:0{places}d}") for count in range(digits, 10**places, digits))
    return f'("0" | [1-9] [0-9]{{0,14}}) ("." ({" | ".join(endings)}))?'


def _counts(step: Decimal, low: Bound, high: Bound) -> tuple[int, int]:
    """Return the first and last whole number whose product with `step` lies within the bounds."""
    lowest, highest = Fraction(low.value) / Fraction(step), Fraction(high.value) / Fraction(step)
    first, last = math.ceil(lowest), math.floor(highest)
    return first + (low.strict and first == lowest), last - (high.strict and last == highest)


def _whole(bound: Bound | None, *, ceiling: bool) -> Bound | None:
    """Return the bound for whole numbers that is equivalent to a bound for decimals."""
    if bound is None:
        return None
    value = math.ceil(bound.value) if ceiling else math.floor(bound.value)
    if bound.strict and value == bound.value:
        value += 1 if ceiling else -1
    return Bound(Decimal(value))


def _written(value: Decimal) -> str:
    whole, fraction = _split(value.copy_abs())
    return ("-" if value < 0 else "") + whole + ("." + fraction if fraction else "")


def _divisible(rules: Rules, step: int) -> str:
    """Return a rule for the whole numbers above 0 that `step` divides, made of one rule per remainder and digits left.

    The number of digits is bounded, since a model cannot count them and might never stop. Multiples of a large number are
    listed: tokens of three digits reach every remainder at once, and following them all takes too many steps.
    """
    if step > _MOST_REMAINDERS:
        return rules.add("multiple", " | ".join(literal(str(step * count)) for count in range(1, MOST_LISTED)))
    shorter = {0: '""'}  # remainder -> the rule of what may follow it in at most `left` digits
    for left in range(1, INTEGER_DIGITS):
        longer = {}
        for rest in range(step):
            ways = [*(['""'] if rest == 0 else []), *_digit_by_digit(rest, 0, step, shorter)]
            if ways:
                longer[rest] = rules.add(f"rest-{rest}-{left}", " | ".join(ways))
        shorter = longer
    return rules.add("multiple", " | ".join(_digit_by_digit(0, 1, step, shorter)))


def _digit_by_digit(rest: int, first: int, step: int, following: dict[int, str]) -> list[str]:
    """Return alternatives for a digit from `first` on after the remainder `rest`, each with what may follow it."""
    digits: dict[str, list[int]] = {}
    for digit in range(first, 10):
        if (then := (10 * rest + digit) % step) in following:
            digits.setdefault(following[then], []).append(48 + digit)
    return [f"{char_class(union((code, code) for code in codes))} {then}" for then, codes in digits.items()]


def _split(value: Decimal) -> tuple[str, str]:
    """Return the digits before and after the point of a value of 0 or more."""
    whole, _, fraction = format(value, "f").partition(".")
    return whole, fraction.rstrip("0")


def _magnitudes(rules: Rules, low: Bound, high: Bound, places: int) -> list[str]:
    """Return alternatives for values of 0 or more."""
    (a, f), (b, g) = _split(low.value), _split(high.value)
    first, last = int(a), int(b)
    if first == last:
        return _with_fraction(rules, a, _Digits(f, g, above=low.strict, below=high.strict, places=places).between())
    options = _with_fraction(rules, a, _Digits(f, "", above=low.strict, below=False, places=places).at_least())
    if first + 1 < last:
        whole = rules.add("whole", integers(first + 1, last - 1))
        options += _with_fraction(rules, whole, [_free(places)], is_rule=True)
    return options + _with_fraction(rules, b, _Digits("", g, above=False, below=high.strict, places=places).at_most())


def _free(places: int) -> str:
    return f"[0-9]{{0,{places}}}" if places else ""


def _with_fraction(rules: Rules, whole: str, tails: list[str], *, is_rule: bool = False) -> list[str]:
    """Return alternatives for a whole part and digits after the point; with an empty tail there is no fraction."""
    head = whole if is_rule else literal(whole)
    options = []
    if "" in tails or any(tail.startswith(("[0-9]{0,", '"0"{0,')) for tail in tails):
        options.append(head)
    filled = [tail.replace("{0,", "{1,", 1) if tail.startswith(("[0-9]{0,", '"0"{0,')) else tail for tail in tails if tail]
    if filled:
        options.append(f'{head} "." {rules.add("digits", " | ".join(filled))}')
    return options


@dataclass(frozen=True)
class _Digits:
    """Digits after the point, at most `places`: not below `low`, not above `high`, both without zeros at their ends."""

    low: str
    high: str
    above: bool
    below: bool
    places: int

    def at_least(self) -> list[str]:
        """Return the tails that keep to `low`."""
        if not self.low:
            if not self.above:
                return [_free(self.places)]
            return [f"{'0' * i and literal('0' * i)} [1-9] {_free(self.places - 1 - i)}".strip() for i in range(self.places)]
        if not self.places:
            return []
        first = int(self.low[0])
        options = [self._then(first + 1, 9)] if first < 9 else []  # noqa: PLR2004 - a digit
        return options + self._after(first, self._rest().at_least())

    def at_most(self) -> list[str]:
        """Return the tails that keep to `high`."""
        if not self.high:
            return [] if self.below else [f'"0"{{0,{self.places}}}' if self.places else ""]
        if not self.places:
            return [""]
        first = int(self.high[0])
        options = [self._then(0, first - 1)] if first else []
        return ["", *options, *self._after(first, self._rest().at_most())]

    def between(self) -> list[str]:
        """Return the tails that keep to both."""
        if not self.low and not self.above:
            return self.at_most()
        if not self.high or not self.places:
            return []
        first, last = int(self.low[:1] or "0"), int(self.high[0])
        if first == last:
            return self._after(first, self._rest().between())
        options = [self._then(first + 1, last - 1)] if first + 1 < last else []
        rest = self._rest()
        return options + self._after(first, rest.at_least()) + self._after(last, rest.at_most())

    def _rest(self) -> _Digits:
        return _Digits(self.low[1:], self.high[1:], above=self.above, below=self.below, places=self.places - 1)

    def _then(self, first: int, last: int) -> str:
        return f"{char_class(((48 + first, 48 + last),))} {_free(self.places - 1)}".rstrip()

    @staticmethod
    def _after(digit: int, tails: list[str]) -> list[str]:
        return [f'"{digit}" {tail}'.rstrip() for tail in tails]
