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
        "t_from <= t < t_from + 0.25) of the training's loss: (network - velocity)^2 a number "
        "(with prediction = data the network's velocity is made of its estimate of z, and both "
        "are clipped: (z_t - z) / max(t, 0.05)), and direction_weight (1 - cosine) where the model "
        "has one; latents normalised by the training latents, averaged weights",
        "SiT (arXiv 2401.08740), as in MAETok, figure 2b; the clip is JiT's (arXiv 2511.13720)",
        "lower",
    ),
    # what can be told of velocities without learning, and how far a network gets beyond that
    "viv": (
        "pi / 2 times the mean over classes of mean_i sqrt(l_i), l the eigenvalues of a class's "
        "covariance as one over tokens times one over channels, channels normalised over all",
        "Diffusing in the Right Space (arXiv 2606.03578), equations 2-6; it rewards low rank",
        "lower",
    ),
    "within_class_share": (
        "share of the variance of normalised latents that is within classes",
        "arXiv 2606.03578, rho",
        "lower",
    ),
    "denoiser_loss": (
        "mean over test latents and draws of noise of (denoiser's velocity - velocity)^2 a number, "
        "at fixed times; latents normalised by the training latents; linear: class means and the "
        "covariance within classes; K modes: a mixture on the card's dimensions, a Gaussian beyond",
        "this project; covariances shrunk by Ledoit and Wolf 2004",
        "lower",
    ),
    "distance_by_start": (
        "kernel distance between images sampled from test latents that were noised to a time t, "
        "and reconstructions of the other test latents; from 1 it is generation, from 0 the floor",
        "this project, after the phases of iFID (arXiv 2603.05630)",
        "lower",
    ),
    "denoiser_gain": (
        "1 - the diffusion model's denoiser_loss / the linear denoiser's, on the same noise",
        "this project",
        "higher",
    ),
    "spectrum": ("variances along principal axes, largest first", "Jolliffe 2002", ""),
    "given": ("a number that the caller put beside the card", "its own protocol", ""),
    # Mixtures of latents, and steps away from them. i: interpolated, r: reconstructed
    "ifd": (
        "Frechet distance of decoded mixtures to test images: a test latent halfway, by slerp of "
        "flattened raw latents, to one of the 10 training latents most similar by cosine, drawn by "
        "the softmax of minus the mean squared difference",
        "arXiv 2603.05630 (iFID) and its code; there pixels are not rounded to bytes and "
        "Inception's input is resized by torch",
        "lower",
    ),
    "rfd": (
        "Frechet distance of the same test latents, decoded, to test images",
        "as ifd, from the same loop",
        "",
    ),
    "ifd_gap": (
        "Frechet distance of the mixtures of ifd to the reconstructions of rfd",
        "this project: ifd also counts what the decoder loses of any image",
        "lower",
    ),
    "ikid": ("as ifd, the kernel distance", "arXiv 2603.05630, which takes FID alone", "lower"),
    "rkid": ("as rfd, the kernel distance", "this project", ""),
    "ikid_gap": ("as ifd_gap, the kernel distance", "this project", "lower"),
    "lpc": (
        "mean over latents of [d(D(z + r |z - mean| u), D(z)) + d(D(z - r |z - mean| u), D(z))] / "
        "2, u uniform on the unit sphere of N C numbers, one for all r; over several r, the mean "
        "by weights 1 / r",
        "PAE (arXiv 2605.07915), eqs. 9-10, which takes LPIPS and |z| without centring; here d is "
        "the caller's",
        "lower",
    ),
    # Neighbours' labels, latents on a grid, channels against each other.
    "gsq": (
        "share of images whose most similar other image has their label, by the cosine of tokens "
        "averaged (not pooled: flattened), less their mean over images",
        "PAE (arXiv 2605.07915), GSQ",
        "higher",
    ),
    "lnc": (
        "as gsq, the mean share among the most similar ones, as many as the settings say",
        "arXiv 2606.03578, LNC",
        "higher",
    ),
    "label_chance": (
        "sum over labels of n_k (n_k - 1) / (n (n - 1)): gsq and lnc of labels dealt at random",
        "this project",
        "",
    ),
    "sec": (
        "energy of the orthonormal DCT-II of each channel's grid at u + v > share (h - 1 + w - 1), "
        "over all energy; channels of mean 0 and std 1",
        "arXiv 2606.03578, eqs. 7-9; normalised here, else the constant part decides",
        "lower",
    ),
    "lds": (
        "mean cosine of a token's 4 neighbours on the grid - that of tokens |rows| + |columns| >= "
        "far apart; channels of mean 0 and std 1",
        "iREPA (arXiv 2512.10794), its code: the paper splits all pairs at one distance; "
        "normalised here, and of latents, not of a teacher's features",
        "higher",
    ),
    "cds": (
        "minus the least-squares slope of the mean cosine over |rows| + |columns| = 1 .. steps; "
        "channels of mean 0 and std 1",
        "iREPA, its code; as lds",
        "higher",
    ),
    "srss": (
        "of a foreground token, mean cosine to its neighbours in the foreground - to tokens of the "
        "background far away; over an image's tokens, then images; channels of mean 0 and std 1",
        "iREPA; foreground: over half of a token's pixels have a colour below 0.98 of [-1, 1]",
        "higher",
    ),
    "rmsc": (
        "root of the mean over tokens of |u - mean of the image's u|^2, u of length 1, a mean over "
        "images; channels of mean 0 and std 1",
        "iREPA",
        "higher",
    ),
    "esm_kl": (
        "KL(image || latent) of log(1 + s) as shares, s the mean DCT power in rings of frequency, "
        "the image's (blurred, bicubic to the grid) times ring^delta; channels of mean 0, std 1",
        "Spectrum Matching (arXiv 2603.14645), its code; always blurred, and normalised here",
        "lower",
    ),
    "equivariance": (
        "E |encode(T x) - T encode(x)|^2 / E |T encode(x)|^2, channels normalised as those of "
        "encode(x); T turns, or scales bilinearly: the small image amid its repeated edges",
        "arXiv 2606.03578 and EQ-VAE (arXiv 2502.09509); the ratio and the edges are ours",
        "lower",
    ),
    "channel_effective_rank": (
        "exp of the entropy of the singular values' shares / C, of centred latents (pooled: tokens "
        "averaged; else all tokens as rows)",
        "PAE, eRank / C; centred here",
        "",
    ),
    "channel_condition": (
        "largest / smallest variance along an axis of the channels' covariance, all tokens as rows",
        "this project",
        "",
    ),
    "uniformity_density_cv": (
        "std / mean of a Gaussian kernel's density at random normalised tokens on a t-SNE map",
        "VA-VAE (arXiv 2501.01423), tools/latent_vis.py, one run here; tokens of all places",
        "lower",
    ),
    "uniformity_gini": (
        "Gini coefficient of that density",
        "VA-VAE, as uniformity_density_cv",
        "lower",
    ),
    "uniformity_entropy": (
        "entropy of that density's shares over log2 of the number of tokens",
        "VA-VAE, as uniformity_density_cv",
        "higher",
    ),
    # ways of samplings: M equal Euler steps (`steps` in the settings) from noise, without guidance;
    # states x_0 .. x_M, moves D_i = x_i+1 - x_i, means over samples
    "path_straightness": (
        "mean over i of cos(D_i, D_i+1), both flattened; 1 where the way is a straight line; it "
        "depends on M and on guidance, which is none",
        "arXiv 2606.03578, eqs. 10 and 11",
        "higher",
    ),
    "path_efficiency": (
        "|x_M - x_0| / sum over i of |D_i|; 1 where the way is a straight line; it depends on M "
        "and on guidance, which is none",
        "arXiv 2606.03578, eqs. 10 and 11",
        "higher",
    ),
    "path_length_ratio": (
        "M |D_i| / |x_M - x_0| of each step i; 1 at all i where the way is straight and even",
        "arXiv 2606.03578, eqs. 10 and 11",
        "",
    ),
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


def measure_of(entry: str) -> str:
    """The measure of a card's entry by its name: "gmm_nll_50" -> "gmm_nll"; "given" without one.

    "gmm_nll_per_dim_50" is of the longest measure that its name begins with.
    """
    # the probes' entries are named by what they are of; probe_top5 is a measure of its own
    starts = {name: name for name in MEASURES} | {"probe": "linear_probe", "knn": "knn_probe"}
    words = entry.replace("/", "_") + "_"
    fitting = [start for start in starts if words.startswith(f"{start}_")]
    return starts[max(fitting, key=len)] if fitting else "given"
