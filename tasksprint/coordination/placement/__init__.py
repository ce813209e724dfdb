"""Which client runs which task: a deterministic rule over replicated facts alone."""

from __future__ import annotations

__all__: list[str] = []
