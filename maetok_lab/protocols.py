"""What one room needs of another's objects: whatever has these attributes will do."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class AnyTokenizer(Protocol):
    """Images to latent tokens and back: ours, released ones, diffusers', raw pixels.

    It is a torch module wherever it has weights: then it is put into eval mode where it is used.
    """

    fingerprint: str  # of its weights and whatever else decides what it computes (`identity`)
    latent_shape: tuple[int, int]  # (N, C)

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
    """A network whose features images are compared by. `nets.FeatureNet` is one."""

    name: str  # part of the names of its metrics
    weight_hash: str  # with the name, what a protocol records of it

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D)."""
