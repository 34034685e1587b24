"""What this machine can run, and the cure of everything that is missing or slow: `polyphi doctor`.

>>> report = inspect()                           # some seconds
>>> report.chat_runs, [f.cure for f in report.findings if f.state != "ok"]

| | |
|---|---|
| `checks` | the table of checks: section, the function that judges and advises, and its facts |
| `findings` | a result with its state and cure; removing secrets and personal paths |
| `hardware` | CPU, threads, memory, GPUs |
| `published` | the published models: memory, context that fits, tokens per second at most |
| `rates` | measured rates of matrix products, of memory and of decoding |
| `probe` | everything that needs torch, in a child process, which may fail or crash |
| `software` | packages, extras, programs, environment variables |
| `storage` | caches and free disk space |
| `report` | all findings of this machine |

Only modules that run in the child process import torch.
"""
