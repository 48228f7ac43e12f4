"""Everything about one training of a tokenizer, as its config."""

import dataclasses
from typing import Literal

from maetok_lab.config import not_in_fingerprint, younger
from maetok_lab.device import Precision
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.perturbation import PerturbationConfig
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.task import check_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegenerationConfig:
    """Latents that decoder tuning sees: a trained diffusion model's, from noisy real ones on.

    Post-training of RobusTok (arXiv 2509.12474), with a diffusion model in its generator's place.
    """

    diffusion: str  # fingerprint of the run of the model
    start: float = 0.5  # time to which real latents are noised; 1 would leave nothing of them
    num_steps: int = 20  # of Euler's method from t = 1; their share is taken

    def __post_init__(self):
        if not 0 < self.start < 1 or self.num_steps < 1:
            raise ValueError(
                "regeneration needs a start in (0, 1) and at least one step, "
                f"not {self.start} and {self.num_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Everything about one training of a tokenizer; intervals are in steps."""

    model: TokenizerConfig  # sizes and parts of the tokenizer
    crop: Literal["center", "scale"] = "center"  # the paper's; the release's, `readers.scale_crop`
    masking: MaskingConfig = MaskingConfig()  # which patches are hidden
    targets: tuple[AuxiliaryConfig, ...] = (AuxiliaryConfig(),)  # none in decoder tuning
    losses: LossConfig = LossConfig()  # the terms and their weights
    # what befalls latents between encoder and decoder; the paper leaves them alone
    perturbation: PerturbationConfig = younger(PerturbationConfig())
    optimizer: OptimizerConfig = OptimizerConfig()  # and its learning rate over time
    trains: Literal["all", "decoder"] = "all"  # "decoder": the second stage, what encodes is frozen
    # Decoder tuning only, and not in the paper (0): noise of up to this share of the std of the
    # global batch's latents, another share for each image, so that the decoder copes with slightly
    # wrong latents.
    latent_noise: float = 0.0
    # Decoder tuning only, and not in the paper: on what a diffusion model makes of the latents.
    regeneration: RegenerationConfig | None = younger(None)
    num_steps: int  # of the optimizer
    batch_size: int  # of all processes together
    ema_decay: float = 0.9999  # of the averaged weights, which are used later
    precision: Precision = "bf16"  # of the forward pass; weights stay fp32
    seed: int = 0  # of weights, order, masks and noise
    images: str = ""  # fingerprint of the image source: a run never goes on with other images
    parent: str | None = None  # fingerprint of the run that decoder tuning starts from
    workers: int = not_in_fingerprint(4)  # processes that decode images that are not in memory
    # Parts that a batch goes through in, where it does not fit into memory ("fit": as few as memory
    # allows): the same step up to rounding, but that adaptive weights are each part's own.
    accumulate: int | Literal["fit"] = not_in_fingerprint(1)
    # keep less of the forward pass for the backward pass, which repeats it block by block
    recompute: bool = not_in_fingerprint(False)
    # minutes at the start, for all but the discriminator; "auto": a long training on a CUDA GPU
    compile: bool | Literal["auto"] = not_in_fingerprint("auto")
    log_every: int = not_in_fingerprint(50)  # losses into metrics.jsonl
    save_every: int = not_in_fingerprint(500)  # a checkpoint
    # a checkpoint as well, after so long without one
    save_minutes: float = not_in_fingerprint(10.0)
    picture_every: int = not_in_fingerprint(500)  # reconstructions of the preview

    def __post_init__(self):
        # Said here, before anything starts, rather than hours into a training.
        check_steps(self)
        if self.workers < 0:
            raise ValueError(
                f"workers must be 0 (decode in this process) or more, not {self.workers}"
            )
        names = [target.target for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"each target can be asked for once, not {names}")
        if self.trains == "decoder" and (self.targets or self.parent is None):
            raise ValueError(
                "decoder tuning needs a parent run and has no auxiliary targets, "
                f"not parent {self.parent!r} and targets {names}"
            )
        if self.latent_noise and self.trains == "all":
            raise ValueError(
                "latent_noise is for decoder tuning: there the latents stay as they are"
            )
        if self.regeneration and self.trains == "all":
            raise ValueError("regeneration is for decoder tuning, whose latents a model has learnt")
        if self.perturbation != PerturbationConfig() and self.trains == "decoder":
            raise ValueError(
                "perturbation shapes latents, which decoder tuning leaves as they are: it has "
                "latent_noise"
            )
        adversarial = self.losses.adversarial
        if self.perturbation.between and adversarial is None:
            raise ValueError(
                "perturbation.between needs a discriminator, which alone judges mixtures: set "
                "losses.adversarial"
            )
        if adversarial and adversarial.counts_from >= self.num_steps:
            raise ValueError(
                f"the discriminator counts from step {adversarial.counts_from}, after the last of "
                f"{self.num_steps}; lower losses.adversarial.counts_from, or set "
                "losses.adversarial to None"
            )
