"""The words of a caption as a target: CLIP's byte-pair tokens as a bag (the paper's LAION tokenizer, after SuperClass)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from maetok_lab.tokenizer.targets import Captions

CONTEXT = 77  # tokens of a caption that count, as in CLIP (which has its start and end among them; a bag needs neither)
VOCABULARY = 49408  # CLIP's, with the start and end tokens, which no caption has: their logits only learn to be small
_NOTHING = -1


def caption_tokens(captions: Sequence[str]) -> torch.Tensor:
    """Each caption's BPE tokens, the first `CONTEXT` of them. -> (B, 77) int64, -1 behind the last one

    Raises ImportError without open-clip-torch, which ships the vocabulary.
    """
    encode = _encoder()
    tokens = torch.full((len(captions), CONTEXT), _NOTHING)
    for row, caption in zip(tokens, captions):
        found = torch.tensor(encode(caption)[:CONTEXT], dtype=torch.int64)
        row[: len(found)] = found
    return tokens


@functools.cache
def _encoder() -> Callable[[str], list[int]]:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as problem:
        raise ImportError(
            "the text target takes CLIP's vocabulary from open-clip-torch: pip install 'maetok-lab[evaluation]'"
        ) from problem
    return SimpleTokenizer().encode


@dataclasses.dataclass(frozen=True)
class TextTarget:
    """Which tokens the caption has, in no order, as a distribution; loss is softmax cross-entropy (SuperClass).

    Prediction is from the mean over all patches, hidden or not. SuperClass also weighs tokens by inverse document frequency;
    the paper does not say whether it does, so tokens of a caption weigh the same here. An image without words counts nothing.
    """

    by_patch: ClassVar[bool] = False
    width: ClassVar[int] = VOCABULARY

    def __call__(self, images: torch.Tensor, captions: Captions = None) -> torch.Tensor:
        """images (B, 3, H, W), captions as B strings or as `caption_tokens` gives them -> (B, width), rows sum to 1 or 0"""
        if captions is None or len(captions) != len(images):
            got = "none" if captions is None else len(captions)
            raise ValueError(
                f"the text target needs a caption for each of the {len(images)} images, got {got}"
            )
        tokens = captions if isinstance(captions, torch.Tensor) else caption_tokens(captions)
        tokens = tokens.to(images.device)
        bags = torch.zeros(len(tokens), self.width, device=images.device)
        bags.scatter_add_(1, tokens.clamp(min=0), (tokens != _NOTHING).float())
        bags.clamp_(max=1)  # a token that comes twice is there once
        return bags / bags.sum(1, keepdim=True).clamp(min=1)

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits and distribution (B, width) -> (B,)"""
        return -(target * predicted.float().log_softmax(-1)).sum(-1)
