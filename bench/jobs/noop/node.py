"""Does nothing."""

from TaskSprintNode import *


class NoopNode(TaskSprintNode):
    def noop(self):
        return {"result": 0}


NoopNode().start()
