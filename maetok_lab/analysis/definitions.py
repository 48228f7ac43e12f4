"""What each number about latents is, and by whose formula, as papers and codes differ.

Latents z are (n, N, C); t = 1 is noise.
"""

from typing import Any, Literal

Better = Literal["lower", "higher", ""]
Definition = dict[str, Any]  # measure, formula, source, settings

# By measure: the formula, its source with what is done otherwise here, and which way is better for
# diffusion by that source; "" where nobody says.
MEASURES: dict[str, tuple[str, str, Better]] = {
    "gmm_nll": (
        "mean of -log p(z) over held-out latents, p a Gaussian mixture of training latents; both "
        "flattened, on the training latents' principal components, each divided by its std",
        "MAETok (arXiv 2502.03444), App. B.3; fitted by EM, their script's p is not normalised",
        "lower",
    ),
    "gmm_dimensions": (
        "principal components that the mixtures are fitted to",
        "MAETok, App. B.3",
        "",
    ),
    "gmm_nll_per_dim": ("gmm_nll / gmm_dimensions", "MAETok, App. B.3", "lower"),
    "gmm_components_by_bic": (
        "components of the least -2 log-likelihood of the training latents + parameters log n",
        "Schwarz 1978",
        "lower",
    ),
    "gmm_max_mean_norm": (
        "length of the longest mean of the largest mixture",
        "MAETok, figure 8",
        "lower",
    ),
    "dimensions_90": (
        "fewest principal components with 90 % of the variance",
        "MAETok, App. B.3",
        "",
    ),
    "effective_rank": (
        "exp of the entropy of the variances' shares along principal axes",
        "Roy and Vetterli 2007, who take shares of singular values: the roots of the variances",
        "",
    ),
    "participation_ratio": (
        "1 / sum of squared shares of the variances along principal axes",
        "Gao et al. 2017",
        "",
    ),
    "top_share": ("share of the variance along the first principal axis", "Jolliffe 2002", ""),
    "intrinsic_dimension_twonn": (
        "(n - 1) / sum of log(r_2 / r_1) over the distances to two neighbours",
        "Facco et al. 2017, the maximum of the likelihood without bias, not their fitted line",
        "",
    ),
    "intrinsic_dimension_mle": (
        "(k - 1) / mean over latents of sum_j<k log(r_k / r_j)",
        "Levina and Bickel 2005, inverses averaged as by MacKay and Ghahramani 2005",
        "",
    ),
    "token_correlation": (
        "mean |correlation over images| of one channel of two different tokens",
        "this project",
        "lower",
    ),
    "channel_std_ratio": ("largest std of a channel / smallest", "this project", "lower"),
    "channel_kurtosis": (
        "mean over channels of E[x^4] / E[x^2]^2 - 3, x centred",
        "this project",
        "",
    ),
    "linear_probe": (
        "share of test images in whose class a multinomial logistic regression puts them, on "
        "flattened (pooled: averaged) standardised tokens; the L2 penalty is that of the highest "
        "such share on the rows in the settings, then all training images are fitted",
        "MAETok, figure 5a, which gives no recipe",
        "higher",
    ),
    "probe_top5": (
        "as linear_probe, the class among its five most probable",
        "MAETok, figure 5a",
        "higher",
    ),
    "majority": ("share of test images of the commonest training class", "this project", ""),
    "knn_probe": (
        "share of test images in the class for which the nearest training latents vote by 1 + "
        "cosine, flattened and standardised",
        "Wu et al. 2018, whose votes are exp(cosine / 0.07)",
        "higher",
    ),
    "psnr_at_noise": (
        "PSNR of decode(z + level std e) to decode(z), std of each channel, an image's at most 100",
        "this project",
        "higher",
    ),
    "interpolation_detour": (
        "sum of |image_i+1 - image_i| / |image_last - image_first| along the line between two "
        "latents, a mean over pairs",
        "this project",
        "lower",
    ),
    "interpolation_unevenness": (
        "largest |image_i+1 - image_i| / their mean along that line, a mean over pairs",
        "this project",
        "lower",
    ),
    "diffusion_loss": (
        "mean over test latents, noise and t drawn as in training (where t_from is set, those in "
        "t_from <= t < t_from + 0.25) of the training's loss: (network - velocity)^2 a number, "
        "and direction_weight (1 - cosine) where the model has one; latents normalised by the "
        "training latents, averaged weights",
        "SiT (arXiv 2401.08740), as in MAETok, figure 2b",
        "lower",
    ),
    "spectrum": ("variances along principal axes, largest first", "Jolliffe 2002", ""),
    "given": ("a number that the caller put beside the card", "its own protocol", ""),
    # of generated images
    "mind": (
        "3 d mean (sorted u.x - sorted u.y)^2 over 1,000 random unit directions u, x and y the "
        "features (d numbers each) of samples and of real images",
        "Berthet et al. 2026 (arXiv 2605.06797); unequal numbers are matched by quantile, where "
        "torch-fidelity takes a subset of the larger set",
        "lower",
    ),
    "over_floor": (
        "a distance of samples to real images / the same distance of other real images to them",
        "FD-loss (arXiv 2604.28190), FDr, there of validation to training images",
        "lower",
    ),
    "steps_to_reach": (
        "training images seen until the kernel distance of unguided samples is at most the "
        "threshold, on the line between two scored checkpoints",
        "RAEv2 (arXiv 2605.18324), EP_FID@k, there epochs and FID",
        "lower",
    ),
}


def definition(measure: str, **settings: Any) -> Definition:
    """What is stored beside a number: its measure, formula and source, and the settings it had."""
    formula, source, _ = MEASURES[measure]
    return {"measure": measure, "formula": formula, "source": source, "settings": settings}


def better(measure: str) -> Better:
    """Which way of a measure is better for diffusion; "" where no source says."""
    return MEASURES[measure][2]
