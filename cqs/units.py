"""Numbers for people: bytes, counts and seconds."""

import re

from cqs.errors import OptionError

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_bytes", "plural", "shortened"]

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(name: str, value: object) -> int:
    """Read a number of bytes: a whole number, or text with a unit, binary (KiB) or decimal (kB).

    >>> parse_bytes("memory", "64 MiB"), parse_bytes("memory", "1.5GB"), parse_bytes("memory", 64e6)
    (67108864, 1500000000, 64000000)
    """
    if isinstance(value, str):
        if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?\s*", value.lower()):
            number, unit, binary = match.groups()
            if unit or not binary:
                return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit])
    elif isinstance(value, float):
        if value >= 0 and value.is_integer():
            return int(value)
    elif not isinstance(value, bool) and hasattr(value, "__index__"):
        number_of_bytes = value.__index__()
        if number_of_bytes >= 0:
            return int(number_of_bytes)
    raise OptionError.of(name, "be a number of bytes", repr(value), "write it like '64 MiB', '2 GB' or 67108864")


def format_bytes(n_bytes: float) -> str:
    """Write a byte count in binary units.

    >>> format_bytes(1536), format_bytes(16 * 2**20)
    ('1.5 KiB', '16.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


def format_count(n: float) -> str:
    """Write a large count in powers of a thousand.

    >>> format_count(12), format_count(4.2e9)
    ('12', '4.20 G')
    """
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(n) < 1000 or unit == "Z":
            return f"{n:.0f}" if unit == "" else f"{n:.2f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


def plural(n: int, what: str) -> str:
    """Write how many there are of something.

    >>> plural(1, "task"), plural(1407, "task")
    ('1 task', '1,407 tasks')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit.

    >>> format_seconds(0.00123), format_seconds(75)
    ('1.23 ms', '75 s')
    """
    for scale, unit in ((1e-6, "us"), (1e-3, "ms"), (1.0, "s")):
        if seconds < 1000 * scale or unit == "s":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError("unreachable")


def shortened(text: str, most: int = 300) -> str:
    """Leave out the middle of a text that is too long for people.

    >>> shortened("(0, 1, 3)"), shortened("abcdefghijklmnop", most=9)
    ('(0, 1, 3)', 'ab ... op')
    """
    kept = (most - 5) // 2
    return text if len(text) <= most else f"{text[:kept]} ... {text[-kept:]}"
