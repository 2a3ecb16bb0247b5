"""Python values as JSON, with tags for what JSON lacks. Never pickle: reading must not run code.

None, bool, str, finite floats and ints are themselves; a list is a list; anything else is
`{"~": type, "v": ...}`. Both ends of the sandbox use it; only plain built-in types come out of it.
"""

import json
import math
from typing import Any

_MAX_DEPTH = 200
_PLAIN_INT = 1 << 63
_MAX_COLLISIONS = 100


class UnsupportedValueError(TypeError):
    """A value of a type that cannot travel."""


def dumps(value: Any) -> bytes:
    """`value` as one line of JSON; raises UnsupportedValueError."""
    return json.dumps(_encode(value, 0), separators=(",", ":")).encode("ascii")


def loads(line: bytes) -> Any:
    """What `dumps` wrote; raises ValueError for anything else."""
    try:
        return _decode(json.loads(line))
    except (RecursionError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"not a value: {type(error).__name__}") from None


def _encode(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UnsupportedValueError("values nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        # Decimal digits of a huge int take quadratic time; hexadecimal ones do not.
        return number if abs(number) < _PLAIN_INT else {"~": "int", "v": hex(number)}
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"~": "float", "v": repr(number)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [_encode(item, depth + 1) for item in value]
    if isinstance(value, complex):
        return {"~": "complex", "v": [_encode(value.real, depth), _encode(value.imag, depth)]}
    if isinstance(value, bytes | bytearray):
        return {"~": "bytes" if isinstance(value, bytes) else "bytearray", "v": value.hex()}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {"~": kind.__name__, "v": [_encode(item, depth + 1) for item in value]}
    if isinstance(value, dict):
        pairs = [[_encode(k, depth + 1), _encode(v, depth + 1)] for k, v in value.items()]
        return {"~": "dict", "v": pairs}
    raise UnsupportedValueError(f"a value of type {type(value).__name__} cannot be compared")


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    value = data["v"]
    match data["~"]:
        case "int":
            return int(value, 16)
        case "float":
            return float(value)
        case "complex":
            real, imaginary = _decode(value)
            return complex(real, imaginary)
        case "bytes":
            return bytes.fromhex(value)
        case "bytearray":
            return bytearray.fromhex(value)
        case "tuple":
            return tuple(_decode(value))
        case "set":
            return set(_spread(_decode(value)))
        case "frozenset":
            return frozenset(_spread(_decode(value)))
        case "dict":
            keys = _spread([_decode(key) for key, _ in value])
            return dict(zip(keys, [_decode(item) for _, item in value], strict=True))
        case kind:
            raise ValueError(f"no such kind of value: {kind!r}")


def _spread(items: list[Any]) -> list[Any]:
    """The same items, unless so many share a hash that a set of them would take quadratic time."""
    hashes = sorted(map(hash, items))
    if any(a == b for a, b in zip(hashes, hashes[_MAX_COLLISIONS:], strict=False)):
        raise ValueError("too many keys share a hash")
    return items
