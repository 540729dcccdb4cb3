"""docs/synthesize.md: its commands run as written, on a server and the tiny family; its tables are the package's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.easydistill.config import TEXT_JOBS
from distill_lab.easydistill.text_jobs import JOBS, LocalTextInference, RowsData, ServerInference
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.synthesis.jobs import load, names
from distill_lab.pipeline.synthesis.jobs.rate import SCALES
from scripts.architecture import PACKAGE, ROOT
from tests.hostile_server import HostileServer
from tests.writing_server import sentence, write

TEXT = (ROOT / "docs" / "synthesize.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.usefixtures("openai_environment")
def test_commands_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("seeds.jsonl"), ({"instruction": f"Do this: {sentence(str(n))}."} for n in range(6)))
    write_jsonl(Path("test.jsonl"), [{"question": sentence("test")}])
    Path("texts.txt").write_text("\n".join(sentence(f"text {n}", 30) for n in range(3)), encoding="utf-8")
    Path("plain.txt").write_text("{question}", encoding="utf-8")
    commands = [line for block in BLOCKS for line in block.splitlines()]
    assert {line.split()[2] for line in commands if "synthesize" in line} == set(names())
    with HostileServer(rule=write) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for line in commands:
            program, *arguments = shlex.split(line)
            assert program == "distill"
            assert cli.main(arguments) == 0, capsys.readouterr().err
    assert len(list(read_jsonl(Path("new.jsonl")))) == 20
    assert len(list(read_jsonl(Path("short.jsonl")))) == 20
    assert len(list(read_jsonl(Path("solved.jsonl")))) == 4
    assert not Path("long.jsonl").exists()


def test_tables_name_what_there_is() -> None:
    jobs = re.findall(r"^\| `(\w+)` \|", TEXT.partition("## From")[0], re.MULTILINE)
    assert sorted(jobs) == sorted(names())
    places = TEXT.partition("| job | places |")[2].partition("\n\n")[0]
    for line in places.splitlines()[2:]:
        first, second = line.split("|")[1:3]
        for job in re.findall(r"`(\w+)`", first):
            assert set(re.findall(r"`\{(\w+)\}`", second)) == set(load(job).PLACEHOLDERS)
    ratings = TEXT.partition("| `--kind` | rating |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+_?\w*)`", ratings)) == {*SCALES, *SCALES["cot"], *SCALES["answer"]}
    easydistill = TEXT.partition("| `job_type` | is |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+_(?:api|batch))`", easydistill)) == sorted(TEXT_JOBS)
    for line in easydistill.splitlines()[2:]:
        name, job = re.findall(r"`([^`]*)`", line)[0], re.findall(r"`([^`]*)`", line)[-1]
        assert JOBS[name.rpartition("_")[0]] == job.split()[0]
    fields = TEXT.partition("| field | here |")[2].partition("\n\n")[0]
    for kind in (RowsData, ServerInference, LocalTextInference):
        for name in kind.model_fields:
            assert name in fields, name


def test_reasons_are_the_packages() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    reasons = TEXT.partition("| reason | means |")[2].partition("\n\n")[0]
    found = re.findall(r"`([^`]*)`", "".join(line.split("|")[1] for line in reasons.splitlines()[2:]))
    assert len(found) > 12
    for reason in found:
        start = re.split(r"<|NAME", reason)[0]
        assert f'"{start}' in source, reason
