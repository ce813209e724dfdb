"""Settings from the environment: what they change, and how a mistake is told."""

from __future__ import annotations

import pytest

from tasksprint.errors import SettingsError
from tasksprint.process.environment import settings_from_environment
from tasksprint.settings import Settings


def test_nothing_given_is_the_defaults() -> None:
    assert settings_from_environment({}) == Settings()
    assert settings_from_environment({"TASKSPRINT_SETTINGS": " "}) == Settings()


def test_named_settings_change_and_the_others_do_not() -> None:
    text = '{"setup_timeout_ms": 5, "node_idle_max_ms": 7}'
    found = settings_from_environment({"TASKSPRINT_SETTINGS": text})
    assert (found.setup_timeout_ms, found.node_idle_max_ms) == (5, 7)
    assert found.connect_timeout_ms == Settings().connect_timeout_ms


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1]", "TASKSPRINT_SETTINGS is [1], expected an object; for example "),
        ("x", "TASKSPRINT_SETTINGS isn't JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            '{"setup_timeout": 5}',
            "TASKSPRINT_SETTINGS has an unknown setting 'setup_timeout'; "
            "did you mean 'setup_timeout_ms'?",
        ),
        ('{"zzz": 5}', "TASKSPRINT_SETTINGS has an unknown setting 'zzz'"),
        (
            '{"setup_timeout_ms": true}',
            "TASKSPRINT_SETTINGS has 'setup_timeout_ms': true, expected a whole number above 0",
        ),
        ('{"setup_timeout_ms": 0}', "TASKSPRINT_SETTINGS has 'setup_timeout_ms': 0, expected"),
        ('{"setup_timeout_ms": 1.5}', "TASKSPRINT_SETTINGS has 'setup_timeout_ms': 1.5, expected"),
    ],
)
def test_mistakes_are_told(text: str, error: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from_environment({"TASKSPRINT_SETTINGS": text})
    assert str(caught.value).startswith(error)
    assert caught.value.exit_code == 78
