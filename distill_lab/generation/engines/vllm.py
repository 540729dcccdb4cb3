"""Generate with vLLM in this process, on GPUs or a CPU: prompts in, completions out as each is done.

    distill generate --engine vllm --model Qwen/Qwen2.5-7B-Instruct --data ... --out ...

Prompts with the same beginning share its keys and values. Requests start and finish at any time; none waits for a batch.
Tokenization of prompts and decoding of answers are the same as in the engine transformers. Samples depend on the seed, the
prompt's id and the sample index, but use other random numbers. vLLM computes in child processes, which end even if this
process is killed. It sends no usage statistics.
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
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import AutoConfig, GenerationConfig

from distill_lab.config import EngineConfig, ModelConfig, Quantization, SamplingConfig
from distill_lab.device import free_memory
from distill_lab.errors import EngineDeadError, ModelError, UserError
from distill_lab.generation.engines._chat_completions import one_line
from distill_lab.generation.engines._process_guard import Guard
from distill_lab.generation.engines._stop_strings import StopStrings
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.generation.engines._vllm_install import MIN_VERSION, REMEDY, installed, is_too_old
from distill_lab.models.generation_config import settings_in, with_generation_config
from distill_lab.models.hub import hub_arguments
from distill_lab.models.loading import _skeleton, load_tokenizer
from distill_lab.models.names import base_of, is_adapter, resolve
from distill_lab.models.precision import FULL_SHARE, MIN_QUANTIZED, count_weights
from distill_lab.types import Completion, Fields, JsonObject, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_lab.generation.engines._vllm_types import Llm, Output, Platform

CPU_CACHE_BYTES = 2 << 30
"""KV cache on a CPU, unless VLLM_CPU_KVCACHE_SPACE (GiB) is set."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the maximum rank of adapters."""
MERGE = "merge them into the model first (distill merge), or --engine transformers"
INT8, BITSANDBYTES = "int8_per_channel_weight_only", "bitsandbytes"
"""vLLM's names of quantization methods; vLLM 0.28 removed the second, but a plug-in may bring it back."""
AHEAD = 2
"""Active requests per slot of the batch, so that a finished one is replaced in the next step."""

VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""vLLM's names of dtypes."""


def preference() -> int:
    """Preferred over transformers on a CUDA GPU with vLLM installed."""
    found = installed()
    return 10 if found is not None and not is_too_old(found) and torch.cuda.is_available() else 0


def load(model: ModelConfig, config: EngineConfig) -> VllmEngine:
    """Start vLLM with the model. Raises UserError if vLLM is not installed, ModelError if it cannot load the model."""
    check(config)
    # Read when vLLM is imported. Its warnings are for tuning servers; errors are shown.
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
            settings |= {"enable_lora": True, "max_lora_rank": _max_lora_rank(adapter, model)}
        engine = VllmEngine(_start(settings), tokenizer, guard, adapter=adapter)
    except UserError:
        guard.close()
        raise
    except (ValueError, RuntimeError, OSError, ImportError, NotImplementedError) as error:
        guard.close()
        raise ModelError(
            model.model,
            f"vLLM cannot load it ({_message(error)}); its output above may say more. If memory is short, lower "
            "engine.max_model_len, raise engine.tensor_parallel_size, or use --quantization 8bit. --engine transformers "
            "supports models that vLLM does not",
        ) from error
    guard.seal()
    if adapter:
        engine.check_adapter(model)
    return engine


def check(config: EngineConfig) -> None:
    """Raise UserError if vLLM is not installed or too old."""
    found = installed()
    if found is None:
        raise UserError(f"the engine vllm needs vLLM, which is not installed here: {REMEDY}")
    if is_too_old(found):
        raise UserError(f"vLLM {found} is older than {MIN_VERSION}, the oldest version that the lab supports: {REMEDY}")


def _import() -> None:
    """Import vLLM in a separate thread.

    vLLM keeps the ImportErrors of optional packages (torchcodec), whose tracebacks keep the frames and variables of all
    callers: an engine would never be freed, and its GPU memory would not be available for the student.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(importlib.import_module, "vllm.v1.engine.async_llm").result()


def _start(settings: Fields) -> Llm:
    """Load the model, with vLLM's defaults for many prompts at once rather than those for servers."""
    from vllm import AsyncEngineArgs  # pyright: ignore
    from vllm.usage.usage_lib import UsageContext  # pyright: ignore
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings), usage_context=UsageContext.LLM_CLASS)


def _settings(model: ModelConfig, config: EngineConfig) -> JsonObject:
    """Arguments for vLLM's engine."""
    platform: Platform = importlib.import_module("vllm.platforms").current_platform
    on_cpu = platform.is_cpu()
    on_half = not on_cpu and not platform.has_device_capability(80)  # no bf16 units (T4)
    settings: JsonObject = {
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
        settings["distributed_executor_backend"] = "mp"  # in a Ray worker too: its GPUs are on this machine
    if on_cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        settings["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    return settings


def _quantization(model: ModelConfig, config: EngineConfig, platform: Platform) -> str | None:
    """Name of the quantization that vLLM applies while loading; None: load the checkpoint unchanged.

    `auto` means the same as in the engine transformers (`precision.choose_quantization`), as far as vLLM supports it. Its
    8 bits are int8 per output channel, those of transformers are bitsandbytes', so some answers differ. Quantized
    checkpoints (AWQ, GPTQ, fp8) are loaded unchanged. Raises ModelError for what vLLM does not support.
    """
    wanted = model.quantization
    method = _checkpoint_quantization(model)
    if method:
        if wanted in ("4bit", "8bit"):
            raise ModelError(model.model, f"its weights are already quantized ({method}); remove --quantization")
        return None
    methods = importlib.import_module("vllm.model_executor.layers.quantization").QUANTIZATION_METHODS
    if wanted == "auto":
        wanted = "none" if platform.is_cpu() else _fitting_quantization(model, config, platform, methods)
    if wanted == "none":
        return None
    if platform.is_cpu():
        raise ModelError(
            model.model, f"vLLM does not support {wanted} on a CPU; remove --quantization, or use --engine transformers"
        )
    name = {"8bit": INT8, "4bit": BITSANDBYTES}[wanted]
    if name in methods:
        return name
    raise ModelError(
        model.model,
        f"vLLM {installed()} cannot quantize its weights to {wanted} while loading; use a quantized checkpoint (AWQ, GPTQ "
        "or fp8, as many models are published), --quantization 8bit, or --engine transformers",
    )


def _checkpoint_quantization(model: ModelConfig) -> str | None:
    """The quantization method named in a checkpoint's config."""
    path = resolve(model.model)
    settings = AutoConfig.from_pretrained(path, **hub_arguments(path, model))
    method = getattr(settings, "quantization_config", None) or {}
    return str(method.get("quant_method", "unnamed")) if method else None


def _fitting_quantization(
    model: ModelConfig, config: EngineConfig, platform: Platform, methods: Sequence[str]
) -> Quantization:
    """The first of none, 8bit and 4bit that this vLLM supports and that fits the GPUs the weights are split across."""
    path = resolve(model.model)
    weights = count_weights(_skeleton(path, hub_arguments(path, model)))
    if weights.share < MIN_QUANTIZED:
        return "none"
    room = FULL_SHARE * config.tensor_parallel_size * platform.get_device_total_memory()
    if weights.bytes("none") <= room:
        return "none"
    return "8bit" if weights.bytes("8bit") <= room or BITSANDBYTES not in methods else "4bit"


def _max_lora_rank(adapter: str, model: ModelConfig) -> int:
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
    fitting = [maximum for maximum in LORA_RANKS if maximum >= rank]
    if not fitting:
        raise ModelError(model.model, f"its adapters have rank {rank}, vLLM's maximum is {LORA_RANKS[-1]}; {MERGE}")
    return fitting[0]


def _message(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Request:
    """One completion to generate."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    limit: int
    """Maximum tokens of the completion."""


_Answer: TypeAlias = "tuple[_Request, Output | str]"
"""A request and vLLM's output for it, or a string saying why there is none."""


class VllmEngine:
    """A running vLLM, its tokenizer, and the guard of its child processes. All end with this object."""

    def __init__(
        self, llm: Llm, tokenizer: PreTrainedTokenizerBase, guard: Guard, *, adapter: str | None = None
    ) -> None:
        self._llm = llm
        generation = llm.model_config.try_get_generation_config()
        self._own = settings_in(generation)
        ends = generation.get("eos_token_id")
        self._io = TokenIO(tokenizer, GenerationConfig(eos_token_id=ends))
        self._context: int = llm.model_config.max_model_len
        config = llm.vllm_config
        self._max_active = AHEAD * config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        self._adapter = None
        if adapter:
            from vllm.lora.request import LoRARequest  # pyright: ignore

            self._adapter = LoRARequest("adapters", 1, adapter)
        self._numbers = count()
        # vLLM must use the same event loop for its whole life.
        self._loop = asyncio.new_event_loop()
        thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        thread.start()
        end = weakref.finalize(self, _end, llm, self._loop, thread, guard)
        # At exit, end it before multiprocessing waits forever for vLLM's processes: the last registered is called first.
        atexit.register(end)

    def check_adapter(self, model: ModelConfig) -> None:
        """Load the adapters. Raises ModelError if vLLM cannot."""
        try:
            asyncio.run_coroutine_threadsafe(self._llm.add_lora(self._adapter), self._loop).result()
        except Exception as error:  # vLLM has no narrower exception for errors in its process
            raise ModelError(model.model, f"vLLM cannot load these adapters ({_message(error)}); {MERGE}") from error

    def generate(self, prompts: Iterable[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, each as soon as it is done.

        A prompt that the model cannot answer gets a completion with finish_reason "error". Raises UserError if vLLM
        rejects the sampling settings, EngineDeadError if its processes end.
        """
        sampling = with_generation_config(sampling, self._own) if sampling.from_model else sampling
        stop = StopStrings(sampling.stop, self._io.tokenizer, self._io.text)
        finished: SimpleQueue[Future[_Answer]] = SimpleQueue()
        under_way: set[Future[_Answer]] = set()
        waiting = self._requests(prompts, sampling)
        try:
            while True:
                while len(under_way) < self._max_active and (row := next(waiting, None)) is not None:
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
        """The requests of each prompt, or error completions if the template or the context length rejects it."""
        for prompt in prompts:
            ids, limit, problem = self._io.request(prompt, sampling, context=self._context)
            for sample in range(sampling.num_samples):
                if problem:
                    yield Completion(prompt.id, sample, "", None, "error", 0, problem)
                else:
                    yield _Request(prompt, sample, ids, limit)

    async def _ask(self, row: _Request, parameters: object) -> _Answer:
        """The answer from vLLM, or why there is none. Raises EngineDeadError."""
        from vllm.exceptions import VLLMClientError  # pyright: ignore
        from vllm.v1.engine import exceptions  # pyright: ignore

        name, prompt = str(next(self._numbers)), {"prompt_token_ids": row.prompt_ids}
        answers = self._llm.generate(prompt, parameters, name, lora_request=self._adapter)
        try:
            outputs = [output async for output in answers]  # one, when it is done
        except (VLLMClientError, exceptions.EngineGenerateError) as error:
            # Only this request failed; vLLM continues with the others.
            return row, f"vLLM: {_message(error.__cause__ or error)}"
        except exceptions.EngineDeadError as error:
            raise EngineDeadError(
                "vLLM's process has died; its output above may say why (if out of memory, lower "
                "engine.gpu_memory_utilization or engine.batch_size); run the same command again to resume"
            ) from error
        return row, outputs[0].outputs[0]

    def _completion(self, row: _Request, answer: Output | str, stop: StopStrings) -> Completion:
        if isinstance(answer, str):
            return Completion(row.prompt.id, row.sample, "", None, "error", 0, answer)
        tokens, reason = list(answer.token_ids), answer.finish_reason
        if reason not in ("stop", "length"):
            error = f"vLLM stopped with finish_reason {reason!r}"
            return Completion(row.prompt.id, row.sample, "", None, "error", len(tokens), error)
        cut_at = stop.find(tokens) if stop and tokens else None
        return self._io.completion(row.prompt, row.sample, row.prompt_ids, tokens, reason, cut_at=cut_at)

    def _parameters(self, row: _Request, sampling: SamplingConfig, stop: StopStrings) -> object:
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
                detokenize=bool(stop),  # vLLM needs text only to find stop strings
                skip_special_tokens=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except (ValueError, VLLMClientError) as error:
            raise UserError(
                f"vLLM rejects the sampling settings ({_message(error)}); use --engine transformers for them"
            ) from error


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    """A seed in [0, 2**63) for one completion, independent of the other completions."""
    name = json.dumps([seed, prompt_id, sample]).encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1


def _end(llm: Llm, loop: asyncio.AbstractEventLoop, thread: Thread, guard: Guard) -> None:
    """End vLLM's processes, so that the GPU memory is free for the next step."""
    llm.shutdown()
    # Otherwise it would shut down again when Python unloads modules, and fail because they are gone.
    llm.shutdown = lambda: None
    asyncio.run_coroutine_threadsafe(_cancel_tasks(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    guard.close()


async def _cancel_tasks() -> None:
    """Cancel all tasks and wait for them to end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
