"""What two different tokenizers agree on in the training set: rows -> agreement.json and a table in the notes.

found = tokenizer_agreement(pipeline, student, rows, train, thinking=False)     None if the objective needs one tokenizer
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_json
from distill_lab.generation.model_identity import model_inputs
from distill_lab.pipeline.stages import Pipeline
from distill_lab.train.agreement import Agreement, agreement_lines
from distill_lab.types import Counts

MIN_SHARE = 0.5
"""Share of the trained tokens that should be compared; below it a note says so."""


def tokenizer_agreement(
    pipeline: Pipeline, student: ModelConfig, rows: Path, train: TrainConfig, *, thinking: bool | None
) -> Agreement | None:
    """The table of a training with these settings, before the first step. Raises NoData if nothing can be compared."""
    from distill_lab.train.teachers import reads_other_tokens

    if not reads_other_tokens(train.objective):
        return None

    def work(path: Path) -> Counts:
        from distill_lab.models.loading import load_tokenizer
        from distill_lab.train.aligned_teacher import make_pairing
        from distill_lab.train.paired_rows import read_paired_rows

        tokenizer = load_tokenizer(student)
        pairing = make_pairing(train.teacher, tokenizer, student_name=student.model, thinking=thinking)
        data = read_paired_rows(
            rows, tokenizer, pairing, max_length=train.max_length, validation_fraction=0, seed=train.seed
        )
        write_json(path, asdict(pairing.agreement()))
        return Counts(data.num_rows + sum(data.dropped.values()), data.num_rows, data.dropped)

    inputs = {"rows": rows, "max_length": train.max_length, "thinking": thinking}
    inputs |= {"teacher": model_inputs(train.teacher), "student": model_inputs(student)}
    path = pipeline.run.stage("tokenizer agreement", "agreement.json", inputs=inputs, work=work).path
    try:
        found = TypeAdapter(Agreement).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{path} is missing or damaged; remove it and give the same command again") from None
    pipeline.tell("\n".join(agreement_lines(found)))
    if found.compared_share < MIN_SHARE:
        pipeline.warn(
            f"warning: only {found.compared_share:.0%} of the trained tokens can be compared with the teacher; the student "
            "learns little from the others (--ce-weight trains them on the answers), or choose another teacher"
        )
    return found
