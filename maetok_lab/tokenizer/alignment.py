"""Direct alignment of latents with a teacher's features, without a decoder.

The rival of auxiliary decoders (section 3.2). A head is one linear map, so that what the teacher
knows must lie open in the latents themselves.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize, relu

from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder, make_target
from maetok_lab.tokenizer.config import TokenizerConfig
from maetok_lab.tokenizer.towers import init_weights

# VA-VAE's margins for f16d32: cosines this near to 1, and pairs' this near to each other, are free
COSINE_MARGIN = 0.5
PAIR_MARGIN = 0.25


class Alignment(nn.Module):
    """A linear map from latents to one teacher's features, and how far they then are apart."""

    def __init__(self, config: AuxiliaryConfig, model: TokenizerConfig):
        super().__init__()
        if config.head == "tokens" and model.latent_tokens != "patches":
            raise ValueError(
                'head "tokens" aligns each latent with the feature at its place, which learnable '
                'tokens have not: use model.latent_tokens="patches", or head "pooled"'
            )
        self.config = config
        self.target = make_target(config, model)
        self.to_target = nn.Linear(model.latent_dim, self.target.width)
        self.apply(init_weights)

    def loss(self, latents: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """latents (B, N, C), target (B, patches, width) -> (); hidden patches count like others"""
        latents = latents.float()
        target = target.float()
        if self.config.head == "pooled":
            prediction = self.to_target(latents.mean(dim=1))
            return 1 - cosine_similarity(prediction, target.mean(dim=1), dim=-1).mean()

        # VA-VAE's two terms: each latent with its feature, pairs of latents with those of features
        cosines = cosine_similarity(self.to_target(latents), target, dim=-1)
        own = relu(1 - COSINE_MARGIN - cosines).mean()
        return own + relu((_pairs(latents) - _pairs(target)).abs() - PAIR_MARGIN).mean()


def make_head(config: AuxiliaryConfig, model: TokenizerConfig) -> AuxiliaryDecoder | Alignment:
    """What a target is predicted by, as `config.head` says."""
    if config.head == "decoder":
        return AuxiliaryDecoder(config, model)
    return Alignment(config, model)


def _pairs(tokens: Tensor) -> Tensor:
    """Cosines of all pairs of an image's tokens: (B, N, D) -> (B, N, N)"""
    directions = normalize(tokens, dim=-1)
    return torch.matmul(directions, directions.mT)
