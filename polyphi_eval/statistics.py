"""Scores of samples -> a corpus-level number with a 95 % interval.

>>> measure("accuracy", np.array([[1.0, 1.0], [0.0, 1.0]]), seed=0)
(0.5, 0.0945..., 0.9054...)

Every metric is a function of sums over samples: `vector` returns a sample's summands, `rates` the metric of their sums.
So a bootstrap only draws counts of samples.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from polyphi_eval.benchmark import Score
from polyphi_eval.scorers import BLEU_ORDERS, BLEU_PARTS

RESAMPLES = 2000
MIN_SAMPLES = 20
"""A bootstrap over fewer gives no valid 95 % interval."""
Z = 1.959964  # 97.5 % point of the normal distribution


def direction(metric: str) -> int:
    """1 if higher is better, -1 for error rates."""
    return -1 if metric in ("rate", "wer", "cer") else 1


def vector(metric: str, score: Score) -> list[float]:
    """Return the values of a sample's score that are summed over samples for the corpus-level one."""
    if metric in ("wer", "cer"):
        return [score.parts["errors"], score.parts["units"]]
    if metric == "bleu":
        return [score.parts[name] for name in BLEU_PARTS]
    if metric == "f1":
        correct, errors = 2 * score.parts["tp"], score.parts["fp"] + score.parts["fn"]
        return [correct, correct + errors]
    if metric == "geometric":
        return [*score.parts.values(), 1.0]
    if metric == "balanced":
        harmful = score.parts["harmful"]
        return [score.value * harmful, score.value * (1 - harmful), harmful, 1 - harmful]
    return [score.value, 1.0]


def rates(metric: str, sums: np.ndarray) -> np.ndarray:
    """Return scores [...] of summed vectors [... k]: mean value, errors per unit, corpus BLEU (0 to 100), the geometric
    mean of the parts' means, or the mean of both classes' accuracies."""
    if metric == "geometric":
        means = sums[..., :-1] / np.maximum(sums[..., -1:], 1e-9)
        return np.prod(means, axis=-1) ** (1 / means.shape[-1])
    if metric == "balanced":
        return (sums[..., :2] / np.maximum(sums[..., 2:], 1e-9)).mean(-1)
    if metric != "bleu":
        return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)
    correct, total = sums[..., 2 : 2 + BLEU_ORDERS], sums[..., 2 + BLEU_ORDERS :]
    # Orders without a match count as half a match, then a quarter... (sacrebleu's `exp` smoothing); the score is 0 if
    # all answers are shorter than an order, as in sacrebleu without `effective_order`.
    misses = np.cumsum(correct == 0, axis=-1)
    precision = np.where(correct > 0, correct, 1 / 2.0**misses) / np.maximum(total, 1)
    length, reference_length = sums[..., 0], sums[..., 1]
    brevity = np.where(
        length < reference_length, 1 - reference_length / np.maximum(length, 1e-9), 0
    )
    defined = (correct.sum(-1) > 0) & (total > 0).all(-1)
    return np.where(defined, 100 * np.exp(np.log(precision).mean(-1) + brevity), 0.0)


def resampled(vectors: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield sums [b ... k] over RESAMPLES bootstrap draws of vectors [n ... k], in blocks."""
    random, n = np.random.default_rng(seed), len(vectors)
    flat = vectors.reshape(n, -1).astype(float)
    for _ in range(RESAMPLES // 100):
        counts = random.multinomial(n, np.full(n, 1 / n), size=100)
        yield (counts @ flat).reshape(100, *vectors.shape[1:])


def measure(metric: str, vectors: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return score and 95 % interval: Wilson's for a share of right answers, otherwise percentiles of a bootstrap."""
    if len(vectors) == 0:
        return 0.0, 0.0, 1.0
    score, n = float(rates(metric, vectors.sum(0))), len(vectors)
    if metric in ("accuracy", "rate") and set(vectors[:, 0]) <= {0.0, 1.0}:
        return (score, *wilson(score, n))
    draws = np.concatenate([rates(metric, sums) for sums in resampled(vectors, seed)])
    low, high = np.percentile(draws, [2.5, 97.5])
    return score, float(low), float(high)


def measure_mean(
    metric: str, groups: Sequence[np.ndarray], seed: int
) -> tuple[float, float, float]:
    """Return the plain mean of the scores of groups of vectors [n k], with a 95 % interval from theirs."""
    return combined([measure(metric, group, seed) for group in groups])


def combined(measures: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the plain mean of independent (score, low, high), with a 95 % interval from theirs: the squares of the
    distances to their limits add up (Donner and Zou's MOVER, 2012)."""
    score, low, high = np.array(measures).T
    mean, count = float(score.mean()), len(score)
    down, up = (float(np.sqrt(((score - limit) ** 2).sum())) / count for limit in (low, high))
    return mean, mean - down, mean + up


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share in n trials."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
