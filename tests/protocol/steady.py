"""How the property tests here run: the same examples every time, however busy the machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

__all__ = ["steady"]

steady = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
