"""The model card: run.json, summary.json and checks of exports -> README.md of a student, in the Hugging Face hub's form.

    write_card(Path("runs/first"), Path("runs/first/student"))

It says what the student was made from, how good it is, with intervals, and how to run it. A card that somebody has edited
stays as it is. Paths of this machine are not in it: of a local model or file only the name is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from distill_lab import __version__
from distill_lab.config import ModelConfig
from distill_lab.errors import DataError, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.signed import write_signed
from distill_lab.formatting import clean
from distill_lab.models.names import base_of, is_adapter
from distill_lab.report._licenses import UNKNOWN, is_on_hub, license_of_data, license_of_model
from distill_lab.report.figure import LABELS
from distill_lab.report.run_student import fitted, part, read_run, student_of
from distill_lab.types import Fields, JsonObject

NAME = "README.md"
RELATIONS = {"adapter": "adapter", "plain": "finetune", "gguf": "quantized", "mlx": "quantized"}
"""Kind of the files a card is for -> the hub's word for how they relate to the base model."""


class _ExportRow(TypedDict):
    file: str
    bytes: int
    kind: str
    weights: bool
    """Whether the file holds a model's weights."""


class ExportRow(_ExportRow, total=False):
    """An exported file, as export.json has it."""

    check: JsonObject | None
    """What `Check.to_json` says of it; None if it was not checked."""


def write_run_card(directory: Path) -> Path | None:
    """Write the card of a run's student, and of its copy. None if there is no student, or if somebody edited the card."""
    try:
        student = Path(student_of(directory).model)
    except UserError:
        return None
    copy = read_run(directory)[0]["stages"].get("copy")
    if copy and (directory / copy["at"]).is_dir():
        write_card(directory / copy["at"], directory)
    found = [row for folder in sorted((directory / "export").glob("*")) for row in read_exports(folder)]
    return write_card(student, directory, exports=found)


def read_exports(folder: Path) -> list[ExportRow]:
    """The files that an export wrote to `folder`, and how each compares with the student; [] if it is not an export.

    Raises DataError if the list is damaged.
    """
    path = folder / "export.json"
    found = read_record(path).get("files") if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(str(path), None, "does not list exported files; export the student again (--overwrite)")
    return found


def write_card(
    folder: Path, directory: Path | None, *, model: str = "", kind: str = "", exports: Sequence[ExportRow] = ()
) -> Path | None:
    """Write README.md of the student, or of an export of it, in `folder`. None if somebody edited the one there.

    directory: the run that made it, or None; then `model` names what was exported. kind: a key of RELATIONS. exports: what
    `Check.to_json` says of each file.
    """
    kind = kind or ("adapter" if is_adapter(str(folder)) else "plain")
    run, summary = read_run(directory) if directory else ({}, {})
    text = card(run, summary, model=model, kind=kind, exports=exports)
    return folder / NAME if write_signed(folder / NAME, text) else None


def card(
    run: Fields,
    summary: Mapping[str, Any],
    *,
    model: str = "",
    kind: str = "plain",
    exports: Sequence[ExportRow] = (),
) -> str:
    """The card's text. run, summary: the files of a run; both empty for a model that no run here made."""
    config = part(run, "config")
    student = ModelConfig.model_validate(config["student"]) if config else ModelConfig(model=model)
    base = _base(student)
    teacher = str(part(config, "teacher").get("model") or "")
    parts = [
        _head(base, config, str(run.get("recipe", "")), kind),
        f"# {_title(base, teacher)}\n",
        _about(run, summary.get("notes", ()), base, teacher),
        _scores(summary),
        _usage(config, kind, exports),
        _exports(exports),
        _licenses(base, teacher, config),
    ]
    return "\n".join(part for part in parts if part)


def short_name(name: str) -> str:
    """A model's or data set's name for people: a hub id as it is, of a path its last part."""
    name = clean(name)
    if is_on_hub(name) or name.startswith(("tiny:", "openai:")):
        return name
    path = Path(name)
    return path.parent.name if path.name in ("student", "") and path.parent.name else path.name


def _base(student: ModelConfig) -> ModelConfig:
    """The base model: of adapters, what they were trained on."""
    path = Path(student.model)
    return base_of(student) if path.is_dir() and is_adapter(str(path)) else student


def _title(base: ModelConfig, teacher: str) -> str:
    if not teacher:
        return short_name(base.model)
    return f"{short_name(base.model)}, distilled from {short_name(teacher)}"


def _head(base: ModelConfig, config: Fields, recipe: str, kind: str) -> str:
    """The hub's YAML. Only ids that the hub knows are in it, and only a license that a card states."""
    from ruamel.yaml import YAML

    data = str(part(config, "data").get("path", ""))
    stated = license_of_model(base.model, base.revision)
    head: JsonObject = {}
    if is_on_hub(base.model):
        head["base_model"] = base.model
        head["base_model_relation"] = RELATIONS[kind]
    if stated != UNKNOWN:
        head["license"] = stated
    if is_on_hub(data):
        head["datasets"] = [data]
    head["library_name"] = {"adapter": "peft", "gguf": "gguf", "mlx": "mlx"}.get(kind, "transformers")
    head["pipeline_tag"] = "text-generation"
    head["tags"] = [*(["distillation"] if recipe else []), "qwen-distillation-lab", *([recipe] if recipe else [])]
    stream = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.dump(head, stream)
    return f"---\n{stream.getvalue()}---\n"


def _about(run: Fields, notes: Iterable[object], base: ModelConfig, teacher: str) -> str:
    if not run:
        return f"An export of {_cell(short_name(base.model))} made with Qwen Distillation Lab {__version__}.\n"
    config, plan = part(run, "config"), fitted(run)
    data, train = part(config, "data"), part(plan, "train") or part(config, "train")
    rows = part(part(part(run, "stages"), "training set"), "counts").get("kept")
    version = part(run, "versions").get("qwen-distillation-lab", __version__)
    facts = {
        "Recipe": f"`{run['recipe']}` of Qwen Distillation Lab {version}",
        "Base student": short_name(base.model),
        "Teacher": short_name(teacher),
        "Data": f"{short_name(str(data.get('path', '')))}, `{data.get('split', 'train')}`",
        "Training rows": f"{rows:,}" if rows is not None else "",
        "Training": training_text(plan, train),
    }
    lines = [f"| {name} | {_cell(fact)} |" for name, fact in facts.items() if fact]
    quoted = [f"> {_cell(str(note))}" for note in notes if "/" not in str(note)]
    return "\n".join(["| | |", "|---|---|", *lines, "", *quoted]) + "\n"


def training_text(plan: Fields, train: Fields) -> str:
    """How a student was trained: method, objective, epochs, learning rate and seed."""
    if not train:
        return ""
    method = str(plan.get("line", "")).partition(",")[0]
    rank = part(train, "lora").get("r")
    parts = [
        method or (f"LoRA, r {rank}" if rank else "full fine-tune"),
        f"objective {train['objective']}" if train.get("objective") else "cross-entropy",
        f"{train['num_epochs']:g} epochs",
        f"learning rate {train['learning_rate']:g}" if train.get("learning_rate") else "",
        f"seed {train['seed']}",
    ]
    return ", ".join(filter(None, parts))


def _scores(summary: Mapping[str, Any]) -> str:
    """The table of scores, and what follows from them."""
    scored = {name: model for name, model in (summary.get("models") or {}).items() if model.get("score") is not None}
    metric = summary.get("metric") or {}
    if not scored:
        return "## Scores\n\nThis student was not scored.\n" if summary else ""
    lines = [
        f"{_cell(str(metric.get('name', 'score')))} on {summary['n']:,} test prompts that training did not use, with 95% "
        "intervals.\n",
        "| | score | 95% interval |",
        "|---|---:|---:|",
    ]
    for name, model in scored.items():
        interval = model.get("ci95")
        shown = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "-"
        lines.append(f"| {LABELS.get(name, name)} | {model['score']:.1%} | {shown} |")
    return "\n".join(["## Scores\n", *lines, "", *_conclusions(summary, metric)])


def _conclusions(summary: Mapping[str, Any], metric: Fields) -> Iterator[str]:
    if metric.get("similarity"):
        yield "This figure says how alike two texts are, not how good an answer is.\n"
    if summary.get("retention") is not None:
        interval = summary.get("retention_ci95")
        shown = f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
        yield f"The student keeps {summary['retention']:.1%} of the teacher's score{shown}.\n"
    if summary.get("gain") is not None:
        low, high = (100 * end for end in summary["gain_ci95"])
        yield (
            f"Over the untrained base student: {100 * summary['gain']:+.1f} points (95% interval {low:+.1f} to "
            f"{high:+.1f}, p = {summary['p_value']:.2g}).\n"
        )


def _usage(config: Fields, kind: str, exports: Sequence[ExportRow]) -> str:
    thinking = part(config, "test_sampling").get("thinking")
    setting = "" if thinking is None else f", enable_thinking={thinking}"
    if kind == "gguf":
        files = [str(row["file"]) for row in exports if str(row["file"]).startswith("Modelfile")]
        file = files[0] if files else "Modelfile"
        before = "" if files else "write `FROM ./FILE.gguf` into a file `Modelfile`, then "
        return (
            f"## Use it\n\nWith llama.cpp: `llama-cli -m FILE.gguf`; with Ollama: {before}"
            f"`ollama create my-student -f {file}` and `ollama run my-student`.\n"
        )
    if kind == "mlx":
        return '## Use it\n\nWith MLX: `mlx_lm.generate --model . --prompt "Hello"`.\n'
    peft = " (and `pip install peft`: these are adapters)" if kind == "adapter" else ""
    serve = "" if kind == "adapter" else "With vLLM: `vllm serve .`\n\n"
    return (
        f"## Use it\n\nWith transformers{peft}:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "."  # this directory\ntokenizer = AutoTokenizer.from_pretrained(path)\n'
        "model = AutoModelForCausalLM.from_pretrained(path)\n"
        'messages = [{"role": "user", "content": "Hello"}]\n'
        f"ids = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, return_tensors='pt'{setting}\n)"
        '["input_ids"]\noutput = model.generate(ids, max_new_tokens=256)\n'
        "print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))\n```\n\n"
        f"{serve}With Ollama: `distill export` this directory `--to ollama`, then `ollama create my-student -f Modelfile`.\n"
    )


def _exports(exports: Sequence[ExportRow]) -> str:
    exports = [row for row in exports if row["weights"]]
    if not exports:
        return ""
    lines = [
        "## Exports\n",
        "Each file was loaded again and asked the same prompts as the student it was made from, greedily.\n",
        "| file | size | loaded with | same answers | same beginning | same next token | score | student's score |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in exports:
        check = row.get("check") or {}
        same = f"{check['same']} of {check['n']}" if check.get("n") else "not checked"
        shared = f"{check['shared']:.1%}" if check.get("n") else "-"
        scores = [f"{check[name]:.1%}" if check.get(name) is not None else "-" for name in ("score", "student_score")]
        size = f"{row['bytes'] / 1e6:,.1f} MB"
        following = _share(check.get("next_tokens_same"), check.get("next_tokens"))
        cells = (row["file"], size, check.get("loaded_with", "-"), same, shared, following, *scores)
        lines.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
    lines += [
        "",
        "Same beginning: the share of the student's answer before the first difference, over all prompts. Same next "
        "token: the share of the student's tokens that are the file's first choice, too, after the same text.\n",
    ]
    return "\n".join(lines)


def _share(part: object, whole: object) -> str:
    return f"{part / whole:.1%}" if isinstance(part, int) and isinstance(whole, int) and whole else "-"


def _licenses(base: ModelConfig, teacher: str, config: Fields) -> str:
    data = str(part(config, "data").get("path", ""))
    rows = [("base student", short_name(base.model), license_of_model(base.model, base.revision))]
    if teacher:
        rows.append(("teacher", short_name(teacher), license_of_model(teacher)))
    if data:
        rows.append(("data", short_name(data), license_of_data(data)))
    lines = [f"| {role} | {_cell(name)} | {_cell(stated)} |" for role, name, stated in rows]
    note = "A teacher's terms may say what its answers may be used for.\n" if teacher else ""
    return "\n".join(["## Licenses\n", "| | | license |", "|---|---|---|", *lines, "", note])


def _cell(text: str) -> str:
    """`text` for one cell of a Markdown table: one line, no markup of tables or HTML."""
    text = " ".join(clean(text).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
