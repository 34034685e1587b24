"""Records of a fine-tuning run while it trains: evaluations, answers to a few rows."""

from collections.abc import Callable, Iterator, Sequence

from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.finetuning.prepare import FinetunePlan
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.evaluation import SPLIT, EvalOptions
from polyphi.types.messages import Message

ANSWERED_ROWS = 3
"""Evaluation rows that the model answers at each evaluation."""
MAX_ANSWER_TOKENS = 64
"""Maximum tokens of an answer to an evaluation row."""
DEFAULT_EVALUATIONS = 10
"""Evaluations of a run without `eval_every`, before the first step not counted."""

AnswerPrompts = Callable[
    [PhiModel, Processor, Sequence[tuple[Sequence[Message], str]], int], list[str]
]
"""Returns the answers of a model to prompts, each with the name of its adapter, of at most a number of tokens. The
engine's is `polyphi.engine.greedy.greedy_answers`."""


def evaluations(plan: FinetunePlan, answer_prompts: AnswerPrompts | None) -> EvalOptions | None:
    """The evaluations of a run, None for one without evaluation rows. Each prompt is answered with the adapter that its
    corpus has in training; without `answer_prompts` none is."""
    options, processor = plan.job.finetuning, plan.job.processor
    if not options.eval_data:
        return None
    prompts = [
        (sample.prompt, plan.stage.data.adapter.get(corpus, "auto"))
        for corpus, sample in fixed_samples(plan)
    ]

    def answers(model: PhiModel) -> list[str]:
        assert answer_prompts is not None
        return answer_prompts(model, processor, prompts, MAX_ANSWER_TOKENS)

    return EvalOptions(
        list(plan.job.eval_sources),
        options.eval_every or max(1, plan.budget.steps // DEFAULT_EVALUATIONS),
        answers if answer_prompts else None,
        options.patience,
    )


def fixed_samples(plan: FinetunePlan) -> Iterator[tuple[str, Sample]]:
    """The evaluation rows whose answers are recorded, with their corpora: `ANSWERED_ROWS` of them, spread evenly over
    the rows that have a prompt within the stage's context."""
    shards = {corpus: Shards(plan.job.data / corpus / SPLIT) for corpus in plan.job.eval_sources}
    rows = [(corpus, i) for corpus, content in shards.items() for i in range(len(content))]
    number = min(ANSWERED_ROWS, len(rows))
    for corpus, i in (rows[n * len(rows) // number] for n in range(number)):
        sample = shards[corpus].sample(i)
        if sample.prompt and plan.job.processor.count(sample.prompt).total <= plan.stage.context:
            yield corpus, sample
