"""Values travel from node to node, to the scheduler and to people, byte for byte."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Shared, shared_cluster, write_job

pytestmark = pytest.mark.slow

MIB = 1024 * 1024

# JSON as nodes may write it: each text must arrive as it is, be it what Python would write or not.
TEXTS = {
    "2^70": "1180591620717411303424",
    "-2^70": "-1180591620717411303424",
    "a googol": "1" + "0" * 100,
    "a thousand digits": "9" * 1_000,
    "an exponent": "1.0e5",
    "capital exponent": "1E+2",
    "minus zero": "-0.0",
    "minus zero integer": "-0",
    "too many digits": "0.1000000000000000055511151231257827021181583404541015625",
    "tiny": "5e-324",
    "trailing zeros": "[1.50,2.000,3e00]",
    "empty string": '""',
    "escapes": r'"\u00e9\/\b\f\n\r\t\"\\ \u0000 \ud83d\ude00 é 😀"',
    "half a pair": r'"\ud800"',
    "separators": '"\u2028\u2029\u0085\x7f"',
    "spaces": '{ "a" : [ 1 , 2 ] ,\t"b":null }',
    "keys twice": '{"a":1,"a":2}',
    "key order": '{"b":1,"a":2,"":3}',
    "null": "null",
    "booleans": "[true,false,null]",
    "empty list": "[]",
    "empty object": "{}",
    "nested": "[" * 300 + "]" * 300,
    "looks like the line": '"],\\"seed\\":1,\\"args\\":["',
    "مفتاح": '"قيمة"',
    "key/with?odd&parts=%41#+ ": '"percent"',
    "..": '"dots"',
    "😀": "[1,[2]]",
    'quo"te\\': "3",
    "": '"under the empty key"',
}

# No SDK: what is written is the text itself. `pair` waits for its twin, so that the two
# run at the same time, which means on two clients that have one node each.
RAW_NODE = r"""
import hashlib, json, os, sys, time

decoder = json.JSONDecoder()


def arguments(line):
    index, texts = line.index('"args":[') + len('"args":['), []
    while line[index] != "]":
        _, end = decoder.raw_decode(line, index)
        texts.append(line[index:end])
        # The scheduler's own arguments stand as it wrote them, with its spaces.
        index = len(line) - len(line[end:].lstrip(", "))
    return texts


def run(name, args):
    if name == "pair":
        side, other, folder = json.loads(args[0]), json.loads(args[1]), json.loads(args[2])
        open(os.path.join(folder, side), "w").close()
        deadline = time.monotonic() + 30
        while not os.path.exists(os.path.join(folder, other)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with open("texts.json", encoding="utf-8") as file:
            return json.load(file)
    keys = json.loads(args[0])
    return dict(zip(keys, args[1:], strict=True))


sys.stdout.reconfigure(encoding="utf-8", newline="\n")
print('{"ready":{}}', flush=True)
for line in sys.stdin.buffer:
    line = line.decode()
    task = json.loads(line)
    values = run(task["name"], arguments(line))
    text = ",".join(json.dumps(key) + ":" + text for key, text in values.items())
    print('{"id":%d,"values":{%s}}' % (task["id"], text), flush=True)
"""

# It finishes with the text of the values that it was told, so nothing is parsed on the way.
RAW_SCHEDULER = r"""
import json, sys

sys.stdout.reconfigure(encoding="utf-8", newline="\n")


def say(event, *commands):
    print('{"event":%d,"commands":[%s]}' % (event, ",".join(commands)), flush=True)


print('{"ready":{}}', flush=True)
for line in sys.stdin.buffer:
    line = line.decode()
    event = json.loads(line)
    if "control" in event:
        continue
    if event["kind"] == "init":
        params = event["params"]
        keys, told, folder = params["keys"], params["told"], params["folder"]
        start = [
            {"start": "pair", "base": ["a", "b", folder]},
            {"start": "pair", "base": ["b", "a", folder]},
        ]
        names = [side + key for side in "ab" for key in keys]
        start.append(
            {
                "start": "carry",
                "base": [names],
                "pretasks": [0] * len(keys) + [1] * len(keys),
                "prekeys": keys * 2,
            }
        )
        start.append(
            {"start": "carry", "base": [keys], "pretasks": [2] * len(keys),
             "prekeys": ["a" + key for key in keys], "keys": keys}
        )
        say(event["event"], *(json.dumps(command) for command in start))
    elif event["kind"] == "task_done" and event["tid"] == 3:
        values = line[line.index('"values":') + len('"values":') : line.rindex("}")]
        say(event["event"], '{"finish":[0,1,2,3],"values":' + values + "}")
    elif event["kind"] == "task_failed":
        say(event["event"], json.dumps({"fail": event["error"]}))
    else:
        say(event["event"])
"""


@pytest.fixture(scope="module")
def shared(archive: Path) -> Iterator[Shared]:
    """Two clients with one node each."""
    with shared_cluster(archive, clients=2, nodes=1) as shared:
        yield shared


def test_json_arrives_as_the_text_that_a_node_wrote(shared: Shared, tmp_path: Path) -> None:
    job_folder = write_job(tmp_path / "texts", RAW_SCHEDULER, RAW_NODE)
    (job_folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    params = {"keys": list(TEXTS), "told": 3, "folder": str(tmp_path)}
    job = shared.submit(job_folder, params=json.dumps(params))
    outcome = shared.outcome(job)
    assert outcome.state == "finished", outcome.error
    # The two that wrote them sat on two clients; so one half of what the third task was
    # given came from its own client and one half from the other, whichever it ran on.
    makers = [shared.task(job, tid)["holders"] for tid in (0, 1)]
    assert sorted(makers) == [[1], [2]]
    info, found = shared.cluster.task_values(job, 2)  # type: ignore[arg-type]
    assert {key for key, _ in found} == {side + key for side in "ab" for key in TEXTS}
    for key, text in TEXTS.items():
        for side in "ab":
            value = shared.cluster.task_value(info, job, 2, side + key)  # type: ignore[arg-type]
            assert value == text.encode(), (side, key)
    # What the scheduler was told, and finished with.
    members = (f"{json.dumps(key, ensure_ascii=False)}:{text}" for key, text in TEXTS.items())
    assert outcome.values == "{" + ",".join(members) + "}"
    # And as people see it.
    printed = shared.commands("result", str(job)).stdout
    assert printed == outcome.values.encode() + b"\n"
    for key in ("2^70", "مفتاح", "key/with?odd&parts=%41#+ ", ""):
        assert shared.value(job, 3, key) == TEXTS[key].encode()
    whole = shared.commands("result", str(job), "--task", "3").stdout.decode()
    for text in TEXTS.values():
        assert f":{text}" in whole


SDK_SCHEDULER = """
from TaskSprintCoordinator import *


class Values(TaskSprintCoordinator):
    def init(self, seed):
        folder = self.params["folder"]
        self.makers = [self.start_task("make", base=[s, o, folder]) for s, o in ("ab", "ba")]
        both = [tid for key in KEYS for tid in self.makers]
        self.seen = self.start_task(
            "see", base=[], pretasks=both, prekeys=[key for key in KEYS for _ in "ab"],
            keys=["digests", "same", "big", "مفتاح", "few"],
        )
        self.empty = [self.start_task("nothing"), self.start_task("no_values")]
        self.left = {*self.makers, self.seen, *self.empty}
        self.told = {}

    def task_done(self, tid, values):
        self.left.discard(tid)
        self.told[str(tid)] = sorted(values)
        if tid == self.seen:
            self.values = values
        if not self.left:
            few = self.values.pop("few")
            assert few == bytes(range(256)), few
            finish = {**self.values, "told": self.told}
            self.finish([*self.makers, self.seen, *self.empty], finish)


Values().start()
"""

SDK_NODE = """
import hashlib, json, os, random, time
from TaskSprintNode import *

random.seed(7)
BIG = random.randbytes(5 * 1024 * 1024)
HUGE = bytes(1024 * 1024) * 30
NUMBERS = [number % 1000 / 8 for number in range(100_000)]


def digest(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hashlib.sha256(data).hexdigest()


class Node(TaskSprintNode):
    def make(self, side, other, folder):
        open(os.path.join(folder, "sdk-" + side), "w").close()
        deadline = time.monotonic() + 30
        while not os.path.exists(os.path.join(folder, "sdk-" + other)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return {"bytes": BIG, "": HUGE, "numbers": NUMBERS, "big": 2**70, "مفتاح": "قيمة",
                "none": None, "empty": b"", "few": bytes(range(256))}

    def see(self, *values):
        pairs = list(zip(values[::2], values[1::2], strict=True))
        return {
            "digests": [digest(one) for one, _ in pairs],
            "same": all(one == other and type(one) is type(other) for one, other in pairs),
            **dict(zip(KEYS, values[::2], strict=True)),
        }

    def nothing(self):
        return {}

    def no_values(self):
        return None


KEYS = ["bytes", "", "numbers", "big", "مفتاح", "none", "empty", "few"]
Node().start()
"""

SDK_KEYS = ["bytes", "", "numbers", "big", "مفتاح", "none", "empty", "few"]


def test_large_small_and_empty_values_of_the_sdk_arrive(shared: Shared, tmp_path: Path) -> None:
    scheduler = SDK_SCHEDULER.replace("class Values", f"KEYS = {SDK_KEYS!r}\n\n\nclass Values")
    job_folder = write_job(tmp_path / "sdk", scheduler, SDK_NODE)
    job = shared.submit(job_folder, params=json.dumps({"folder": str(tmp_path)}))
    outcome = shared.outcome(job)
    assert outcome.state == "finished", outcome.error
    big = random.Random(7).randbytes(5 * MIB)
    numbers = [number % 1000 / 8 for number in range(100_000)]
    made: list[Any] = [big, bytes(30 * MIB), numbers, 2**70, "قيمة", None, b"", bytes(range(256))]
    values = json.loads(outcome.values or "")
    assert values["same"] is True
    assert values["digests"] == [
        hashlib.sha256(
            value if isinstance(value, bytes) else json.dumps(value).encode()
        ).hexdigest()
        for value in made
    ]
    assert values["big"] == 2**70
    assert values["مفتاح"] == "قيمة"
    told = {"digests", "same", "big", "مفتاح", "few"}
    assert values["told"] == {"0": [], "1": [], "2": sorted(told), "3": [], "4": []}
    assert sorted(shared.task(job, tid)["holders"] for tid in (0, 1)) == [[1], [2]]
    # What was carried through the third task is what people get.
    assert shared.value(job, 2, "bytes") == big
    info, _ = shared.cluster.task_values(job, 2)  # type: ignore[arg-type]
    assert shared.cluster.task_value(info, job, 2, "") == bytes(30 * MIB)  # type: ignore[arg-type]
    text = shared.cluster.task_value(info, job, 2, "numbers")  # type: ignore[arg-type]
    first = shared.cluster.task_values(job, 0)[0]  # type: ignore[arg-type]
    assert text == shared.cluster.task_value(first, job, 0, "numbers")  # type: ignore[arg-type]
    assert json.loads(text) == numbers
    for tid in (3, 4):
        printed = shared.commands.json("result", str(job), "--task", str(tid))
        assert printed == {"job": job, "task": tid, "state": "done", "values": {}}


FAN_IN_SCHEDULER = """
from TaskSprintCoordinator import *


class FanIn(TaskSprintCoordinator):
    def init(self, seed):
        count = self.params["count"]
        tids = [self.start_task("one", base=[number]) for number in range(count)]
        self.last = self.start_task(
            "all", pretasks=tids, prekeys=["n" if n % 2 else "b" for n in tids], keys=["sum"]
        )

    def task_done(self, tid, values):
        if tid == self.last:
            self.finish([tid], values)


FanIn().start()
"""

FAN_IN_NODE = """
from TaskSprintNode import *


class Node(TaskSprintNode):
    def one(self, number):
        return {"n": number, "b": str(number).encode()}

    def all(self, *values):
        return {"sum": [len(values), [int(value) for value in values] == list(range(len(values)))]}


Node().start()
"""


def test_a_task_has_two_thousand_inputs(shared: Shared, tmp_path: Path) -> None:
    job_folder = write_job(tmp_path / "fan-in", FAN_IN_SCHEDULER, FAN_IN_NODE)
    job = shared.submit(job_folder, params='{"count":2000}')
    outcome = shared.outcome(job)
    assert outcome.state == "finished", outcome.error
    assert json.loads(outcome.values or "") == {"sum": [2000, True]}
    assert outcome.tasks["done"] == 2001


SHELL_SCHEDULER = """
from TaskSprintCoordinator import *


class Shell(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("base64", keys=["raw"])
        self.start_task("file", base=[], keys=["raw"])
        self.start_task("big_file", base=[])
        self.last = self.start_task(
            "wc", pretasks=[0, 1], prekeys=["raw", "raw"], keys=["args"]
        )
        self.told = []

    def task_done(self, tid, values):
        self.told.append([tid, {key: list(v) if isinstance(v, bytes) else v
                                for key, v in values.items()}])
        if len(self.told) == 4:
            self.finish([0, 1, 2, 3], sorted(self.told))


Shell().start()
"""

SHELL_NODE = r"""#!/bin/sh
echo '{"ready":{}}'
while IFS= read -r line; do
  id=${line#'{"id":'} && id=${id%%,*}
  name=${line#*'"name":"'} && name=${name%%'"'*}
  args=${line#*'"args":'} && args=${args%',"seed"'*}
  case $name in
    base64) echo "{\"id\":$id,\"values\":{\"n\":1.50},\"base64\":{\"raw\":\"AAECAwr/\"}}" ;;
    file) printf '\000\001\002\003\012\377' >"$PWD/raw.$id"
      echo "{\"id\":$id,\"files\":{\"raw\":\"$PWD/raw.$id\"}}" ;;
    big_file) head -c 9437184 /dev/zero >"$PWD/big.$id"
      echo "{\"id\":$id,\"values\":{\"n\":2},\"files\":{\"zeros\":\"$PWD/big.$id\"}}" ;;
    wc) echo "{\"id\":$id,\"values\":{\"args\":$args}}" ;;
  esac
done
"""


def test_a_shell_node_sends_bytes_as_base64_and_as_files(shared: Shared, tmp_path: Path) -> None:
    job_folder = write_job(tmp_path / "shell", SHELL_SCHEDULER, SHELL_NODE)
    job = shared.submit(job_folder)
    outcome = shared.outcome(job)
    assert outcome.state == "finished", outcome.error
    raw = [0, 1, 2, 3, 10, 255]
    assert json.loads(outcome.values or "") == [
        [0, {"raw": raw}],
        [1, {"raw": raw}],
        [2, {}],
        [3, {"args": ["AAECAwr/", "AAECAwr/"]}],
    ]
    assert shared.value(job, 1, "raw") == bytes(raw)
    assert shared.value(job, 2, "zeros") == bytes(9 * MIB)
    whole = shared.commands("result", str(job), "--task", "0", "--json").stdout.decode()
    assert '"values":{"n":1.50},"base64":{"raw":"AAECAwr/"}' in whole


ONE_SCHEDULER = """
from TaskSprintCoordinator import *


class One(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("one", keys=["value"])

    def task_done(self, tid, values):
        self.finish([tid], values)


One().start()
"""

NAN_NODE = """
from TaskSprintNode import *


class Node(TaskSprintNode):
    def one(self):
        return {"fine": 1, "value": [0.5, {"deep": float("nan")}]}


Node().start()
"""

RAW_NAN_NODE = """#!/bin/sh
echo '{"ready":{}}'
while IFS= read -r line; do
  id=${line#'{"id":'} && id=${id%%,*}
  echo "{\\"id\\":$id,\\"values\\":{\\"fine\\":1,\\"value\\":[-Infinity]}}"
done
"""


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (
            NAN_NODE,
            "value under key 'value' of one holds NaN or Infinity, which JSON doesn't have; "
            "use None or a string",
        ),
        (
            RAW_NAN_NODE,
            "value under key 'value' holds -Infinity, which JSON doesn't have; return None or a "
            "string instead",
        ),
    ],
    ids=["sdk", "shell"],
)
def test_nan_is_refused_with_the_name_of_its_key(
    shared: Shared, tmp_path: Path, node: str, why: str
) -> None:
    job = shared.submit(write_job(tmp_path / "nan", ONE_SCHEDULER, node))
    outcome = shared.outcome(job)
    assert outcome.state == "failed"
    assert outcome.error is not None
    # One attempt, not three: it would be NaN again.
    assert outcome.error.startswith("task 0 'one' failed after 1 attempt; last on client ")
    assert outcome.error.endswith(why)
    done = shared.commands("result", str(job), code=1)
    said = done.stderr.decode()
    assert said.startswith(f"tasksprint: job {job} failed: {outcome.error}\n"), said
    done = shared.commands("result", str(job), "--task", "0", code=1)
    assert why in done.stderr.decode(), "the task is forgotten, but not why it failed"
    done = shared.commands("result", str(job), "--task", "7", code=77)
    assert f"job {job} has no task 7: it started 1 so far, numbered from 0" in done.stderr.decode()


DEEP_NODE = """#!/bin/sh
echo '{"ready":{}}'
read -r line
echo '{"id":1,"values":{"value":'"$(head -c 200000 /dev/zero | tr '\\0' '[')"
cat >/dev/null
"""


def test_a_value_nested_too_deeply_ends_in_a_sentence(shared: Shared, tmp_path: Path) -> None:
    job = shared.submit(write_job(tmp_path / "deep", ONE_SCHEDULER, DEEP_NODE, retries=0))
    outcome = shared.outcome(job)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert "is nested too deeply under key 'value'; send it as bytes instead" in outcome.error
