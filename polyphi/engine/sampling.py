"""Logits -> the next token: greedy, or sampled by a seeded generator after penalties, temperature and truncation.

>>> sampler = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=1), tokenizer, prompt_ids)
>>> sampler.draw(logits)                         # the next token; the next call is the next position

A sampler depends on its request and the logits alone: it has its own generator and takes one number from it for each
token. So an answer is the same in any batch, and with or without draft tokens.
"""

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.decoding.grammars import MAX_CALLS
from polyphi.decoding.structured import Matcher
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.completion import TokenLogprob
from polyphi.types.sampling import Grammar, SamplingParams

MAX_ANSWERS, MAX_LOGPROBS, MAX_DRAFT = 128, 20, 16
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_BIAS, MAX_BIASED = 100.0, 1024
"""Largest absolute value in `logit_bias`, and maximum number of its tokens."""
MAX_TEMPERATURE, MAX_REPETITION = 100.0, 100.0
MIN_TEMPERATURE = 1e-5
"""Temperature up to which sampling is greedy: some clients send a tiny number for 0."""


def check(sampling: SamplingParams) -> None:
    """Raises ValueError for values out of their ranges; `SamplingParams` checks types. Whether a grammar is valid shows
    when it is compiled."""
    s = sampling
    of_prompt = s.prompt_logprobs is not None or s.embed
    _whole("max_tokens", s.max_tokens, 0 if of_prompt else 1)
    _number("temperature", s.temperature, 0.0, MAX_TEMPERATURE)
    _number("top_p", s.top_p, 0.0, 1.0)
    if s.top_p == 0:
        raise ValueError("top_p must be above 0, found 0; for greedy answers set temperature=0")
    _whole("top_k", s.top_k, 0)
    _whole("seed", s.seed, -(2**63), 2**64 - MAX_ANSWERS)  # the i-th answer's is seed + i
    _number("min_p", s.min_p, 0.0, 1.0)
    _number("repetition_penalty", s.repetition_penalty, 1 / MAX_REPETITION, MAX_REPETITION)
    _number("presence_penalty", s.presence_penalty, -2.0, 2.0)
    _number("frequency_penalty", s.frequency_penalty, -2.0, 2.0)
    if s.logprobs is not None:
        _whole("logprobs", s.logprobs, 0, MAX_LOGPROBS)
    if s.prompt_logprobs is not None:
        _whole("prompt_logprobs", s.prompt_logprobs, 0, MAX_LOGPROBS)
    _whole("n", s.n, 1, MAX_ANSWERS)
    if s.max_tokens == 0 and s.n > 1:
        raise ValueError(f"n must be 1 where max_tokens is 0, found {s.n}")
    if s.draft != "auto":
        _whole("draft", s.draft, 0, MAX_DRAFT)
    if s.stop:
        _check_stops(s.stop)
    if s.stop_token_ids:
        _check_token_ids("stop_token_ids", s.stop_token_ids, MAX_STOPS)
    _whole("min_tokens", s.min_tokens, 0)
    if s.logit_bias:
        _check_bias(s.logit_bias)
    if s.reasoning_budget is not None:
        _whole("reasoning_budget", s.reasoning_budget, 0)
        if not s.reasoning:
            raise ValueError("reasoning_budget requires reasoning=True")
    if s.reasoning and s.grammar is not None:
        raise ValueError("an answer by a grammar has no reasoning; leave one of them out")
    if s.grammar is not None:
        _check_grammar(s.grammar)


def _whole(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low:
        raise ValueError(f"{name} must be at least {low}, found {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}, found {value}")


def _number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name} must be from {low:g} to {high:g}, found {value}")


def _check_grammar(grammar: Grammar) -> None:
    if grammar.max_calls is not None:
        _whole("max_calls", grammar.max_calls, 1, MAX_CALLS)
    if grammar.alternative is not None:
        _check_grammar(grammar.alternative)


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop has at most {MAX_STOPS} strings, found {len(stops)}")
    if any(not s for s in stops):
        raise ValueError(
            "stop has an empty string, which would end every answer before it starts; leave it out"
        )
    if (longest := max(map(len, stops))) > MAX_STOP_CHARACTERS:
        raise ValueError(
            f"a stop string has at most {MAX_STOP_CHARACTERS} characters, found one of {longest}"
        )


def _check_bias(pairs: Sequence[tuple[int, float]]) -> None:
    _check_token_ids("logit_bias", [token for token, _ in pairs], MAX_BIASED)
    for _, bias in pairs:
        _number("logit_bias", bias, -MAX_BIAS, MAX_BIAS)


def _check_token_ids(name: str, ids: Sequence[int], most: int) -> None:
    if len(ids) > most:
        raise ValueError(f"{name} has at most {most} tokens, found {len(ids)}")
    for token in ids:
        _whole(name, token, 0)


class Sampler:
    """Samples one request's tokens. `plain`: the token is the argmax of the model's own logits and nothing else is
    recorded, so that the engine can compute the argmax of many such requests at once and only `accept` it. `logprobs`
    has an entry for each sampled token, the end token included. `finished`: the grammar allows no further token, so no
    end token is needed.

    Raises ValueError for invalid values, and in `draw` for a grammar that is invalid or has become too complex; that
    ends this request only. Logits must be finite; the engine checks them (`results.NotFinite`). `matcher`: the answer's
    state in the grammar of `sampling`; `draw` waits for it unless it is ready (structured.py).
    """

    def __init__(
        self,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        check(sampling)
        self.sampling = sampling
        self.logprobs: list[TokenLogprob] = []
        self._greedy = sampling.temperature <= MIN_TEMPERATURE
        self._penalised = bool(
            sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )
        assert (matcher is None) == (sampling.grammar is None), "a grammar needs its matcher"
        self._matcher = matcher
        self._biased = torch.tensor([token for token, _ in sampling.logit_bias], dtype=torch.long)
        self._biases = torch.tensor([float(bias) for _, bias in sampling.logit_bias])
        # Without a grammar, `ignore_eos` lets end tokens be sampled; nothing can follow the end of a grammar.
        self._eos_ids = list(tokenizer.eos_ids)
        self._mask_eos = sampling.ignore_eos and self._matcher is not None
        self._early_ids = list(sampling.stop_token_ids)
        if not sampling.ignore_eos or self._mask_eos:
            self._early_ids += self._eos_ids
        self.plain = (
            self._greedy
            and not self._penalised
            and not sampling.logit_bias
            and not sampling.min_tokens
            and self._matcher is None
            and sampling.logprobs is None
            and sampling.reasoning_budget is None
        )
        self._forced: deque[int] = deque()  # the next tokens, whatever the logits
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._prompt_ids = set(prompt_ids)
        self._counts: Counter[int] = Counter()  # of the sampled tokens
        self._length = 0  # sampled tokens

    @property
    def finished(self) -> bool:
        return self._matcher is not None and self._matcher.finished

    @torch.no_grad()
    def draw(self, logits: Float[Tensor, " V"]) -> int:
        """Sample the next token; updates the counts, the grammar and `logprobs`."""
        raw = logits.float()
        logits = self._bias(raw) if self.sampling.logit_bias else raw
        logits = self._penalise(logits) if self._penalised else logits
        if self._matcher is not None:
            logits = self._matcher.mask(logits)
        logits = self._without_end(logits)
        token = self._forced.popleft() if self._forced else self._choose(logits)
        if self.sampling.logprobs is not None:
            self.logprobs.append(_logprob(raw, token, self.sampling.logprobs))
        self.accept(token)
        return token

    def force(self, tokens: Sequence[int]) -> None:
        """Set the next tokens; not with a grammar, and only where `plain` is False."""
        self._forced.extend(tokens)

    def accept(self, token: int) -> None:
        """Record a sampled token; `draw` calls it itself."""
        if self._matcher is not None:
            self._matcher.accept(token)
        self._counts[token] += 1
        self._length += 1

    def _bias(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        device = logits.device
        return logits.index_add(0, self._biased.to(device), self._biases.to(device))

    def _without_end(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The logits with minus infinity for tokens that would end the answer too early, unless a grammar allows no
        others."""
        if self._length < self.sampling.min_tokens:
            ids = self._early_ids
        elif self._mask_eos:
            ids = self._eos_ids
        else:
            return logits
        masked = logits.clone()
        masked[ids] = -torch.inf
        return logits if self._matcher is not None and bool(masked.isneginf().all()) else masked

    def _choose(self, logits: Float[Tensor, " V"]) -> int:
        return int(logits.argmax()) if self._greedy else self._pick(logits)

    def _pick(self, logits: Float[Tensor, " V"]) -> int:
        """Inverse transform sampling: one number in [0, 1) selects from the cumulative probabilities."""
        probabilities, ids = candidates(logits, self.sampling)
        cumulative = probabilities.double().cpu().cumsum(0)
        total = float(cumulative[-1])
        at = torch.rand((), generator=self._generator, dtype=torch.float64) * total
        chosen = int(torch.searchsorted(cumulative, at, right=True))
        # Rounding must not exceed the end.
        last = int(torch.searchsorted(cumulative, cumulative[-1]))
        return int(ids[min(chosen, last)])

    def _penalise(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        s, logits = self.sampling, logits.clone()
        if s.repetition_penalty != 1:
            repeated = list(self._prompt_ids | self._counts.keys())
            before = logits[repeated]
            factor = torch.where(before > 0, 1 / s.repetition_penalty, s.repetition_penalty)
            logits[repeated] = before * factor
        if self._counts:
            times = torch.tensor(list(self._counts.values()), device=logits.device)
            logits[list(self._counts)] -= s.presence_penalty + s.frequency_penalty * times
        return logits


def candidates(
    logits: Float[Tensor, " V"], sampling: SamplingParams
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The tokens that may be sampled: probabilities that sum to 1 and their ids, in the order of ids.

    Top-k keeps the k likeliest, of equal ones those with the lowest ids; of these, top-p keeps the fewest that reach p
    in sum, with the one that crosses p; of these, min-p keeps those with at least that share of the largest
    probability.
    """
    temperature = max(sampling.temperature, MIN_TEMPERATURE)
    probabilities = ((logits - logits.max()) / temperature).softmax(-1)
    ids = torch.arange(len(probabilities), device=logits.device)
    if sampling.top_k or sampling.top_p < 1:
        ordered = _descending(probabilities)[: sampling.top_k or None]
        before = ordered.double().cumsum(0) - ordered
        # At least one, whatever the rounding.
        count = max(1, int((before < sampling.top_p * ordered.double().sum()).sum()))
        ids = (probabilities >= ordered[count - 1]).nonzero()[:, 0]
        if len(ids) > count:
            equal = (probabilities[ids] == ordered[count - 1]).nonzero()[:, 0]
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[equal[count - len(ids) :]] = False
            ids = ids[mask]
        probabilities = probabilities[ids]
    if sampling.min_p:
        mask = probabilities >= sampling.min_p * probabilities.max()
        probabilities, ids = probabilities[mask], ids[mask]
    return probabilities / probabilities.sum(), ids


def _descending(values: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
    """The values in descending order. On a CPU by numpy, which sorts 200,064 numbers many times faster than torch with
    AVX-512 or AVX2, and no slower without."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy())).flip(0)
    return values.sort(descending=True).values


def _logprob(logits: Float[Tensor, " V"], token: int, count: int) -> TokenLogprob:
    logs = logits.log_softmax(-1)
    ids = likeliest(logits, count)  # by logits: rounding makes some log-probabilities equal
    top = zip(ids.tolist(), logs[ids].tolist(), strict=True)
    return TokenLogprob(token, float(logs[token]), tuple(top))


def likeliest(logits: Float[Tensor, " V"], count: int) -> Int[Tensor, " n"]:
    """Ids of the `count` largest logits (or of all, if there are fewer), in descending order, equal ones by id."""
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=logits.device)
    # topk alone chooses arbitrarily among values equal to the smallest one.
    least = logits.topk(min(count, len(logits))).values[-1]
    ids = (logits >= least).nonzero()[:, 0]
    return ids[logits[ids].sort(descending=True, stable=True).indices[:count]]
