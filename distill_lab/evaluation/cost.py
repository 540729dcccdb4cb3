"""What an answer costs: tokens processed (prompt and completion) and seconds, of models that are asked in different ways.

    cost = token_cost(teacher, prompts, completions, thinking=None)          tokens per answer, counted
    print(render_costs(summary))

The seconds are those of `speed.measure`, for which each model gets the prompts as it sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from distill_lab.config import ModelConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.summary_parts import Cost, CostComparison, CostRatio
from distill_lab.evaluation.verdict import percent
from distill_lab.files.jsonl import read_jsonl
from distill_lab.formatting import times


def token_cost(model: ModelConfig, prompts: Path, completions: Path, *, thinking: bool | None) -> Cost:
    """Tokens per answer: every prompt that has a completion as `model`'s chat template writes it, and that completion.

    The seconds are left open. Raises ModelError if the tokenizer cannot be loaded.
    """
    from distill_lab.chat import prompt_ids
    from distill_lab.models.loading import load_tokenizer

    written = {row["id"]: row["num_tokens"] for row in read_jsonl(completions) if row["finish_reason"] != "error"}
    tokenizer = load_tokenizer(model)
    read = [
        len(prompt_ids(tokenizer, prompt.messages, thinking=thinking))
        for prompt in read_prompts(prompts)
        if prompt.id in written
    ]
    return Cost(mean(read) if read else 0.0, mean(written.values()) if written else 0.0)


def compare_costs(teacher: Cost, student: Cost, scores: Mapping[str, float]) -> CostComparison:
    """Both costs, and how many times more the teacher takes. scores: by model, for the ratio of accuracy."""
    return CostComparison(
        teacher=teacher,
        student=student,
        ratio=CostRatio(
            accuracy=scores["student"] / scores["teacher"] if scores.get("teacher") else None,
            tokens=teacher.tokens / student.tokens if student.tokens else None,
            seconds=teacher.seconds / student.seconds if teacher.seconds and student.seconds else None,
        ),
    )


def render_costs(summary: Summary) -> str:
    """The comparison as plain text: the teacher with prompt and thinking next to the student without."""
    assert summary.cost is not None, "a summary without costs"
    ratio = summary.cost.ratio
    lines = [f"{'per answer':<22}{'teacher + prompt':>18}{'student alone':>16}{'ratio':>9}"]

    def line(title: str, values: Sequence[float | None], shape: str, shown: str) -> None:
        cells = [format(value, shape) if value is not None else "-" for value in values]
        lines.append(f"{title:<22}{cells[0]:>18}{cells[1]:>16}{shown:>9}")

    def shown(ratio: float | None) -> str:
        return "-" if ratio is None else times(ratio, "x")

    both = (summary.cost.teacher, summary.cost.student)
    models = [summary.models.get(name) for name in ("teacher", "student")]
    metric = summary.metric.short if summary.metric else "score"
    kept = percent(ratio.accuracy) if ratio.accuracy is not None else "-"
    if summary.metric and summary.metric.similarity:
        kept = "-"
    line(metric, [model.score if model else None for model in models], ".1%", kept)
    line("prompt tokens", [each.prompt_tokens for each in both], ",.1f", "-")
    line("completion tokens", [each.completion_tokens for each in both], ",.1f", "-")
    line("tokens processed", [each.tokens for each in both], ",.1f", shown(ratio.tokens))
    line("seconds, one at a time", [each.seconds for each in both], ".4f", shown(ratio.seconds))
    return "\n".join(lines)
