"""The example that TaskSprint was published with, changed for Python 3 alone, runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sdk.programs import NodeDriver, Program, SchedulerDriver, run_job, write_program

# As printed; the test only waits 0.1 seconds instead of 5 for each of the eleven tasks.
NODE = """\
#!/usr/bin/python
from TaskSprintNode import *
import random

class MonteCarloNode(TaskSprintNode):
  @timeout(5)
  def process(self):
    while True:
      x, y = random.random(), random.random()
      if x**2 + y**2 < 1: self.inside += 1
      self.total += 1

  def montecarlo(self):
    self.inside, self.total = 0, 0
    try:
      self.process()
    except TimeoutError:
      pass
    return {"result" : {"inside" : self.inside, "total" : self.total}}

  def merge(self, *results):
    inside, total = 0, 0
    for result in results:
      inside += result["inside"]
      total += result["total"]
    return {"result" : (inside / float(total)) * 4}

MonteCarloNode().start()
"""

# `xrange` is `range`, and `print` a function.
SCHEDULER = """\
#!/usr/bin/python
from TaskSprintCoordinator import *

class MonteCarloCoordinator(TaskSprintCoordinator):
  def init(self, seed):
    alltasks = [self.start_task(name = "montecarlo") for i in range(11)]

    self.final = self.start_task(
      name = "merge",
      prekeys = ["result" for i in range(len(alltasks))],
      pretasks = alltasks,
      keys = ["result"]
    )

  def client_joined(self, cid):
    print("Somebody joined! %d" %cid)

  def client_dead(self, cid):
    print("Somebody died :( %d" %cid)

  def task_done(self, tid, values):
    if tid == self.final:
      self.finish(taskids = [tid], values = values)
    print("Task %d is done. Result: %s" %(tid, values))

MonteCarloCoordinator().start()
"""


@pytest.mark.slow
def test_published_monte_carlo_estimates_pi(tmp_path: Path) -> None:
    node_argv = write_program(tmp_path / "node.py", NODE.replace("timeout(5)", "timeout(0.1)"))
    scheduler_argv = write_program(tmp_path / "scheduler.py", SCHEDULER)
    with (
        Program(node_argv, stderr=tmp_path / "node.err") as node,
        Program(scheduler_argv, stderr=tmp_path / "scheduler.err") as scheduler,
    ):
        job = run_job(SchedulerDriver(scheduler), NodeDriver(node), {})
        # 11 times 0.1 s are at least some ten thousand points, even on a busy machine.
        assert abs(job.values["result"] - 3.14159) < 0.1
        assert job.finished is not None and job.finished.taskids == (11,)
        shown = scheduler.stderr()
        assert "Somebody joined! 1\n" in shown
        assert "Task 0 is done. Result: {}\n" in shown
        assert "Task 11 is done. Result: {'result': 3." in shown
