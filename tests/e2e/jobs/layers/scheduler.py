"""Three layers of tasks on chance; refuses to be told of a task twice."""

from TaskSprintCoordinator import *


class Layers(TaskSprintCoordinator):
    def init(self, seed):
        width, ms = self.params["width"], self.params["ms"]
        draws = [self.start_task(name="draw", base=[n, ms]) for n in range(width)]
        pairs = [
            self.start_task(
                name="pair",
                base=[ms],
                pretasks=[draws[n], draws[(n + 7) % width]],
                prekeys=["drawn", "drawn"],
                keys=["sum"] if n % 10 == 0 else [],
            )
            for n in range(width)
        ]
        self.final = self.start_task(
            name="gather", pretasks=pairs, prekeys=["sum"] * width, keys=["all"]
        )
        self.told = {}

    def client_joined(self, cid):
        pass

    def client_dead(self, cid):
        pass

    def task_done(self, tid, values):
        self.told[tid] = self.told.get(tid, 0) + 1
        if self.told[tid] > 1:
            self.fail("task %d was done twice" % tid)
        elif tid == self.final:
            self.finish(taskids=[tid], values={"all": values["all"], "told": len(self.told)})


Layers().start()
