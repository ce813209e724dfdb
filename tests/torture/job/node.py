"""What the jobs of the torture compute; `tests/torture/jobs.py` knows the same."""

import hashlib
import json
import os
import sys
import time


def draw(seed, token, number, ms, before=""):
    time.sleep(ms / 1000)
    text = "%d:%d:%d:%s" % (seed, token, number, before)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def throw(seed, ms):
    time.sleep(ms / 1000)
    return os.urandom(8).hex()


def echo(seed, drawn):
    return drawn


def join(seed, *drawn):
    return "+".join(drawn)


TASKS = {"draw": draw, "throw": throw, "echo": echo, "join": join}

print('{"ready":{}}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    value = TASKS[task["name"]](task["seed"], *task["args"])
    print(json.dumps({"id": task["id"], "values": {"drawn": value}}), flush=True)
