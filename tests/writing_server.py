"""A rule for HostileServer: the model that jobs of data from data ask, which answers each request in the form it asks for.

Each answer is made from its request, so that a test can tell which answers belong together, and comes after a time that has
nothing to do with the order of the requests.
"""

from __future__ import annotations

import random
import time

from tests.hostile_server import Reply, Request, answer

WORDS = (
    "amber bridge copper dragon engine forest garden harbor island jacket kettle ladder marble needle orchard pepper quarry "
    "ribbon saddle temple umbrella valley window yellow zebra anchor basket candle desert echo feather glacier hammer"
).split()


def sentence(seed: str, number: int = 12) -> str:
    """Words that only depend on `seed`, and that hardly any other seed has in this order."""
    return " ".join(random.Random(seed).choices(WORDS, k=number))


def text_for(request: str) -> str:
    """What the model writes."""
    made = sentence(request)
    if "<instruction>" in request and "<response>" in request:
        return f"Here it is.\n<instruction>Say {made}</instruction>\n<response>It is {made}.</response>"
    for tag in ("instruction", "answer"):
        if f"<{tag}>" in request:
            return f"<{tag}>Say {made}</{tag}>"
    if "<type>" in request:
        return f"<type>{random.Random(request).choice(['Math', 'Law'])}</type>"
    if "Rating: N" in request:
        return "It is as it should be.\nRating: 1"
    if "<think>" in request:
        return f"<think>First {made}.\n\nThen it follows.</think>\n\nThe answer is 4."
    if "<|begin_of_thought|>" in request:
        return f"<|begin_of_thought|>{made}<|end_of_thought|><|begin_of_solution|>It is 4.<|end_of_solution|>"
    if "<reasoning>" in request:
        length = 2 if "shorter reasoning" in request else 300
        return f"<reasoning>{sentence(request, length)}. The answer is 4.</reasoning>"
    if "extend" in request or "implif" in request:
        return f"{sentence(request, 300 if 'extend' in request else 1)}. The answer is 4."
    return f"re: {request}"


def write(request: Request) -> Reply:
    """The rule."""
    time.sleep(random.Random(request.text).random() / 50)
    return Reply(body=answer(text_for(request.text)))
