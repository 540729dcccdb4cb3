"""What a model answers to the requests of a benchmark: requests -> texts or likelihoods, each kept as soon as it is there.

    with SuiteAnswers(model, engine, sampling, work_folder(out)) as answers:
        answers.texts([TextRequest("gsm8k", 0, 0, messages, {"until": ["Question:"]})])      -> ["... #### 72"]
        answers.likelihoods([("The sky is", " blue"), ("The sky is", " green")])

The model is loaded when the first answer is missing. What is in the folder is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.likelihood import Likelihood, encode_pair, likelihoods, rolling_pairs, total
from distill_lab.files.jsonl import JsonlAppender, whole_rows, write_jsonl
from distill_lab.models.plain_text import prefix_id, text_ids
from distill_lab.types import Completion, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_lab.generation.engines import Engine
    from distill_lab.generation.progress import Progress
    from distill_lab.train.teachers import LiveTeacher

GenerationSettings = Mapping[str, Any]
"""Generation settings, as a task's YAML file has them."""
MAX_NEW_TOKENS = 256
"""Of a task that sets no limit, as in lm-evaluation-harness."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit in a task, the first one that is there."""
TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
KNOWN = {*LENGTHS, *TAKEN, "do_sample", "until", "use_cache", "pad_token_id"}
"""Settings that are read, and two that change no answer."""
ONE = {"num_beams", "num_return_sequences", "n"}
"""Settings that are refused unless they are 1."""
NUM_ENCODED, NUM_KEPT = 4_096, 256
"""Pairs that are tokenized together, and likelihoods that are written together."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A text that a benchmark wants written."""

    task: str
    doc: int
    """The item."""
    number: int
    """Of the request, among those of the item."""
    messages: list[Message]
    """A conversation, or a text to continue (`plain_text`)."""
    settings: GenerationSettings
    """The task's."""

    @property
    def id(self) -> str:
        """Unique in a suite."""
        return f"{self.task}/{self.doc}" + (f"/{self.number}" if self.number else "")


class SuiteAnswers:
    """A model that answers a benchmark. Close it, or use it as a context: it holds the model."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        sampling: SamplingConfig,
        work: Path,
        *,
        on_note: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """sampling: what differs from the defaults replaces the tasks' settings. work: a folder for the answers."""
        self.model, self.engine, self.sampling, self.work = model, engine, sampling, work
        self.completions: dict[str, list[Completion]] = {}
        """By `TextRequest.id`, sample by sample."""
        self.num_cut = 0
        """Texts whose context lost its beginning, because the model does not read so much."""
        self._on_note, self._on_progress = on_note, on_progress
        self._loaded: Engine | None = None
        self._reader: tuple[LiveTeacher, PreTrainedTokenizerBase] | None = None

    def texts(self, requests: Sequence[TextRequest]) -> list[str]:
        """What the model writes for each request, without its thinking; "" for what failed.

        A request that occurs several times gets several samples, unless decoding is greedy.
        """
        groups: dict[tuple[str, str], list[TextRequest]] = defaultdict(list)
        for request in requests:
            groups[request.task, json.dumps(request.settings, sort_keys=True, default=str)].append(request)
        for (task, _), members in groups.items():
            self._write(task, members)
        seen: Counter[str] = Counter()
        found = []
        for request in requests:
            samples = self.completions[request.id]
            found.append(samples[seen[request.id] % len(samples)].content)
            seen[request.id] += 1
        return found

    def _write(self, task: str, requests: Sequence[TextRequest]) -> None:
        """Complete the requests of one task that have the same settings."""
        from distill_lab.generation.generate import check_answered, generate
        from distill_lab.generation.request_cache import RequestCache

        unique = {request.id: request for request in requests}
        repeats = Counter(request.id for request in requests)
        sampling = task_sampling(requests[0].settings, self.sampling, task=task)
        if sampling.temperature > 0:
            sampling = sampling.model_copy(update={"num_samples": max(repeats.values())})
        digest = hashlib.sha256(sampling.model_dump_json().encode()).hexdigest()[:8]
        name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)[:80]}-{digest}"
        prompts, path = self.work / f"{name}.prompts.jsonl", self.work / f"{name}.completions.jsonl"
        write_jsonl(prompts, (Prompt(id, request.messages).to_json() for id, request in unique.items()))
        with RequestCache(self.model, self.engine, on_note=self._on_note) as cache:
            counts = generate(prompts, path, self._engine, sampling, cache=cache, on_progress=self._on_progress)
        check_answered(counts, path)
        found: dict[str, list[Completion]] = defaultdict(list)
        for row in whole_rows(path):
            found[row["id"]].append(Completion.from_json(row))
        for id, samples in found.items():
            self.completions[id] = sorted(samples, key=lambda each: each.sample)

    def likelihoods(self, requests: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each continuation is after its context: (context, continuation) -> its likelihood."""
        kept = self._kept()
        missing = [each for each in dict.fromkeys(requests) if _key(*each) not in kept]
        if missing:
            kept |= self._likelihoods(missing)
        return [kept[_key(*each)] for each in requests]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each text from its beginning, in nats, in parts as long as the model reads."""
        kept = self._kept()
        missing = [text for text in dict.fromkeys(texts) if _key(text) not in kept]
        if missing:
            model, tokenizer = self._scorer()
            length = _max_length(model)
            places: list[str] = []
            pairs = []
            for text in missing:
                parts = rolling_pairs(text_ids(tokenizer, text), prefix_id(tokenizer), max_length=length)
                pairs += parts
                places += [text] * len(parts)
            parts_of: dict[str, list[Likelihood]] = {text: [] for text in missing}
            for place, found in likelihoods(model, pairs):
                parts_of[places[place]].append(found)
            whole = {
                _key(text): Likelihood(total(parts), all(part.is_greedy for part in parts))
                for text, parts in parts_of.items()
            }
            self._keep(whole)
            kept |= whole
        return [kept[_key(text)].log_p for text in texts]

    def _likelihoods(self, requests: Sequence[tuple[str, str]]) -> dict[str, Likelihood]:
        model, tokenizer = self._scorer()
        length = _max_length(model)
        made: dict[str, Likelihood] = {}
        for start in range(0, len(requests), NUM_ENCODED):
            part = requests[start : start + NUM_ENCODED]
            encoded = [encode_pair(tokenizer, *each, max_length=length) for each in part]
            self.num_cut += sum(cut > 0 for _, cut in encoded)
            found: dict[str, Likelihood] = {}
            for place, likelihood in likelihoods(model, [pair for pair, _ in encoded]):
                found[_key(*part[place])] = likelihood
                if len(found) % NUM_KEPT == 0:
                    self._keep(found)
                    made |= found
                    found = {}
            self._keep(found)
            made |= found
        return made

    def _kept(self) -> dict[str, Likelihood]:
        if not self._file.exists():
            return {}
        return {row["key"]: Likelihood(row["log_p"], row["is_greedy"]) for row in whole_rows(self._file)}

    def _keep(self, found: Mapping[str, Likelihood]) -> None:
        with JsonlAppender(self._file) as file:
            file.append({"key": key, "log_p": each.log_p, "is_greedy": each.is_greedy} for key, each in found.items())

    @property
    def _file(self) -> Path:
        return self.work / "likelihoods.jsonl"

    def _engine(self) -> Engine:
        from distill_lab.generation.engines import load_engine

        if self._loaded is None:
            if self._reader is not None:
                self.close()
            self._loaded = load_engine(self.model, self.engine, on_note=self._on_note)
        return self._loaded

    def _scorer(self) -> tuple[LiveTeacher, PreTrainedTokenizerBase]:
        """The model for likelihoods: the engine's own if transformers runs it, else loaded for this."""
        from distill_lab.generation.engines import chosen_engine
        from distill_lab.generation.engines.transformers import TransformersEngine
        from distill_lab.models.loading import load_model
        from distill_lab.train.loss_module import decoder_and_head
        from distill_lab.train.teachers import LiveTeacher

        if self._reader is None:
            if chosen_engine(self.model, self.engine) == "transformers":
                engine = self._engine()
                assert isinstance(engine, TransformersEngine)
                model, tokenizer = engine.model, engine.tokenizer
            else:
                self.close()
                self._on_note(f"{self.model.model}: probabilities of given texts are computed with transformers")
                model, tokenizer = load_model(self.model)
            _, head = decoder_and_head(model)
            self._reader = LiveTeacher(model, head.linear.out_features), tokenizer
        return self._reader

    def close(self) -> None:
        """Let go of the model."""
        from distill_lab.device import free_memory

        self._loaded = self._reader = None
        free_memory()

    def __enter__(self) -> SuiteAnswers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def task_sampling(settings: GenerationSettings, given: SamplingConfig, *, task: str) -> SamplingConfig:
    """How to sample for a task: its generation settings, and what the user set to other than the default.

    As in lm-evaluation-harness, a task without `do_sample: true` is greedy unless it only sets a temperature. Raises
    UserError for settings that the lab does not have.
    """
    until = settings.get("until") or []
    length = next((settings[name] for name in LENGTHS if settings.get(name) is not None), MAX_NEW_TOKENS)
    sampled = settings.get("do_sample")
    values = {name: settings[name] for name in TAKEN if settings.get(name) is not None}
    if not sampled if sampled is not None else not float(values.get("temperature", 0)):
        values = {"repetition_penalty": values["repetition_penalty"]} if "repetition_penalty" in values else {}
    elif "temperature" not in values:
        values["temperature"] = 1.0
    unknown = [
        name for name, value in settings.items() if name not in KNOWN and not (name in ONE and value in (1, None))
    ]
    if unknown:
        raise UserError(f"{task}: its generation setting {unknown[0]} is not one that the lab has; use another task")
    stop = [until] if isinstance(until, str) else [str(each) for each in until if each]
    values |= {"stop": tuple(stop), "max_new_tokens": int(length)}
    usual = SamplingConfig()
    changed = {name: value for name, value in given if value != getattr(usual, name)}
    return SamplingConfig.model_validate(values | changed)


def _max_length(model: LiveTeacher) -> int:
    """Tokens that the model reads at once."""
    return int(model.model.config.get_text_config(decoder=True).max_position_embeddings)


def _key(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]
