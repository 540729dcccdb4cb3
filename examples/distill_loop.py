"""System 1 distillation in one file, for reading: a teacher answers, a student learns its answers, both are tested.

Plain torch and transformers, top to bottom: no packing, no resuming, no statistics. `distill system1` has all of that.
Of the lab only the directory of the tiny family is used; --teacher and --student take any two models that share a
tokenizer.

    python examples/distill_loop.py                          about half a minute on a CPU
    python examples/distill_loop.py --teacher DIR --student DIR --rows 2000

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import random

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lab.tiny import FAMILY

WORDS = "apple pear mango plum cat dog cow hen red green blue white hat coat shoe sock bus car boat train".split()
TASKS = ["Make this upper case: {}", "Put each word in brackets: {}", "Reverse this list: {}"]
IGNORED = -100
"""Label of tokens that are not trained: the prompt and the padding."""


def make_prompts(number, seed):
    """Different instructions, the same for the same seed."""
    draw = random.Random(seed)
    found = {}
    while len(found) < number:
        found[draw.choice(TASKS).format(", ".join(draw.sample(WORDS, 3)))] = None
    return list(found)


def prompt_ids(tokenizer, prompt):
    """The tokens of a prompt as the chat template writes them, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return tokenizer(text, add_special_tokens=False).input_ids


def padded(rows, value, side):
    """Rows of different lengths as one tensor [B, T]."""
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(rows, fill, strict=True)])


@torch.no_grad()
def answer(model, tokenizer, prompts, max_new_tokens=32, batch_size=64):
    """The model's greedy answers as token ids, each with its end token; None for an answer that was cut."""
    model.eval()
    answers = []
    for start in range(0, len(prompts), batch_size):
        rows = [prompt_ids(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        # Padding on the left: every answer begins at the same position.
        ids_BT = padded(rows, tokenizer.pad_token_id, "left")
        mask_BT = padded([[1] * len(row) for row in rows], 0, "left")
        output_BT = model.generate(
            ids_BT, attention_mask=mask_BT, max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        for new in output_BT[:, ids_BT.shape[1] :].tolist():
            end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else None
            answers.append(None if end is None else new[: end + 1])
    return answers


def train(student, tokenizer, prompts, answers, epochs, learning_rate, batch_size=32):
    """Cross-entropy on the answer's tokens alone: the student learns to write what the teacher wrote."""
    rows = [
        (prompt_ids(tokenizer, prompt), answer)
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer is not None
    ]
    steps = epochs * -(-len(rows) // batch_size)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    draw = random.Random(0)
    student.train()
    for epoch in range(epochs):
        draw.shuffle(rows)
        nats = tokens = 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            # Padding on the right: causal attention of real tokens never looks at it.
            ids_BT = padded([prompt + answer for prompt, answer in batch], tokenizer.pad_token_id, "right")
            labels_BT = padded([[IGNORED] * len(prompt) + answer for prompt, answer in batch], IGNORED, "right")
            logits_BTV = student(ids_BT, use_cache=False).logits
            # The logits at position t predict token t + 1.
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            number = int((labels_BT != IGNORED).sum())
            nats, tokens = nats + loss.item() * number, tokens + number
        print(f"epoch {epoch + 1}: {nats / tokens:.3f} nats per answer token")


def agreement(found, wanted):
    """Share of answers that equal the teacher's, token by token."""
    return sum(a is not None and a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def main(arguments=None):
    """Teacher answers -> training -> the test, before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(FAMILY / "teacher"))
    parser.add_argument("--student", default=str(FAMILY / "student"))
    parser.add_argument("--rows", type=int, default=1200, help="prompts to learn from")
    parser.add_argument("--test", type=int, default=100, help="prompts to test on; none of them is trained")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="for the tiny family; 2e-5 for Qwen")
    parser.add_argument("--out", default="", help="where the student is saved")
    args = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32)
    student = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32)
    prompts = make_prompts(args.rows + args.test, seed=0)
    training, test = prompts[args.test :], prompts[: args.test]

    print(f"the teacher answers {len(prompts)} prompts")
    answers = answer(teacher, tokenizer, prompts)
    training_answers, test_answers = answers[args.test :], answers[: args.test]
    before = agreement(answer(student, tokenizer, test), test_answers)
    train(student, tokenizer, training, training_answers, args.epochs, args.learning_rate)
    student_answers = answer(student, tokenizer, test)
    after = agreement(student_answers, test_answers)
    for prompt, wanted, found in list(zip(test, test_answers, student_answers, strict=True))[:3]:
        texts = [tokenizer.decode(ids or [], skip_special_tokens=True) for ids in (wanted, found)]
        print(f"{prompt}\n  teacher: {texts[0]}\n  student: {texts[1]}")
    print(f"answers that equal the teacher's: {before:.0%} before, {after:.0%} after, on {len(test)} unseen prompts")
    if args.out:
        student.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
    return before, after


if __name__ == "__main__":
    main()
