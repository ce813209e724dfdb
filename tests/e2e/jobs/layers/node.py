"""Random numbers, slowly."""

import random
import time

from TaskSprintNode import *


class LayersNode(TaskSprintNode):
    def draw(self, number, ms):
        time.sleep(ms / 1000)
        return {"drawn": [number, random.random(), random.getrandbits(80)]}

    def pair(self, ms, left, right):
        time.sleep(ms / 1000)
        return {"sum": [left[1] + right[1], left[2] ^ right[2], random.random()]}

    def gather(self, *sums):
        return {"all": list(sums)}


LayersNode().start()
