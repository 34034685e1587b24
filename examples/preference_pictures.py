"""Preference pairs about pictures (DPO): of two answers to a question the model learns to prefer the better one.

    polyphi train examples/preference_pictures.py --data pairs.jsonl --out runs/pairs
    polyphi chat runs/pairs/model --image receipt.jpg "What is the total?"

A line of pairs.jsonl:
{"image": "receipt.jpg", "question": "What is the total?", "answer": "12.40", "rejected": "The total is 124.00."}.
TRL's rows of `prompt`, `chosen` and `rejected` with `images` are read as well.

The reference is the model at the start, whose log-probabilities of all answers are computed before the first step: no
second copy of the weights is in memory. With --base int4 it is the quantized model.

Expect: the loss begins at 0.69 plus 0.2 times chosen_nll. In runs/pairs/metrics.jsonl accuracy rises within the first
hundred steps towards 1, and margin, which is chosen_reward - rejected_reward, grows from 0. 500 pairs are a good
start. If chosen_reward falls far below 0 as well, use a larger `nll` or a smaller --lr-factor.
"""

from polyphi.train.preference import DPO
from polyphi.train.stage import Mix, Schedule, Stage

stage = Stage(
    name="pairs",
    start={"*": "hf:microsoft/Phi-4-multimodal-instruct"},  # --model takes its place
    # a tenth of the rate of examples/finetune_vision.py [ours]: DPO compares whole answers and needs smaller steps
    trainable={"decoder.*.lora.vision.*": 5e-6},
    data=Mix({"pairs": 1}),
    objective=DPO(beta=0.1, nll=0.2, max_crops=16),
    schedule=Schedule(warmup=0.1, decay="linear"),
    context=8192,  # of each of the two rows of a pair
    batch_tokens=65_536,
    steps=200,
)
