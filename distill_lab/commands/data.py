"""Show what is in a data set before you spend anything on it: columns, examples, lengths, duplicates, overlap with a test.

In: a file, a folder, a Hugging Face id or tiny:TASK, as --data of every recipe. Out: text, and with --html one page. It says
which adapter reads the rows, which columns it uses and which not, shows three rows as the student will see them with what is
trained marked (in color, or between [[ and ]]), and counts rows that are too long, repeated, in the test, or spell control
tokens and thinking tags. Rows that cannot be read are counted and named.

    distill data questions.jsonl
    distill data train.parquet --student Qwen/Qwen2.5-0.5B-Instruct --max-length 2048     through the student's chat template
    distill data train.jsonl --test test.jsonl --html data.html                            pairs that overlap, as a page
    distill data openai/gsm8k:main --split "train[:1000]"
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import DataConfig

ALIASES = {"--split": ("--data.split",), "--model": ("--student",), "--adapter": ("--data.adapter",)}


class Config(settings.Config):
    """Settings of `distill data`."""

    file: tyro.conf.Positional[str] = ""
    """The data: a file, a folder, a Hugging Face id (owner/name, owner/name:configuration) or tiny:TASK."""
    data: DataConfig = DataConfig(path="")
    """How to read it: split, adapter and the other settings of --data in every recipe."""
    student: str = ""
    """A model whose chat template and tokenizer show the rows: a Hugging Face id, a directory, tiny:student."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """train.max_length: longer rows are dropped in training, and counted here."""
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking; None keeps the template's default."""
    test: DataConfig = DataConfig(path="")
    """A test set: prompts that overlap with it are counted and shown."""
    overlap_words: settings.OverlapWords = 8
    """Words in a row that count as overlap with the test, see `distill system1 --help`; 0: only the same conversations."""
    html: Path | None = None
    """Also write a page to this file (.html)."""


def main(config: Config) -> None:
    """Read the data, print what it holds and write the page."""
    from distill_lab.commands._data_text import print_profile
    from distill_lab.config import ModelConfig
    from distill_lab.data.profile import profile
    from distill_lab.errors import UserError
    from distill_lab.files.outputs import writing
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.planning.preflight import check_writable
    from distill_lab.terminal import Terminal

    path = config.file or config.data.path
    if not path:
        raise UserError("which data? give a file, a folder or a data set id: distill data questions.jsonl")
    if config.file and config.data.path and config.file != config.data.path:
        raise UserError(f"two data sets, {config.file} and {config.data.path}; give one of them")
    if config.html is not None:
        _check_page(config.html, path)
        check_writable(config.html)
    tokenizer = load_tokenizer(ModelConfig(model=config.student)) if config.student else None
    terminal = Terminal()
    terminal.stage(f"reading {path}")
    found = profile(
        config.data.model_copy(update={"path": path}),
        tokenizer=tokenizer,
        thinking=config.thinking,
        max_length=config.max_length,
        test=config.test if config.test.path else None,
        num_words=config.overlap_words,
    )
    terminal.finished("")
    print_profile(terminal, found)
    if config.html is not None:
        from distill_lab.report.data_page import write_data_page

        with writing(config.html):
            write_data_page(found, config.html)
        terminal.print(f"the page is in {config.html}")


def _check_page(page: Path, data: str) -> None:
    """Refuse to write the page over the data, or over a file that is not a page."""
    from distill_lab.errors import UserError

    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--html {page}: the name of the page must end in .html")
    if page.is_dir():
        raise UserError(f"--html {page}: this is a folder; give a file name, such as {page / 'data.html'}")
    if page.exists():
        with page.open("rb") as file:
            if b"distill data" not in file.read(600):
                raise UserError(
                    f"--html {page} already exists and is not a page of `distill data`; choose another name"
                )
