"""What each rung means, in words for a reader: its change, where it comes from, what to expect."""

import dataclasses

from maetok_lab.hints import choose


@dataclasses.dataclass(frozen=True)
class Meaning:
    """One rung in words."""

    change: str  # of the preset
    place: str  # in the paper (arXiv 2502.03444), or whose idea it is
    expected: str  # by its source; what this project measured stands in data/study.csv


# Expectations are the sources', or follow from the change; data/study.csv has what we measured.
_COMPARE = "a row to be compared within its table"
MEANINGS: dict[str, Meaning] = {
    # the ladder
    "ae": Meaning(
        "nothing is hidden, nothing but pixels is predicted: a plain autoencoder",
        "Table 1a",
        "sharp pixels, the worst samples of the ladder",
    ),
    "kl": Meaning(
        "`ae` with latents that are normal distributions, held near a standard one by a KL term",
        "Table 1a",
        "a little blurrier than `ae`, samples a little better",
    ),
    "ae-mask": Meaning(
        "40 to 60 % of the patches are hidden; only pixels are predicted",
        "Table 6",
        "blurrier than `ae`, better samples",
    ),
    "hog": Meaning(
        "masks, and a second decoder that predicts gradient directions (HOG) of hidden patches",
        "Table 1b",
        "better samples than masks alone",
    ),
    "semantic": Meaning(
        "masks, and a second decoder that predicts a frozen network's features of hidden patches",
        "Table 1b",
        "better samples than with HOG",
    ),
    "all": Meaning(
        "masks, with decoders for both HOG and features: the paper's model",
        "Table 1b",
        "the best samples of the ladder",
    ),
    # parts, by their ticks
    "6-mask-tokens-aux": Meaning("all three parts: the same as `all`", "Table 6", "as `all`"),
    "6-tokens-aux": Meaning(
        "the targets of `all` without any mask, their errors counted on all patches",
        "Table 6",
        "sharper than with masks",
    ),
    "6-mask-aux": Meaning(
        "`all`, but the image's own patch tokens are the latents", "Table 6", _COMPARE
    ),
    "6-mask-tokens": Meaning("the same as `ae-mask`", "Table 6", "as `ae-mask`"),
    "6-aux": Meaning(
        "targets only: no masks, and patch tokens are the latents", "Table 6", _COMPARE
    ),
    "6-mask": Meaning(
        "masks only: no targets, and patch tokens are the latents", "Table 6", _COMPARE
    ),
    "6-tokens": Meaning("the same as `ae`", "Table 6", "as `ae`"),
    # mask ratios
    "1c-0-60": Meaning(
        "`hog` with 0 to 60 % hidden", "Table 1c", "less to guess, so sharper than `hog`"
    ),
    "1c-10-40": Meaning(
        "`hog` with 10 to 40 % hidden", "Table 1c", "less to guess, so sharper than `hog`"
    ),
    "1c-20-60": Meaning(
        "`hog` with 20 to 60 % hidden", "Table 1c", "a little less to guess than in `hog`"
    ),
    "1c-40-40": Meaning("`hog` with 40 % hidden, always", "Table 1c", _COMPARE),
    "1c-40-60": Meaning("40 to 60 % hidden: the same as `hog`", "Table 1c", "as `hog`"),
    # depths of the auxiliary decoders
    "1d-linear": Meaning(
        "`all` with one linear layer in place of each auxiliary decoder",
        "Table 1d",
        "the latents themselves must tell the target",
    ),
    "1d-1": Meaning("`all` with auxiliary decoders of 1 block", "Table 1d", _COMPARE),
    "1d-3": Meaning(
        "`all` with auxiliary decoders of 3 blocks, the paper's choice", "Table 1d", _COMPARE
    ),
    "1d-6": Meaning("`all` with auxiliary decoders of 6 blocks", "Table 1d", _COMPARE),
    "1d-12": Meaning(
        "`all` with auxiliary decoders of 12 blocks",
        "Table 1d",
        "a deep decoder can work the target out, so the latents need not tell it",
    ),
    # numbers of tokens
    "13a-256": Meaning(
        "`all` with twice the preset's latent tokens (256 at the paper's size)",
        "Table 13a",
        "sharper: there is twice the room",
    ),
    "13a-128": Meaning(
        "the preset's own number of tokens: the same as `all`", "Table 13a", "as `all`"
    ),
    "tokens-0.5x": Meaning(
        "`all` with half the tokens of twice the channels: the same room",
        "not in the paper",
        "cheaper diffusion: its cost follows the tokens",
    ),
    "tokens-1x": Meaning("the same as `all`", "not in the paper", "as `all`"),
    "tokens-2x": Meaning(
        "`all` with twice the tokens of half the channels",
        "not in the paper",
        "costlier diffusion: its cost follows the tokens",
    ),
    "tokens-4x": Meaning(
        "`all` with four times the tokens of a quarter of the channels",
        "not in the paper",
        "costlier still",
    ),
    # weights of the KL term
    "kl-1e-6": Meaning("`kl` with weight 1e-6, as LDM counts it", "not in the paper", "as `ae`"),
    "kl-1e-2": Meaning("`kl` with weight 1e-2", "not in the paper", "near `ae`"),
    "kl-1": Meaning(
        "`kl` with weight 1: the VAE of the textbook", "not in the paper", "fewer details"
    ),
    "kl-8": Meaning("`kl` with weight 8", "not in the paper", "fewer details still"),
    # rivals: other people's reasons
    "rms": Meaning(
        "`ae` with latent tokens of one length: what `denoise` needs, without its noise",
        "control of `denoise`",
        "as `ae`",
    ),
    "denoise": Meaning(
        "noise on the latents while the tokenizer trains, of standard deviation up to 3",
        "l-DeTok",
        "blurry in so small a model; latents that stand noise",
    ),
    "denoise-1": Meaning(
        "`denoise` with a third of its noise", "l-DeTok", "sharper than `denoise`"
    ),
    "detok": Meaning(
        "noise on latents, hidden patches and a KL term", "l-DeTok", "blurry in so small a model"
    ),
    "latent-mask": Meaning(
        "latent tokens, not patches, are hidden from the decoder",
        "LMR",
        "tokens that can stand in for each other",
    ),
    "align": Meaning(
        "the latents' mean is drawn to a frozen network's mean feature",
        "SoftVQ",
        "latents from which a class is easier to read",
    ),
    "ae-grid": Meaning(
        "`ae` with one latent token a patch, of fewer channels",
        "control of `align-grid`",
        "as `ae`",
    ),
    "align-grid": Meaning(
        "one token a patch, each drawn to the network's feature of its place",
        "VA-VAE",
        "latents from which a class is easier to read",
    ),
    "ve": Meaning(
        "latents with noise of a learned variance, which is drawn upwards",
        "variance expansion",
        "very blurry in so small a model",
    ),
    "ve-1e-3": Meaning(
        "`ve`, a hundred times more weakly", "variance expansion", "sharper than `ve`"
    ),
    "softvq": Meaning("a latent is a mixture of codes", "SoftVQ", "a little blurrier than `ae`"),
    "fsq": Meaning(
        "each latent number takes one of a few levels",
        "finite scalar quantisation",
        "a little blurrier than `ae`",
    ),
    "critic": Meaning(
        "`ae` with a discriminator: what `between` needs, without its idea",
        "control of `between`",
        "as `ae`",
    ),
    "between": Meaning(
        "mixtures of two images' latents must look real to a discriminator",
        "InterpTok",
        "a decoder that forgives what lies between latents",
    ),
}
OWN_RECIPE = "the preset's own recipe, as it stands"


def meaning_of(rung: str) -> str:
    """One sentence on a rung, for a notebook to print; "preset" stands for the preset's recipe.

    Raises ValueError, with the nearest name, for what is neither.
    """
    if rung == "preset":
        return f"{rung}: {OWN_RECIPE}."
    meaning = choose(rung, MEANINGS, "rung of the ladder")
    return f"{rung} ({meaning.place}): {meaning.change}. To expect: {meaning.expected}."
