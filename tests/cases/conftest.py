"""What the cases share with the tests of real processes."""

from __future__ import annotations

from tests.e2e.conftest import archive, environment

__all__ = ["archive", "environment"]
