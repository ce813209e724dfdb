"""Seeds the generators that user code uses: `random`, and NumPy's where it is imported.

Neither is imported here: both cost more than the rest of the SDK. A module that user code
imports later is seeded at that moment.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["seed_generators", "watch_imports"]

_NAMES = ("random", "numpy.random")
_modules = sys.modules
_seed = 0


def seed_generators(seed: int) -> None:
    """Seed every generator that is loaded now, and each one loaded later."""
    global _seed
    _seed = seed
    if "random" in _modules:
        _modules["random"].seed(seed)
    if "numpy.random" in _modules:
        _modules["numpy.random"].seed(seed & 0xFFFFFFFF)


class _Watcher:
    """A finder of modules. It finds none itself, and seeds the others' finds once they ran."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _NAMES:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _seed_after_loading(spec.loader, name)
                return spec
        return None


def _seed_after_loading(loader: Any, name: str) -> None:
    """Let this loader seed the module `name` as soon as it has run it."""
    try:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            # A loader may serve other modules as well.
            if module.__name__ == name and hasattr(module, "seed"):
                module.seed(_seed if name == "random" else _seed & 0xFFFFFFFF)

        loader.exec_module = exec_module
    except (AttributeError, TypeError):
        # A loader of some other kind: the module is seeded before the next task.
        pass


def watch_imports() -> None:
    """Seed generators that are imported from now on."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
