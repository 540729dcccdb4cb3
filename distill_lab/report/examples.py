"""The page's part on examples: eval rows of every model -> lost, learned, won, wrong and kept answers side by side."""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.evaluation.eval_rows import EvalRow
from distill_lab.formatting import shown
from distill_lab.report.elements import badge
from distill_lab.report.figure import LABELS
from distill_lab.report.word_diff import marked

MAX_CHARS = 1500
"""Longer texts are cut on the page, with a mark; the eval files hold them whole."""
EXAMPLES = {"lost": 3, "learned": 2, "won": 1, "wrong": 1, "kept": 2}
"""How many examples of each kind are shown, failures first."""
KINDS = {
    "lost": ("Lost", "the teacher does better than the student"),
    "learned": ("Learned", "the student does better than before training"),
    "won": ("Won", "the student does better than the teacher"),
    "wrong": ("Wrong", "neither the teacher nor the student gets it right"),
    "kept": ("Kept", "the student does as well as the teacher"),
}
ALIKE = {
    "lost": ("Further", "the teacher's answer is closer to the reference text"),
    "learned": ("Closer", "closer to the reference text than before training"),
    "won": ("Nearer", "closer to the reference text than the teacher's answer"),
    "wrong": ("Apart", "neither is close to the reference text"),
    "kept": ("Level", "as close to the reference text as the teacher's answer"),
}
"""The same kinds where scores are likeness to a reference: there is no right and wrong."""
Items = dict[str, EvalRow]
"""Eval rows (first sample) of one model, by id."""


def examples_section(items: Mapping[str, Items], outcomes: Mapping[str, int] | None, *, alike: bool) -> str:
    """Examples of every kind.

    outcomes: who is right -> number of prompts. alike: scores are likeness to a reference, so nothing is right or wrong.
    """
    if "student" not in items:
        return ""
    chosen: dict[str, list[str]] = {kind: [] for kind in EXAMPLES}
    for name in items["student"]:
        scores = {model: rows[name].score for model, rows in items.items() if name in rows}
        kind = _kind(scores)
        if len(chosen[kind]) < EXAMPLES[kind]:
            chosen[kind].append(name)
    parts = ["<h2>Side by side</h2>"]
    if outcomes:
        cells = "".join(
            f'<div class="card"><b>{number:,}</b><span class="small muted">{outcome}</span></div>'
            for outcome, number in outcomes.items()
        )
        parts.append(f'<div class="outcomes">{cells}</div>')
    parts.append(
        '<p class="muted">The first of each kind in the eval files, failures first; none is picked by hand. Words that only '
        "the teacher or only the student has are marked.</p>"
    )
    for kind, names in chosen.items():
        parts += [_example(kind, name, items, alike=alike) for name in names]
    return "".join(parts)


def _kind(scores: Mapping[str, float]) -> str:
    """Which kind of example an item is, from its scores per model."""
    student = scores["student"]
    if student < scores.get("teacher", student):
        return "lost"
    if student > scores.get("teacher", student):
        return "won"
    if student > scores.get("base", student):
        return "learned"
    return "kept" if student >= 0.5 else "wrong"


def _example(kind: str, name: str, items: Mapping[str, Items], *, alike: bool) -> str:
    row = items["student"][name]
    title, meaning = (ALIKE if alike else KINDS)[kind]
    colour = "" if alike else "bad" if kind in ("lost", "wrong") else "good"
    label = badge(title, colour, sign=False)
    turns = "\n\n".join(
        message["content"] if message["role"] == "user" else f"[{message['role']}] {message['content']}"
        for message in row.prompt
    )
    title = "Reference" if alike else "Gold answer"
    gold = (
        f'<p class="gold"><span class="muted">{title}:</span> <bdi>{_cut(row.answer)}</bdi></p>' if row.answer else ""
    )
    outputs = _outputs({model: rows[name] for model, rows in items.items() if name in rows})
    answers = "".join(
        _answer(model, rows[name], outputs[model], alike=alike) for model, rows in items.items() if name in rows
    )
    return (
        f'<article class="card example"><div class="top"><span>{label} <span class="small muted">{meaning}</span>'
        f'</span><span class="small muted">{shown(name)}</span></div>'
        f'<p class="text-block question" dir="auto">{_cut(turns)}</p>{gold}'
        f'<div class="answers">{answers}</div></article>'
    )


def _outputs(rows: Mapping[str, EvalRow]) -> dict[str, str]:
    """Each model's output as HTML; what only the teacher or only the student says is marked, if they are short enough."""
    outputs = {model: _cut(row.output) for model, row in rows.items()}
    texts = [rows[model].output.strip() for model in ("teacher", "student") if model in rows]
    if len(texts) == 2 and max(map(len, texts)) <= MAX_CHARS:
        outputs["teacher"], outputs["student"] = marked(*texts)
    return outputs


def _answer(model: str, row: EvalRow, output: str, *, alike: bool) -> str:
    score = row.score
    number = badge(f"{score:.2f}", "")
    verdict = {1.0: badge("right", "good"), 0.0: badge("wrong", "bad")}.get(score, number) if not alike else number
    how = {"length": "cut at the limit", "missing": "no answer", "error": "failed"}.get(row.finish_reason)
    tokens = f"{row.num_tokens:,} tokens" + (f", {how}" if how else "")
    output = output or '<span class="muted">(empty)</span>'
    thinking = ""
    if row.thinking:
        text = _cut(row.thinking)
        thinking = f'<details><summary>Thinking</summary><p class="text-block" dir="auto">{text}</p></details>'
    return (
        f'<div class="answer {model}"><div class="top"><h3>{LABELS[model]}</h3>{verdict}</div>'
        f'<p class="text-block" dir="auto">{output}</p>{thinking}<p class="small muted after">{tokens}</p></div>'
    )


def _cut(text: str) -> str:
    """Escaped, and cut with a mark where it is long."""
    if len(text) <= MAX_CHARS:
        return shown(text.strip())
    return f'{shown(text[:MAX_CHARS])}<span class="muted"> [… {len(text) - MAX_CHARS:,} more characters]</span>'
