"""What one room needs of another's objects: whatever has these attributes will do."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class AnyTokenizer(Protocol):
    """What caching, generation, evaluation and analysis need: ours, released ones, diffusers', raw pixels.

    `fingerprint` names the weights, `latent_shape` is (N, C).
    """

    fingerprint: str
    latent_shape: tuple[int, int]

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N, C)."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3, H, W)."""


class Images(Protocol):
    """Images by their index. `data.images.ImageSource` is one."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """indices (B,) -> images (B, 3, H, W) in [-1, 1], labels (B,)."""


class Net(Protocol):
    """A feature network, named with its weights. `nets.FeatureNet` is one."""

    name: str
    weight_hash: str

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D)."""
