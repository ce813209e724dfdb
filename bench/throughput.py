"""Tasks that do nothing, and chains of them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor

from bench.cluster import median_of, private_cluster, run_job


def noop(
    tasks: int, *, runs: int, coordinators: int, clients: int, nodes: int
) -> dict[str, float | int]:
    """Measure independent no-op tasks per second, beside a process pool in the same run."""
    with private_cluster(coordinators=coordinators, clients=clients, nodes=nodes) as cluster:
        run_job(cluster, "noop", '{"tasks":200}')
        seconds = median_of(runs, lambda: run_job(cluster, "noop", f'{{"tasks":{tasks}}}')[1])
    pool_s = median_of(runs, lambda: _process_pool(tasks, clients * nodes))
    return {
        "tasks": tasks,
        "runs": runs,
        "coordinators": coordinators,
        "clients": clients,
        "nodes": clients * nodes,
        "seconds": round(seconds, 4),
        "tasks_per_s": round(tasks / seconds, 1),
        "process_pool_tasks_per_s": round(tasks / pool_s, 1),
    }


def chain(
    links: int, *, runs: int, coordinators: int, clients: int, nodes: int
) -> dict[str, float | int]:
    """Measure a chain of dependent tasks, in milliseconds a link."""

    def measure() -> float:
        outcome, seconds = run_job(cluster, "chain", f'{{"links":{links}}}')
        if json.loads(outcome.values or "null") != {"result": links}:
            raise SystemExit(f"the chain counted wrongly: {outcome.values}")
        return seconds

    with private_cluster(coordinators=coordinators, clients=clients, nodes=nodes) as cluster:
        run_job(cluster, "chain", '{"links":20}')
        seconds = median_of(runs, measure)
    return {
        "links": links,
        "runs": runs,
        "coordinators": coordinators,
        "seconds": round(seconds, 4),
        "ms_per_link": round(1000 * seconds / links, 4),
    }


def _nothing(_: int) -> int:
    return 0


def _process_pool(tasks: int, workers: int) -> float:
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_nothing, range(workers * 10)))
        started_s = time.perf_counter()
        futures = [pool.submit(_nothing, index) for index in range(tasks)]
        for future in futures:
            future.result()
        return time.perf_counter() - started_s
