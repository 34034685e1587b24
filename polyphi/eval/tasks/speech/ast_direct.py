"""Speech translation into and out of English, the translation alone."""

from polyphi.eval.scorers import bleu
from polyphi.eval.task import Task

task = Task(
    name="ast_direct",
    title="Speech translation, direct",
    modality="speech",
    corpus="ast",
    scorer=bleu,
    only={"task": "ast", "cot": False},
    metric="bleu",
    max_tokens=40,
    note="unseen voices, an unseen engine and recorded people; digit strings, numbers and words",
)
