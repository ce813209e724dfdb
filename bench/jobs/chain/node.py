"""Counts."""

from TaskSprintNode import *


class ChainNode(TaskSprintNode):
    def first(self):
        return {"result": 1}

    def add(self, number):
        return {"result": number + 1}


ChainNode().start()
