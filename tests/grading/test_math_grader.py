"""The mathematics grader: equal and unequal formulas, hostile ones that are stopped, its process, real gold answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from distill_lab.errors import UserError
from distill_lab.grading.graders import load_grader
from distill_lab.grading.graders import math as math_grader
from distill_lab.grading.graders._process import Helper
from distill_lab.grading.graders.math import compare_plain, too_much, tower
from distill_lab.types import Completion, Grade, Prompt

pytestmark = pytest.mark.slow

pytest.importorskip("math_verify")


def graded(content: str, gold: str) -> Grade:
    prompt = Prompt("p-0", [{"role": "user", "content": "?"}], gold)
    return load_grader("math")(prompt, Completion("p-0", 0, content, None, "stop", 5))


def boxed(answer: str, gold: str) -> float:
    return graded(rf"So \boxed{{{answer}}}.", gold).score


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\dfrac{2}{4}", "0.5"), ("1,000", "1000"), (r"50\%", r"\frac12"), ("(x+1)^2", "x^2+2x+1"), ("ba", "ab"),
        ("c+a+b", "a+b+c"),
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"), ("134215680", "2^{27} - 2^{11}"), ("120", "5!"), ("x=4", "4"),
        ("4", "x = 4"), (r"\{2, 1\}", r"\{1,2\}"), ("-3,3", "3,-3"), (r"x \in [-9,9]", "[-9, 9]"),
        (r"(-\infty,-4)\cup(4,\infty)", r"(4,\infty)\cup(-\infty,-4)"), (r"\left(3,-1\right)", "(3,-1)"),
        (r"\begin{pmatrix} 7\\-8 \end{pmatrix}", r"\begin{pmatrix}7 \\ -8\end{pmatrix}"), ("C", r"\text{C}"),
        (r"\text{four}", r"\mbox{four}"), ("Tuesday", r"\text{tuesday}"), (r"5\text{ cm}", "5"), (r"90^\circ", "90"),
        (r"\sin^2 x + \cos^2 x", "1"), ("１２", "12"), (r"\frac12 \pi", r"\frac{\pi}{2}"), ("2^{4950}", "2^{4950}"),
    ],
)  # fmt: skip
def test_equal(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5", "-5"), ("(1,2)", "[1,2]"), ("(3,-1)", "(-1,3)"), ("1,2", "1"), ("5 \\text{ or } 6", "5"), ("B", r"\text{C}"),
        ("x^2+1", "x^2-1"), (r"\{1,2\}", r"\{1,2,3\}"), ("5", "5!"), (r"\pi", "3.14"),
        (r"\text{November 30}", r"\text{October 30}"),
        ("-x+2", "x+2"), (r"2\sqrt{3}", r"3\sqrt{2}"), ("(5,\\infty)", "5"), ("x+3", "3"),
        ("a+b", "ab"), ("x-y", "x+y"), ("a+b-c", "a+b+c"), (r"\text{five}", r"\text{four}"),
    ],
)  # fmt: skip
def test_unequal(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == 0.0


def test_without_a_statement_the_last_formula_or_number_counts() -> None:
    assert graded(r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt 2}").score == 1.0
    prose = "We look at it for a while, from all sides there are, and then we find "
    assert graded(prose + r"that $a$ is $\sqrt{8}$, as it should be.", r"2\sqrt2").score == 1.0
    assert graded(prose + "that there are 12 of them in all.", "12").score == 1.0
    assert graded(prose, "12") == Grade(0.0, None, "unparseable")


@pytest.mark.parametrize(
    ("formula", "height"),
    [
        ("x", 0),
        ("x^2", 1),
        ("x^2y^2z^2", 1),
        ("(x^2+1)^3", 1),
        ("e^{x^2}", 2),
        ("9^9^9", 2),
        ("9^{9^{9^9}}", 3),
        ("2^{3}^{4}", 2),
    ],
)
def test_tower(formula: str, height: int) -> None:
    assert tower(formula) == height


HOSTILE = [
    "9^{9^{9^{9}}}", "10**10**10", "9^9^9^9", "(" * 500 + "1" + ")" * 500, r"\sqrt{" * 300 + "2" + "}" * 300, "99999!",
    "((9!)!)!", "x+" * 5000 + "1", r"\frac{1}{" * 200 + "2" + "}" * 200, "{" * 1900, r"\binom{99999}{5000}", "2^{99999}",
    r"\sum_{k=1}^{10^{9}} k^{50}", "1" * 1500 + "+x",
]  # fmt: skip


@pytest.mark.parametrize("formula", HOSTILE, ids=lambda text: text[:16])
def test_hostile_formulas_never_reach_the_algebra(formula: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grader, "_algebra", None)
    assert graded(rf"\boxed{{{formula}}}", r"\pi").status == "unparseable"


def test_honest_formulas_do_reach_it(shared_data: Path) -> None:
    rows = json.loads((shared_data / "math/math_train_problems.json").read_text(encoding="utf-8"))
    refused = {row["answer"] for row in rows if row["answer"] and too_much(row["answer"])}
    assert refused == {"2^{4181}", "2^{4950}", "2^{2008} -2"}  # right only as the same text


SLOW = r"\boxed{\int_0^1 e^{\sin(x^x)} \cos(e^{x^2}) dx}"


def test_a_formula_that_takes_too_long_is_stopped_and_the_next_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grader, "LIMIT_S", 1.0)
    assert graded(SLOW, "x+1").status == "timeout"
    assert boxed("(x+1)^2", "x^2+2x+1") == 1.0
    assert not [child for child in psutil.Process().children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE]


def test_threads_share_it() -> None:
    pairs = [(f"{n}x + {n}", f"{n}(x+1)") for n in range(2, 10)] + [(f"{n}x", f"{n + 1}x") for n in range(2, 10)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: boxed(*pair), pairs)) == [1.0] * 8 + [0.0] * 8


def test_a_module_that_cannot_start_says_so() -> None:
    with pytest.raises(UserError, match="the grader's process failed to start: it did not start"):
        Helper("distill_lab.grading.graders._no_such_module").ask({}, limit_s=1)


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
from distill_lab.grading.graders import load_grader
from distill_lab.types import Completion, Prompt
grader = load_grader("math")
def graded(text, gold):
    return grader(Prompt("p", [], gold), Completion("p", 0, text, None, "stop", 1))
print(graded(r"\\boxed{(x+1)^2}", "x^2+2x+1").score, flush=True)
if sys.argv[1] == "interrupted":
    try:
        print(graded(sys.argv[2], "x+1"), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(graded(r"\\boxed{(x+2)^2}", "x^2+4x+4").score, flush=True)
elif sys.argv[1] == "killed":
    graded(sys.argv[2], "x+1")
"""


def start(how: str) -> subprocess.Popen[str]:
    """The program above; its first grade is read."""
    command = [sys.executable, "-c", PROGRAM, how, SLOW]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1.0\n"
    return process


def wait_until_gone(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.skipif(os.name != "posix", reason="signals")
class TestTheProcessIsGone:
    def test_after_the_end(self) -> None:
        process = start("ended")
        children = psutil.Process(process.pid).children(recursive=True)
        assert process.communicate(timeout=20)[0] == ""
        assert process.returncode == 0
        wait_until_gone(children)

    def test_after_ctrl_c_and_late_answers_are_not_taken_for_the_next(self) -> None:
        process = start("interrupted")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n1.0\n"
        wait_until_gone(children)

    def test_after_a_kill_in_the_middle_of_a_question(self) -> None:
        process = start("killed")
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=20)
        wait_until_gone(children)


def test_gold_answers_of_real_data(shared_data: Path) -> None:
    rows = json.loads((shared_data / "math/math_train_problems.json").read_text(encoding="utf-8"))
    golds = [row["answer"] for row in rows if row["answer"] and row["answer"].strip()]
    assert len(golds) == 7470
    for gold in golds:
        assert boxed(gold, gold) == 1.0, gold
        assert boxed(gold, f"Hence $\\boxed{{{gold}}}$ as claimed.") == 1.0, gold
        assert boxed(gold.replace(r"\frac", r"\dfrac").replace("{", "{ "), gold) == 1.0, gold


def test_other_gold_answers_are_refused(shared_data: Path) -> None:
    rows = json.loads((shared_data / "math/math_train_problems.json").read_text(encoding="utf-8"))
    golds = sorted({row["answer"] for row in rows if row["answer"]})
    formulas = [gold for gold in golds if compare_plain(gold, "1") is None and not too_much(gold)][::50]
    assert len(formulas) > 20
    for gold, other in pairwise(formulas):
        assert boxed(other, gold) == 0.0, (gold, other)
