"""Runs `released` tasks, lets each go when it is done, and then starts `live` ones."""

from TaskSprintCoordinator import *


class History(TaskSprintCoordinator):
    def init(self, seed):
        self.started = 0
        self.done = 0
        self.begin(min(self.params["window"], self.params["released"]))

    def begin(self, count):
        for number in range(self.started, self.started + count):
            self.start_task(name="work", base=[number])
        self.started += count

    def client_joined(self, cid):
        pass

    def client_dead(self, cid):
        pass

    def task_done(self, tid, values):
        self.release([tid])
        self.done += 1
        if self.started < self.params["released"]:
            self.begin(1)
        elif self.done == self.params["released"]:
            self.begin(self.params["live"])


History().start()
