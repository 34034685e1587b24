"""Speech 2: post-training. The encoder is frozen; its projector and the speech adapter are trained, learning rate 1e-4
for 50k steps (report 2.2.2, 3.4.2).

    polyphi train speech_2_post --size nano --out runs/speech_2_post

Expected: translation, question answering, summaries and sound recognition work.
"""

from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(
    name="speech_2_post",
    start={"*": "speech_1_pretrain"},
    trainable={"audio.projector.speech.*": 1e-4, "decoder.*.lora.speech.*": 1e-4},
    data=Mix(
        {
            "asr": 28,
            "ast": 28,
            "sqa": 26,
            "speech_summary": 1,
            "audio_understanding": 17,
            "audio_safety": 1,
        }
    ),  # report 3.4.2, millions
    small=Mix(
        {
            "asr": 31,
            "ast": 21,
            "sqa": 21,
            "speech_summary": 5,
            "audio_understanding": 12,
            "audio_safety": 10,
        }
    ),  # [ours]
    objective=NextToken(),
    auxiliary={"align": 0.2},  # [ours]
    context=23_000,  # 30 minutes are 22.5k tokens (report 2.2.2)
    batch_tokens=1 << 20,
    steps=50_000,
    watch=("asr_digits", "ast_direct", "ast_cot", "fleurs_asr", "covost2"),
)
