"""JSON values: strictly by orjson, then also what Python's own writer puts into files although JSON knows it not."""

import json

import orjson

from onward.corpus.documents import BROKEN_JSON, NOT_UTF8, without_surrogates


def parsed(content: bytes | str) -> object:
    r"""Return the value of a JSON text; raises orjson.JSONDecodeError (a ValueError with `lineno`).

    NaN and Infinity are read, and lone surrogates (`\ud800`), which Python and JavaScript write and which nothing
    could encode later, become U+FFFD.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(content if isinstance(content, str) else content.decode())
        except (ValueError, RecursionError):
            value = None
        if value is None:
            raise
        return _well_formed(value)


def json_reason(content: bytes) -> str:
    """Return why a text that is not JSON is none."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return NOT_UTF8
    return BROKEN_JSON


def written(value: object) -> bytes:
    """Return a JSON value on one line."""
    try:
        return orjson.dumps(value)
    except TypeError:  # whole numbers of more than 64 bits
        return json.dumps(value).encode()


def _well_formed(value: object) -> object:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_well_formed(element) for element in value]
    if isinstance(value, dict):
        return {without_surrogates(key): _well_formed(element) for key, element in value.items()}
    return value
