"""`distill plan`: volume, throughput and forecast of recipes, on the tiny family and by known sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.config import DataConfig, ModelConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.planning.forecast import make_forecast
from distill_lab.planning.machine import Machine
from distill_lab.planning.throughput import Throughput
from distill_lab.planning.volume import measure_volume
from distill_lab.recipes import draft, logits, prompt, system1, system2, verified
from tests.other_tokenizer import write_teacher

pytestmark = pytest.mark.slow

LAPTOP = Machine("cpu", 16e9, 16e9, "fp32")
CARD = Machine("cuda", 80e9, 128e9, "bf16")
TEACHER, STUDENT = ModelConfig(model="tiny:teacher"), ModelConfig(model="tiny:student")


@pytest.fixture(autouse=True)
def same_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same speed on every machine: times are compared, and nothing is timed."""
    speed = Throughput(1e-3, {1: 0.01, 16: 0.02, 64: 0.05}, 1e-3)
    monkeypatch.setattr("distill_lab.planning.forecast.measure_throughput", lambda *_, **__: speed)


def own_data(folder: Path, *, rows: int = 200, words: int = 5) -> DataConfig:
    """Instructions with answers of so many words."""
    path = folder / "mine.jsonl"
    write_jsonl(
        path, ({"instruction": f"Count to {number}", "output": " ".join(["one"] * words)} for number in range(rows))
    )
    return DataConfig(path=str(path))


def test_counts_rows_tokens_and_answers_of_own_data(tmp_path: Path) -> None:
    config = system1.Config(teacher=TEACHER, student=STUDENT, data=own_data(tmp_path), relabel=True, num_test=10)
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"num_samples": 3})})
    volume = measure_volume(config, "system1")
    assert (volume.rows, volume.test_rows, volume.num_answers) == (190, 10, 570)
    assert volume.counted
    assert volume.complete
    assert volume.prompt.measured
    assert not volume.note
    assert 5 <= volume.answer.mean <= 10
    assert volume.too_long == 0


def test_rows_that_training_would_drop_are_found(tmp_path: Path) -> None:
    config = system1.Config(
        teacher=TEACHER, student=STUDENT, data=own_data(tmp_path, words=90), train=TrainConfig(max_length=64)
    )
    forecast = make_forecast("system1", config, directory=tmp_path / "run", machine=LAPTOP)
    assert forecast.volume.too_long == forecast.volume.sampled == 200
    (warning,) = [each for each in forecast.warnings if "max_length" in each]
    assert "100%" in warning
    assert "--train.max-length 256" in warning


def test_training_prompts_of_the_test_are_left_out(tmp_path: Path) -> None:
    data = own_data(tmp_path)
    test = tmp_path / "test.jsonl"
    write_jsonl(test, ({"instruction": f"Count to {number}", "output": "one"} for number in range(20)))
    volume = measure_volume(
        system1.Config(teacher=TEACHER, student=STUDENT, data=data, test=DataConfig(path=str(test))), "system1"
    )
    assert volume.overlap is not None
    assert volume.overlap.rows_in == 200
    assert volume.rows == volume.overlap.kept <= 180
    assert volume.test_rows == 20


def test_data_on_the_hub_is_not_asked_for(tmp_path: Path) -> None:
    volume = measure_volume(verified.Config(), "verified")
    assert not volume.counted
    assert "on the hub" in volume.note
    assert (volume.rows, volume.test_rows, volume.num_answers) == (2000, 500, 8000)
    assert not volume.answer.measured
    assert volume.answers_from.startswith("assumed")


def test_the_rules_of_the_prompt_recipe_are_read_by_the_teacher(tmp_path: Path) -> None:
    forecast = make_forecast("prompt", prompt.PRESETS["tiny"], directory=tmp_path, machine=LAPTOP)
    assert forecast.volume.shared_tokens > 100
    stages = {each.name: each for each in forecast.stages}
    assert stages["test of the teacher"].tokens_in > stages["test of the student"].tokens_in


@pytest.mark.parametrize("recipe", [system1, system2, verified])
def test_tiny_presets_have_every_stage_with_memory_and_time(recipe, tmp_path: Path) -> None:
    forecast = make_forecast("x", recipe.PRESETS["tiny"], directory=tmp_path, machine=LAPTOP)
    assert [each.name for each in forecast.stages] == [
        "teacher answers", "training", "test of the teacher", "test of the base student", "test of the student", "speeds"
    ]  # fmt: skip
    assert all(each.memory and each.memory.total > 0 for each in forecast.stages if each.name != "speeds")
    assert forecast.seconds
    assert forecast.seconds == pytest.approx(sum(each.seconds or 0 for each in forecast.stages))
    assert not forecast.problems
    assert forecast.peak is not None


def test_a_draft_is_proved_by_answers_of_its_target_alone(tmp_path: Path) -> None:
    forecast = make_forecast("draft", draft.PRESETS["tiny"], directory=tmp_path, machine=LAPTOP)
    assert [each.name for each in forecast.stages] == [
        "teacher answers", "training", "sampled test answers of the target", "greedy test answers of the target"
    ]  # fmt: skip


def test_what_does_not_fit_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    forecast = make_forecast("system1", system1.PRESETS["qwen2.5"], directory=tmp_path, machine=LAPTOP)
    assert any("Qwen2.5-7B" in each and "--teacher" in each for each in forecast.problems)
    assert forecast.seconds is None
    fits = make_forecast("system1", system1.PRESETS["qwen2.5"], directory=tmp_path, machine=CARD)
    assert not any("Qwen2.5-7B" in each for each in fits.problems)
    downloads = {each.role: each for each in fits.downloads}
    assert downloads["teacher"].bytes == pytest.approx(15.2e9, rel=0.02)


def test_a_server_has_tokens_but_no_time(tmp_path: Path) -> None:
    config = system1.Config(
        teacher=ModelConfig(model="openai:some"), student=ModelConfig(model="tiny:student"),
        data=own_data(tmp_path), relabel=True,
    )  # fmt: skip
    forecast = make_forecast("system1", config, directory=tmp_path, machine=LAPTOP)
    answers = forecast.stages[0]
    assert (answers.seconds, answers.how) == (None, "on a server")
    assert answers.tokens_in > 0
    assert answers.tokens_out > 0


def test_more_epochs_take_longer_and_adapters_less(tmp_path: Path) -> None:
    def seconds(**update: object) -> float:
        train = TrainConfig(num_epochs=5, tokens_per_batch=256).model_copy(update=update)
        config = system1.Config(teacher=TEACHER, student=STUDENT, data=own_data(tmp_path, rows=5000), train=train)
        forecast = make_forecast("system1", config, directory=tmp_path, machine=LAPTOP)
        return next(each.seconds or 0 for each in forecast.stages if each.name == "training")

    assert seconds(num_epochs=10.0) > 1.8 * seconds(num_epochs=5.0)
    assert seconds(max_steps=3) < seconds(num_epochs=5.0) / 5


def test_a_teacher_beside_the_student_takes_memory_and_time(tmp_path: Path) -> None:
    def training(config: system1.Config | logits.Config) -> tuple[float, float]:
        forecast = make_forecast("x", config, directory=tmp_path, machine=LAPTOP)
        stage = next(each for each in forecast.stages if each.name == "training")
        assert stage.memory is not None
        return stage.memory.total, stage.seconds or 0

    data, train = own_data(tmp_path), TrainConfig(num_epochs=3)
    alone = training(system1.Config(teacher=TEACHER, student=STUDENT, data=data, train=train))
    cached = training(logits.Config(teacher=TEACHER, student=STUDENT, data=data, train=train, cache_mode="sampled"))
    beside = training(logits.Config(teacher=TEACHER, student=STUDENT, data=data, train=train))
    assert alone[0] == cached[0] < beside[0]
    assert alone[1] < cached[1] < beside[1]


def test_choosing_rows_trains_on_their_share(tmp_path: Path) -> None:
    found = {}
    for how in ("all", "gap", "random"):
        config = logits.PRESETS["tiny"].model_copy(update={"choose_rows": how, "rows_share": 0.25, "measure": False})
        forecast = make_forecast("logits", config, directory=tmp_path / "run", machine=LAPTOP)
        [found[how]] = [stage for stage in forecast.stages if stage.name == "training"]
    assert found["gap"].tokens_in == found["random"].tokens_in == pytest.approx(0.25 * found["all"].tokens_in)
    seconds = {how: stage.seconds or 0.0 for how, stage in found.items()}
    # Teacher and student read all rows to find the gap; rows drawn at random are all that anybody reads.
    assert 0 < seconds["random"] < seconds["gap"] < seconds["all"]


def test_the_command_prints_lines_of_80_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "system1", "--preset", "tiny", "--run", "run"]) == 0
    output = capsys.readouterr().out
    assert "prompts to learn from, 500 to test on" in output
    assert "Nothing speaks against it" in output
    assert all(len(line) <= 80 for line in output.splitlines())
    assert not (tmp_path / "run").exists()


def test_two_tokenizers_are_compared_on_the_datas_own_texts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_teacher(tmp_path / "other", "untied head with more rows")
    data = own_data(tmp_path, rows=30)
    config = logits.Config(teacher=ModelConfig(model=str(other)), student=STUDENT, data=data, num_test=10)

    def lines(**changes: object) -> tuple[str, ...]:
        changed = config.model_copy(update=changes)
        return make_forecast("logits", changed, directory=tmp_path / "run", machine=LAPTOP).tokenizers

    table = lines()
    assert "have different tokenizers" in table[0]
    assert any(line.split() and "the same token for both" in line for line in table)
    assert lines(teacher=TEACHER) == lines(objective="forward_kl") == ()
    assert lines(teacher=ModelConfig(model="Qwen/Qwen2.5-7B-Instruct")) == ()
    monkeypatch.chdir(tmp_path)
    command = ["plan", "logits", "--teacher", str(other), "--student", "tiny:student", "--data", data.path]
    assert cli.main([*command, "--run", "run"]) == 0
    output = capsys.readouterr().out
    assert "\nTokenizers\n" in output
    assert "tokens in both vocabularies" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan"], "which recipe?"),
        (["plan", "train"], "train is not a recipe"),
        (["plan", "sytem1"], "did you mean system1"),
        (["plan", "system1", "--data", "/no/such.jsonl"], "/no/such.jsonl"),
    ],
)
def test_mistakes_are_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert text in capsys.readouterr().err
