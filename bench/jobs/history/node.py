"""Does nothing."""

from TaskSprintNode import *


class HistoryNode(TaskSprintNode):
    def work(self, number):
        return {"result": number}


HistoryNode().start()
