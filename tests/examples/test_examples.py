"""Every example's scheduler and node, together but without a cluster."""

from __future__ import annotations

import collections
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasksprint.asking.cluster import parse_params
from tasksprint.process.job_directory import read_job
from tests.sdk.programs import ROOT, JobRun, NodeDriver, Program, SchedulerDriver, run_job

EXAMPLES = ROOT / "examples"


def manifest(name: str) -> dict[str, Any]:
    path = EXAMPLES / name / "tasksprint.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"params": {}}
    assert isinstance(fields, dict)
    return fields


def run_example(name: str, tmp_path: Path, node_argv: list[str], **params: Any) -> JobRun:
    folder = EXAMPLES / name
    with (
        Program(node_argv, stderr=tmp_path / "node.err", cwd=folder) as node,
        Program(
            [sys.executable, str(folder / "scheduler.py")],
            stderr=tmp_path / "scheduler.err",
            cwd=folder,
        ) as scheduler,
    ):
        return run_job(
            SchedulerDriver(scheduler), NodeDriver(node), {**manifest(name)["params"], **params}
        )


@pytest.mark.parametrize("name", ["montecarlo", "wordcount", "hello-c"])
def test_example_has_what_a_job_needs(name: str) -> None:
    fields = manifest(name)
    assert fields["name"] == name
    assert (EXAMPLES / name / fields["scheduler"]).is_file()
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"run examples/{name}" in readme
    for parameter in fields["params"]:
        assert f"`{parameter}`" in readme


def parameters_that_are_told_of() -> list[tuple[str, str]]:
    """Return (example, NAME=VALUE) of each parameter in each README's table and commands."""
    told = []
    for readme in sorted(EXAMPLES.glob("*/README.md")):
        text, name = readme.read_text(encoding="utf-8"), readme.parent.name
        told += [(name, f"{word}=1") for word in re.findall(r"^\| `(\w+)` \|", text, re.M)]
        told += [(name, word) for word in re.findall(r"--param (\S+)", text)]
    return told


@pytest.mark.parametrize(
    ("example", "option"),
    [
        *parameters_that_are_told_of(),
        ("montecarlo", "samples=1000"),
        ("wordcount", "folder=/usr/lib"),
    ],
)
def test_example_takes_the_parameters_that_its_readme_tells_of(example: str, option: str) -> None:
    job = read_job(EXAMPLES / example)
    params = json.loads(parse_params(job, [option]))
    name, _, value = option.partition("=")
    assert params[name] == (value if value.startswith("/") else json.loads(value))


def test_every_example_tells_of_its_parameters() -> None:
    told = {(name, option.partition("=")[0]) for name, option in parameters_that_are_told_of()}
    assert told == {
        (folder.name, parameter)
        for folder in EXAMPLES.iterdir()
        for parameter in manifest(folder.name)["params"]
    }


# --- Monte Carlo ---


def montecarlo(tmp_path: Path, **params: Any) -> JobRun:
    argv = [sys.executable, str(EXAMPLES / "montecarlo" / "node.py")]
    return run_example("montecarlo", tmp_path, argv, **params)


@pytest.mark.slow
def test_montecarlo_with_a_number_of_samples_gives_the_same_bytes(tmp_path: Path) -> None:
    first = montecarlo(tmp_path, samples=2_000)
    second = montecarlo(tmp_path, samples=2_000)
    assert first.finished == second.finished
    assert first.results == second.results
    assert len(first.results) == 12
    assert all(json.loads(first.results[tid]["result"][1])["total"] == 2_000 for tid in range(11))
    assert len({first.results[tid]["result"] for tid in range(11)}) > 5, "seeds must differ"
    assert abs(first.values["result"] - 3.14159) < 0.1


@pytest.mark.slow
def test_montecarlo_takes_the_seconds_that_it_is_given(tmp_path: Path) -> None:
    assert manifest("montecarlo")["params"] == {"seconds": 1, "samples": None}
    job = montecarlo(tmp_path, seconds=0.05)
    assert abs(job.values["result"] - 3.14159) < 0.1


# --- primes ---


@pytest.mark.slow
def test_primes_below_a_million_are_counted(tmp_path: Path) -> None:
    job = run_example("primes", tmp_path, [sys.executable, str(EXAMPLES / "primes" / "node.py")])
    assert job.values == {"primes": 78_498}
    assert len(job.results) == 21


# --- word count ---


@pytest.mark.slow
def test_wordcount_counts_as_python_does(tmp_path: Path) -> None:
    folder = tmp_path / "texts and more"
    folder.mkdir()
    texts = {
        f"{name}.py": f"The {name} said: don't REPEAT the_words\n" * (number + 1)
        for number, name in enumerate("abcdefghijklmnopqrst")
    }
    texts["empty.py"] = ""
    texts["über.py"] = "Äpfel and apples\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    job = run_example(
        "wordcount",
        tmp_path,
        ["/bin/sh", str(EXAMPLES / "wordcount" / "node.sh")],
        folder=str(folder),
        files=21,
    )
    counted = sorted(texts, key=lambda name: name.encode())[:21]
    expected = collections.Counter(
        word
        for name in counted
        for word in re.findall("[a-z]+", texts[name].lower().replace("ä", " "))
    )
    top = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:20]
    assert job.values == {
        "total": sum(expected.values()),
        "distinct": len(expected),
        "top": [list(item) for item in top],
    }
    assert job.log == ["counting 21 files"]


@pytest.mark.slow
def test_wordcount_finds_the_standard_library_by_itself(tmp_path: Path) -> None:
    if shutil.which("python3") is None:
        pytest.skip("no python3 in PATH, which the node asks for the folder")
    argv = ["/bin/sh", str(EXAMPLES / "wordcount" / "node.sh")]
    values = run_example("wordcount", tmp_path, argv, files=10).values
    assert values["total"] > 1_000
    assert values["distinct"] > 100
    assert len(values["top"]) == 20


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh", "ksh", "mksh", "yash"])
def test_wordcount_node_says_what_it_can_t_do_in_every_shell(tmp_path: Path, shell: str) -> None:
    words = shlex.split(shell)
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} on this machine")
    argv = [*words, str(EXAMPLES / "wordcount" / "node.sh")]
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        assert node.ready.frames is False
        assert node.failure("nope").error == "no task nope"
        assert node.failure("map", "/not/there").error == (
            "no such file on this machine: /not/there"
        )
        assert node.failure("list", "/not/there", 3).error == "no *.py in /not/there"
        merged = node.values("merge", inputs=[("json", b'{"a":1,"b":2}'), ("json", b'{"b":5}')])
        assert merged == {"counts": b'{"a":1,"b":7}'}
        assert node.values("merge", inputs=[("json", b"{}")]) == {"counts": b"{}"}
        program.end_input()
        assert program.wait() == 0


# --- hello from C ---


@pytest.fixture(scope="module")
def hello_node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the node as the manifest says, elsewhere."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("hello-c") / "job"
    shutil.copytree(EXAMPLES / "hello-c", folder)
    subprocess.run(manifest("hello-c")["setup"], shell=True, cwd=folder, check=True)
    return [str(folder / manifest("hello-c")["node"])]


@pytest.mark.slow
def test_hello_from_c_greets_everybody(tmp_path: Path, hello_node: list[str]) -> None:
    assert run_example("hello-c", tmp_path, hello_node).values == {
        "greeting": "hello world and hello Ada and hello عالم"
    }


def test_c_node_reads_json_as_it_may_come(tmp_path: Path, hello_node: list[str]) -> None:
    with Program(hello_node, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        assert node.values("hello", 'a"]}\\ ,"id":9') == {
            "greeting": b'"hello a\\"]}\\\\ ,\\"id\\":9"'
        }
        assert node.failure("join", "", [1]).error == "expected strings only"
        assert node.failure("hello", 5).error == "expected a string as first argument"
        assert node.failure("nope", "x").error == "expected task 'hello' or 'join'"
        long = "x" * 1_000_000
        assert node.values("join", "", long, long)["greeting"] == b'"%b"' % (long * 2).encode()
        program.end_input()
        assert program.wait() == 0
