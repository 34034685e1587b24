"""Little stories in eight languages, and letters counted one by one; the last number is the answer."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="cot_story",
    title="Stories and letters, step by step",
    modality="text",
    corpus="reasoning_sft",
    scorer=number,
    only={"task": "cot_story"},
    max_tokens=160,
    note="unseen numbers and words; for the reasoning model",
)
