"""Mixtures of latents where they can be looked at: on their first two principal axes.

The same fit as `gmm_curve`, in two dimensions in place of hundreds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm
from maetok_lab.analysis.mixture import Mixture
from maetok_lab.analysis.preprocess import as_rows, fit_reducer
from maetok_lab.cores import one_thread


@dataclasses.dataclass(frozen=True)
class PlaneMixtures:
    """Latents on a plane, mixtures that were fitted there, and how well these tell new latents."""

    points: Tensor  # (n, 2), standardised scores of the training latents
    mixtures: dict[int, Mixture]  # by number of components
    heldout_nll: dict[int, float]  # the same; nats an image, in two dimensions
    explained: float  # share of the latents' variance that the plane holds


def plane_mixtures(
    latents: Any,
    heldout_latents: Any,
    components: Sequence[int],
    *,
    restarts: int = 10,
    seed: int = 0,
) -> PlaneMixtures:
    """Two principal axes of latents (n, ...), standardised, and a mixture of each number there.

    Held-out latents (m, ...) score them. Raises ValueError as `fit_reducer` and `fit_gmm` do.
    """
    protocol = GmmProtocol(dimensions=2, restarts=restarts, heldout=0.0, seed=seed)
    # few numbers: on one thread they are the same bits on any machine with its instructions
    with one_thread():
        reducer = fit_reducer(latents, dimensions=2)
        points = reducer.transform(as_rows(latents))
        heldout = reducer.transform(as_rows(heldout_latents))
        mixtures = {count: fit_gmm(points, count, protocol) for count in components}
        scores = {n: -float(mixture.log_prob(heldout).mean()) for n, mixture in mixtures.items()}
    return PlaneMixtures(points, mixtures, scores, reducer.explained)
