"""Where candidates are evaluated: in threads of this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from blockpunch.errors import ClusterError, MissingExtraError
from blockpunch.mapping.network import Cell
from blockpunch.target import host_cores

Cells = Mapping[str, Cell]
"""Layer -> scheme and rate, of the layers that are pruned."""
Evaluate = Callable[[Sequence[Cells], bool], Iterator[tuple[int, float]]]
"""Takes candidates, and whether to be thorough; gives (number, loss) of each as it is done, in any order."""


class Evaluator(Protocol):
    """Says how good a pruned network is. Can be pickled, and called by several threads at once.

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
        """Threads until the block ends; an interrupt drops what has not begun."""
        pool = ThreadPoolExecutor(self.workers)

        def evaluate(candidates: Sequence[Cells], thorough: bool) -> Iterator[tuple[int, float]]:
            running = {pool.submit(evaluator, cells, thorough): number for number, cells in enumerate(candidates)}
            for done in as_completed(running):
                yield running[done], float(done.result())

        try:
            with one_thread_each():
                yield evaluate
        finally:
            pool.shutdown(cancel_futures=True)


class OnRay:
    """Actors on a Ray cluster: that of ``RAY_ADDRESS``, one that runs on this machine, or a new one of this machine.

    Args:
        workers: that many; None: one for each core of the cluster.
        address: of the cluster, for ``RAY_ADDRESS``.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unasked
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "evaluating on a cluster") from error
        self.ray, self.workers, self.address = ray, workers, address

    @contextmanager
    def serve(self, evaluator: Evaluator) -> Iterator[Evaluate]:
        """Actors until the block ends.

        Raises:
            ClusterError: the cluster cannot be reached, or is lost.
        """
        ray, started = self.ray, self._connect()
        try:
            workers = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            # A node that is lost takes its actors along: they are started elsewhere, and asked again.
            kind = ray.remote(num_cpus=1, max_restarts=4, max_task_retries=4)(_Actor)
            shared = ray.put(evaluator)
            actors = [kind.remote(shared) for _ in range(workers)]
            yield lambda candidates, thorough: self._evaluate(actors, candidates, thorough)
        except ray.exceptions.RayError as error:
            raise _lost(error) from error
        finally:
            if started:
                ray.shutdown()

    def _connect(self) -> bool:
        """Whether the connection is ours to end."""
        if self.ray.is_initialized():
            return False
        try:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=False
                          if self.address is None and "RAY_ADDRESS" not in os.environ else None)
        except Exception as error:  # Ray raises many kinds here
            where = self.address or os.environ.get("RAY_ADDRESS", "a new cluster on this machine")
            raise ClusterError(f"Ray cannot be reached: {str(error).strip().splitlines()[0]}", where=where,
                               fix="start it ('ray start --head'), correct RAY_ADDRESS, or use --executor local") \
                from error
        return True

    def _evaluate(self, actors: Sequence[Any], candidates: Sequence[Cells],
                  thorough: bool) -> Iterator[tuple[int, float]]:
        waiting, free = list(enumerate(candidates))[::-1], list(actors)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and free:
                number, cells = waiting.pop()
                actor = free.pop(0)
                running[actor.evaluate.remote(dict(cells), thorough)] = number, actor
            done, _ = self.ray.wait(list(running), num_returns=1)
            number, actor = running.pop(done[0])
            free.append(actor)
            yield number, float(self.ray.get(done[0]))


class _Actor:
    """What runs on a node."""

    def __init__(self, evaluator: Evaluator) -> None:
        torch.set_num_threads(1)
        self.evaluator = evaluator

    def evaluate(self, cells: Cells, thorough: bool) -> float:
        return self.evaluator(cells, thorough)


def _lost(error: Exception) -> ClusterError:
    cause = getattr(error, "cause", None) or error
    return ClusterError(f"the evaluation on Ray failed: {str(cause).strip().splitlines()[-1]}",
                        fix="the same command goes on from the journal; --executor local does without a cluster")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch on one core for each caller: candidates run side by side, and sums come out alike on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
