"""Where candidates are evaluated: in threads of this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from blockpunch.errors import ClusterError, MissingExtraError
from blockpunch.mapping.network import Cell
from blockpunch.target import host_cores

Cells = Mapping[str, Cell]
"""Layer -> scheme and rate, of the layers that are pruned."""
Evaluate = Callable[[Sequence[Cells], bool], Iterator[tuple[int, float]]]
"""Takes candidates, and whether to be thorough; gives (number, loss) of each as it is done, in any order."""

CONNECT_S = 5.0
"""Seconds to wait for a cluster's door."""


class Evaluator(Protocol):
    """Says how good a pruned network is. Can be pickled, and called by several threads at once.

    One that takes long should have a method ``stop()``, after which running calls raise as soon as they can.

    Attributes:
        fingerprint: tells it from evaluators that would say something else.
    """

    fingerprint: str

    def __call__(self, cells: Cells, thorough: bool = False) -> float:
        """The loss, above 0, of the network with ``cells``; the same whenever and wherever it is called.

        ``thorough``: it is one of the last few, so more time may be spent on it.
        """
        ...


class Executor(Protocol):
    """Evaluates several candidates at once."""

    def serve(self, evaluator: Evaluator) -> Any:
        """A context manager that gives an :data:`Evaluate`."""
        ...


class Local:
    """Threads of this process, each computing on one core.

    Args:
        workers: that many; None: one for each core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or host_cores()

    @contextmanager
    def serve(self, evaluator: Evaluator) -> Iterator[Evaluate]:
        """Threads until the block ends; an interrupt drops what has not begun, and stops what has."""
        pool = ThreadPoolExecutor(self.workers)

        def evaluate(candidates: Sequence[Cells], thorough: bool) -> Iterator[tuple[int, float]]:
            running = {pool.submit(evaluator, cells, thorough): number for number, cells in enumerate(candidates)}
            for done in as_completed(running):
                yield running[done], float(done.result())

        try:
            with one_thread_each():
                yield evaluate
        except BaseException:
            getattr(evaluator, "stop", lambda: None)()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class OnRay:
    """Tasks on a Ray cluster: that of ``RAY_ADDRESS``, one that runs on this machine, or a new one of this machine.

    Args:
        workers: tasks at once; None: one for each core of the cluster.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unasked
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "evaluating on a cluster") from error
        self.ray, self.workers = ray, workers

    @contextmanager
    def serve(self, evaluator: Evaluator) -> Iterator[Evaluate]:
        """A connection until the block ends.

        Raises:
            ClusterError: the cluster cannot be reached, or is lost.
        """
        ray, ours = self.ray, not self.ray.is_initialized()
        if ours:
            self._connect()
        try:
            task = ray.remote(num_cpus=1, max_retries=4)(_evaluate)  # what a lost node worked on is done elsewhere
            shared = ray.put(evaluator)
            with one_thread_each():  # the controller's own sums come out alike, too
                yield lambda candidates, thorough: self._results(
                    [partial(task.remote, shared, dict(cells), thorough) for cells in candidates])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ClusterError(f"the evaluation on Ray failed: {str(cause).strip().splitlines()[-1]}",
                               fix="the same command goes on from the journal; --executor local needs no cluster") \
                from error
        finally:
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):  # Ray itself would try for minutes
                socket.create_connection((found[1], int(found[2])), timeout=CONNECT_S).close()
            self.ray.init(log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises many kinds here
            raise ClusterError(f"Ray cannot be reached: {str(error).strip().splitlines()[0]}",
                               where=address or "this machine",
                               fix="start it ('ray start --head'), correct RAY_ADDRESS, or use --executor local") \
                from error

    def _results(self, tasks: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, float]]:
        """Each task's number and result, no more than ``workers`` at once."""
        limit = self.workers or max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        waiting, running = list(enumerate(tasks))[::-1], dict[Any, int]()
        while waiting or running:
            while waiting and len(running) < limit:
                number, start = waiting.pop()
                running[start()] = number
            done, _ = self.ray.wait(list(running), num_returns=1)
            yield running.pop(done[0]), float(self.ray.get(done[0]))


def _evaluate(evaluator: Evaluator, cells: Cells, thorough: bool) -> float:
    """What runs on a node."""
    with one_thread_each():
        return evaluator(cells, thorough)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch on one core for each caller: candidates run side by side, and sums come out alike on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
