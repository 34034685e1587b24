"""What this machine can run, and how to fix what is missing or slow: `polyphi doctor`.

>>> report = inspect()                           # some seconds
>>> report.chat_runs, [f.cure for f in report.findings if f.state != "ok"]

| | |
|---|---|
| `report` | all findings of this machine |
| `checks` | the functions that judge facts and say how to fix them |
| `findings` | a result with its state and cure; removing secrets and personal paths |
| `probe` | everything that needs torch, in a child process, which may fail or crash |
| `published` | the published models: memory, and the context that fits |

Only modules that run in the child process import torch.
"""
