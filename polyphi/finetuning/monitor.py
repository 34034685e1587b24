"""Records of a fine-tuning run while it trains: evaluations, answers to a few rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.engine.cache import BLOCK, token_bytes
from polyphi.engine.engine import Engine
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.evaluation import SPLIT, EvalOptions
from polyphi.train.options import FinetuneOptions
from polyphi.train.stage import Stage
from polyphi.types.sampling import SamplingParams

ANSWERS = 3
"""Evaluation rows that the model answers at each evaluation."""
MAX_TOKENS = 64
"""Maximum tokens of an answer to an evaluation row."""
EVALUATIONS = 10
"""Evaluations of a run without `eval_every`, before the first step not counted."""


def evaluations(
    options: FinetuneOptions,
    stage: Stage,
    steps: int,
    corpora: Sequence[str],
    data: Path,
    processor: Processor,
) -> EvalOptions | None:
    """The loop's evaluations of `corpora` in the folder `data`, None for a run without any."""
    if not options.eval_data:
        return None
    chosen = list(fixed_samples(stage, corpora, data, processor))
    every = options.eval_every or max(1, steps // EVALUATIONS)
    return EvalOptions(corpora, every, answers(stage, chosen, processor), options.patience)


def fixed_samples(
    stage: Stage, corpora: Sequence[str], data: Path, processor: Processor
) -> Iterator[tuple[str, Sample]]:
    """The evaluation rows whose answers are recorded, with their corpora: ANSWERS of them, spread evenly over the rows
    that have a prompt within the stage's context."""
    shards = {corpus: Shards(data / corpus / SPLIT) for corpus in corpora}
    rows = [(corpus, i) for corpus, content in shards.items() for i in range(len(content))]
    for number in range(min(ANSWERS, len(rows))):
        corpus, i = rows[number * len(rows) // ANSWERS if len(rows) > ANSWERS else number]
        sample = shards[corpus].sample(i)
        if sample.prompt and processor.count(sample.prompt).total <= stage.context:
            yield corpus, sample


def answers(
    stage: Stage, samples: Sequence[tuple[str, Sample]], processor: Processor
) -> Callable[[PhiModel], list[str]]:
    """A function of a model that returns its greedy answers to the samples' prompts, each with the adapter that its
    corpus has in training."""
    adapters: Mapping[str, str] = stage.data.adapter
    longest = max([processor.count(s.prompt).total for _, s in samples], default=0) + MAX_TOKENS

    def answer(model: PhiModel) -> list[str]:
        memory = (
            (longest // BLOCK + 2) * BLOCK * token_bytes(model.config.decoder, model.decoder.dtype)
        )
        engine = Engine(model, processor, memory=memory, max_num_seqs=1, prefix_cache=False)
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        return [
            engine.generate(
                sample.prompt, sampling=sampling, adapter=adapters.get(corpus, "auto")
            ).text
            for corpus, sample in samples
        ]

    return answer
