"""Workers on a Ray cluster, each with its own engine: prompts in, completions out as each is done.

Uses plain actors and streams of their results rather than Ray Data, which returns and retries only whole blocks, and gives
a prompt that kills its worker to the next worker forever. Here completions survive when a worker dies, a new worker
replaces it, and `blocks.py` finds the prompt at fault.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, cast

import ray
from ray.exceptions import RayError, RayTaskError

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.engines._chat_completions import one_line
from distill_lab.generation.engines._process_guard import Guard
from distill_lab.generation.engines._ray.blocks import Block, Blocks
from distill_lab.generation.engines._ray.worker import Failure, Worker
from distill_lab.settings import template_date
from distill_lab.types import Completion, Prompt

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LOG = logging.getLogger(__name__)
CPUS_PER_WORKER = 2
WARN_AFTER_S = 20.0
"""Seconds without a scheduled worker before a warning is logged."""
CONNECT_TIMEOUT_S = 10.0
"""Maximum wait for a cluster's address to answer."""
START_TRIES = 3
"""Ray gives its processes half a minute to start, which may be too short on a busy machine."""


_STARTED = ExitStack()
"""Ends the cluster that this process started, if any."""


def connect() -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine that ends with this process's last engine.

    Sends no usage statistics and starts no dashboard. Raises UserError if no cluster answers.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise it warns of what users cannot fix
    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    with ExitStack() as started:
        guard = None
        if address in ("", "local") and os.name == "posix":
            # If killed, this process could not end its cluster, and some of Ray's processes take a minute to notice.
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
        except Exception as error:  # Ray has no narrower exception for a start that took too long
            ray.shutdown()
            if not tries_left:
                raise _no_cluster(address, error) from error


def resources(config: EngineConfig) -> tuple[int, dict[str, float]]:
    """Number of workers, and the resources of each. Raises UserError if the cluster does not have them."""
    found = ray.cluster_resources()
    num_gpus, num_cpus = found.get("GPU", 0), found.get("CPU", 0)
    if num_gpus:
        each = config.tensor_parallel_size * config.data_parallel_size
        maximum = int(num_gpus // each)
        if (config.num_workers or 1) > maximum:
            raise UserError(
                f"{config.num_workers or 1} workers with {each} GPUs each exceed the cluster's {num_gpus:g}; lower "
                "engine.num_workers, engine.tensor_parallel_size or engine.data_parallel_size"
            )
        return config.num_workers or maximum, {"num_gpus": each, "num_cpus": 1}
    number = config.num_workers or max(1, int(num_cpus // CPUS_PER_WORKER))
    share = num_cpus / number
    # Above 1, Ray accepts only whole numbers of CPUs.
    return number, {"num_cpus": min(CPUS_PER_WORKER, int(share)) if share >= 1 else int(share * 1000) / 1000}


_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
_ENGINES: weakref.WeakSet[RayEngine] = weakref.WeakSet()


Results = Iterator["ray.ObjectRef[Completion | Failure]"]
"""What a worker generates, each as soon as it is there."""


class RemoteReady(Protocol):
    """What each of Ray's actors has."""

    def remote(self) -> ray.ObjectRef[bool]: ...


class RemoteLoad(Protocol):
    """`Worker.load` in the worker's process."""

    def remote(self, model: ModelConfig, config: EngineConfig, date: str) -> ray.ObjectRef[str]: ...


class RemoteGenerate(Protocol):
    """`Worker.generate` in the worker's process. num_returns: "streaming"."""

    def options(self, *, num_returns: str) -> RemoteGenerate: ...
    def remote(self, prompts: list[Prompt], sampling: SamplingConfig) -> Results: ...


class RemoteWorker(Protocol):
    """Ray's handle of a `Worker`."""

    __ray_ready__: RemoteReady
    load: RemoteLoad
    generate: RemoteGenerate


class WorkerHandle:
    """The driver's view of a worker process: loading, working on a block, or free."""

    def __init__(self, model: ModelConfig, config: EngineConfig, takes: dict[str, float]) -> None:
        self._loads, self._takes = (model, config), takes
        self.actor: RemoteWorker | None = None
        self._placed: ray.ObjectRef[bool] | None = None
        self._loaded: ray.ObjectRef[str] | None = None
        self._results: Results | None = None
        self.doing: ray.ObjectRef[str] | Results | None = None
        """What to wait for: the result of loading, or the stream of completions."""
        self.block: Block | None = None

    def start(self) -> None:
        """Start a process and load the model in it."""
        actor = cast(RemoteWorker, ray.remote(Worker).options(max_restarts=0, **self._takes).remote())
        self.actor = actor
        self._placed = actor.__ray_ready__.remote()
        self.doing = self._loaded = actor.load.remote(*self._loads, template_date.now().isoformat())
        self._results = self.block = None

    @property
    def placed(self) -> bool:
        """Whether the cluster has scheduled the worker."""
        return self._placed is not None and bool(ray.wait([self._placed], timeout=0)[0])

    def ask(self, block: Block, sampling: SamplingConfig) -> None:
        """Send a block to the worker."""
        assert self.actor is not None
        self.block = block
        generate = self.actor.generate.options(num_returns="streaming")
        self.doing = self._results = generate.remote(list(block.prompts.values()), sampling)

    def next(self) -> Completion | Failure | None:
        """The next result; None if loading or a block is done. Raises RayError if the process has died."""
        if self._results is None:
            assert self._loaded is not None
            if reason := ray.get(self._loaded):
                raise UserError(reason)
            return None
        try:
            return ray.get(next(self._results))
        except StopIteration:
            return None

    def end(self) -> None:
        """End the process, if any."""
        if self.actor is not None and ray.is_initialized():
            ray.kill(cast("ActorHandle[Worker]", self.actor))
        self.actor = self._placed = self._loaded = self._results = self.doing = self.block = None


class RayEngine:
    """Workers that load the model on first use. They end with this object, or when another engine needs the space."""

    def __init__(self, model: ModelConfig, config: EngineConfig) -> None:
        number, self._takes = resources(config)
        each = config.model_copy(update={"engine": config.ray_engine})
        self._workers = [WorkerHandle(model, each, self._takes) for _ in range(number)]
        weakref.finalize(self, _end, self._workers)
        _ENGINES.add(self)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        A prompt that raises an error in the engine, or kills its worker twice, gets a completion with finish_reason
        "error". Raises UserError if the model cannot be loaded, or if everything fails.
        """
        workers = self._workers[: max(1, len(prompts))]
        blocks = Blocks(prompts, sampling.num_samples, len(workers))
        self._free_resources(sum(worker.actor is None for worker in workers))
        timeout: float | None = WARN_AFTER_S
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
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=timeout)
                if not ready and not any(worker.placed for worker in workers):
                    LOG.warning("waiting for the Ray cluster to schedule a worker, which needs %s", self._takes)
                timeout = None
                for doing in ready:
                    yield from self._proceed(busy[doing], blocks)
            yield from blocks.release()
        finally:
            # A working process cannot be interrupted, so end it.
            for worker in workers:
                if worker.doing is not None:
                    worker.end()

    def _free_resources(self, number: int) -> None:
        """End idle workers of this process's other engines if the cluster has no resources for `number` more.

        Otherwise a student would wait forever after its teacher: each worker keeps its resources while it lives.
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
            raise  # a bug in the lab: the worker returns failures instead of raising them
        except RayError as error:
            found = Failure(_message(error), worker_died=True)
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


def _check_address(address: str) -> None:
    """Raise UserError if nothing answers at an address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster at {address or 'this machine'} ({_message(error)}); start one with `ray start --head`"
        + (", or unset RAY_ADDRESS to use only this machine" if address else "")
    )


def _message(error: Exception) -> str:
    """The first line of a message that may fill a page."""
    return one_line(str(error).strip().split("\n")[0]) or type(error).__name__


def _end(workers: list[WorkerHandle]) -> None:
    """End an engine's workers, so that their memory is free for the next step; after the last, end our own cluster."""
    for worker in workers:
        worker.end()
    if not list(_ENGINES):  # len() may still count the engine that is ending
        _STARTED.close()
