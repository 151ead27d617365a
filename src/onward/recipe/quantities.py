"""Human quantities in recipes: `400M` tokens, `5%`, `2h`. Off is None; a bad value names what it could have been."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_TOKEN_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTE_SUFFIX = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TIME_SUFFIX = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"^\s*([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)\s*([A-Za-z%]*)\s*$")


def _split(value: object, example: str) -> tuple[Decimal, str]:
    """Separate the number from its unit; raises ValueError with an example of what was expected."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a quantity such as {example}")
    match = _NUMBER.match(str(value))
    if match is None:
        raise ValueError(f"expected a quantity such as {example}")
    try:
        return Decimal(match[1].replace("_", "").replace(",", "")), match[2]
    except InvalidOperation:
        raise ValueError(f"expected a quantity such as {example}") from None


def parse_tokens(value: object) -> int:
    """Read a number of tokens: `400M`, `128k`, `1.5B`, `655360`. Raises ValueError when it is not a whole number."""
    number, suffix = _split(value, "400M, 128k or 655360")
    if suffix not in _TOKEN_SUFFIX:
        raise ValueError(f"unknown unit '{suffix}': tokens are written with k, M, B or T (400M, 128k)")
    tokens = number * _TOKEN_SUFFIX[suffix]
    if tokens != int(tokens):
        raise ValueError(f"{value} is not a whole number of tokens")
    return int(tokens)


def parse_share(value: object) -> Fraction:
    """Read a share of a whole as an exact fraction: `5%`, `0.5 %` or `0.05`. Raises ValueError outside 0..1."""
    if isinstance(value, Fraction):
        return value
    number, suffix = _split(value, "5% or 0.05")
    if suffix not in ("", "%"):
        raise ValueError(f"unknown unit '{suffix}': a share is written 5% or 0.05")
    share = Fraction(number) / (100 if suffix == "%" else 1)
    if share > 1:
        hint = "at most 100%" if suffix == "%" else f"did you mean {value}%?"
        raise ValueError(f"{value} is more than the whole; {hint}")
    return share


def parse_bytes(value: object) -> object:
    """Read an amount of memory: `16GB`, `512MB`, `80GiB`; `auto` stays. Raises ValueError on another unit."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    number, suffix = _split(value, "16GB or auto")
    if suffix not in _BYTE_SUFFIX:
        raise ValueError(f"unknown unit '{suffix}': memory is written with MB, GB or GiB (16GB)")
    return int(number * _BYTE_SUFFIX[suffix])


def parse_seconds(value: object) -> float:
    """Read a duration: `90s`, `10m`, `2h`, `1d`; a bare number is seconds. Raises ValueError on another unit."""
    number, suffix = _split(value, "90s, 10m or 2h")
    if suffix not in ("", *_TIME_SUFFIX):
        raise ValueError(f"unknown unit '{suffix}': durations are written with s, m, h or d (2h)")
    return float(number) * _TIME_SUFFIX.get(suffix, 1)


def format_tokens(tokens: int) -> str:
    """Write a number of tokens the way recipes do, exactly: 400000000 -> `400M`, 655360 -> `655.36k`."""
    for suffix in ("T", "B", "M", "k"):
        unit = _TOKEN_SUFFIX[suffix]
        if tokens >= unit and (tokens * 1000) % unit == 0:
            return f"{Decimal(tokens) / unit:f}{suffix}"
    return str(tokens)


def format_share(share: Fraction) -> str:
    """Write a share as a percentage, exactly where it is a finite decimal: 1/20 -> `5%`."""
    return f"{float(share * 100):.10g}%"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


Tokens = Annotated[
    int,
    BeforeValidator(parse_tokens, json_schema_input_type=int | str),
    Field(gt=0),
]
Share = Annotated[
    Fraction,
    BeforeValidator(parse_share, json_schema_input_type=float | str),
    PlainSerializer(format_share, return_type=str),
]
Seconds = Annotated[float, BeforeValidator(parse_seconds, json_schema_input_type=float | str), Field(gt=0)]
