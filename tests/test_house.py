"""The drawing in CONTRIBUTING.md is that of the imports as they are."""

from __future__ import annotations

import pytest

from tests.house import PAGE, with_drawing


def test_house_in_contributing_is_that_of_the_imports(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    drawn = with_drawing(text)
    if request.config.getoption("--rewrite"):
        PAGE.write_text(drawn, encoding="utf-8")
    else:
        assert text == drawn, "run `python -m tests.house`, and read the diff"
