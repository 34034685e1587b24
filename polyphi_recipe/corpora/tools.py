"""Function calling by template: two tools in the system message, a request, and the call as JSON between two control
tokens. The test split has held-out arguments, each tool equally often, and requests that no tool fits."""

from collections.abc import Iterator
from functools import partial
from itertools import count, cycle
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.dedup.dedup import EXACT, deduplicate
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, origin
from polyphi_recipe.synthetic.calls import TOOLS, call


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        turns = cycle([None] if split == "train" else [*sorted(TOOLS), ""])
        for i, tool in zip(count(), turns, strict=False):
            conversation = call(rng, split, tool)
            messages = (
                Message.system("You may call tools.", conversation.tools),
                Message.user(conversation.question),
                Message.assistant(conversation.answer),
            )
            meta = {"task": "tool_call", "language": "en", "tool": conversation.tool}
            yield Sample(f"tools-{split}-{i:06d}", messages, meta=meta, **origin("polyphi"))

    yield from fill(work, "tools", make)


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "tools",
    build,
    steps=against("tools", ways=("quoted",)),
    across=(partial(deduplicate, EXACT),),
    spare=1.5,
)
