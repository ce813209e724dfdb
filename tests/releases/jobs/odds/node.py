"""Values of all kinds, and failures."""

import sys
import time

from TaskSprintNode import *


class Node(TaskSprintNode):
    def value(self, given):
        return {"value": given}

    def told(self):
        return {
            "bytes": bytes(range(256)),
            "text": "naïve \u2028 \U0001f40d \x00",
            "number": 2**70,
        }

    def fails(self):
        print("to stderr", file=sys.stderr)
        raise ValueError("in vain, naïvely")

    def slow(self):
        time.sleep(60)


Node().start()
