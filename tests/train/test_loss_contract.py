"""The contracts of a loss: each field of a batch has a reader, objectives are files, metrics are sums to be divided."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.planning.preflight import check_training
from distill_lab.run import fingerprint
from distill_lab.train import loss_module, objectives
from distill_lab.train.objectives import (
    ChunkLoss,
    ChunkTargets,
    Head,
    LossBatch,
    LossOutput,
    cross_entropy,
    load_objective,
    objective_names,
    over_chunks,
)
from distill_lab.train.objectives._contract import READERS
from distill_lab.train.packing import Row, collate
from distill_lab.train.student import train_student, training_inputs
from tests.helpers import CROSS_ENTROPY, IN_THREE_PARTS, PACKAGE, limited, toy_rows, train_with
from tests.train.test_packing import build, rows

pytestmark = pytest.mark.slow

KNOWN = [
    "acceptance", "chunk_likelihood", "cross_entropy", "entropy_aware", "forward_kl", "jsd", "reverse_kl",
    "sampled_reverse_kl", "skew_kl", "skew_reverse_kl",
]  # fmt: skip

TOY = """
from typing import Annotated

from pydantic import Field

from distill_lab.train.objectives import ChunkLoss, cross_entropy


def chunk_loss(logits_CV, targets, *, weight: Annotated[float, Field(gt=0)] = 1.0, unused: float = 0.0) -> ChunkLoss:
    loss = cross_entropy.chunk_loss(logits_CV, targets)
    return ChunkLoss(weight * loss.total, weight * loss.grad_CV, {"nats": loss.total})
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One new file in the folder of objectives."""
    folder = tmp_path / "more objectives"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    (folder / "_shared.py").write_text("")
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(folder)])
    yield "toy"
    sys.modules.pop("distill_lab.train.objectives.toy", None)


@dataclass(frozen=True)
class WithTeacherIds(LossBatch):
    teacher_ids_NK: torch.Tensor | None = None


def a_batch(*, flat: bool = False) -> LossBatch:
    _, packed = rows(5)
    return collate([packed[:2], packed[2:]], flat=flat)


def test_a_field_without_a_reader_is_refused() -> None:
    batch, ids = a_batch(), torch.zeros(3, 2, dtype=torch.int64)
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    with pytest.raises(TypeError, match="teacher_ids_NK"):
        LossBatch(**values, teacher_ids_NK=ids)  # pyright: ignore[reportCallIssue]
    model = build("qwen3")
    loss_module.install(model, CROSS_ENTROPY)
    seen: list[Any] = []
    model.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with pytest.raises(TypeError, match="nobody reads teacher_ids_NK of WithTeacherIds"):
        model(WithTeacherIds(**values, teacher_ids_NK=ids))
    assert not seen
    # Nor does a batch take in what was never declared.
    with pytest.raises((AttributeError, TypeError)):
        batch.teacher_ids_NK = ids  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("flat", [False, True])
def test_each_field_has_one_reader_who_reads_it(flat: bool) -> None:
    assert READERS.keys() == {each.name for each in fields(LossBatch)}
    batch = a_batch(flat=flat)
    model = build("qwen3")
    to_decoder: dict[str, Any] = {}
    to_objective: list[tuple[torch.Tensor, Head, LossBatch]] = []

    def objective(hidden_NH: torch.Tensor, head: Head, batch: LossBatch) -> LossOutput:
        to_objective.append((hidden_NH, head, batch))
        return CROSS_ENTROPY(hidden_NH, head, batch)

    loss_module.install(model, objective)
    model.model.register_forward_pre_hook(
        lambda module, inputs, settings: to_decoder.update(settings), with_kwargs=True
    )
    expected = model(batch, head_grad_scale=0.25)
    [(hidden_NH, head, seen)] = to_objective
    # A teacher keys on rows, and its targets reach the objective: the batch comes whole.
    assert seen is batch
    assert head.grad_scale == 0.25
    assert len(hidden_NH) == len(batch.loss_positions_N) == len(batch.labels_N)
    boundaries = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"} if flat else set()
    assert to_decoder.keys() == {"input_ids", "position_ids", "use_cache"} | boundaries
    assert to_decoder["use_cache"] is False
    for name, change in (
        ("input_ids_BW", lambda ids: ids % 50),
        ("position_ids_BW", lambda ids: 3 * ids),
        ("loss_positions_N", lambda places: places.flip(0)),
        ("labels_N", lambda ids: ids.flip(0)),
    ):
        changed = dataclasses.replace(batch, **{name: change(getattr(batch, name))})
        assert model(changed).total.item() != pytest.approx(expected.total.item(), rel=1e-6), name


def test_rows_keep_their_ids_through_collation() -> None:
    encoded, packed = rows(6)
    ids = [row.id for row in packed]
    assert len(set(ids)) == 6
    assert [row.id for row in map(Row.from_encoded, encoded)] == ids
    bins = [[packed[3], packed[0]], [packed[5]]]
    for flat in (False, True):
        batch = collate(bins, flat=flat)
        assert batch.row_ids_R == (ids[3], ids[0], ids[5])
        # What is stored for each row in its own order concatenates to the loss positions.
        expected = [row.target[row.loss_mask] for bin_ in bins for row in bin_]
        assert batch.labels_N.tolist() == [token for each in expected for token in each.tolist()]
    assert collate([]).row_ids_R == ()
    # Another mask, another last token: another row.
    row = packed[0]
    mask, target = row.loss_mask.copy(), row.target.copy()
    mask[0], target[-1] = ~mask[0], 99 - target[-1]
    assert len({row.id, Row(row.input_ids, row.target, mask).id, Row(row.input_ids, target, row.loss_mask).id}) == 3


def test_a_batch_moves_whole() -> None:
    batch = dataclasses.replace(a_batch(flat=True), targets=None).to("meta")
    tensors = [value for each in fields(batch) if isinstance(value := getattr(batch, each.name), torch.Tensor)]
    assert len(tensors) == 5
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.row_ids_R == a_batch(flat=True).row_ids_R


def test_a_teachers_targets_reach_each_chunk_in_its_place() -> None:
    """Soft targets of 3 ids a position, whose cross-entropy is torch's own."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(37, 16, generator=generator).requires_grad_()
    weight_VH = torch.randn(101, 16, generator=generator).requires_grad_()
    probs_NV = torch.randn(37, 101, generator=generator).softmax(-1)
    parts: list[slice] = []

    class Teacher:
        num_ids = None

        def at(self, part: slice) -> torch.Tensor:
            parts.append(part)
            return probs_NV[part]

    def chunk_loss(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
        assert isinstance(targets.signal, torch.Tensor)
        log_probs_CV = logits_CV.log_softmax(-1)
        entropy = -(log_probs_CV.exp() * log_probs_CV).sum()
        total = -(targets.signal * log_probs_CV).sum()
        return ChunkLoss(total, log_probs_CV.exp() - targets.signal, {"entropy": entropy})

    linear = torch.nn.Linear(16, 101, bias=False)
    linear.weight = torch.nn.Parameter(weight_VH.detach().clone())
    batch = dataclasses.replace(a_batch(), labels_N=torch.zeros(37, dtype=torch.int64), targets=Teacher())
    output = over_chunks(chunk_loss)(hidden_NH, Head(linear), batch)
    logits_NV = hidden_NH @ weight_VH.T
    expected = torch.nn.functional.cross_entropy(logits_NV, probs_NV, reduction="sum")
    torch.testing.assert_close(output.total, expected)
    wanted = torch.autograd.grad(expected, (hidden_NH, weight_VH), retain_graph=True)
    for found, right in zip(torch.autograd.grad(output.total, (hidden_NH, linear.weight)), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    probs = logits_NV.softmax(-1)
    torch.testing.assert_close(output.metrics["entropy"], -(probs * probs.log()).sum().detach(), rtol=1e-5, atol=1e-5)
    assert not output.metrics["entropy"].requires_grad
    assert [(part.start, min(part.stop, 37)) for part in parts] == [(0, 37)]


def test_objectives_are_the_files_of_their_folder(toy: str) -> None:
    assert objective_names() == sorted([*KNOWN, toy])
    for name in ("kl", "_chunked_head", "_shared", "__init__", "os"):
        with pytest.raises(UserError, match=rf"no objective '{name}'; there are {', '.join(sorted([*KNOWN, toy]))}"):
            load_objective(name)
    with pytest.raises(UserError, match=r"toy: no setting beta; it has weight, unused"):
        load_objective(toy, ["beta=1.0"])
    with pytest.raises(UserError, match=r"cross_entropy: no setting weight; it has none"):
        load_objective("cross_entropy", ["weight=1.0"])
    with pytest.raises(UserError, match=r"toy: weight: .*greater than 0"):
        load_objective(toy, ["weight=-1.0"])


def test_settings_of_an_objective_are_numbers_by_name() -> None:
    for given in (["b=0.5", "a=1"], {"a": 1, "b": 0.5}, ("a=1.00", "b=5e-1")):
        assert TrainConfig.model_validate({"objective_settings": given}).objective_settings == ("a=1.0", "b=0.5")
    for wrong in (["a"], ["a=x"], {"a": None}, ["a=1", "a=2"]):
        with pytest.raises(ValidationError, match="objective_settings: a"):
            TrainConfig.model_validate({"objective_settings": wrong})


def test_an_unknown_objective_stops_before_anything_is_loaded(tmp_path: Path) -> None:
    for processes in (1, 2):
        config = TrainConfig(objective="kl", num_processes=processes)
        with pytest.raises(UserError, match=rf"no objective 'kl'; there are {', '.join(KNOWN)}"):
            train_student(ModelConfig(model="no/such"), tmp_path / "no rows", tmp_path / "student", config)
        with pytest.raises(UserError, match="no objective 'kl'"):
            check_training(ModelConfig(model="tiny:student"), config)
    assert not list(tmp_path.iterdir())


def test_the_objective_is_in_the_key_and_the_default_one_leaves_old_keys_valid(tmp_path: Path) -> None:
    student = ModelConfig(model="tiny:student")
    write_jsonl(tmp_path / "rows.jsonl", toy_rows(12))

    def key(**settings: Any) -> str:
        config = TrainConfig(max_steps=1, **settings)
        sent = TrainConfig(**json.loads(json.dumps(config.model_dump())))  # to other processes
        assert (sent.objective, sent.objective_settings) == (config.objective, config.objective_settings)
        return fingerprint(training_inputs(student, tmp_path / "rows.jsonl", config, thinking=None))

    before = TrainConfig().model_dump()
    assert not {"objective", "objective_settings"} & before.keys()
    assert key() == key(objective="cross_entropy")
    keys = [key(), key(objective="toy"), key(objective="toy", objective_settings=("weight=2.0",))]
    assert len(set(keys)) == 3


def test_a_new_objective_is_one_file_and_changing_it_trains_again(
    toy: str, tmp_path: Path, random_model: Callable[..., Path]
) -> None:
    student = ModelConfig(model=str(random_model(hidden=32, layers=1)))
    write_jsonl(tmp_path / "rows.jsonl", toy_rows())

    def train(**settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        logs: list[dict[str, Any]] = []
        config = IN_THREE_PARTS.model_copy(update=settings)
        train_student(
            student, tmp_path / "rows.jsonl", tmp_path / "student", config, on_log=logs.append,
            log_file=tmp_path / "log.jsonl",
        )  # fmt: skip
        return [row for row in logs if "loss" in row], list(read_jsonl(tmp_path / "log.jsonl"))

    plain, _ = train(max_steps=2)
    assert not any("metrics" in row for row in plain)
    toys = {"objective": toy, "objective_settings": ("weight=2.0",), "save_steps": 100}
    for logging_steps, steps in ((1, [1, 2]), (2, [1, *range(2, 21, 2)])):
        shown, written = train(max_steps=steps[-1], logging_steps=logging_steps, **toys)
        assert [row["step"] for row in shown] == steps
        for row, line in zip(shown, written, strict=True):
            assert row["metrics"] == line["metrics"]
            assert row["metrics"]["nats"] == pytest.approx(row["loss"] / 2, rel=1e-5)
            assert row.keys() == line.keys() - {"seconds"} | {"num_steps"}
    assert shown[0]["loss"] == pytest.approx(2 * plain[0]["loss"], rel=1e-5)


def test_metrics_of_a_step_that_is_computed_again_count_once(tmp_path: Path, random_model: Callable[..., Path]) -> None:
    def chunk_loss(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
        loss = cross_entropy.chunk_loss(logits_CV, targets)
        return loss._replace(metrics={"nats": loss.total, "positions": loss.total.new_tensor(len(logits_CV))})

    counted = over_chunks(chunk_loss)
    student = random_model(hidden=32, layers=1)
    for backward in (False, True):
        limit = limited(60, calls=[], backward=backward)

        def objective(hidden_NH: torch.Tensor, head: Head, batch: LossBatch, limit: Any = limit) -> LossOutput:
            total = limit(hidden_NH, head, batch).total
            return counted(hidden_NH.detach(), dataclasses.replace(head, grad_scale=None), batch)._replace(total=total)

        _, logs = train_with(objective, student, tmp_path / str(backward), IN_THREE_PARTS)
        assert sum("out of memory" in row.get("note", "") for row in logs) >= 1
        lines = [row for row in logs if "loss" in row]
        assert lines
        for row in lines:
            assert row["metrics"]["nats"] == pytest.approx(row["loss"], rel=1e-5)
            assert row["metrics"]["positions"] == pytest.approx(1.0, rel=1e-6)


def test_objectives_import_nothing_that_stands_above_them() -> None:
    for path in sorted((PACKAGE / "train" / "objectives").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("distill_lab.train."):
                assert module.split(".")[2] in ("objectives", "gradients"), f"{path.name} imports {module}"
