"""Settings that the environment overrides: `TASKSPRINT_SETTINGS`, a JSON object.

For tests, and for operators if the defaults don't suit their machines. Every process
reads it once, at its start. It can't change rules that replicas must share
(`settings.Rules`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from typing import Any

from tasksprint.errors import SettingsError
from tasksprint.settings import Settings

__all__ = ["VARIABLE", "settings_from_environment"]

VARIABLE = "TASKSPRINT_SETTINGS"
_EXAMPLE = """for example TASKSPRINT_SETTINGS='{"setup_timeout_ms": 60000}'"""
_NUMBER_END = 2**53


def settings_from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the default settings, with those that `TASKSPRINT_SETTINGS` names changed.

    Raises:
        SettingsError: It isn't a JSON object, names an unknown setting, or gives one
            something else than a number above 0.
    """
    text = (os.environ if environ is None else environ).get(VARIABLE, "")
    if not text.strip():
        return Settings()
    try:
        given: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{VARIABLE} isn't JSON: {error}", hint=_EXAMPLE) from error
    if not isinstance(given, dict):
        raise SettingsError(f"{VARIABLE} is {_shown(given)}, expected an object", hint=_EXAMPLE)
    known = [field.name for field in dataclasses.fields(Settings)]
    for name, value in given.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(
                f"{VARIABLE} has an unknown setting {name!r}",
                hint=f"did you mean {nearest[0]!r}?" if nearest else "",
            )
        # All of them are counts, sizes or spans of time.
        if type(value) is not int or not 0 < value < _NUMBER_END:
            raise SettingsError(
                f"{VARIABLE} has {name!r}: {_shown(value)}, expected a whole number above 0"
            )
    return dataclasses.replace(Settings(), **given)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
