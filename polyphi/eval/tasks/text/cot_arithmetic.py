"""Sums, differences, products, chains and comparisons, worked step by step; the last number is the answer."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="cot_arithmetic",
    title="Sums worked step by step",
    modality="text",
    corpus="reasoning_sft",
    scorer=number,
    only={"task": "cot_arithmetic"},
    max_tokens=160,
    note="unseen operands of up to four digits; for the reasoning model",
)
