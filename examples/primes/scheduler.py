from TaskSprintCoordinator import *

class Primes(TaskSprintCoordinator):
    def init(self, seed):
        parts = [self.start_task("count", [n * 50_000, (n + 1) * 50_000]) for n in range(20)]
        self.sum = self.start_task("add", pretasks=parts, prekeys=["primes"] * 20, keys=["primes"])

    def task_done(self, tid, values):
        if tid == self.sum:
            self.finish([tid], values)

Primes().start()
