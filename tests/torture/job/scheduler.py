"""Four kinds of jobs; each ends with what came out, and how many tasks it was told of."""

from TaskSprintCoordinator import *


class Torture(TaskSprintCoordinator):
    def init(self, seed):
        self.told = set()
        self.token, self.width = self.params["token"], self.params["width"]
        self.final = getattr(self, "begin_" + self.params["kind"])()

    def draw(self, number, **options):
        base = [self.token, number, self.params["ms"]]
        return self.start_task(name="draw", base=base, **options)

    # Some draws on chance, and one task that joins them.
    def begin_fan(self):
        return self.join([self.draw(number) for number in range(self.width)])

    # Each draw goes on from the one before; nobody sees what is between.
    def begin_chain(self):
        last = self.draw(0, keys=["drawn"] if self.width == 1 else [])
        for number in range(1, self.width):
            keys = ["drawn"] if number == self.width - 1 else []
            last = self.draw(number, pretasks=[last], prekeys=["drawn"], keys=keys)
        return last

    # The scheduler starts each draw itself, with what it was told of the one before.
    def begin_rounds(self):
        self.started = 1
        return self.draw(0, keys=["drawn"])

    # Nobody can foresee these; but all who use a throw use the same one.
    def begin_dice(self):
        throws = [
            self.start_task(name="throw", base=[self.params["ms"]]) for _ in range(self.width)
        ]
        return self.join(
            [
                self.start_task(name="echo", pretasks=[throw], prekeys=["drawn"])
                for throw in throws
                for _ in range(2)
            ]
        )

    def join(self, tasks):
        prekeys = ["drawn"] * len(tasks)
        return self.start_task(name="join", pretasks=tasks, prekeys=prekeys, keys=["drawn"])

    def task_done(self, tid, values):
        if tid in self.told:
            self.fail("task %d was done twice" % tid)
        self.told.add(tid)
        if tid != self.final:
            return
        if self.params["kind"] == "rounds" and self.started < self.width:
            base = [self.token, self.started, self.params["ms"], values["drawn"]]
            self.final = self.start_task(name="draw", base=base, keys=["drawn"])
            self.started += 1
            return
        self.finish(taskids=[tid], values={"drawn": values["drawn"], "told": len(self.told)})


Torture().start()
