"""The rules of the project's architecture and prose that a program can check.

Cores decide and touch nothing; imports go down, floor by floor; SQL has one home; what
users import needs the standard library alone. And some that keep files readable and
honest: docstrings, lengths, links that lead somewhere.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import build_zipapp

ROOT = Path(__file__).resolve().parents[1]

CORES = ("consensus", "coordination", "hosting", "execution", "protocol")
SHELLS = ("store", "net", "process")

# Each folder's floor. A module imports from floors below its own, and from its folder.
FLOORS = {
    "words": 0,
    "protocol": 1,
    **dict.fromkeys(("consensus", "coordination", "execution"), 2),
    "hosting": 3,
    **dict.fromkeys(SHELLS, 4),
    "sdk": 4,
    "asking": 5,
    "rescue": 6,
    "roles": 7,
    "cli": 8,
    "entry": 9,
}

# The plain types of the view, which the coordinator's core writes and the client's reads.
SHARED = {("execution", "tasksprint.coordination.view")}

# What a core must not even import: waiting, clocks, files, sockets, logs, chance.
FORBIDDEN_IN_CORES = {
    *("apsw", "asyncio", "concurrent", "datetime", "fcntl", "glob", "http", "httptools"),
    *("io", "logging", "mmap", "multiprocessing", "os", "pathlib", "psutil", "queue"),
    *("resource", "secrets", "select", "selectors", "shutil", "signal", "socket"),
    *("sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid"),
}
# And what it must not call: files, terminals, and a hash that differs between processes.
FORBIDDEN_CALLS_IN_CORES = {"open", "print", "input", "hash"}

# Most modules have 100 to 400 lines. One beyond this holds two ideas, and wants to be two.
MODULE_LINES_MAX = 800
LINE_COLUMNS_MAX = 99

TEXT_SUFFIXES = {".py", ".md", ".cfg", ".toml", ".sh", ".awk", ".c", ".json", ".txt", ".lock"}


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Return the files of the project: those that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = [name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("tasksprint", "tests", "docs", "examples", "bench", "zipapp", ".ci")
        found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        found += ROOT.glob("*.*")
        names = [str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts]
    return tuple(path for path in sorted(ROOT / name for name in names) if path.is_file())


def text_files() -> list[Path]:
    """Return the files that people read."""
    named = {"run", "nightly", "LICENSE", ".gitignore"}
    return [path for path in tracked_files() if path.suffix in TEXT_SUFFIXES or path.name in named]


def modules() -> list[Path]:
    """Return the package's modules."""
    return sorted(
        path
        for path in (ROOT / "tasksprint").rglob("*.py")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """Return a module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def module_names() -> frozenset[str]:
    return frozenset(name_of(path) for path in modules())


def folder_of(name: str) -> str:
    """Return which of FLOORS a dotted name of ours belongs to."""
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in FLOORS:
        return parts[1]
    return "entry" if parts[1:] in (["__main__"], ["console"]) else "words"


@functools.cache
def imports_of(path: Path, *, at_run_time: bool = False) -> tuple[tuple[int, str], ...]:
    """Return (line, dotted name of the module) of each import, inside functions too.

    Args:
        path: The module.
        at_run_time: Leave out what stands under `if TYPE_CHECKING:`.
    """
    tree: ast.AST = tree_of(path)
    if at_run_time and "TYPE_CHECKING" in path.read_text(encoding="utf-8"):
        tree = _WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, (
            f"{path}:{node.lineno}: imports are written with their full name"
        )
    # `from tasksprint.ids import Slot`: the second of the two names isn't a module.
    return tuple(
        (line, name)
        for line, name in build_zipapp.imported_modules(tree)
        if name.partition(".")[0] != "tasksprint" or name in module_names()
    )


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return node.orelse or ast.Pass()
        self.generic_visit(node)
        return node


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def core_modules() -> list[Path]:
    return [path for path in modules() if folder_of(name_of(path)) in CORES]


# --- architecture --------------------------------------------------------------------


def test_cores_import_nothing_that_waits_or_touches_the_world() -> None:
    assert core_modules()
    found = [
        f"{place(path, line)} imports {name}"
        for path in core_modules()
        for line, name in imports_of(path)
        if name.partition(".")[0] in FORBIDDEN_IN_CORES
    ]
    assert found == []


def test_cores_take_chance_as_an_argument() -> None:
    """`random.Random` is for annotations; the module's own functions share one generator."""
    found = []
    for path in core_modules():
        for node in _outside_of_parameters(tree_of(path), "random"):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "random"
                and node.attr != "Random"
            ):
                found.append(f"{place(path, node.lineno)} uses random.{node.attr}")
            if isinstance(node, ast.ImportFrom) and node.module == "random":
                names = [alias.name for alias in node.names if alias.name != "Random"]
                found += [f"{place(path, node.lineno)} imports random.{name}" for name in names]
    assert found == []


def _outside_of_parameters(tree: ast.AST, name: str) -> Iterator[ast.AST]:
    """Walk a tree, but not into functions that have a parameter of this name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            if name in [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]:
                continue
        yield node
        yield from _outside_of_parameters(node, name)


def test_cores_open_print_and_hash_nothing() -> None:
    found = [
        f"{place(path, node.lineno)} calls {node.func.id}()"
        for path in core_modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FORBIDDEN_CALLS_IN_CORES
    ]
    assert found == []


def test_imports_go_down_floor_by_floor() -> None:
    found = []
    for path in modules():
        here = folder_of(name_of(path))
        if name_of(path) == "tasksprint":
            continue  # Hands on the SDK's names, on first use.
        for line, name in imports_of(path):
            if name.partition(".")[0] != "tasksprint":
                continue
            there = folder_of(name)
            if (here, name) in SHARED:
                continue
            if here != there and FLOORS[there] >= FLOORS[here]:
                found.append(f"{place(path, line)}: {here} imports {name}")
            if there == "sdk" and here != "sdk":
                found.append(f"{place(path, line)}: only users import the SDK")
            if here == "sdk" and there not in ("words", "protocol", "sdk"):
                found.append(f"{place(path, line)}: the SDK imports {name}")
    assert found == []


def test_imports_go_in_no_circle() -> None:
    """Under `if TYPE_CHECKING:` neither: who knows whom is the same to a reader."""
    imported = {
        name_of(path): _modules_that_are_meant(path)
        for path in modules()
        if name_of(path) != "tasksprint"  # Hands on the SDK's names, on first use.
    }

    def reached_from(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = imported.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    assert {name for name in imported if name in reached_from(name)} == set()


def _modules_that_are_meant(path: Path) -> set[str]:
    """Return our modules that one imports: of `from tasksprint.sdk import limits` the second."""
    imports = [each for each in imports_of(path) if each[1] in module_names()]
    packages = {(line, name.rpartition(".")[0]) for line, name in imports}
    return {name for line, name in imports if (line, name) not in packages}


def test_nobody_but_its_builder_knows_a_whole_role() -> None:
    """Parts of a role take the ports that they use; the roles don't know each other."""
    found = []
    for path in modules():
        here = name_of(path)
        for line, name in imports_of(path):
            for role in ("coordinator", "client"):
                room = f"tasksprint.roles.{role}"
                is_whole = name == f"{room}.{role}" and here != f"{room}.process"
                is_other = name.startswith(f"{room}.") and here.startswith("tasksprint.roles.")
                if is_whole or (is_other and not here.startswith(f"{room}.")):
                    found.append(f"{place(path, line)} imports {name}")
    assert found == []


def test_votes_are_counted_in_one_place() -> None:
    found = [
        f"{place(path, node.lineno)} says how many are a majority; call majority()"
        for path in modules()
        if name_of(path) != "tasksprint.majority"
        for node in ast.walk(tree_of(path))
        if _counts_a_half(node)
    ]
    assert found == []


def _counts_a_half(node: ast.AST) -> bool:
    """Whether this is `x // 2 + 1`, or compares something with a half of `len(x)`."""
    if isinstance(node, ast.BinOp):
        return ast.unparse(node).endswith(" // 2 + 1")
    if not isinstance(node, ast.Compare):
        return False
    sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
    halves = r"len\(.*\) //? 2|2 \* len\(.*\)|len\(.*\) \* 2"
    return any(re.fullmatch(halves, side) for side in sides)


@pytest.mark.parametrize(
    "text", ["len(up) // 2 + 1", "len(up) > len(all) // 2", "2 * len(up) >= len(all)"]
)
def test_whoever_counts_votes_elsewhere_is_found(text: str) -> None:
    assert any(_counts_a_half(node) for node in ast.walk(ast.parse(text)))


def test_commands_print_in_one_place() -> None:
    """Where text of users is kept from controlling the terminal; `main` prints errors so, too."""
    may_print = {"tasksprint.process.terminal", "tasksprint.cli.main"}
    found = [
        f"{place(path, node.lineno)} calls print(); call print_plain() of process/terminal.py"
        for path in modules()
        if folder_of(name_of(path)) not in (*CORES, "sdk") and name_of(path) not in may_print
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert found == []


def test_sql_has_one_home() -> None:
    found = [
        f"{place(path, line)} imports {name}"
        for path in modules()
        if folder_of(name_of(path)) != "store"
        for line, name in imports_of(path, at_run_time=True)
        if name.partition(".")[0] in ("apsw", "sqlite3")
    ]
    assert found == []


def test_what_users_import_needs_the_standard_library_alone() -> None:
    """All that the SDK and protocol/ import, and what that imports, and so on."""
    by_name = {name_of(path): path for path in modules()}
    waiting = [name for name in by_name if folder_of(name) in ("sdk", "protocol")]
    assert waiting
    seen = set(waiting)
    found = []
    while waiting:
        path = by_name[waiting.pop()]
        for line, name in imports_of(path, at_run_time=True):
            if name in by_name:
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
            elif name.partition(".")[0] not in sys.stdlib_module_names:
                found.append(f"{place(path, line)} imports {name}")
    assert found == []


def test_users_modules_load_without_site_packages() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        "import TaskSprintNode, TaskSprintCoordinator"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_imports_what_the_archive_leaves_out() -> None:
    build_zipapp.check_imports(build_zipapp.read_sources(str(ROOT)))


# --- modules -------------------------------------------------------------------------


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{place(path, 1)}: no docstring"
    code = tree.body[1:]
    if not code:
        return  # An __init__ that only tells what its folder is.
    first = ast.unparse(code[0])
    assert first == "from __future__ import annotations", f"{place(path, code[0].lineno)}"
    if path.name.startswith("_") and path.name != "__init__.py":
        return
    if len(code) == 1:
        return
    assigned: list[ast.expr] = []
    for node in code:
        if isinstance(node, ast.Assign):
            assigned += node.targets
        elif isinstance(node, ast.AnnAssign):
            assigned.append(node.target)
    assert "__all__" in map(ast.unparse, assigned), f"{place(path, 1)}: no __all__"


def test_every_folder_of_the_package_and_of_the_tests_is_a_package() -> None:
    folders = {path.parent for path in modules()}
    folders |= {path.parent for path in tracked_files() if path.name.startswith("test_")}
    folders = {folder for folder in folders if "examples" not in folder.parts[:-1]}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_modules_are_short_enough_to_be_read_at_one_sitting() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    long = {place(path, lines) for path, lines in lengths.items() if lines > MODULE_LINES_MAX}
    assert long == set()


def test_lines_of_code_end_before_column_100() -> None:
    found = [
        place(path, number)
        for path in tracked_files()
        if path.suffix == ".py" or path.parent.name == ".ci"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LINE_COLUMNS_MAX
    ]
    assert found == []


# --- tests ---------------------------------------------------------------------------


def measuring_modules() -> list[Path]:
    """Return the modules of tests and bench.

    But for the simulator's, whose time is virtual, and users' programs, whose tasks take some.
    """
    folders = {ROOT / "tests", ROOT / "bench"}
    left_out = {"simulation", "job", "jobs"}
    return [
        path
        for path in tracked_files()
        if path.suffix == ".py"
        and folders.intersection(path.parents)
        and not left_out.intersection(path.relative_to(ROOT).parts)
    ]


def test_tests_wait_for_conditions_and_not_for_a_while() -> None:
    """Else they pass by luck on a slow machine, and lose time on a quick one.

    A sleep stands in a `while`, which has a condition, or says why it takes real time. One of
    ten seconds or more isn't there to end: somebody ends it.
    """
    found = [
        f"{place(path, line)} sleeps: wait for a condition, or say '{REAL_TIME} …' why not"
        for path in measuring_modules()
        for line in sleeps_by_luck(path.read_text(encoding="utf-8"))
    ]
    assert found == []


# The beginning of a comment beside a sleep, or above it.
REAL_TIME = "# Real time:"


def sleeps_by_luck(text: str) -> list[int]:
    """Return the lines of sleeps that no condition ends, and nothing explains."""
    if "sleep(" not in text:
        return []
    lines = text.splitlines()
    return [
        line
        for line in _lone_sleeps(ast.parse(text), is_waiting=False)
        if REAL_TIME not in lines[line - 1] and not _above(lines, line).startswith(REAL_TIME)
    ]


def _above(lines: list[str], number: int) -> str:
    """Return the beginning of the comment above a line."""
    above = ""
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        above = line.strip()
    return above


def _lone_sleeps(tree: ast.AST, *, is_waiting: bool) -> Iterator[int]:
    for node in ast.iter_child_nodes(tree):
        is_ended = is_waiting
        if isinstance(node, ast.While):
            is_ended = True
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.FunctionDef, ast.AsyncFunctionDef)):
            is_ended = False
        if isinstance(node, ast.Call) and not is_ended:
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "sleep" and not _is_endless(node.args[0]):
                yield node.lineno
        yield from _lone_sleeps(node, is_waiting=is_ended)


def _is_endless(span: ast.expr) -> bool:
    """Whether a time is 0, or so long that nobody waits for its end."""
    if isinstance(span, ast.Constant) and isinstance(span.value, (int, float)):
        return not 0 < span.value < 10
    return False


def test_sleep_by_luck_is_found() -> None:
    text = """
async def test(process):
    await asyncio.sleep(0.05)  # Long enough for `echo`.
    while process.runs:
        time.sleep(0.01)
        for _ in range(50):
            sleep(0.001)
    await asyncio.sleep(0)
    time.sleep(6)  # Real time: what is tested is a machine that stands still.
    # Real time: the kernel tells nobody
    # when it is done.
    time.sleep(1)
    time.sleep(999)
"""
    assert sleeps_by_luck(text) == [3, 7]


def test_tests_look_into_the_state_machine_in_one_place() -> None:
    """`look_inside` does: how the state is kept may change without a change of all tests.

    `wrong_state.py` is a program that has the package alone. The state of a scheduler's host, in
    `test_state_tables.py`, is a word.
    """
    may_look = {
        "tests/coordination/world.py",
        "tests/e2e/wrong_state.py",
        "tests/state_tables/test_state_tables.py",
    }
    found = [
        place(path, line)
        for path in tracked_files()
        if path.suffix == ".py" and ROOT / "tests" in path.parents
        if str(path.relative_to(ROOT)) not in may_look
        for line in looks_into_state(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "ask a reading, or `look_inside` of tests/coordination/world.py"


def looks_into_state(text: str) -> list[int]:
    if "._state" not in text:
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr == "_state"
    ]


def test_look_into_the_state_machine_is_found() -> None:
    assert looks_into_state("a = look_inside(schedule)\nb = schedule._state.jobs[1]\n") == [2]


# --- prose ---------------------------------------------------------------------------


def test_no_file_puts_work_off() -> None:
    """A known limit is written as one, where readers look for it."""
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    found = [
        f"{place(path, number)}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []


def test_no_file_names_a_place_that_is_on_one_machine_only() -> None:
    places = re.compile(r"(?<![\w.~])/(work|root|home/\w+|Users/\w+|tmp/venv)(/|\b(?!/))")
    found = [
        f"{place(path, number)}: {line.strip()}"
        for path in text_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if places.search(line)
    ]
    assert found == []


def pages() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def test_links_in_the_docs_lead_somewhere() -> None:
    link = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    found = []
    for path in pages():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in link.findall(text):
            file, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            page = (path.parent / file) if file else path
            if not page.exists():
                found.append(f"{path.relative_to(ROOT)} links to {target!r}")
            elif anchor and page.suffix == ".md" and anchor not in anchors_of(page):
                found.append(f"{path.relative_to(ROOT)} links to {target!r}: no such heading")
    assert found == []


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_files_that_the_docs_name_exist() -> None:
    """Names in `code` that begin with a folder of ours; <…>, … and * stand for anything.

    Folders of the package are named without it: `net/keys.py`.
    """
    folders = [folder for folder in FLOORS if (ROOT / "tasksprint" / folder).is_dir()]
    tops = ["tasksprint", "tests", "docs", "examples", "bench", "zipapp"]
    name = re.compile(rf"`((?:{'|'.join(tops + folders)})/[\w./-]*)`")
    found = [
        f"{path.relative_to(ROOT)} names {target!r}"
        for path in pages()
        for target in name.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / target).exists() and not (ROOT / "tasksprint" / target).exists()
    ]
    assert found == []


def test_glossary_has_each_word_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Words\n")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (.+?) \| .+ \|$", section, flags=re.MULTILINE)
    words = [word for cell in first if cell not in ("word", "---") for word in cell.split(", ")]
    assert len(words) > 40
    assert sorted(words) == sorted(set(words))


def test_house_in_contributing_is_that_of_the_imports() -> None:
    from tests.house import PAGE, with_drawing  # It takes the imports from here.

    text = PAGE.read_text(encoding="utf-8")
    assert text == with_drawing(text), "run `python -m tests.house`, and read the diff"


def test_recipes_in_contributing_fit_the_files() -> None:
    """What a diff says is there today, is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    diffs = re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)
    assert diffs
    found = []
    lines = frozenset[str]()
    for line in "".join(diffs).splitlines():
        if line.startswith("--- a/"):
            lines = frozenset((ROOT / line[6:]).read_text(encoding="utf-8").splitlines())
        elif line[:1] in (" ", "-") and line[1:] not in lines:
            found.append(line)
    assert found == [], "change the recipe with the code that it shows"
