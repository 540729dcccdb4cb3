"""Qwen distillation in a few calls: prepare data, write an EasyDistill config, run it, query the student.

Data in: a data set of instructions and the names of a teacher and a student. Data out: data/*.json, configs/*.json, and
the student as a Hugging Face model directory. `notebook.ipynb` calls these functions, a thin layer over `distill_lab`.
This code distills the embedded tiny models, offline, in about a minute on a CPU:

    from distill_app import compare_models, distill_system1, distill_system2
    student = distill_system1({
        "teacher_model": "tiny:teacher", "student_model": "tiny:student",
        "dataset": "tiny:instructions", "dataset_slice": "distill[:2000]", "relabel": True,
        "num_epochs": 4, "learning_rate": 4e-3, "out_dir": "./distilled-tiny",
    })
    reasoner = distill_system2({
        "student_model": "tiny:student", "dataset": "tiny:problems", "dataset_slice": "distill[:500]",
        "num_epochs": 2, "learning_rate": 4e-3, "out_dir": "./distilled-tiny-cot",
    })
    prompts = ["Make this upper case: pear, cat", "A bus travels 60 km in 3 hours. How many km does it travel in one hour?"]
    compare_models(prompts, teacher_path="tiny:teacher", system1_path=student, system2_path=reasoner)

Prompts use the model's own chat template, as in training: a student answers poorly in a format it was not trained on. Only
tokenizers without a template get the plain text of `format_prompt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill_lab.commands._notebook import ask_student as ask_student
from distill_lab.commands._notebook import cell_lines, print_errors
from distill_lab.commands._notebook import estimate as estimate
from distill_lab.commands._notebook import machine_line as machine_line
from distill_lab.commands._notebook import recipe as recipe
from distill_lab.commands._notebook import score as score
from distill_lab.commands._notebook import show_page as show_page
from distill_lab.commands._notebook import show_result as show_result
from distill_lab.commands._notebook import show_rows as show_rows
from distill_lab.commands._notebook import take_home as take_home
from distill_lab.commands._usage import Usage
from distill_lab.config import DataConfig, ModelConfig, SamplingConfig
from distill_lab.easydistill import presets
from distill_lab.easydistill.presets import COT, INSTRUCTIONS, LABELED, SYSTEM1_OUT, SYSTEM2_OUT, System1, System2
from distill_lab.errors import ModelError, UserError
from distill_lab.files.jsonl import write_json
from distill_lab.generation.ask import ask, plain_prompt
from distill_lab.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Mode = Literal["system1", "system2"]
Load = Callable[[str], tuple[Any, Any]]
"""Path -> model and tokenizer."""
NAMES = ("config.json", "adapter_config.json")  # every model directory contains one of them
NO_DATA, NO_DATA_SYS2 = "No data for System 1 distillation", "No data for System 2 distillation"


def save_json(path: str, data: Any) -> None:
    """Write `data` as indented JSON, atomically; create the folder if it is missing."""
    write_json(Path(path), data)


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises DataError naming file and line if it is not JSON."""
    from distill_lab.easydistill import prepare

    return prepare.read_json(path)


def load_teacher(model_name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the teacher and its tokenizer, in 8 or 4 bits if its full weights do not fit the GPU. Raises ModelError."""
    from distill_lab.models.loading import load_model

    return load_model(ModelConfig(model=model_name, quantization="auto"))


def format_prompt(instruction: str, input_text: str = "", mode: Mode = "system1") -> str:
    """An instruction as plain text, for tokenizers without a chat template; mode system2 asks for steps."""
    return plain_prompt(instruction, input_text, steps=mode == "system2")


def label_with_teacher(
    teacher_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict[str, Any]],
    batch_size: int = 2,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.9,
    mode: Mode = "system1",
) -> list[dict[str, Any]]:
    """Return the items, dicts with `instruction` and optional `input`, with the teacher's answers as `output`.

    Uses the teacher's chat template (see `format_prompt` for teachers without one). If the teacher fails on an
    instruction or does not finish within max_new_tokens, the output is empty; training drops and counts such rows.
    """
    from distill_lab import device

    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    questions = [(item["instruction"], item.get("input") or "") for item in items]
    answers = ask(teacher_model, tokenizer, questions, sampling, steps=mode == "system2", batch_size=batch_size)
    device.free_memory()
    for reason in ("error", "length"):
        if number := sum(answer.finish_reason == reason for answer in answers):
            why = "failed" if reason == "error" else f"were cut off at {max_new_tokens} tokens"
            print(f"{number} of {len(answers)} answers {why} and are left empty")
    return [
        {**item, "output": answer.content.strip() if answer.finish_reason == "stop" else ""}
        for item, answer in zip(items, answers, strict=True)
    ]


def prepare_system1_dataset(
    slice_str: str = "train[:1000]",
    teacher_model: PreTrainedModel | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    relabel_with_teacher: bool = False,
    out_instructions: str = INSTRUCTIONS,
    out_labeled: str = LABELED,
    dataset: str = presets.DATASET,
) -> None:
    """Write a slice of a data set as {instruction, input, output} rows to two JSON files; writes nothing if it is empty.

    dataset: Hugging Face id, local file or tiny:instructions, with rows in any format the lab reads. An Alpaca-style
    `input` becomes part of the instruction, because EasyDistill reads only the instruction. relabel_with_teacher: let the
    teacher write the outputs (`label_with_teacher`). Raises ValueError if it has no teacher, DataError for malformed rows.
    """
    if relabel_with_teacher and (teacher_model is None or teacher_tokenizer is None):
        raise ValueError("Teacher model/tokenizer required for relabeling.")
    from distill_lab.easydistill.prepare import instruction_rows, record_source

    items = instruction_rows(DataConfig(path=dataset, split=slice_str))
    print(f"Loaded {len(items)} rows: {dataset}, {slice_str}")
    if not items:
        print(NO_DATA)
        return
    labeled = items
    if relabel_with_teacher:
        assert teacher_model is not None
        assert teacher_tokenizer is not None
        print(f"Relabeling {len(items)} items with teacher...")
        labeled = label_with_teacher(teacher_model, teacher_tokenizer, items, mode="system1")
    save_json(out_instructions, items)
    save_json(out_labeled, labeled)
    record_source(out_instructions, dataset=dataset, slice=slice_str)
    print(f"Saved System 1 instructions to {out_instructions}")
    print(f"Saved System 1 labeled data to {out_labeled}")


def prepare_system2_dataset(
    slice_str: str = "train[:2000]",
    rv_min: float = 0.6,
    cd_min: float = 0.6,
    out_cot: str = COT,
    dataset: str = presets.DATASET_SYS2,
) -> None:
    """Write a slice of reasoning traces as {instruction, input, output} rows to a JSON file; writes nothing if none is left.

    `distill_lab.easydistill.prepare.trace_rows` selects them. For data without questions and reasoning it prints
    `Unexpected OmniThought schema, please inspect omni[0]` and that row. Raises DataError for malformed rows, UserError for
    invalid thresholds.
    """
    from distill_lab.easydistill.prepare import record_source, trace_rows
    from distill_lab.training_data.reasoning import UnexpectedSchema

    try:
        found = trace_rows(DataConfig(path=dataset, split=slice_str), rv_min=rv_min, cd_min=cd_min)
    except UnexpectedSchema as error:
        print(error)
        return
    print(f"Loaded {found.num_loaded} rows: {dataset}, {slice_str}")
    if not found.num_loaded:
        print(NO_DATA_SYS2)
        return
    print(found.note)
    if not found.rows:
        print(f"{NO_DATA_SYS2} after filtering.")
        return
    save_json(out_cot, found.rows)
    record_source(out_cot, dataset=dataset, slice=slice_str, rv_min=rv_min, cd_min=cd_min)
    print(f"Saved System 2 CoT data to {out_cot}")


def write_system1_config(
    teacher_model: str,
    student_model: str,
    labeled_path: str,
    out_dir: str,
    num_train_epochs: int = 1,
    config_path: str = presets.SYSTEM1_CONFIG,
    learning_rate: float = 2e-5,
    how: dict[str, Any] | None = None,
) -> str:
    """Write the EasyDistill config of a System 1 run; return its path. how: learning_rate, method, lora_r of `System1`."""
    settings = {"num_epochs": num_train_epochs, "learning_rate": learning_rate, **(how or {})}
    save_json(config_path, presets.system1_config(teacher_model, student_model, labeled_path, out_dir, **settings))
    print(f"Wrote System 1 KD config to {config_path}")
    return config_path


def write_system2_config(
    student_model: str,
    cot_path: str,
    out_dir: str,
    num_train_epochs: int = 1,
    config_path: str = presets.SYSTEM2_CONFIG,
    learning_rate: float = 1e-5,
    max_length: int = 4096,
    how: dict[str, Any] | None = None,
) -> str:
    """Write the EasyDistill config of a System 2 run (training on reasoning traces); return its path.

    max_length: in tokens; longer rows are dropped. Traces of verbosity 6 and above rarely fit the 1024 used for short
    answers. how: learning_rate, method and lora_r of `System2`.
    """
    settings = {"num_epochs": num_train_epochs, "max_length": max_length, "learning_rate": learning_rate, **(how or {})}
    save_json(config_path, presets.system2_config(student_model, cot_path, out_dir, **settings))
    print(f"Wrote System 2 KD config to {config_path}")
    return config_path


def run_easy_distill(config_path: str, relabel: bool = False) -> int:
    """Run a config in a separate process, with `easydistill` if installed, else `distill run`. Returns its exit code.

    relabel: `distill run` lets the teacher answer everything again; `easydistill` always does. The process's output is
    printed as it arrives; in a notebook its progress takes one line.
    """
    from distill_lab.easydistill.process import command, run_process

    words = command(config_path, relabel=relabel)
    print("Running:", " ".join(words))
    with Usage() as usage, cell_lines() as on_line:
        code = run_process(words, on_line=on_line)
    print(usage)
    if code == 0:
        print("EasyDistill run completed successfully.")
    else:
        print("EasyDistill run failed with code:", code)
    return code


def distill_system1(config: dict[str, Any]) -> str | None:
    """All of System 1: check, prepare data if needed, write the config, run it.

    config: the keys of `System1`, each with a default. Existing data files are reused if they come from the same data set
    and slice. Prints progress, a summary and the student's path, and returns the path; None if there is no student.
    """
    return print_errors(lambda: _distill_system1(System1.model_validate(config)), System1)


def distill_system2(config: dict[str, Any]) -> str | None:
    """All of System 2: check, prepare the traces if needed, write the config, run it.

    config: the keys of `System2`, each with a default. An existing file is reused if it comes from the same data and
    thresholds. Prints and returns the same as `distill_system1`; also None if no trace passes the thresholds.
    """
    return print_errors(lambda: _distill_system2(System2.model_validate(config)), System2)


def _distill_system1(settings: System1) -> str | None:
    from distill_lab.planning.preflight import check_model

    check_model(ModelConfig(model=settings.student_model), role="student", example=System1().student_model)
    dataset, part = settings.dataset, settings.dataset_slice
    prepare = partial(prepare_system1_dataset, part, dataset=dataset)
    if not _ready((INSTRUCTIONS, LABELED), {"dataset": dataset, "slice": part}, prepare, no_data=NO_DATA):
        return None
    models, how = (settings.teacher_model, settings.student_model), settings.model_dump(include=presets.HOW)
    path = write_system1_config(*models, LABELED, out := settings.out_dir, settings.num_epochs, how=how)
    return _summary("System 1", out) if run_easy_distill(path, relabel=settings.relabel) == 0 else None


def _distill_system2(settings: System2) -> str | None:
    from distill_lab.planning.preflight import check_model

    check_model(ModelConfig(model=settings.student_model), role="student", example=System2().student_model)
    dataset, part, rv_min, cd_min = settings.dataset, settings.dataset_slice, settings.rv_min, settings.cd_min
    source = {"dataset": dataset, "slice": part, "rv_min": rv_min, "cd_min": cd_min}
    prepare = partial(prepare_system2_dataset, part, rv_min, cd_min, dataset=dataset)
    if not _ready((COT,), source, prepare, no_data=NO_DATA_SYS2):
        return None
    out, how = settings.out_dir, settings.model_dump(include=presets.HOW)
    path = write_system2_config(settings.student_model, COT, out, settings.num_epochs, how=how)
    return _summary("System 2", out) if run_easy_distill(path) == 0 else None


def _ready(files: Sequence[str], source: dict[str, Any], prepare: Callable[[], None], *, no_data: str) -> bool:
    """Whether the data files contain rows of `source`; prepares them if they are missing or come from another source."""
    from distill_lab.easydistill.prepare import is_edited, is_prepared

    if not is_prepared(*files, **source):
        prepare()
        return is_prepared(*files, **source)
    rows = read_json(files[0])
    yours = ", yours; without these files the lab prepares the slice" if is_edited(files[0]) else ""
    print(f"Using {' and '.join(files)}: {len(rows):,} rows{yours}" if rows else no_data)
    return bool(rows)


def _summary(name: str, out_dir: str) -> str | None:
    """Print what a run produced; its exit code alone proves nothing (EasyDistill's is 0 even if training failed)."""
    from distill_lab.easydistill.job import training_summary

    if not any((Path(out_dir).expanduser() / name).is_file() for name in NAMES):
        print(f"The run ended, but there is no model in {out_dir}; see its output above")
        return None
    if trained := training_summary(out_dir):
        print(f"{name}: {trained}")
    print(f"{name} student saved to {out_dir}")
    return out_dir


def load_student(model_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a distilled student and its tokenizer from its directory, as `load_teacher` does. Raises ModelError."""
    return load_teacher(model_path)


def infer_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    mode: Mode = "system1",
    max_new_tokens: int = 256,
) -> str:
    """A student's answer, sampled (temperature 0.7, top_p 0.9) with a fixed seed. Raises UserError if there is none."""
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.7, top_p=0.9)
    (answer,) = ask(model, tokenizer, [(prompt, "")], sampling, steps=mode == "system2")
    if answer.finish_reason == "error":
        raise UserError(f"no answer: {answer.error}")
    from distill_lab.evaluation.compare import with_thinking

    return (with_thinking(answer) if mode == "system2" else answer).content.strip()


def compare_models(
    prompts: list[str],
    *,
    teacher_path: str | None = "Qwen/Qwen2.5-7B-Instruct",
    system1_path: str | None = SYSTEM1_OUT,
    system2_path: str | None = SYSTEM2_OUT,
    teacher_model: PreTrainedModel | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    sys1_model: PreTrainedModel | None = None,
    sys1_tokenizer: PreTrainedTokenizerBase | None = None,
    sys2_model: PreTrainedModel | None = None,
    sys2_tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 128,
) -> None:
    """Print every model's greedy answer to every prompt, one below the other, each with a label.

    Give a model loaded, with its tokenizer, or by path or name (None skips it; without a model there, this prints
    `Model not found at <path>`); these are loaded one at a time. The System 2 student is asked to think step by
    step.
    """
    from distill_lab import device
    from distill_lab.evaluation.compare import Comparison, with_thinking
    from distill_lab.report.side_by_side import TEACHER_CHARS, render_comparison

    models: list[tuple[str, str | None, Any, Any, Load, bool]] = [
        ("Teacher", teacher_path, teacher_model, teacher_tokenizer, load_teacher, False),
        ("System 1", system1_path, sys1_model, sys1_tokenizer, load_student, False),
        ("System 2", system2_path, sys2_model, sys2_tokenizer, load_student, True),
    ]
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)
    answers: list[dict[str, Completion]] = [{} for _ in prompts]
    missing: dict[str, str] = {}
    for label, path, model, tokenizer, load, steps in models:
        if (model is None) != (tokenizer is None):
            raise UserError(f"{label}: give the loaded model together with its tokenizer, or neither")
        if model is None:
            if path is None:
                continue
            if not _is_there(path):
                missing[label] = path
                continue
            model, tokenizer = load(path)
        found = ask(model, tokenizer, [(prompt, "") for prompt in prompts], sampling, steps=steps)
        for by_label, answer in zip(answers, found, strict=True):
            by_label[label] = with_thinking(answer) if steps else answer
        del model, tokenizer
        device.free_memory()  # the next model, or the training process, needs it
    comparisons = [Comparison(*pair, missing) for pair in zip(prompts, answers, strict=True)]
    print(render_comparison(comparisons, max_chars={"Teacher": TEACHER_CHARS}))


def _is_there(path: str) -> bool:
    """Whether a path or name refers to a model."""
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.models.names import resolve

    try:
        if not Path(resolve(path)).is_dir():
            load_tokenizer(ModelConfig(model=path))
    except ModelError:
        return False
    return True
