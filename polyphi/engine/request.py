"""One request on its way: the sequence that the runner advances, and the text that may already be shown.

Text is shown only when it can't be taken back: whole characters, and nothing that may be the start of a stop string.
So the pieces of a stream always join to the very text that comes without streaming.
"""

from dataclasses import dataclass, field

from polyphi.chat import Completion, SamplingParams
from polyphi.engine.runner import Running
from polyphi.engine.sampling import Sampler
from polyphi.processing.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""How a byte-level decoder shows a character whose last bytes are still to come."""


class AnswerText:
    """Tokens -> text that is safe to show.

    >>> text = AnswerText(tokenizer, stop=("END",))
    >>> text.add(token)                          # what can be shown now, often ""
    >>> text.finish()                            # the rest, where no stop string came
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._undecoded: list[int] = []  # tokens whose text ends inside a character
        self._held = ""  # text that may be the start of a stop string

    def add(self, token: int) -> str:
        self._undecoded.append(token)
        text = self._tokenizer.decode(self._undecoded, skip_special=True)
        if text.endswith(UNFINISHED):
            return ""
        self._undecoded = []
        return self._show(text, last=False)

    def finish(self) -> str:
        """All that is left; a character that never became whole shows as U+FFFD."""
        text = self._tokenizer.decode(self._undecoded, skip_special=True) if self._undecoded else ""
        self._undecoded = []
        return self._show(text, last=True)

    def _show(self, text: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string begins with."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0


@dataclass
class Request:
    """A conversation being answered. `accept` takes the next token; `finish_reason` is set when it was the last."""

    sequence: Running
    sampling: SamplingParams
    tokenizer: Tokenizer
    finish_reason: str | None = None
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.sampling)
        self._text = AnswerText(self.tokenizer, self.sampling.stop)

    def accept(self, token: int) -> str:
        """Adds a drawn token; returns the text that can be shown because of it."""
        if token in self.tokenizer.eos_ids:
            self.finish_reason = "stop"
            shown = self._text.finish()
        else:
            self.sequence.tokens.append(token)
            shown = self._text.add(token)
            if not self._text.stopped and len(self.sequence.tokens) == self.sampling.max_tokens:
                shown += self._text.finish()
                self.finish_reason = "length"
        if self._text.stopped:
            self.finish_reason = "stop"
        self.pieces.append(shown)
        return shown

    def completion(self) -> Completion:
        assert self.finish_reason, "the request is still running"
        prompt = self.sequence.prompt
        return Completion(
            text="".join(self.pieces),
            tokens=tuple(self.sequence.tokens),
            finish_reason=self.finish_reason,
            adapter=prompt.adapters[0],
            prompt_tokens=len(prompt),
            image_tokens=0 if prompt.image_slots is None else len(prompt.image_slots),
            audio_tokens=0 if prompt.audio_slots is None else len(prompt.audio_slots),
            rope="+".join(self.sequence.tables),
        )
