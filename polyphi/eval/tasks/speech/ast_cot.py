"""Speech translation by chain of thought: the transcript first, then the translation, which alone is judged."""

from polyphi.eval.scorers import bleu
from polyphi.eval.task import Task

task = Task(
    name="ast_cot",
    title="Speech translation, chain of thought",
    modality="speech",
    corpus="ast",
    scorer=bleu,
    only={"task": "ast", "cot": True},
    metric="bleu",
    max_tokens=80,
    note="the clips of ast_direct",
)
