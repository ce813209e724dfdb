"""What the job of the torture computes; `tests/torture/load.py` computes the same."""

import hashlib
import json
import sys
import time

print('{"ready":{}}', flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task["name"] == "draw":
        token, number, ms = task["args"]
        time.sleep(ms / 1000)
        text = "%d:%d:%d" % (task["seed"], token, number)
        values = {"drawn": hashlib.sha256(text.encode()).hexdigest()[:16]}
    else:
        values = {"all": hashlib.sha256("+".join(task["args"]).encode()).hexdigest()}
    print(json.dumps({"id": task["id"], "values": values}), flush=True)
