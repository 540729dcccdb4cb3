"""A student, a teacher and training rows for the tests of white-box distillation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_lab.config import ModelConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_tokenizer
from distill_lab.train.packing import Row
from distill_lab.train.rows import read_rows
from tests.helpers import toy_rows


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(model=str(random_model(hidden=32, layers=1)))


@pytest.fixture(scope="module")
def teacher(random_model: Callable[..., Path]) -> ModelConfig:
    """Its head has 128 rows more than the student's."""
    size = len(load_tokenizer(ModelConfig(model="tiny:teacher"))) + 128
    folder = random_model(
        hidden=64, layers=1, seed=7, tie_word_embeddings=False, initializer_range=0.2, vocab_size=size
    )
    return ModelConfig(model=str(folder), dtype="fp32")


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows(24))
    return path


@pytest.fixture(scope="module")
def rows(student: ModelConfig, rows_file: Path) -> list[Row]:
    tokenizer = load_tokenizer(student)
    return read_rows(rows_file, tokenizer, max_length=512, validation_fraction=0, seed=0).training
