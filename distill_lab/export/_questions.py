"""Twenty general questions that an exported model without a run is compared with its original on."""

from __future__ import annotations

QUESTIONS = (
    "What is photosynthesis? Answer in two sentences.",
    "Write a Python function that adds two numbers.",
    "List three uses of a paper clip.",
    "Explain what a prime number is to a ten-year-old.",
    "Translate into French: The train leaves at noon.",
    "A box holds 12 eggs. How many eggs are in 7 boxes?",
    "Write one sentence that contains the words river, bridge and morning.",
    "What is the difference between a list and a tuple in Python?",
    "Put these numbers in order, smallest first: 9, 4, 17, 2.",
    "Name the capital of Japan and one fact about it.",
    "Rewrite politely: Send me the report now.",
    "What does the SQL statement SELECT COUNT(*) FROM orders return?",
    "Give an example of a metaphor.",
    "If today is Wednesday, what day is it in ten days?",
    "Why is the sky blue? Answer in one sentence.",
    "Write a shell command that lists the five largest files in a folder.",
    "Summarize in one sentence: The meeting moved from Monday to Thursday because the room was taken.",
    "用一句话介绍长城。",
    "Is 91 a prime number? Explain briefly.",
    "Write the opening line of a story about a lighthouse.",
)
