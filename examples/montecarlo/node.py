#!/usr/bin/env python3
from TaskSprintNode import *
import random


class MonteCarloNode(TaskSprintNode):
    def process(self, samples):
        while samples is None or self.total < samples:
            x, y = random.random(), random.random()
            if x**2 + y**2 < 1:
                self.inside += 1
            self.total += 1

    def montecarlo(self, seconds, samples):
        self.inside, self.total = 0, 0
        if samples is not None:
            self.process(samples)
        else:
            try:
                timeout(seconds)(self.process)(None)
            except TimeoutError:
                pass
        return {"result": {"inside": self.inside, "total": self.total}}

    def merge(self, *results):
        inside, total = 0, 0
        for result in results:
            inside += result["inside"]
            total += result["total"]
        return {"result": (inside / float(total)) * 4}


MonteCarloNode().start()
