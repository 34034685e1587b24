"""Logits -> the next token: greedy, or drawn by a seeded generator after penalties, temperature and cuts.

>>> sampler = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=1), tokenizer, prompt_ids)
>>> sampler.draw(logits)                         # the next token, taken for drawn; the next call is the next position

What a sampler does depends on its request and the logits alone: it has its own generator and takes one number from it
for each token. So an answer is the same beside other requests, and with or without guessed tokens.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyphi.chat import Grammar, SamplingParams, TokenLogprob
from polyphi.engine import structured
from polyphi.processing.tokenizer import Tokenizer

MAX_ANSWERS, MAX_LOGPROBS, MAX_DRAFT = 128, 20, 16
MAX_STOPS, MAX_STOP_LETTERS = 16, 256
MAX_TEMPERATURE, MAX_REPETITION = 100.0, 100.0
COLDEST = 1e-5
"""At this temperature and below an answer is greedy: some clients send a tiny number for 0."""
HEAD = 1024
"""Top-p first looks at so many of the likeliest tokens: sorting 200,064 of them takes far longer."""


def check(sampling: SamplingParams) -> None:
    """Raises ValueError for values that mean nothing, or that only do harm; a grammar is compiled to see if it can
    be followed."""
    s = sampling
    _whole("max_tokens", s.max_tokens, 1)
    _number("temperature", s.temperature, 0, MAX_TEMPERATURE)
    _number("top_p", s.top_p, 0, 1)
    if s.top_p == 0:
        raise ValueError("top_p must be above 0, found 0; for greedy answers set temperature=0")
    _whole("top_k", s.top_k, 0)
    _whole("seed", s.seed, -(2**63), 2**63 - 1)
    _number("min_p", s.min_p, 0, 1)
    _number("repetition_penalty", s.repetition_penalty, 1 / MAX_REPETITION, MAX_REPETITION)
    _number("presence_penalty", s.presence_penalty, -2, 2)
    _number("frequency_penalty", s.frequency_penalty, -2, 2)
    if s.logprobs is not None:
        _whole("logprobs", s.logprobs, 0, MAX_LOGPROBS)
    _whole("n", s.n, 1, MAX_ANSWERS)
    _whole("draft", s.draft, 0, MAX_DRAFT)
    if s.rope not in ("dynamic", "bound"):
        raise ValueError(f"rope must be 'dynamic' or 'bound', found {s.rope!r:.80}")
    _check_stops(s.stop)
    if s.grammar is not None:
        if not isinstance(s.grammar, Grammar) or not isinstance(s.grammar.text, str):
            raise ValueError(f"grammar must be a Grammar of text, found {s.grammar!r:.80}")
        structured.compiled(s.grammar)


def _whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    if not issubclass(type(value), Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, found {value!r:.80}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, found {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}, found {value}")


def _number(name: str, value: Any, low: float, high: float) -> None:
    if not issubclass(type(value), Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, found {value!r:.80}")
    if not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name} must be from {low:g} to {high:g}, found {value}")


def _check_stops(stops: object) -> None:
    if isinstance(stops, str):
        raise ValueError(f"stop is a list of strings, found the string {stops!r:.80} alone")
    if not isinstance(stops, tuple | list) or not all(isinstance(s, str) for s in stops):
        raise ValueError(f"stop is a list of strings, found {stops!r:.80}")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop holds at most {MAX_STOPS} strings, found {len(stops)}")
    if any(not s for s in stops):
        raise ValueError("a stop string is empty, which would end every answer before it starts")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP_LETTERS:
        raise ValueError(
            f"a stop string has at most {MAX_STOP_LETTERS} letters, found one of {longest}"
        )


class Sampler:
    """Draws one request's tokens. `plain`: the largest logit decides and nothing is to be told about it, so that
    whoever has many such requests may take the argmax of all at once and only `accept` it. `logprobs` has an entry for
    each drawn token, the end too. `finished`: the grammar allows nothing more, so the answer is whole without its end.

    Raises ValueError for values that mean nothing, for a grammar that no answer can follow, and while drawing for
    logits that are no numbers or a grammar that has grown too complex: reasons to end this request, not others.
    """

    def __init__(
        self, sampling: SamplingParams, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()
    ) -> None:
        check(sampling)
        self.sampling = sampling
        self.logprobs: list[TokenLogprob] = []
        self._greedy = sampling.temperature <= COLDEST
        self._penalised = bool(
            sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )
        self._matcher: structured.Matcher | None = None
        if sampling.grammar is not None:
            self._matcher = structured.Matcher(sampling.grammar, tokenizer)
        self.plain = (
            self._greedy
            and not self._penalised
            and self._matcher is None
            and sampling.logprobs is None
        )
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._prompt_ids = sorted(set(prompt_ids)) if self._penalised else []
        self._new: list[int] = []  # accepted, not counted yet
        self._seen: Bool[Tensor, " V"] | None = None  # tokens of prompt and answer
        self._counts: Float[Tensor, " V"] | None = None  # how often each is in the answer

    @property
    def finished(self) -> bool:
        return self._matcher is not None and self._matcher.finished

    def draw(self, logits: Float[Tensor, " V"]) -> int:
        """The next token, which is taken into the counts, the grammar and `logprobs`."""
        raw = logits.float()
        scores = self._penalise(raw) if self._penalised else raw
        if self._matcher is not None:
            scores = self._matcher.mask(scores)
        token = int(scores.argmax()) if self._greedy else self._pick(scores)
        if self.sampling.logprobs is not None:
            self.logprobs.append(_logprob(raw, token, self.sampling.logprobs))
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Takes a token as drawn; `draw` does so itself."""
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._penalised:
            self._new.append(token)

    def forced(self) -> list[int]:
        """The tokens that must come next if the grammar leaves no choice of text, as good guesses: the model may
        still spell the same text with other tokens."""
        return [] if self._matcher is None else self._matcher.forced()

    def _pick(self, scores: Float[Tensor, " V"]) -> int:
        """One number in [0, 1) chooses from the candidates in their order, each with its share."""
        probabilities, ids = candidates(scores, self.sampling)
        reached = probabilities.double().cpu().cumsum(0)
        total = float(reached[-1])
        if not 0 < total < math.inf:
            raise ValueError(
                "the model's logits are no numbers (NaN or infinite): nothing can be drawn"
            )
        at = torch.rand((), generator=self._generator, dtype=torch.float64) * total
        chosen = int(torch.searchsorted(reached, at, right=True))
        last = int(torch.searchsorted(reached, reached[-1]))  # rounding must not go past the end
        return int(ids[min(chosen, last)])

    def _penalise(self, scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(scores)
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            self._seen[self._prompt_ids] = True
        for token in self._new:
            self._counts[token] += 1
            self._seen[token] = True
        self._new.clear()
        s = self.sampling
        if s.repetition_penalty != 1:
            by = s.repetition_penalty
            weaker = torch.where(scores > 0, scores / by, scores * by)
            scores = torch.where(self._seen, weaker, scores)
        return scores - s.presence_penalty * (self._counts > 0) - s.frequency_penalty * self._counts


def candidates(
    scores: Float[Tensor, " V"], sampling: SamplingParams
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """What may be drawn: probabilities that sum to 1 and their ids; the likeliest first, equal ones by id, if there
    are cuts, and by id if there are none.

    Top-k keeps the k best; of these, top-p keeps the fewest that together reach p, the one that crosses p included;
    of these, min-p keeps those with at least that share of the best one's probability.
    """
    coldness = max(sampling.temperature, COLDEST)
    probabilities = ((scores - scores.max()) / coldness).softmax(-1)
    everything = len(probabilities)
    if sampling.top_k and sampling.top_k < everything:
        probabilities, ids = likeliest(probabilities, sampling.top_k)
        probabilities = probabilities / probabilities.sum()
    elif sampling.top_p < 1:
        whole = probabilities
        probabilities, ids = likeliest(whole, min(HEAD, everything))
        if float(probabilities.sum()) < sampling.top_p:
            probabilities, ids = likeliest(whole, everything)
    else:
        ids = torch.arange(everything, device=probabilities.device)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        kept = before < sampling.top_p
        kept[0] = True  # rounding must not leave nothing
        probabilities, ids = probabilities[kept], ids[kept]
    if sampling.min_p:
        kept = probabilities >= sampling.min_p * probabilities.max()
        probabilities, ids = probabilities[kept], ids[kept]
    return probabilities / probabilities.sum(), ids


def likeliest(
    values: Float[Tensor, " V"], count: int
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The `count` largest values and their ids, the largest first, equal ones by id."""
    if count < len(values):
        # topk alone would choose any of those that equal the least.
        ids = (values >= values.topk(count).values[-1]).nonzero()[:, 0]
        ordered, order = values[ids].sort(descending=True, stable=True)
        return ordered[:count], ids[order[:count]]
    ordered, ids = values.sort(descending=True, stable=True)
    return ordered, ids


def _logprob(logits: Float[Tensor, " V"], token: int, count: int) -> TokenLogprob:
    logs = logits.log_softmax(-1)
    if not count:
        return TokenLogprob(token, float(logs[token]))
    values, ids = likeliest(logs, min(count, len(logs)))
    return TokenLogprob(
        token, float(logs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))
    )
