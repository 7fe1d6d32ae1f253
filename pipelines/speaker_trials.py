"""How well embeddings tell speakers apart, over all pairs, and how sure that is. No models here."""

from __future__ import annotations

import numpy as np

P_TARGET = 0.05  # of the detection cost: how likely two utterances are of one speaker


def verification(
    embeddings: np.ndarray, speakers: list[str], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, object]:
    """Equal error rate and least detection cost of the cosines of all pairs, with 95% intervals.

    What is drawn again for the intervals are the speakers, as all pairs of one are alike. A pair of two
    drawn speakers counts as often as both were drawn; pairs of a speaker with its own second copy do not
    count, as they would be the same recordings.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    names, index = np.unique(speakers, return_inverse=True)
    first, second = np.triu_indices(len(unit), 1)
    scores = np.einsum("ne,ne->n", unit[first], unit[second])
    order = np.argsort(-scores, kind="stable")
    scores, first, second = scores[order], index[first[order]], index[second[order]]
    is_target = first == second
    rates = _rates(is_target, np.ones(len(scores)))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(num_resamples):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(is_target, times[first], times[first] * times[second])
        if weights[is_target].any() and weights[~is_target].any():
            drawn.append(_rates(is_target, weights)[:2])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {
        "eer": round(rates[0], 4),
        "eer_interval_95": [round(float(low[0]), 4), round(float(high[0]), 4)],
        "threshold": round(float(scores[rates[2]]), 3),
        "min_dcf": round(rates[1], 4),
        "min_dcf_interval_95": [round(float(low[1]), 4), round(float(high[1]), 4)],
        "p_target": P_TARGET,
        "num_speakers": len(names),
        "num_speakers_with_pairs": len(set(first[is_target])),
        "num_utterances": len(unit),
        "num_target_pairs": int(is_target.sum()),
        "num_other_pairs": int((~is_target).sum()),
    }


def _rates(is_target: np.ndarray, weights: np.ndarray) -> tuple[float, float, int]:
    """Equal error rate, least cost, and the last pair accepted at the first; pairs by falling score.

    Scores that are equal would have to be accepted together; cosines of floats hardly ever are.
    """
    accepted = np.concatenate([[0.0], np.cumsum(weights * is_target)])
    wrong = np.concatenate([[0.0], np.cumsum(weights * ~is_target)])
    misses, false_alarms = 1 - accepted / accepted[-1], wrong / wrong[-1]
    after = int(np.argmax(misses <= false_alarms))
    gap = misses - false_alarms
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    rate = misses[after - 1] + share * (misses[after] - misses[after - 1])
    costs = P_TARGET * misses + (1 - P_TARGET) * false_alarms
    return float(rate), float(costs.min() / min(P_TARGET, 1 - P_TARGET)), after - 1
