"""Experiments: their files are valid for their recipes, what is the same is shared, and what does not fit is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from distill_lab.commands.experiment import find_recipe
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig
from distill_lab.data.records import Records
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.experiment import ExperimentResult, write_result
from distill_lab.generation.engines import complete, load_engine
from distill_lab.models.loading import load_model
from distill_lab.pipeline.experiments.arms import Arm, Options, make_arms, prompts_key, scaled, unused_students
from distill_lab.pipeline.experiments.choose import choose, models_in
from distill_lab.pipeline.experiments.cut_model import cut_model, cut_name
from distill_lab.pipeline.experiments.definition import GROUPS, names, read_experiment
from distill_lab.pipeline.experiments.sweep import _scaled as scaled_prompts  # pyright: ignore[reportPrivateUsage]
from distill_lab.pipeline.experiments.sweep import _slug, check_not_replaced, definition  # pyright: ignore[reportPrivateUsage]
from distill_lab.recipes import system1
from distill_lab.types import Prompt
from tests.helpers import ROOT, model_folder

MODELS = Path("runs/models")


def arms(name: str, preset: str = "tiny", **options: object) -> list[Arm]:
    return make_arms(read_experiment(name), Options(preset=preset, **options), find=find_recipe, models=MODELS)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("preset", ["tiny", "qwen2.5"])
@pytest.mark.parametrize("name", "abcdefg")
def test_an_experiment_fits_its_recipe(name: str, preset: str) -> None:
    made = arms(name, preset)
    assert made
    assert all(arm.config.test.path for arm in made)
    own = "tiny:" if preset == "tiny" else ("Qwen/", "alibaba-pai/")
    for arm in made:
        assert arm.config.teacher.model.startswith(own)
        assert arm.config.data.path.startswith(own)


def test_the_files_are_those_at_the_top_of_the_repository() -> None:
    assert names() == list("abcdefg")
    assert {path.name for path in (ROOT / "experiments").glob("*.yaml")} == {
        path.name for path in GROUPS.glob("*.yaml")
    }
    for path in (ROOT / "experiments").glob("*.yaml"):
        assert path.read_bytes() == (GROUPS / path.name).read_bytes()


def test_what_the_requirements_name_is_varied() -> None:
    assert [arm.config.data.split for arm in arms("a", "qwen2.5")] == ["train[:500]", "train[:2000]", "train[:8000]"]
    assert len({arm.config.test.split for arm in arms("a", "qwen2.5")}) == 1
    assert [vars(arm.config)["relabel"] for arm in arms("b", "qwen2.5")] == [False, True]
    for name in "acefg":
        assert all(vars(arm.config)["relabel"] for arm in arms(name, "qwen2.5")), f"{name}: the teacher answers"
    thresholds = [(vars(arm.config)["rv_min"], vars(arm.config)["cd_min"]) for arm in arms("d", "qwen2.5")]
    assert thresholds == [(0, 0), (0.4, 0.4), (0.7, 0.7)]
    students = ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"]
    assert [arm.config.student.model for arm in arms("e", "qwen2.5")] == students
    asked = [arm.instruction for arm in arms("f", "qwen2.5")]
    assert asked[0] == ""
    assert asked[1].startswith("Please think step by step")
    assert asked[2].startswith("First list")
    assert [arm.recipe for arm in arms("g", "qwen2.5")] == ["system1", "system2"]


def test_equal_trainings_have_one_key_across_experiments() -> None:
    keys = {name: [arm.key for arm in arms(name)] for name in "abcdefg"}
    assert len(set(keys["a"])) == 3
    assert keys["a"][1] == keys["b"][1] == keys["c"][0] == keys["g"][0]
    assert len(set(keys["f"])) == 1
    assert keys["e"][1] == keys["f"][0] == keys["g"][1]
    assert keys["e"][0] != keys["e"][1]
    assert len({key for each in keys.values() for key in each}) == 3 + 1 + 3 + 2


def test_seeds_change_the_training_and_nothing_of_the_teacher() -> None:
    first, second = arms("a", seeds=2)[:2]
    assert (first.variant, first.seed, second.seed) == (second.variant, 0, 1)
    assert second.config.train.seed == first.config.train.seed + 1
    assert second.config.sampling == first.config.sampling
    assert first.key != second.key


def test_the_engine_is_no_part_of_a_key() -> None:
    other = EngineConfig(base_url="http://host:1/v1", batch_size=3)
    assert [arm.key for arm in arms("a")] == [arm.key for arm in arms("a", engine=other)]
    assert arms("a", engine=other)[0].config.engine.batch_size == 3


def test_keys_in_engine_settings_reach_the_server_as_they_are() -> None:
    secret = EngineConfig(extra_body='{"api_key": "sk-1234567890abcdef"}')
    assert arms("a", engine=secret)[0].config.engine.extra_body == secret.extra_body


def test_no_two_names_share_a_file() -> None:
    names = ["小", "大", "RV > 0.4", "RV < 0.4", "rv 0.4", "rv-0.4", "A", "a", "..", "../x", "none"]
    found = {_slug(name) for name in names}
    assert len({name.lower() for name in found}) == len(names)
    assert not any("/" in name or set(name) == {"."} for name in found)
    assert _slug("none") == "none"
    data = DataConfig(path="prompts:outside")
    assert "/" not in prompts_key("code / text", "open", data)
    assert prompts_key("30 instructions", "open", data).startswith("30-instructions-")


@pytest.mark.parametrize(
    ("split", "share", "found"),
    [
        ("train[:1000]", 0.1, "train[0:100]"),
        ("train[90000:90200]", 0.5, "train[90000:90100]"),
        ("test[:500]", 0.001, "test[0:8]"),
        ("train[:4]", 0.5, "train[0:4]"),
        ("train[14:]", 0.5, "train[14:]"),
        ("train", 0.5, "train"),
        ("train[-100:]", 0.5, "train[-100:]"),
        ("train[:1000]", 1.0, "train[:1000]"),
    ],
)
def test_a_trial_takes_a_share_of_a_slice(split: str, share: float, found: str) -> None:
    assert scaled(split, share) == found


def test_the_users_data_are_sliced_and_tested_on_the_same_rows() -> None:
    made = arms("a", "qwen2.5", data="mine.jsonl")
    assert [arm.config.data.split for arm in made] == ["train[:500]", "train[:2000]", "train[:8000]"]
    assert {(arm.config.data.path, arm.config.test.path, arm.config.test.split) for arm in made} == {
        ("mine.jsonl", "mine.jsonl", "train[-100:]")
    }
    assert {arm.config.test.path for arm in arms("a", "qwen2.5", data="mine.jsonl", test="t.jsonl")} == {"t.jsonl"}


def test_students_of_the_user() -> None:
    assert {arm.config.student.model for arm in arms("a", "qwen2.5", students=("x/small",))} == {"x/small"}
    made = arms("e", "qwen2.5", students=("x/small", "x/large"))
    assert [(arm.variant.name, arm.config.student.model) for arm in made] == [
        ("small", "x/small"),
        ("large", "x/large"),
    ]
    made = arms("e", students=("tiny:student", "tiny:teacher"))
    assert [arm.cut for arm in made] == [None, None]
    assert unused_students(read_experiment("a").presets["qwen2.5"], ("x/small", "x/large")) == ["x/large"]
    assert unused_students(read_experiment("e").presets["qwen2.5"], ("x/small", "x/large")) == []
    with pytest.raises(UserError, match="compares students"):
        arms("e", students=("tiny:student",))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment 'z'; choose from a, b, c, d, e, f, g, all"):
        read_experiment("z")
    with pytest.raises(UserError, match=r"no preset qwen3; choose from tiny, qwen2\.5"):
        arms("a", "qwen3")
    text = (GROUPS / "a.yaml").read_text()
    (tmp_path / "x.yaml").write_text(text.replace("ordered: true", "orderly: true"))
    with pytest.raises(UserError, match=r"x.yaml: orderly"):
        read_experiment(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text(text.replace('name: "2,000 rows"', 'name: "500 rows"'))
    with pytest.raises(UserError, match="same name"):
        read_experiment(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text(text.replace("measure_budget_s: 20", "measure_budget: 20"))
    with pytest.raises(UserError, match=r"experiment x, variant 500 rows: .*measure_budget"):
        make_arms(read_experiment(str(tmp_path / "x.yaml")), Options(preset="tiny"), find=find_recipe, models=MODELS)
    with pytest.raises(UserError, match="names the recipe 'none'"):
        find_recipe("none")


@pytest.mark.parametrize("name", ["students", "Answers", "models", "all", "../x", "..", "a/b", "", "A", "a"])
def test_an_experiment_has_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    text = (GROUPS / "a.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(f'name: "{name}"\n' + text.replace("Data size", "Another"))
    with pytest.raises(UserError, match=r"cannot be called|would replace its result"):
        read_experiment(str(path))
    path.write_text(text)
    assert read_experiment(str(path)).name == "mine"
    assert read_experiment(str(GROUPS / "a.yaml")) == read_experiment("a")


def test_a_result_may_grow_and_is_not_replaced(tmp_path: Path) -> None:
    def made_of(**options: object) -> dict[str, str]:
        scale = options.get("scale", 1.0)
        assert isinstance(scale, float)
        prompts = [scaled_prompts(each, scale) for each in read_experiment("f").presets["tiny"].prompts]
        return definition(arms("f", **options), prompts)  # pyright: ignore[reportArgumentType]

    path = tmp_path / "experiment.json"
    check_not_replaced(path, "tiny", made_of())
    first = ExperimentResult(
        name="f", title="", question="", axis="", ordered=False, shows=(), preset="tiny", setup=(), seeds=1, variants=(),
        differences=(), conclusion=(), next_steps=(), notes=(), examples=(), answers={}, definition=made_of(),
    )  # fmt: skip
    write_result(path, first)
    for more in ({}, {"seeds": 3}, {"judge": "tiny:student"}):
        check_not_replaced(path, "tiny", made_of(**more))
    check_not_replaced(path, "tiny", made_of() | {"the variant another": "x"})
    with pytest.raises(UserError, match=r"with the preset tiny, and would be replaced; give another folder \(--run\)"):
        check_not_replaced(path, "qwen2.5", made_of())
    for other in ({"scale": 0.02}, {"students": ("x/y",)}):
        with pytest.raises(UserError, match=r"with other settings \(the variant none\)"):
            check_not_replaced(path, "tiny", made_of(**other))
    asked = {**made_of(), "the variant facts first": "another instruction"}
    with pytest.raises(UserError, match="the variant facts first"):
        check_not_replaced(path, "tiny", asked)


def test_a_package_that_a_recipe_needs_is_named_and_not_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "distill_lab.recipes.draft", raising=False)
    monkeypatch.setitem(sys.modules, "distill_lab.pipeline.draft_stages", None)
    with pytest.raises(ModuleNotFoundError, match="draft_stages"):
        find_recipe("draft")


def test_the_preset_follows_from_the_models(tmp_path: Path) -> None:
    presets = system1.PRESETS
    assert choose(Options(preset="auto", teacher="tiny:teacher"), models="", presets=presets)[0].preset == "tiny"
    assert choose(Options(preset="auto", students=("x/y",)), models="", presets=presets)[0].preset == "qwen2.5"
    if not torch.cuda.is_available():
        assert choose(Options(preset="auto"), models="", presets=presets)[0].preset == "tiny"
    for size, name in ((100, "small"), (3000, "large"), (1000, "middle")):
        model_folder(tmp_path / name, b"w" * size)
    found, _ = choose(Options(preset="real"), models=str(tmp_path), presets=presets)
    assert (found.preset, Path(found.teacher).name) == ("qwen2.5", "large")
    assert [Path(name).name for name in found.students] == ["small", "middle"]
    for options, models in ((Options(preset="real"), ""), (Options(preset="tiny"), str(tmp_path))):
        with pytest.raises(UserError, match="go together"):
            choose(options, models=models, presets=presets)
    with pytest.raises(UserError, match="fewer than two"):
        models_in(tmp_path / "small")


def test_a_student_without_some_layers_is_the_rest_of_the_model(tmp_path: Path) -> None:
    out = tmp_path / cut_name("tiny:teacher", (0, 4, 9))
    assert out.name == "tiny-teacher-layers-0-4-9"
    source = ModelConfig(model="tiny:teacher", dtype="fp32")
    cut_model(source, (0, 4, 9), out)
    whole, _ = load_model(source)
    made, _ = load_model(ModelConfig(model=str(out), dtype="fp32"))
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
    weights, kept = whole.state_dict(), made.state_dict()
    for place, number in enumerate((0, 4, 9)):
        name = "layers.{}.mlp.up_proj.weight"
        found = next(value for key, value in kept.items() if key.endswith(name.format(place)))
        wanted = next(value for key, value in weights.items() if key.endswith(name.format(number)))
        assert torch.equal(found.float(), wanted.float())
    engine = load_engine(ModelConfig(model=str(out)), EngineConfig(engine="transformers"))
    (answer,) = complete(
        engine, [Prompt("p", [{"role": "user", "content": "Hello"}])], SamplingConfig(max_new_tokens=4)
    )
    assert answer.num_tokens >= 1
    before = (out / "config.json").stat().st_mtime_ns
    cut_model(source, (0, 4, 9), out)
    assert (out / "config.json").stat().st_mtime_ns == before
    for layers in ((0, 10), (0, 0)):
        with pytest.raises(ModelError, match="layers 0 to 9"):
            cut_model(source, layers, tmp_path / "other")


def test_traces_of_the_tiny_family_have_levels_and_share_the_problems_splits() -> None:
    from distill_lab.config import DataConfig
    from distill_lab.data.traces import read_traces, reason_against
    from distill_lab.tiny.tasks import rows

    found = list(Records(DataConfig(path="tiny:traces", split="distill[:200]")))
    problems = list(Records(DataConfig(path="tiny:problems", split="distill[:200]")))
    assert [record.prompt.messages for record in found] == [record.prompt.messages for record in problems]
    kept = dict.fromkeys((0.0, 0.4, 0.7), 0)
    for row, _ in zip(rows("traces", "distill"), range(200), strict=False):
        (trace,) = read_traces(row)[1]
        for threshold in kept:
            kept[threshold] += reason_against(trace, rv_min=threshold, cd_min=threshold) is None
    assert kept[0.0] == 200 > kept[0.4] > kept[0.7] > 20
