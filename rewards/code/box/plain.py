"""Values as plain data: what crosses between the solution's process and the tests'.

The reading side makes exact built-in types and a few of the standard library, never a class of the writer: an object
whose __eq__ is always true arrives as what it is below (a subclass of int as an int) or as a reference, which equals
nothing but itself. JSON with tagged lists; NaN, infinities, -0.0, big integers and lone surrogates stay what they are.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import types
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 100
_EXACT_IN_JSON = 1 << 53
_AS_THEY_ARE = (str, float, bool, type(None))
_SEQUENCES = {"l": list, "t": tuple, "s": set, "f": frozenset}
_ITERATORS = (types.GeneratorType, map, filter, zip, enumerate, reversed)
_VIEWS = {"k": type({}.keys()), "v": type({}.values()), "m": type({}.items())}
Refer = Callable[[Any], list[Any]]
Dereference = Callable[[list[Any]], Any]


class NotPlain(Exception):
    """A value that cannot cross, or data that no value was written as."""


def write(value: Any, refer: Refer, depth: int = 0) -> Any:
    """`value` as JSON can say it. `refer` gives what stands for an object that stays where it is. Raises NotPlain for
    what is nested too deeply, which every cycle is."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH} levels, or within itself")
    if kind is int:
        return value if -_EXACT_IN_JSON < value < _EXACT_IN_JSON else ["i", hex(value)]
    for tag, sequence in _SEQUENCES.items():
        if kind is sequence:
            return [tag, *[write(item, refer, depth + 1) for item in value]]
    if kind is dict:
        return ["d", *_pairs(value.items(), refer, depth)]
    return _less_common(value, refer, depth)


def _less_common(value: Any, refer: Refer, depth: int) -> Any:
    kind = type(value)
    if kind is collections.Counter or kind is collections.OrderedDict:
        return ["C" if kind is collections.Counter else "O", *_pairs(dict.items(value), refer, depth)]
    if kind is collections.deque:
        return ["q", value.maxlen, *[write(item, refer, depth + 1) for item in value]]
    if kind is range:
        return ["r", *[write(part, refer) for part in (value.start, value.stop, value.step)]]
    if kind is complex:
        return ["c", value.real, value.imag]
    if kind is bytes or kind is bytearray:
        return ["b" if kind is bytes else "B", value.hex()]
    if kind is decimal.Decimal:
        return ["D", str(value)]
    if kind is fractions.Fraction:
        return ["F", hex(value.numerator), hex(value.denominator)]
    if kind in _TIMES and getattr(value, "tzinfo", None) is None:
        return ["T", kind.__name__, *_time_parts(value)]
    for tag, view in _VIEWS.items():
        if kind is view:
            return [tag, *[write(item, refer, depth + 1) for item in value]]
    return _below(value, refer, depth)


def _below(value: Any, refer: Refer, depth: int) -> Any:
    """A subclass as what it inherits from, read past whatever it overrides; numpy's by their values."""
    if isinstance(value, int):
        return write(int.__pos__(value), refer, depth)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, tuple):
        return ["t", *[write(item, refer, depth + 1) for item in tuple.__iter__(value)]]
    if isinstance(value, list):
        return ["l", *[write(item, refer, depth + 1) for item in list.__iter__(value)]]
    if isinstance(value, dict):
        return ["d", *_pairs(dict.items(value), refer, depth)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        data = write(value.tolist(), refer, depth)
        return ["n", str(value.dtype), data] if type(value).__name__ == "ndarray" else data
    return refer(value)


def _pairs(items: Any, refer: Refer, depth: int) -> list[Any]:
    return [[write(key, refer, depth + 1), write(value, refer, depth + 1)] for key, value in items]


def read(data: Any, dereference: Dereference, depth: int = 0) -> Any:
    """The value that `data` says. Raises NotPlain for data that `write` does not make."""
    if type(data) is int or type(data) in _AS_THEY_ARE:
        return data
    if type(data) is not list or not data or type(data[0]) is not str or depth > MAX_DEPTH + 1:
        raise NotPlain("no plain data")
    tag, rest = data[0], data[1:]
    try:
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([read(item, dereference, depth + 1) for item in rest])
        if tag in _READERS:
            return _READERS[tag]([read(item, dereference, depth + 1) for item in rest])
        if tag in _MAPPINGS:
            pairs = [(read(key, dereference, depth + 1), read(item, dereference, depth + 1)) for key, item in rest]
            return _MAPPINGS[tag](dict(pairs))
    except (TypeError, ValueError, ArithmeticError, OverflowError, MemoryError) as error:
        raise NotPlain(f"no plain data: {type(error).__name__}") from None
    return dereference(data)


_TIMES = {kind: kind.__name__ for kind in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta)}


_TIME_FIELDS = {
    "date": ("year", "month", "day"),
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    "time": ("hour", "minute", "second", "microsecond"),
    "timedelta": ("days", "seconds", "microseconds"),
}


def _time_parts(value: Any) -> list[int]:
    return [getattr(value, name) for name in _TIME_FIELDS[type(value).__name__]]


def _array(parts: list[Any]) -> Any:
    try:
        import numpy
    except ImportError:
        return parts[1]
    return numpy.array(parts[1], dtype=parts[0])


def _numbered(values: list[Any]) -> Any:
    return dict(enumerate(values)).values()


_READERS: dict[str, Callable[[list[Any]], Any]] = {
    "i": lambda parts: int(parts[0], 16),
    "q": lambda parts: collections.deque(parts[1:], parts[0]),
    "r": lambda parts: range(*parts),
    "c": lambda parts: complex(*parts),
    "b": lambda parts: bytes.fromhex(parts[0]),
    "B": lambda parts: bytearray.fromhex(parts[0]),
    "D": lambda parts: decimal.Decimal(parts[0]),
    "F": lambda parts: fractions.Fraction(int(parts[0], 16), int(parts[1], 16)),
    "T": lambda parts: getattr(datetime, parts[0])(*parts[1:]) if parts[0] in _TIMES.values() else int("no time"),
    "k": lambda parts: dict.fromkeys(parts).keys(),
    "v": _numbered,
    "m": lambda parts: dict(parts).items(),
    "n": _array,
}
_MAPPINGS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "d": lambda pairs: pairs,
    "C": collections.Counter,
    "O": collections.OrderedDict,
}


def is_lazy(value: Any) -> bool:
    """Whether it is to be asked for one item after the other."""
    return isinstance(value, _ITERATORS) or (isinstance(value, Iterator) and type(value).__module__ == "itertools")
