"""Workers on a Ray cluster, each with an engine of its own: prompts in, completions out as each is done.

Plain actors and streams of their results, not Ray Data: that passes on a block as a whole, asks a whole block again, and
gives a prompt that ends its worker to the next one for ever. Here what has come is kept when a worker ends, a new one
takes its place, and `cluster/blocks.py` finds the prompt to blame.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.engines._chat_completions import one_line
from distill_lab.generation.engines._process_guard import Guard
from distill_lab.generation.engines._ray.blocks import Block, Blocks
from distill_lab.generation.engines._ray.worker import Failure, Worker
from distill_lab.types import Completion, Prompt

LOG = logging.getLogger(__name__)
CPUS_PER_WORKER = 2
PATIENCE_S = 20.0
"""When no worker has been given a place by then, it is said what is waited for."""
KNOCK_S = 10.0
"""Longest wait for a cluster's address to answer."""
START_TRIES = 3
"""Ray gives its own processes half a minute to start, which a busy machine may not keep."""


_STARTED = ExitStack()
"""Ends the cluster this process began, if it did."""


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine, which ends with the last engine of this process.

    No usage figures are sent, no dashboard is started. Raises UserError where no cluster answers.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what no user can mend
    address = os.environ.get("RAY_ADDRESS", "")
    _knock(address)
    with ExitStack() as started:
        guard = None
        if address in ("", "local") and os.name == "posix":
            # Killed, this process could not end its cluster, and some of Ray's own processes take a minute to notice.
            guard = Guard()
            started.callback(guard.close)
        started.callback(ray.shutdown)
        _init(address)
        if guard:
            guard.seal()
        _STARTED.push(started.pop_all())


def _init(address: str) -> None:
    for tries_left in range(0 if address else START_TRIES - 1, -1, -1):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
            break
        except Exception as error:  # Ray has no narrower one for a start that took too long
            ray.shutdown()
            if not tries_left:
                raise _no_cluster(address, error) from error


def resources(config: EngineConfig) -> tuple[int, dict[str, float]]:
    """How many workers, and what each takes of the cluster. Raises UserError where it has not as much."""
    found = ray.cluster_resources()
    num_gpus, num_cpus = found.get("GPU", 0), found.get("CPU", 0)
    if num_gpus:
        each = config.tensor_parallel_size * config.data_parallel_size
        most = int(num_gpus // each)
        if (config.num_workers or 1) > most:
            raise UserError(
                f"{config.num_workers or 1} workers of {each} GPUs are more than the cluster's {num_gpus:g}; lower "
                "engine.num_workers, engine.tensor_parallel_size or engine.data_parallel_size"
            )
        return config.num_workers or most, {"num_gpus": each, "num_cpus": 1}
    number = config.num_workers or max(1, int(num_cpus // CPUS_PER_WORKER))
    share = num_cpus / number
    # More than one processor can only be asked for in whole ones.
    return number, {"num_cpus": min(CPUS_PER_WORKER, int(share)) if share >= 1 else int(share * 1000) / 1000}


_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
_ENGINES: weakref.WeakSet[RayEngine] = weakref.WeakSet()


class WorkerHandle:
    """A worker's process as it is seen from here: being loaded, at a block, or free."""

    def __init__(self, model: ModelConfig, config: EngineConfig, takes: dict[str, float]) -> None:
        self._loads, self._takes = (model, config), takes
        self.actor: Any = None
        self._placed: Any = None
        self.doing: Any = None
        """What to wait for: the outcome of loading, or the stream of completions."""
        self.block: Block | None = None

    def start(self) -> None:
        """Begin a process and load the model in it."""
        self.actor = ray.remote(Worker).options(max_restarts=0, **self._takes).remote()
        self._placed = self.actor.__ray_ready__.remote()
        self.doing, self.block = self.actor.load.remote(*self._loads), None

    @property
    def placed(self) -> bool:
        """Whether the cluster has given it a place."""
        return self._placed is not None and bool(ray.wait([self._placed], timeout=0)[0])

    def ask(self, block: Block, sampling: SamplingConfig) -> None:
        """Give it a block."""
        self.block = block
        self.doing = self.actor.generate.options(num_returns="streaming").remote(list(block.prompts.values()), sampling)

    def next(self) -> Completion | Failure | None:
        """What has come; None where loading or a block is done. Raises RayError where the process has ended."""
        if self.block is None:
            reason: str = ray.get(self.doing)
            if reason:
                raise UserError(reason)
            return None
        try:
            found: Any = ray.get(next(self.doing))
            return found
        except StopIteration:
            return None

    def end(self) -> None:
        """End the process, if there is one."""
        if self.actor is not None and ray.is_initialized():
            ray.kill(self.actor)
        self.actor = self._placed = self.doing = self.block = None


class RayEngine:
    """Workers that load the model when they are first needed. They end with this object, or make place for another's."""

    def __init__(self, model: ModelConfig, config: EngineConfig) -> None:
        number, self._takes = resources(config)
        each = config.model_copy(update={"engine": config.ray_engine})
        self._workers = [WorkerHandle(model, each, self._takes) for _ in range(number)]
        weakref.finalize(self, _end, self._workers)
        _ENGINES.add(self)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        A prompt that the engine raises over, or that ends its worker twice, gives a completion with finish_reason
        "error". Raises UserError where the model cannot be loaded, and where everything fails.
        """
        workers = self._workers[: max(1, len(prompts))]
        blocks = Blocks(prompts, sampling.num_samples, len(workers))
        self._make_place(sum(worker.actor is None for worker in workers))
        patience: float | None = PATIENCE_S
        try:
            while True:
                for worker in workers:
                    if worker.doing is None and blocks.waiting:
                        if worker.actor is None:
                            worker.start()
                        elif block := blocks.take():
                            worker.ask(block, sampling)
                busy = {worker.doing: worker for worker in workers if worker.doing is not None}
                if not busy:
                    break
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=patience)
                if not ready and not any(worker.placed for worker in workers):
                    LOG.warning("waiting for a place in the Ray cluster: a worker takes %s of it", self._takes)
                patience = None
                for doing in ready:
                    yield from self._proceed(busy[doing], blocks)
            yield from blocks.release()
        finally:
            # A process at work cannot be told to stop.
            for worker in workers:
                if worker.doing is not None:
                    worker.end()

    def _make_place(self, number: int) -> None:
        """End the workers other engines of this process keep ready, where the cluster has no place for `number` more.

        Else a student that follows its teacher would wait for ever: each worker keeps its place while it lives.
        """
        free = ray.available_resources()
        if all(free.get(_NAMES[name], 0) >= number * amount for name, amount in self._takes.items()):
            return
        for engine in list(_ENGINES):
            for worker in engine._workers:
                if engine is not self and worker.doing is None:
                    worker.end()

    def _proceed(self, worker: WorkerHandle, blocks: Blocks) -> Iterator[Completion]:
        block = worker.block
        try:
            found = worker.next()
        except RayTaskError:
            raise  # ours to mend: the worker answers failures, it does not raise them
        except RayError as error:
            found = Failure(_said(error), worker_died=True)
        if isinstance(found, Completion):
            assert block is not None
            yield from blocks.answered(block, found)
            return
        worker.doing = worker.block = None
        if found is not None and found.worker_died:
            worker.end()
        if block is None:
            if found is not None:
                blocks.worker_died(found.reason)
        elif block.prompts:
            failure = found or Failure("the engine returned no completion")
            (blocks.died if failure.worker_died else blocks.raised)(block, failure.reason)


def _knock(address: str) -> None:
    """Raise UserError where an address answers nobody: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
        except OSError as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster at {address or 'this machine'} ({_said(error)}); start one with `ray start --head`"
        + (", or unset RAY_ADDRESS to work on this machine alone" if address else "")
    )


def _said(error: Exception) -> str:
    """The first line of what is a page."""
    return one_line(str(error).strip().split("\n")[0]) or type(error).__name__


def _end(workers: list[WorkerHandle]) -> None:
    """End an engine's workers, so that their memory is free for what comes next, and with the last a cluster of ours."""
    for worker in workers:
        worker.end()
    if not list(_ENGINES):  # its length may still count the engine that ends
        _STARTED.close()
