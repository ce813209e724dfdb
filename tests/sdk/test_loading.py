"""The SDK loads little, exports what it says, and asks for no package."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tasksprint
from tests.sdk.programs import ROOT, NodeDriver, Program, write_program

# What takes milliseconds to load and isn't needed before something went wrong.
HEAVY = [
    "argparse", "ast", "asyncio", "base64", "collections", "contextlib", "dataclasses", "enum",
    "functools", "hashlib", "inspect", "json", "logging", "orjson", "random", "re", "signal",
    "socket", "subprocess", "tempfile", "threading", "traceback", "typing",
]  # fmt: skip


@pytest.mark.parametrize("module", ["TaskSprintNode", "TaskSprintCoordinator"])
def test_modules_that_take_long_to_load_are_not_loaded(module: str) -> None:
    code = (
        f"import sys; before = set(sys.modules)\n"
        f"from {module} import *\n"
        f"print(' '.join(set(sys.modules) - before))"
    )
    shown = subprocess.run(
        # -S: some site packages load half of the library by themselves.
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert f"tasksprint.sdk.{'node' if module == 'TaskSprintNode' else 'coordinator'}" in shown
    assert [name for name in shown if name in HEAVY] == []
    assert [name for name in shown if name.startswith("tasksprint.protocol")] == []


def test_star_import_gives_the_published_names() -> None:
    names: dict[str, object] = {}
    exec("from TaskSprintNode import *", names)
    assert {name for name in names if not name.startswith("_")} == {"TaskSprintNode", "timeout"}
    names = {}
    exec("from TaskSprintCoordinator import *", names)
    assert {name for name in names if not name.startswith("_")} == {"TaskSprintCoordinator"}


def test_package_exports_the_same_and_refuses_other_names() -> None:
    import TaskSprintCoordinator
    import TaskSprintNode
    from tasksprint import sdk

    for place in (tasksprint, sdk):
        assert place.TaskSprintNode is TaskSprintNode.TaskSprintNode
        assert place.timeout is TaskSprintNode.timeout
        assert place.TaskSprintCoordinator is TaskSprintCoordinator.TaskSprintCoordinator
        assert issubclass(place.TaskFailed, Exception)
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            _ = place.Nothing


def test_codec_without_the_c_parts_writes_the_same() -> None:
    """On interpreters without them the `json` package is used."""
    from tasksprint.sdk import codec

    scan, quote, make = codec._use_json_package()
    value = {"k": [1, 2.5, -0.0, None, True, "نص\n", {"x": []}], "b": 2**70}
    text = "".join(make(False)(value, 0))
    assert text == codec.encode(value)
    assert scan(text, 0)[0] == codec.decode(text) == json.loads(text) == value
    assert quote('a"ن') == codec.quote('a"ن')
    with pytest.raises(codec.UnencodableError, match="JSON can't carry a set"):
        make(False)({1}, 0)
    with pytest.raises(ValueError):
        make(False)(float("nan"), 0)


@pytest.mark.slow
@pytest.mark.parametrize("minor", range(8, 16))
def test_node_runs_on_other_pythons(tmp_path: Path, minor: int) -> None:
    """Nodes may live in older environments than the cluster's."""
    python = shutil.which(f"python3.{minor}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no python3.{minor} on this machine")
    _, path = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        import random
        class Node(TaskSprintNode):
            @timeout(0.01)
            def forever(self):
                while True: pass
            def values(self): return {"b": b"x", "n": 2**70, "r": random.random()}
        Node().start()
        """,
    )
    with Program([python, path], stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        assert node.values("values", seed=5) == {
            "b": b"x",
            "n": b"1180591620717411303424",
            "r": repr(random.Random(5).random()).encode(),
        }
        assert node.failure("forever").error == "TimeoutError: forever ran for more than 0.01 s"
