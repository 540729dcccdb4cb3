"""The page's parts on the run itself: run.json -> what each stage took and kept, and how to get the result again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.summary_parts import Paid
from distill_lab.formatting import seconds_text, shown
from distill_lab.generation.prices import Spending, money
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.numbers import DASH
from distill_lab.run import Manifest, StageRecord


def stages_section(stages: Mapping[str, StageRecord]) -> str:
    """Rows in, kept and dropped of every stage; empty without stages."""

    def cells(name: str, stage: StageRecord) -> Iterator[str]:
        counts = stage.get("counts")
        dropped = {reason: number for reason, number in counts["dropped"].items() if number} if counts else {}
        yield f'<th scope="row">{shown(name)}</th>'
        for number in (counts["rows_in"], counts["kept"]) if counts else (None, None):
            yield f"<td>{DASH if number is None else f'{number:,}'}</td>"
        reasons = "<br>".join(f"{number:,} {shown(reason)}" for reason, number in dropped.items())
        yield f"<td>{reasons or ('0' if counts else DASH)}</td>"
        yield f"<td>{seconds_text(stage['seconds'])}{'' if stage['status'] == 'done' else ' (unfinished)'}</td>"

    if not stages:
        return ""
    heads = map(head, ("Stage", "Rows in", "Kept", "Dropped", "Time"))
    body = ("".join(cells(name, stage)) for name, stage in stages.items())
    return f"<h2>Every row accounted for</h2>{table('Rows of every stage', heads, body)}"


def took_section(stages: Mapping[str, StageRecord], summary: Summary) -> str:
    """Seconds, tokens and money of every stage, and of all; empty without stages."""
    if not stages:
        return ""
    generated, paid = summary.generated or {}, summary.spending or Paid({}, Spending())

    def cells(title: str, seconds: float, tokens: int | None, cost: float | None) -> str:
        texts = (
            seconds_text(seconds),
            DASH if tokens is None else f"{tokens:,}",
            DASH if cost is None else money(cost),
        )
        return row_head(shown(title)) + "".join(f"<td>{text}</td>" for text in texts)

    rows = [
        cells(
            name,
            stage["seconds"],
            generated[name].tokens if name in generated else None,
            paid.stages[name].cost if name in paid.stages else None,
        )
        for name, stage in stages.items()
    ]
    tokens = sum(each.tokens for each in generated.values()) if generated else None
    rows.append(cells("All", sum(stage["seconds"] for stage in stages.values()), tokens, paid.total.cost))
    heads = map(head, ("Stage", "Time", "Tokens generated", "Paid"))
    return (
        f"<h2>What this run took</h2>{table('Time, tokens and money of every stage', heads, rows)}"
        '<p class="small muted after">Tokens of answers from the lab\'s cache are among those generated; they took no time '
        "and no money here. Paid: what servers took, if prices were given.</p>"
    )


def settings_section(run: Manifest) -> str:
    """Versions, the configuration, and the command that takes it."""
    versions = ", ".join(f"{shown(name)}&nbsp;{shown(version)}" for name, version in run["versions"].items())
    config = shown(json.dumps(run["config"], ensure_ascii=False, indent=2))
    how = "Save the configuration as again.yaml (JSON is YAML), then:"
    command = f"distill {run['recipe']} --config again.yaml --run runs/again"
    if typed := run["config"].get("typed"):  # of an EasyDistill job, whose own file is its configuration
        how, command = "In the folder that holds this configuration:", typed
    return (
        f'<h2>How to get this again</h2><div class="card"><p class="small">{versions}</p>'
        f'<p class="small">{how}</p><pre tabindex="0">{shown(command)}</pre>'
        f'<details open><summary>Configuration</summary><pre tabindex="0">{config}</pre></details></div>'
    )
