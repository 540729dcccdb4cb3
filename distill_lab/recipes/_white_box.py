"""Settings of the recipes in which a student learns a teacher's whole distributions, live or from a cache."""

from __future__ import annotations

from typing import Literal

from distill_lab.config import AS_GIVEN, DataConfig, ModelConfig, RecipeConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError

AUTO = "auto"
SAME_TOKENS, OTHER_TOKENS = "forward_kl", "chunk_likelihood"
"""What `auto` chooses between."""
CacheMode = Literal["off", "sampled", "top_k", "hidden"]
CE_WEIGHT = 0.2
"""Default share of cross-entropy if someone else than the teacher wrote the answers."""


class WhiteBoxConfig(RecipeConfig):
    """Settings of a run that learns the teacher's probabilities."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """The model to learn from. It must run here, not on a server. If its tokenizer is not the student's, the objective is
    chunk_likelihood."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct")
    data: DataConfig = DataConfig(path="alibaba-pai/DistilQwen_100k", split="train[:1000]")
    """The prompts, and their answers if relabel is off."""
    relabel: bool = True
    """The teacher writes the answers; off: the data set's own are used."""
    objective: str = AUTO
    """How far student and teacher are apart: forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, entropy_aware or
    acceptance; chunk_likelihood for a teacher with another tokenizer. auto: forward_kl, or chunk_likelihood if the
    tokenizers differ."""
    temperature: float = 1.0
    """Both models' logits are divided by it; 1 compares the distributions themselves."""
    ce_weight: float | None = None
    """Share of cross-entropy in the loss; None: 0 if the teacher wrote the answers, else 0.2."""
    cache_mode: CacheMode = "off"
    """Capture the teacher's distributions once, on disk, instead of computing them in every step
    (train.teacher-cache.mode). sampled needs a few bytes per token and is for forward_kl."""
    cache_dir: str = ""
    """Where the cache is; empty: in the folder that all runs share (`distill cache`)."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=1.0, thinking=False)
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, thinking=False)
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: exact if every test row has a gold answer, else overlap."""

    def train_settings(self, teacher: ModelConfig) -> TrainConfig:
        """`train` with the recipe's objective and this teacher; auto is forward_kl here, because no tokenizer has
        been compared (`fitting_objective`). Raises ValidationError for impossible settings."""
        weight = self.ce_weight if self.ce_weight is not None else 0.0 if self.relabel else CE_WEIGHT
        own = dict(each.split("=", 1) for each in self.train.objective_settings)
        given = self.train.model_dump(context=AS_GIVEN) | {
            "objective": SAME_TOKENS if self.objective == AUTO else self.objective,
            "objective_settings": own | {"temperature": self.temperature, "ce_weight": weight},
            "teacher": teacher,
            "teacher_cache": {
                **self.train.teacher_cache.model_dump(), "mode": self.cache_mode, "folder": self.cache_dir
            },
        }  # fmt: skip
        return TrainConfig.model_validate(given)


def fitting_objective(config: WhiteBoxConfig) -> str:
    """The objective of these settings; instead of auto, one that fits the models' tokenizers.

    A model that has no tokenizer here is refused later, with its role and an example.
    """
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.models.token_bytes import same_ids, token_bytes

    if config.objective != AUTO:
        return config.objective
    try:
        teacher, student = (token_bytes(load_tokenizer(model)) for model in (config.teacher, config.student))
    except UserError:
        return SAME_TOKENS
    return SAME_TOKENS if same_ids(teacher, student) else OTHER_TOKENS
