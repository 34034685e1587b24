"""The right call as JSON, with two tools on offer; or none where none fits."""

from polyphi.eval.scorers import json_call
from polyphi.eval.task import Task

task = Task(
    name="tool_call",
    title="Function calling",
    modality="text",
    corpus="tools",
    scorer=json_call,
    only={"task": "tool_call"},
    max_tokens=64,
    note="unseen arguments, tools equally often, some requests that no tool fits",
)
