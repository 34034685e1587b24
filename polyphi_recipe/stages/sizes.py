"""The table of sizes: the size of each part, the length of each stage, the number of rows of each corpus.

The trainable parameters of a stage, its data, the ratios of its mix and its peak learning rates don't change with the
size; a `Budget` scales the learning rates by one factor, because small models need larger ones. `full` is the report's
size: its budgets are those in the stage files. The other sizes are ours, measured on two CPU cores (docs/numbers.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from polyphi.model.config import (
    LONG_FACTOR,
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.train.stage import Budget, Stage
from polyphi.types.transcript import LANGUAGES

ORDER = (
    "text_1_pretrain",
    "text_2_long",
    "text_3_post",
    "text_4_align",
    "reasoning_1_pretrain",
    "reasoning_2_sft",
    "reasoning_3_dpo",
    "vision_0_encoder",
    "vision_1_align",
    "vision_2_joint",
    "vision_3_generative",
    "vision_4_multiframe",
    "speech_0_aed",
    "speech_1_pretrain",
    "speech_2_post",
    "joint_1_vision_speech",
)
"""The report's stages (2.2.2); polyphi_recipe/stages has a file for each."""
LAWS = json.loads(Path(__file__).with_name("learning_rate.json").read_text())
"""Size -> the law of text 1's peak learning rate by its length (report 2.1), as experiments/scaling.py measured it."""


@dataclass(frozen=True)
class Size:
    """A size. `vocabulary` is that of the tokenizer (0: the public o200k_base layout). `rows` has the train and test
    rows of each corpus, `sweep` the lengths in tokens of the runs for the law of text 1's peak learning rate. Stages
    use fresh samples of the corpora in `fresh` instead of epochs over their rows (data/generated.py). `languages` are
    those of questions, words and captions; documents, digits and numbers are in all eight. `late_scale` multiplies the
    numbers of samples after which corpora join a mix (`Mix.late`). `follows_law`: text 1's peak learning rate is that
    of the law measured for the size, if there is one."""

    name: str
    model: ModelConfig
    vocabulary: int = 0
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    late_scale: float = 1.0
    languages: tuple[str, ...] = tuple(LANGUAGES)
    test_rows: int = 100
    sweep: tuple[int, ...] = ()
    seconds_between_checkpoints: float = 60.0
    follows_law: bool = True

    def budget(self, stage: Stage) -> Budget:
        """The stage's budget at this size. Text 1's peak learning rate follows the law measured for the size, if there
        is one: the report's exponent, through the best rate of the longest runs."""
        budget = self.budgets.get(stage.name) or Budget(
            stage.steps, stage.batch_tokens, stage.context
        )
        if stage.name == "text_1_pretrain" and self.name in LAWS and self.follows_law:
            law = LAWS[self.name]["through"]
            peak = law["factor"] * (budget.steps * budget.batch_tokens) ** law["exponent"]
            budget = replace(budget, lr_factor=peak / max(stage.trainable.values()))
        return budget


def _small(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    kv: int,
    inner: int,
    context: int,
    longest: int,
) -> DecoderConfig:
    rotary = int(width // heads * 0.75) // 2
    every = len(LONG_FACTOR) // rotary
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        original_max_position_embeddings=context,
        max_position_embeddings=longest,
        short_factor=(1.0,) * rotary,
        long_factor=LONG_FACTOR[::every][:rotary],
    )


def _audio(width: int, inner: int, heads: int, blocks: int, stem: int) -> AudioConfig:
    return AudioConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_blocks=blocks,
        nemo_conv_channels=stem,
        ext_pw_out_channel=width,
        depthwise_separable_out_channel=width,
    )


def _adapters(rank: int) -> dict[str, AdapterConfig]:
    """Adapters with the published ratios: ranks 256 and 320, alpha twice the rank."""
    other = rank * 5 // 4
    return {
        "vision": AdapterConfig(rank, 2.0 * rank),
        "speech": AdapterConfig(other, 2.0 * other, 0.01),
    }


# fmt: off
CORPORA = (
    "documents", "code", "math", "copying", "translation", "long_documents", "instructions", "sums",
    "tools", "summaries", "fim", "preferences", "reasoning_documents", "reasoning_sft",
    "reasoning_pairs", "captions", "interleaved", "grounding", "ocr", "charts", "image_qa", "multi_image", "asr",
    "ast", "sqa", "speech_summary", "audio_understanding", "audio_safety", "vision_speech",
)
# fmt: on
FRESH = (
    "copying",
    "instructions",
    "sums",
    "captions",
    "grounding",
    "ocr",
    "charts",
    "image_qa",
    "multi_image",
)
"""[ours] Corpora whose samples are cheap to generate."""

MICRO = Size(
    name="micro",
    model=ModelConfig(
        decoder=_small(512, 48, 2, 3, 1, 96, 128, 512),
        vision=VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            crop_size=56,
        ),
        audio=_audio(32, 48, 2, 2, 8),
        adapters=_adapters(4),
    ),
    vocabulary=512,
    budgets={
        name: Budget(
            2, 512, 4096 if name == "text_2_long" else 400, lr_factor=10.0, muon_lr_factor=10.0
        )
        for name in ORDER
    },
    rows={name: (12, 4) for name in CORPORA},
    fresh=("image_qa", "instructions"),
    late_scale=0.001,
    test_rows=2,
    seconds_between_checkpoints=0.0,
    sweep=(512, 1024, 2048, 4096),
)

NANO = Size(
    name="nano",
    model=ModelConfig(
        decoder=_small(4096, 192, 6, 6, 2, 512, 1024, 8192),
        vision=VisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            crop_size=112,
        ),
        audio=_audio(144, 216, 4, 4, 48),
        adapters=_adapters(32),
    ),
    vocabulary=4096,
    budgets={
        "text_1_pretrain": Budget(800, 1600, 1024, lr_factor=2.0, muon_lr_factor=12.5),
        "text_2_long": Budget(6, 8192, 4096),
        "text_3_post": Budget(900, 1600, 1024, lr_factor=35.0, muon_lr_factor=200.0),
        "text_4_align": Budget(40, 2048, 512, lr_factor=50.0),
        "reasoning_1_pretrain": Budget(120, 1600, 1024, lr_factor=10.0, muon_lr_factor=80.0),
        "reasoning_2_sft": Budget(500, 1600, 1024, lr_factor=60.0, muon_lr_factor=500.0),
        "reasoning_3_dpo": Budget(20, 2048, 1024, lr_factor=100.0),
        "vision_0_encoder": Budget(700, 660, 256, lr_factor=100.0, muon_lr_factor=3000.0),
        "vision_1_align": Budget(120, 1024, 512, lr_factor=5.0, muon_lr_factor=40.0),
        "vision_2_joint": Budget(120, 1024, 512, lr_factor=5.0, muon_lr_factor=30.0),
        "vision_3_generative": Budget(1200, 1024, 512, lr_factor=16.0, muon_lr_factor=150.0),
        "vision_4_multiframe": Budget(500, 1024, 1024, lr_factor=18.0, muon_lr_factor=150.0),
        "speech_0_aed": Budget(3000, 600, 512, lr_factor=2.0, muon_lr_factor=10.0),
        "speech_1_pretrain": Budget(250, 1024, 512, lr_factor=10.0, muon_lr_factor=50.0),
        "speech_2_post": Budget(1100, 1024, 1024, lr_factor=15.0, muon_lr_factor=30.0),
        "joint_1_vision_speech": Budget(600, 1024, 512, lr_factor=20.0, muon_lr_factor=100.0),
    },
    rows={
        "documents": (4000, 150),
        "code": (2000, 50),
        "math": (8000, 50),
        "copying": (6000, 50),
        "translation": (6000, 50),
        "long_documents": (60, 4),
        "instructions": (24000, 1170),
        "sums": (2000, 50),
        "tools": (4000, 120),
        "summaries": (3000, 100),
        "fim": (1500, 100),
        "preferences": (8000, 240),
        "reasoning_documents": (6000, 50),
        "reasoning_sft": (12000, 150),
        "reasoning_pairs": (600, 50),
        "captions": (3000, 200),
        "interleaved": (1000, 50),
        "grounding": (500, 240),
        "ocr": (600, 360),
        "charts": (500, 400),
        "image_qa": (16000, 1500),
        "multi_image": (600, 540),
        "asr": (18000, 1200),
        "ast": (5000, 480),
        "sqa": (3000, 240),
        "speech_summary": (500, 60),
        "audio_understanding": (3000, 600),
        "audio_safety": (2500, 120),
        "vision_speech": (4000, 480),
    },
    fresh=FRESH,
    languages=("en", "fr", "de"),  # [ours] fewer, deeper
    test_rows=120,
    sweep=(52 << 10, 104 << 10, 208 << 10, 416 << 10, 1_280_000),  # up to text 1 itself
)

LAB = Size(
    name="lab",
    model=ModelConfig(
        decoder=DecoderConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=16,
            num_attention_heads=8,
            num_key_value_heads=4,
        ),
        vision=VisionConfig(
            hidden_size=384, intermediate_size=1536, num_hidden_layers=13, num_attention_heads=6
        ),
        audio=_audio(384, 576, 6, 12, 256),
        adapters=_adapters(64),
    ),
    budgets={
        "text_1_pretrain": Budget(20_000, 1 << 18, 4096, lr_factor=2.5),
        "text_2_long": Budget(400, 1 << 19, 32_768, lr_factor=3.0),
        "text_3_post": Budget(2_000, 1 << 17, 4096, lr_factor=5.0),
        "text_4_align": Budget(300, 1 << 16, 4096, lr_factor=3.0),
        "reasoning_1_pretrain": Budget(2_000, 1 << 18, 8192, lr_factor=3.0),
        "reasoning_2_sft": Budget(500, 1 << 17, 8192, lr_factor=5.0),
        "reasoning_3_dpo": Budget(200, 1 << 16, 8192, lr_factor=5.0),
        "vision_0_encoder": Budget(4_000, 1 << 15, 512, lr_factor=20.0),
        "vision_1_align": Budget(1_000, 1 << 16, 4096),
        "vision_2_joint": Budget(8_000, 1 << 17, 8192, lr_factor=2.0),
        "vision_3_generative": Budget(6_000, 1 << 17, 16_384, lr_factor=2.0),
        "vision_4_multiframe": Budget(1_000, 1 << 17, 65_536, lr_factor=2.0),
        "speech_0_aed": Budget(20_000, 1 << 14, 2048, lr_factor=0.5),
        "speech_1_pretrain": Budget(5_000, 1 << 16, 2048, lr_factor=5.0),
        "speech_2_post": Budget(5_000, 1 << 16, 23_000, lr_factor=2.0),
        "joint_1_vision_speech": Budget(1_000, 1 << 17, 16_384, lr_factor=2.0),
    },
    rows={name: (100 * train, 4 * test) for name, (train, test) in NANO.rows.items()},
    fresh=FRESH,
    late_scale=100.0,  # as the rows
    sweep=(1 << 26, 1 << 27, 1 << 28, 1 << 29),
    seconds_between_checkpoints=600.0,
)

FULL = Size(
    name="full",
    model=ModelConfig(),
    # The report's four lengths (2.1); the fifth is ours, so that they span a factor of 8.
    sweep=(12_500_000_000, 25_000_000_000, 37_500_000_000, 50_000_000_000, 100_000_000_000),
    seconds_between_checkpoints=1800.0,
)

SIZES = {size.name: size for size in (MICRO, NANO, LAB, FULL)}


def load(name: str) -> Size:
    """The size with the given name. Raises ValueError with all names for an unknown one."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; the sizes are {', '.join(SIZES)}")
    return SIZES[name]
