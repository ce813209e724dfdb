"""Draws on chance, and tasks that wait."""

import os
import random
import time

from TaskSprintNode import *


class Node(TaskSprintNode):
    def gate(self, folder, stage):
        deadline = time.monotonic() + 120
        while not os.path.exists(os.path.join(folder, str(stage))):
            assert time.monotonic() < deadline, "gate %d stays closed" % stage
            time.sleep(0.01)
        return {}

    def hang(self):
        time.sleep(600)

    def draw(self, number, ms, *earlier):
        time.sleep(ms / 1000)
        if number % 20 == 7 and self.task.attempt == 1:
            raise ValueError("this draw succeeds when it is tried again")
        whole = random.getrandbits(50) ^ sum(draw[1] for draw in earlier)
        drawn = [number, whole, random.random()]
        if number == 0:
            return {"drawn": drawn, "noise": random.randbytes(300_000)}
        return {"drawn": drawn}

    def gather(self, width, *values):
        return {"drawn": list(values[:width]), "noise": b"".join(values[width:])}


Node().start()
