"""Fisher matrices of action distributions by the textbook, for tests of the natural gradient."""

from __future__ import annotations

import numpy as np


def fisher_of(parameters, spec):
    """[A, A] of one state by the textbook: diag(p) - p p^T of logits, diag(1 / std^2, 2) of means and log stds."""
    blocks, start = [], 0
    for kind, size in spec:
        if kind == "categorical":
            p = np.exp(parameters[start : start + size])
            p /= p.sum()
            blocks.append(np.diag(p) - np.outer(p, p))
            start += size
        else:
            log_std = parameters[start + size : start + 2 * size]
            blocks.append(np.diag(np.concatenate([np.exp(-2 * log_std), np.full(size, 2.0)])))
            start += 2 * size
    whole = np.zeros((start, start))
    corner = 0
    for block in blocks:
        whole[corner : corner + len(block), corner : corner + len(block)] = block
        corner += len(block)
    return whole
