"""Generation with vLLM in this process, on GPUs or a CPU: prompts in, completions out as each is done.

    distill generate --engine vllm --model Qwen/Qwen2.5-7B-Instruct --data ... --out ...

Prompts that begin alike share that part's keys and values. Requests join and leave at any time, there is no batch to wait
for. What a prompt becomes and how its tokens are read is the same as with the engine transformers; what is drawn depends
on the seed, the prompt's id and the sample, though not on the same numbers. vLLM computes in processes of its own; they
are ended even where this one is killed. It is told to send no usage figures.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig

from distill_lab.config import EngineConfig, ModelConfig, Quantization, SamplingConfig
from distill_lab.device import free_memory
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines._chat_completions import one_line
from distill_lab.generation.engines._process_guard import Guard
from distill_lab.generation.engines._stop_strings import StopStrings
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.generation.engines._vllm_install import OLDEST, REMEDY, installed, is_too_old
from distill_lab.models.generation_config import settings_in, with_own
from distill_lab.models.loading import _hub_arguments, _skeleton, load_tokenizer
from distill_lab.models.names import base_of, is_adapter, resolve
from distill_lab.models.precision import FULL_SHARE, MIN_QUANTIZED, count_weights
from distill_lab.types import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_CACHE_BYTES = 2 << 30
"""Keys and values on a CPU, where VLLM_CPU_KVCACHE_SPACE (GiB) does not say else."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's own: the room for adapters has one of these ranks."""
MERGE = "merge them into the model first (distill merge), or --engine transformers"
INT8, BITSANDBYTES = "int8_per_channel_weight_only", "bitsandbytes"
"""Of vLLM's methods; the second left vLLM with 0.28 and is there where a plug-in brings it back."""
AHEAD = 2
"""Requests under way for each place in the batch, so that one that is done is replaced in the next step."""

VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Ours by theirs."""


def preference() -> int:
    """Before transformers where there is a CUDA GPU and vLLM."""
    found = installed()
    return 10 if found is not None and not is_too_old(found) and torch.cuda.is_available() else 0


def load(model: ModelConfig, config: EngineConfig) -> VllmEngine:
    """Start vLLM with the model. Raises UserError where it is not installed, ModelError for what it cannot load."""
    check(config)
    # Read when vLLM is imported. Its warnings are for those who tune servers; errors are shown.
    for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    path = resolve(model.model)
    adapter = path if is_adapter(path) else None
    base = base_of(model) if adapter else model
    has_tokenizer = adapter is None or (Path(path) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(model if has_tokenizer else base)
    free_memory()
    guard = Guard()
    try:
        _import()
        settings = _settings(base, config)
        if adapter:
            settings |= {"enable_lora": True, "max_lora_rank": _room_for(adapter, model)}
        engine = VllmEngine(_start(settings), tokenizer, guard, adapter=adapter)
    except UserError:
        guard.close()
        raise
    except (ValueError, RuntimeError, OSError, ImportError, NotImplementedError) as error:
        guard.close()
        raise ModelError(
            model.model,
            f"vLLM cannot load it ({_said(error)}); what it wrote above may say more. Where memory is short: lower "
            "engine.max_model_len, raise engine.tensor_parallel_size, or --quantization 8bit. --engine transformers takes "
            "models that vLLM does not",
        ) from error
    guard.seal()
    if adapter:
        engine.check_adapter(model)
    return engine


def check(config: EngineConfig) -> None:
    """Raise UserError where vLLM is not installed, or too old."""
    found = installed()
    if found is None:
        raise UserError(f"the engine vllm needs vLLM, which is not installed here: {REMEDY}")
    if is_too_old(found):
        raise UserError(f"vLLM {found} is older than {OLDEST}, the oldest the lab works with: {REMEDY}")


def _import() -> None:
    """Import vLLM from a thread of its own.

    Of packages it can do without (torchcodec) it keeps the ImportError, that its traceback, and that the frames of all
    callers with what stands in them: an engine would never end, and the GPU's memory never be free for the student.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(importlib.import_module, "vllm.v1.engine.async_llm").result()


def _start(settings: dict[str, Any]) -> Any:
    """Load the model. vLLM has defaults for servers and for many prompts at once; the latter are taken."""
    from vllm import AsyncEngineArgs  # pyright: ignore
    from vllm.usage.usage_lib import UsageContext  # pyright: ignore
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings), usage_context=UsageContext.LLM_CLASS)


def _settings(model: ModelConfig, config: EngineConfig) -> dict[str, Any]:
    """The arguments of vLLM's engine."""
    platform = importlib.import_module("vllm.platforms").current_platform
    on_cpu = platform.is_cpu()
    on_half = not on_cpu and not platform.has_device_capability(80)  # no bf16 units (T4)
    settings: dict[str, Any] = {
        "model": resolve(model.model),
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "quantization": _quantization(model, config, platform),
        "dtype": VLLM_DTYPES.get(model.dtype, "float32" if on_cpu else "float16" if on_half else "auto"),
        "enable_prefix_caching": True,
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_model_len": config.max_model_len or -1,  # -1: what fits
        "enforce_eager": config.enforce_eager or on_cpu,
        "disable_log_stats": True,
    }
    if config.batch_size:
        settings["max_num_seqs"] = config.batch_size
    if config.tensor_parallel_size > 1:
        settings["distributed_executor_backend"] = "mp"  # in a Ray worker too: its GPUs are of this machine
    if on_cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        settings["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    return settings


def _quantization(model: ModelConfig, config: EngineConfig, platform: Any) -> str | None:
    """VLLM's name for how weights are quantized while they are loaded; None: as the checkpoint has them.

    `auto` is what it is with the engine transformers (`precision.choose_quantization`), as far as vLLM has it. Its 8 bits
    are int8 per output channel, those of transformers bitsandbytes', so that answers differ in places. Checkpoints that are
    quantized (AWQ, GPTQ, fp8) are taken as they are. Raises ModelError for what vLLM cannot do.
    """
    wanted = model.quantization
    own = _own_quantization(model)
    if own:
        if wanted in ("4bit", "8bit"):
            raise ModelError(model.model, f"its weights are quantized already ({own}); leave --quantization out")
        return None
    methods = importlib.import_module("vllm.model_executor.layers.quantization").QUANTIZATION_METHODS
    if wanted == "auto":
        wanted = "none" if platform.is_cpu() else _fitting(model, config, platform, methods)
    if wanted == "none":
        return None
    if platform.is_cpu():
        raise ModelError(
            model.model, f"vLLM has no {wanted} weights on a CPU; leave quantization out, or --engine transformers"
        )
    name = {"8bit": INT8, "4bit": BITSANDBYTES}[wanted]
    if name in methods:
        return name
    raise ModelError(
        model.model,
        f"vLLM {installed()} cannot make its weights {wanted} while loading; give a checkpoint that is quantized already "
        "(AWQ, GPTQ or fp8: many models are published so), --quantization 8bit, or --engine transformers",
    )


def _own_quantization(model: ModelConfig) -> str | None:
    """The method a checkpoint is quantized by, as its config names it."""
    path = resolve(model.model)
    settings = AutoConfig.from_pretrained(path, **_hub_arguments(path, model))
    method = getattr(settings, "quantization_config", None) or {}
    return str(method.get("quant_method", "unnamed")) if method else None


def _fitting(model: ModelConfig, config: EngineConfig, platform: Any, methods: Sequence[str]) -> Quantization:
    """The first of none, 8bit and 4bit that this vLLM has and with which the weights fit the GPUs they are split over."""
    path = resolve(model.model)
    weights = count_weights(_skeleton(path, _hub_arguments(path, model)))
    if weights.share < MIN_QUANTIZED:
        return "none"
    room = FULL_SHARE * config.tensor_parallel_size * platform.get_device_total_memory()
    if weights.bytes("none") <= room:
        return "none"
    return "8bit" if weights.bytes("8bit") <= room or BITSANDBYTES not in methods else "4bit"


def _room_for(adapter: str, model: ModelConfig) -> int:
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
    fitting = [room for room in LORA_RANKS if room >= rank]
    if not fitting:
        raise ModelError(model.model, f"its adapters have rank {rank}, vLLM's most is {LORA_RANKS[-1]}; {MERGE}")
    return fitting[0]


def _said(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Request:
    """One completion to make."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    limit: int
    """Most tokens it may have."""


_Answer = tuple[_Request, Any]
"""A request and vLLM's output for it, or as a string why there is none."""


class VllmEngine:
    """A running vLLM, its tokenizer, and the process that guards its processes. They end with this object."""

    def __init__(
        self, llm: Any, tokenizer: PreTrainedTokenizerBase, guard: Guard, *, adapter: str | None = None
    ) -> None:
        self._llm = llm
        generation = llm.model_config.try_get_generation_config()
        self._own = settings_in(generation)
        ends = generation.get("eos_token_id")
        self._io = TokenIO(tokenizer, GenerationConfig(eos_token_id=ends))
        self._context: int = llm.model_config.max_model_len
        config = llm.vllm_config
        self._most = AHEAD * config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        self._adapter = None
        if adapter:
            from vllm.lora.request import LoRARequest  # pyright: ignore

            self._adapter = LoRARequest("adapters", 1, adapter)
        self._numbers = count()
        # vLLM belongs to one event loop for as long as it lives.
        self._loop = asyncio.new_event_loop()
        thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        thread.start()
        end = weakref.finalize(self, _end, llm, self._loop, thread, guard)
        # One that lives on ends before multiprocessing waits for vLLM's processes, which it would do for ever: what is
        # registered last is called first.
        atexit.register(end)

    def check_adapter(self, model: ModelConfig) -> None:
        """Load the adapters. Raises ModelError where vLLM cannot."""
        try:
            asyncio.run_coroutine_threadsafe(self._llm.add_lora(self._adapter), self._loop).result()
        except Exception as error:  # vLLM has no narrower one for what went wrong in its own process
            raise ModelError(model.model, f"vLLM cannot take these adapters ({_said(error)}); {MERGE}") from error

    def generate(self, prompts: Iterable[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        A prompt that the model cannot take gives a completion with finish_reason "error". Raises UserError where vLLM
        refuses the sampling, EngineDeadError where its processes end.
        """
        sampling = with_own(sampling, self._own) if sampling.from_model else sampling
        stop = StopStrings(sampling.stop, self._io.tokenizer, self._io.text)
        finished: SimpleQueue[Future[_Answer]] = SimpleQueue()
        under_way: set[Future[_Answer]] = set()
        waiting = self._requests(prompts, sampling)
        try:
            while True:
                while len(under_way) < self._most and (row := next(waiting, None)) is not None:
                    if isinstance(row, Completion):
                        yield row
                        continue
                    asking = self._ask(row, self._parameters(row, sampling, stop))
                    future = asyncio.run_coroutine_threadsafe(asking, self._loop)
                    under_way.add(future)
                    future.add_done_callback(finished.put)
                if not under_way:
                    return
                future = finished.get()
                under_way.remove(future)
                yield self._completion(*future.result(), stop)
        finally:
            for future in under_way:
                future.cancel()

    def _requests(self, prompts: Iterable[Prompt], sampling: SamplingConfig) -> Iterator[_Request | Completion]:
        """What to ask for each prompt, or its failures where the template or the context refuses it."""
        for prompt in prompts:
            ids, limit, refusal = self._io.request(prompt, sampling, context=self._context)
            for sample in range(sampling.num_samples):
                if refusal:
                    yield Completion(prompt.id, sample, "", None, "error", 0, refusal)
                else:
                    yield _Request(prompt, sample, ids, limit)

    async def _ask(self, row: _Request, parameters: Any) -> _Answer:
        """What vLLM answers, or why it does not. Raises EngineDeadError."""
        from vllm.exceptions import VLLMClientError  # pyright: ignore
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # pyright: ignore

        name, prompt = str(next(self._numbers)), {"prompt_token_ids": row.prompt_ids}
        answers = self._llm.generate(prompt, parameters, name, lora_request=self._adapter)
        try:
            outputs = [output async for output in answers]  # one, when it is done
        except (VLLMClientError, EngineGenerateError) as error:
            # It has failed at this request, and goes on with the others.
            return row, f"vLLM: {_said(error.__cause__ or error)}"
        except EngineDeadError as error:
            raise EngineDeadError(
                "vLLM's own process has ended, what it wrote above may say why (out of memory: lower "
                "engine.gpu_memory_utilization or engine.batch_size); the same command goes on from here"
            ) from error
        return row, outputs[0].outputs[0]

    def _completion(self, row: _Request, answer: Any, stop: StopStrings) -> Completion:
        if isinstance(answer, str):
            return Completion(row.prompt.id, row.sample, "", None, "error", 0, answer)
        tokens, reason = list(answer.token_ids), answer.finish_reason
        if reason not in ("stop", "length"):
            error = f"vLLM ended it for the reason {reason!r}"
            return Completion(row.prompt.id, row.sample, "", None, "error", len(tokens), error)
        cut_at = stop.find(tokens) if stop and tokens else None
        return self._io.completion(row.prompt, row.sample, row.prompt_ids, tokens, reason, cut_at=cut_at)

    def _parameters(self, row: _Request, sampling: SamplingConfig, stop: StopStrings) -> Any:
        from vllm import SamplingParams  # pyright: ignore
        from vllm.exceptions import VLLMClientError  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore

        try:
            return SamplingParams(
                max_tokens=row.limit,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=_seed(sampling.seed, row.prompt.id, row.sample) if sampling.temperature else None,
                stop=list(sampling.stop),
                stop_token_ids=sorted({*self._io.end_ids, *stop.token_ids}),
                detokenize=bool(stop),  # where vLLM has no text to look at, tokens are all it needs
                skip_special_tokens=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except (ValueError, VLLMClientError) as error:
            raise UserError(f"vLLM refuses the sampling ({_said(error)}); --engine transformers takes it") from error


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    """A number in [0, 2**63) for one completion, whatever else is generated."""
    name = json.dumps([seed, prompt_id, sample]).encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1


def _end(llm: Any, loop: asyncio.AbstractEventLoop, thread: Thread, guard: Guard) -> None:
    """End vLLM's processes, so that the GPU's memory is free for what comes next."""
    llm.shutdown()
    # It would shut down once more when Python takes modules apart, and complain that they are gone.
    llm.shutdown = lambda: None
    asyncio.run_coroutine_threadsafe(_settle(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    guard.close()


async def _settle() -> None:
    """Let what was cancelled come to its end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
