"""JSON for the SDK: strict, compact, and without loading the `json` package.

`import json` costs several milliseconds at every start, most of it for regular expressions.
The C scanner and encoder don't need those. So these two are used directly where the
interpreter has them, and `json` where it hasn't.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "KeyCollisionError",
    "UnencodableError",
    "decode",
    "decode_leniently",
    "encode",
    "is_unicode",
    "quote",
    "why_not_encoded",
    "with_article",
]


def with_article(name: str) -> str:
    """Return e.g. "a list" or "an int"."""
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


class UnencodableError(TypeError):
    """JSON has no form for an object of this type."""

    def __init__(self, type_name: str) -> None:
        super().__init__(f"JSON can't carry {with_article(type_name)}")
        self.type_name = type_name


class KeyCollisionError(ValueError):
    """Two keys of a dictionary would be the same one in JSON."""

    def __init__(self, first: Any, second: Any, text: str) -> None:
        super().__init__(
            f"holds a dictionary with the keys {first!r} and {second!r}, which are both "
            f'"{text}" in JSON; use strings that differ'
        )


def _refuse(value: Any) -> Any:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    raise UnencodableError(name)


class _Context:
    """The object from which the C scanner reads its options."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _use_json_package() -> Any:
    """Return (scan, quote, make) for interpreters without the C parts."""
    from json import JSONDecoder, JSONEncoder
    from json.encoder import encode_basestring

    def make(ascii_only: bool) -> Callable[[Any, int], Any]:
        encoder = JSONEncoder(
            ensure_ascii=ascii_only,
            allow_nan=False,
            separators=(",", ":"),
            default=_refuse,
        )
        return lambda value, _level: (encoder.encode(value),)

    return JSONDecoder().scan_once, encode_basestring, make  # type: ignore[attr-defined]


def _use_c_parts() -> Any:
    from _json import (
        encode_basestring,
        encode_basestring_ascii,
        make_encoder,
        make_scanner,
    )

    def make(ascii_only: bool) -> Callable[[Any, int], Any]:
        string = encode_basestring_ascii if ascii_only else encode_basestring
        # (markers, default, encoder, indent, key and item separator, sort_keys,
        # skipkeys, allow_nan)
        encoder: Callable[[Any, int], Any] = make_encoder(
            {}, _refuse, string, None, ":", ",", False, False, False
        )
        return encoder

    if "".join(make(False)({"k": [1, 2.5, "s", None]}, 0)) != '{"k":[1,2.5,"s",null]}':
        raise ImportError("the C encoder works differently here")
    context: Any = _Context
    return make_scanner(context), encode_basestring, make


try:
    _scan, _quote, _make = _use_c_parts()
except (ImportError, TypeError, AttributeError):
    _scan, _quote, _make = _use_json_package()

_encoder = _make(False)


def decode(text: str) -> Any:
    """Return the value that a line, made by a coordinator or a client, holds."""
    return _scan(text, 0)[0]


class TooLong(str):
    """Stands for an integer that has more digits than this Python converts."""


def decode_leniently(text: str) -> Any:
    """Decode like `decode`, with `TooLong` in place of each integer that `decode` refuses."""
    from json import JSONDecoder

    def read(digits: str) -> Any:
        try:
            return int(digits)
        except ValueError:
            return TooLong(digits)

    return JSONDecoder(parse_int=read).decode(text)


def encode(value: Any, *, first_key: int = 0) -> str:
    """Return compact JSON that UTF-8 can carry.

    Args:
        first_key: Where in the text keys begin that may be other than strings: 1 if those of
            the value itself are known to be strings.

    Raises:
        UnencodableError: An object inside has a type that JSON doesn't know.
        KeyCollisionError: Of two keys, such as 1 and "1", one would be lost.
        ValueError: NaN, Infinity, or a structure that contains itself.
        RecursionError: It is nested too deeply.
    """
    global _encoder
    try:
        text = "".join(_encoder(value, 0))
    except BaseException:
        # The encoder remembers the containers that it is inside of. An error leaves them there.
        _encoder = _make(False)
        raise
    # Few values hold dictionaries at all, and only those are looked through.
    if text.find("{", first_key) >= 0:
        _check_keys(value)
    return text if text.isascii() or is_unicode(text) else "".join(_make(True)(value, 0))


_PLAIN = frozenset((str, int, float, bool, type(None)))


def _check_keys(value: Any) -> None:
    """Refuse a dictionary, at any depth, if JSON would lose one of its keys."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            for key in found:
                if type(key) is not str and not isinstance(key, str):
                    _check_dictionary(found)
                    break
            waiting.extend([each for each in found.values() if type(each) not in _PLAIN])
        elif isinstance(found, (list, tuple)):
            waiting.extend([each for each in found if type(each) not in _PLAIN])


def _check_dictionary(found: dict[Any, Any]) -> None:
    keys: dict[str, Any] = {}
    for key in found:
        text = _text_of_key(key)
        if text in keys:
            raise KeyCollisionError(keys[text], key, text)
        keys[text] = key


def _text_of_key(key: Any) -> str:
    """Return a key as the encoder writes it."""
    if isinstance(key, str):
        return key
    if key is True:
        return "true"
    if key is False:
        return "false"
    if key is None:
        return "null"
    return float.__repr__(key) if isinstance(key, float) else int.__repr__(key)


def quote(text: str) -> str:
    """Return a string as JSON.

    Raises:
        ValueError: It holds half of a surrogate pair; for names and keys.
    """
    if not is_unicode(text):
        raise ValueError(f"{text!r} isn't Unicode text")
    quoted: str = _quote(text)
    return quoted


def is_unicode(text: str) -> bool:
    r"""Return whether UTF-8 can carry a text: it holds no half of a surrogate pair (`\ud800`)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why_not_encoded(value: Any) -> str | None:
    """Return the fault of a value, as the end of a sentence; `None` if nothing is."""
    try:
        encode(value)
    except UnencodableError as error:
        if error.type_name in ("bytes", "bytearray", "memoryview"):
            return (
                f"holds {error.type_name} inside, which JSON can't carry; "
                "put them under a key of their own"
            )
        return (
            f"holds {with_article(error.type_name)}, which JSON can't carry; make it of "
            "str, int, float, bool, None, list and dict, or return bytes"
        )
    except KeyCollisionError as error:
        return str(error)
    except ValueError as error:
        if str(error).startswith("Out of range float"):
            return "holds NaN or Infinity, which JSON doesn't have; use None or a string"
        return f"can't be written as JSON: {str(error)[:1].lower()}{str(error)[1:]}"
    except TypeError as error:
        # A key inside that JSON has no form for, like a tuple.
        return f"can't be written as JSON: {error}"
    except RecursionError:
        return "is nested too deeply for JSON"
    return None
