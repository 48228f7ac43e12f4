"""Both stages of a tokenizer's training as a task for `loop.train`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.data.images import ImageSource
from maetok_lab.device import autocast
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.inference import device_of
from maetok_lab.layers.norm import DropPath
from maetok_lab.pictures import from_uint8, image_grid, save_png
from maetok_lab.rng import generator
from maetok_lab.runs import Checkpoint, Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.discriminators import adaptive_weight
from maetok_lab.tokenizer.losses import loss_weights, total_loss
from maetok_lab.tokenizer.masking import draw_mask
from maetok_lab.tokenizer.perturbation import Draws, draw_perturbation
from maetok_lab.tokenizer.text import caption_tokens
from maetok_lab.training.adversary import Adversary
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import Ema, Spread
from maetok_lab.training.order import Share, image_batches
from maetok_lab.training.parents import Regenerator, parent_weights
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.task import Terms

PREVIEW_IMAGES = 16


@dataclasses.dataclass
class TokenizerBatch:
    """This process's rows of one step, on the device."""

    images: torch.Tensor  # (B, 3, H, W) in [-1, 1]
    mask: torch.Tensor | None  # (B, patches) bool, True = hidden
    noise: torch.Tensor | None  # (B, N, C), for a posterior or for `latent_noise`
    captions: torch.Tensor | None  # (B, 77) tokens, where a target asks for them
    labels: torch.Tensor | None = None  # (B,), for a diffusion model
    latents: torch.Tensor | None = None  # (B, N, C), in decoder tuning, with their noise
    perturbation: Draws | None = None  # what disturbs latents
    reconstructions: torch.Tensor | None = None  # (B, 3, H, W), kept for a discriminator
    mixtures: torch.Tensor | None = None  # the same

    def part(self, rows: slice) -> list[Any]:
        """Some rows of the inputs of `Objective.forward`."""
        inputs = (self.images, self.mask, self.noise, self.captions, self.latents)
        parts: list[Any] = [None if tensor is None else tensor[rows] for tensor in inputs]
        draws = self.perturbation or {}
        return [*parts, {name: tensor[rows] for name, tensor in draws.items()}]


class TokenizerTask:
    """Both stages of a tokenizer's training, for `loop.train`."""

    # Decoders keep weights that nothing uses (see LatentDecoder); a mask token needs a mask.
    every_weight_has_a_gradient = False

    def __init__(
        self,
        config: TokenizerTraining,
        images: ImageSource,
        *,
        parent: Run | None = None,
        diffusion: Run | None = None,
        preview: ImageSource | None = None,
    ):
        self.config = config
        self.images = images
        self.parent = parent
        self.diffusion = diffusion
        self.preview = preview
        self.ema_decays = {"ema": config.ema_decay}

    def check(self) -> None:
        """ValueError when the images are not the config's."""
        size = self.config.model.image_size
        if self.images.image_size != size:
            raise ValueError(
                f"the tokenizer takes images of {size} px, "
                f"the source gives {self.images.image_size} px"
            )
        if self.config.images and self.images.fingerprint != self.config.images:
            raise ValueError(
                f"the run was configured for images {self.config.images}, "
                f"but these are {self.images.fingerprint}"
            )

    def build(self, device: torch.device) -> None:
        """Fresh weights, or for decoder tuning the parent's averages."""
        config = self.config
        self.module = Objective(config).to(device)
        self.model = self.module.tokenizer
        self.trained = {
            "tokenizer": self.model,
            "auxiliary": self.module.auxiliary,
            "perturbation": self.module.perturbation,
        }
        self.autocast = autocast(device, config.precision)
        self.latent_weights = {}  # the parent's, in decoder tuning
        if config.trains == "decoder":
            weights = parent_weights(config, self.parent)
            self.model.load_state_dict(weights)
            for name, value in weights.items():
                if name.startswith(Objective.makes_latents):
                    self.latent_weights[name] = value
        self.regenerator = None
        if config.regeneration:
            self.regenerator = Regenerator(config.regeneration, self.diffusion, device)
        self.adversary = Adversary(config, device) if config.losses.adversarial else None
        # Drop path draws from torch's one generator; the discriminator needs all reconstructions.
        draws = any(isinstance(module, DropPath) for module in self.module.modules())
        averages = any(target.head == "tokens" for target in config.targets)
        self.parts_are_independent = self.adversary is None and not draws and not averages

    def compile(self) -> None:
        """Compile the objective as a whole, teachers and perceptual term too."""
        if self.config.model.masked == "replace":
            self.module.compile()
            if self.config.trains == "decoder":
                self.model.encoder.compile()  # `before_step` calls it
            return
        # where hidden patches leave the sequence, its length is another one at every step
        self.model.decoder.compile()
        for decoder in self.module.auxiliary.values():
            if isinstance(decoder, AuxiliaryDecoder):
                decoder.decoder.compile()
        if self.module.perceptual is not None:
            self.module.perceptual.compile()

    def batches(self, share: Share) -> Iterator[TokenizerBatch]:
        """Images with a mask, noise and captions; everything is drawn for the global batch."""
        device = share.engine.device
        rows = share.rows
        # Only a text target reads captions; the decoders of other targets take images.
        reads_captions = any(target.target == "text" for target in self.config.targets)
        for step, pixels, labels, indices in image_batches(
            self.images, self.config, start_step=share.step, rows=rows
        ):
            captions = None
            if reads_captions:
                texts = [self.images.captions[index] for index in indices.tolist()]
                captions = caption_tokens(texts)
            mask = self.draw_mask(step)
            noise = self.draw_noise(step, device)
            perturbation = self.draw_perturbation(step, device)
            yield TokenizerBatch(
                from_uint8(pixels, device=device),
                None if mask is None else mask[rows].to(device, non_blocking=True),
                None if noise is None else noise[rows],
                captions,
                labels,
                perturbation={name: draw[rows] for name, draw in perturbation.items()},
            )

    def draw_mask(self, step: int) -> torch.Tensor | None:
        """Which patches of the global batch are hidden. -> (batch_size, patches) bool or None"""
        config = self.config
        return draw_mask(
            config.masking,
            config.batch_size,
            config.model.grid,
            progress=step / config.num_steps,
            generator=generator(config.seed, "mask", step),
        )

    def draw_noise(self, step: int, device: torch.device) -> torch.Tensor | None:
        """Noise for the global batch: N(0, 1) for a posterior; for `latent_noise` times a share
        in U(0, 1) for each image. -> (batch_size, N, C), or None where nothing takes it
        """
        config = self.config
        # a bottleneck of two numbers has a mean and a variance
        posterior = config.trains == "all" and self.model.bottleneck.numbers == 2
        if not posterior and not config.latent_noise:
            return None
        draws = generator(config.seed, "latent-noise", step, device=device)
        shape = (config.batch_size, config.model.num_latent_tokens, config.model.latent_dim)
        noise = torch.randn(shape, generator=draws, device=device)
        if config.trains == "decoder":
            noise = noise * torch.rand(len(noise), 1, 1, generator=draws, device=device)
        return noise

    def draw_perturbation(self, step: int, device: torch.device) -> Draws:
        """What disturbs the latents of the global batch, by name; each (batch_size, ...)."""
        config = self.config
        shape = self.model.latent_shape
        draws = generator(config.seed, "perturbation", step, device=device)
        return draw_perturbation(config.perturbation, config.batch_size, shape, generator=draws)

    def before_step(self, batch: TokenizerBatch, parts: list[Share], spread: Spread) -> None:
        """In decoder tuning: the latents, with noise of a size that all of them together decide."""
        if self.config.trains == "all":
            return

        # drawn for the global batch, whatever part and process a row is in
        if self.regenerator:
            draws = generator(self.config.seed, "regeneration", parts[0].step)
            shape = (self.config.batch_size, *self.model.latent_shape)
            noise = torch.randn(shape, generator=draws)

        def encode(part: Share) -> torch.Tensor:
            """The latents of a part, made anew where there is a regenerator."""
            images, mask, *_ = batch.part(part.local)
            with torch.no_grad(), self.autocast:
                latents = self.model.encode(images, mask=mask)
                if self.regenerator is None:
                    return latents
                return self.regenerator(latents, batch.labels[part.local], noise[part.rows])

        # the std is the global batch's: else processes and `accumulate` would change the result
        encoded = list(spread(encode, parts))
        latents = encoded[0].new_empty(len(batch.images), *encoded[0].shape[1:])
        for part, values in zip(parts, encoded):
            latents[part.local] = values
        if self.config.latent_noise:
            std = parts[0].engine.gather(latents).std((0, 1))
            latents = latents + self.config.latent_noise * std * batch.noise
        batch.latents = latents

    def loss(
        self, forward: nn.Module, batch: TokenizerBatch, part: Share
    ) -> tuple[torch.Tensor, Terms]:
        """The weighted sum of the terms (paper equations 6 and 8), and the terms."""
        config = self.config
        with self.autocast:
            terms, reconstructions, mixtures = forward(*batch.part(part.local))
        auxiliary_weights = {target.target: target.weight for target in config.targets}
        progress = part.step / config.num_steps
        weights = loss_weights(config.losses, auxiliary_weights, progress=progress)
        aligned = [target for target in config.targets if target.head == "tokens"]
        if self.adversary is None and not aligned:
            return total_loss(terms, weights), terms

        compared = {name: terms[name] for name in ("pixel", "perceptual") if name in terms}
        reconstruction_loss = total_loss(compared, weights)
        # Tokens are aligned as strongly as they are trained to reconstruct, at what makes latents.
        for target in aligned:
            name = f"auxiliary/{target.target}"
            last_layer = self.model.to_latents.weight
            weights[name] *= adaptive_weight(
                reconstruction_loss, terms[name], last_layer, average=part.mean
            )
        if self.adversary is None:
            return total_loss(terms, weights), terms

        # What the discriminator thinks is weighed against the terms that compare pixels.
        # Balanced at the layer that gives pixels, as in the release; `refine` only smooths them.
        last_layer = self.model.to_pixels.weight
        opposed = self.adversary.oppose(
            reconstructions, reconstruction_loss, last_layer, part, mixtures=mixtures
        )
        if opposed:
            terms["adversarial"] = opposed["adversarial"]
            weights["adversarial"] *= opposed["adaptive_weight"]
        if batch.reconstructions is None:
            batch.reconstructions = torch.empty_like(batch.images)
        batch.reconstructions[part.local] = reconstructions.detach()
        if mixtures is not None:
            if batch.mixtures is None:
                batch.mixtures = torch.empty_like(batch.images)
            batch.mixtures[part.local] = mixtures.detach()
        return total_loss(terms, weights), terms | opposed

    def after_step(self, batch: TokenizerBatch, share: Share, factor: float) -> Terms:
        """One step of the discriminator, on the reconstructions that the tokenizer just gave."""
        if self.adversary is None:
            return {}
        decoded = {"fake": batch.reconstructions}
        if batch.mixtures is not None:
            decoded["mixed"] = batch.mixtures
        parts = self.config.accumulate
        return self.adversary.learn(batch.images, decoded, share, factor=factor, parts=parts)

    def settle(self, step: int, terms: Terms) -> None:
        """Hear of the discriminator's skipped steps."""
        if self.adversary:
            self.adversary.guard.settle(step, terms)

    def numbers(self, terms: Terms, engine: Accelerator) -> dict[str, float]:
        """The mean of every term over processes."""
        if self.adversary:
            terms = self.adversary.report(terms)
        return {name: engine.reduce(value, "mean").item() for name, value in terms.items()}

    def picture(self, emas: Mapping[str, Ema], step: int, run: Run) -> str | None:
        """Originals above the average's reconstructions, eight a row; logs their PSNR."""
        if self.preview is None:
            return None
        # The same images at every interval, spread over all, so that sheets can be compared.
        count = min(PREVIEW_IMAGES, len(self.preview))
        originals, _ = self.preview.batch(torch.linspace(0, len(self.preview) - 1, count).long())
        tokenizer = emas["ema"].module
        with torch.inference_mode(), self.autocast:
            reconstructions = tokenizer(originals.to(device_of(tokenizer))).cpu()
        facts = {"step": step, "images": step * self.config.batch_size, "split": "val"}
        run.log({**facts, "psnr": psnr(reconstructions, originals).mean().item()})

        # Small images are enlarged to 64 px: at their own size nobody could judge them.
        rows = [row for pair in zip(originals.split(8), reconstructions.split(8)) for row in pair]
        sheet = image_grid(rows, columns=min(8, count))
        path = run.sample_path(step)
        save_png(path, sheet, scale=max(1, 64 // self.preview.image_size))
        return str(path)

    def checkpoint(self, emas: Mapping[str, Ema]) -> tuple[dict[str, Any], dict[str, Any]]:
        """All weights; RuntimeError if something moved that decoder tuning must leave alone."""
        # Caches and diffusion models are bound to latents that must not change any more.
        for module in (self.model, emas["ema"].module):
            weights = module.state_dict()
            moved = []
            for name, value in self.latent_weights.items():
                if not torch.equal(weights[name].cpu(), value):
                    moved.append(name)
            if moved:
                raise RuntimeError(
                    "decoder tuning moved what makes the latents: "
                    f"{', '.join(moved[:5])} of {len(moved)} tensors"
                )
        groups = {"model": self.model.state_dict()}
        if self.module.auxiliary:
            groups["auxiliary"] = self.module.auxiliary.state_dict()
        if perturbation := self.module.perturbation.state_dict():
            groups["perturbation"] = perturbation
        if self.adversary is None:
            return groups, {}
        groups |= self.adversary.groups()
        return groups, {"discriminator_skipped": self.adversary.guard.skipped}

    def load(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`."""
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.module.auxiliary.load_state_dict(checkpoint.tensors.get("auxiliary", {}))
        self.module.perturbation.load_state_dict(checkpoint.tensors.get("perturbation", {}))
        if self.adversary:
            self.adversary.load(checkpoint)

    def summary(self, emas: Mapping[str, Ema], step: int, run: Run) -> dict[str, float]:
        """The last logged value of every loss."""
        table = run.metrics("train").drop(columns=["step", "images", "split", "skipped"])
        return {name: float(value) for name, value in table.iloc[-1].items()}
