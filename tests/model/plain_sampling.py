"""The probabilities that tokens are drawn with, worked out one row at a time in float64."""

import numpy as np


def distribution(logits, sampling):
    """Probabilities [v], given adjusted logits [v]."""
    logits = logits.double().cpu().numpy()
    probabilities = np.exp((logits - logits.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    kept[order[before < sampling.top_p]] = probabilities[order[before < sampling.top_p]]
    return kept / kept.sum()
