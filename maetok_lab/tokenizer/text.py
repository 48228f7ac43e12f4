"""The words of a caption as a target: CLIP's byte-pair tokens as a bag (after SuperClass).

The paper's LAION-COCO tokenizer has it; its released code does not.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from maetok_lab.tokenizer.targets import Captions

# Tokens of a caption that count, as in CLIP, whose 77 hold a start and an end: a bag needs neither.
CONTEXT = 77
# CLIP's, with start and end, which no caption has: their logits only learn to be small.
VOCABULARY = 49408
_NO_TOKEN = -1


def caption_tokens(captions: Sequence[str]) -> Tensor:
    """Each caption's BPE tokens, the first `CONTEXT` of them. -> (B, 77) int64, -1 behind the last

    Raises ImportError without open-clip-torch, which ships the vocabulary.
    """
    encode = _encoder()
    tokens = torch.full((len(captions), CONTEXT), _NO_TOKEN)
    for row, caption in zip(tokens, captions):
        words = torch.tensor(encode(caption)[:CONTEXT], dtype=torch.int64)
        row[: len(words)] = words
    return tokens


@functools.cache
def _encoder() -> Callable[[str], list[int]]:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as problem:
        raise ImportError(
            "the text target takes CLIP's vocabulary from open-clip-torch: "
            "pip install 'maetok-lab[evaluation]'"
        ) from problem
    return SimpleTokenizer().encode


@dataclasses.dataclass(frozen=True)
class TextTarget:
    """Which tokens the caption has, as a distribution; loss is softmax cross-entropy (SuperClass).

    It is predicted from the mean over all patches, hidden or not.
    """

    by_patch: ClassVar[bool] = False
    width: ClassVar[int] = VOCABULARY

    def __call__(self, images: Tensor, captions: Captions = None) -> Tensor:
        """images (B, 3, H, W), captions as strings or tokens -> (B, width), rows sum to 1 or 0"""
        if captions is None or len(captions) != len(images):
            count = "none" if captions is None else len(captions)
            raise ValueError(
                f"the text target needs a caption for each of the {len(images)} images, got {count}"
            )
        if not isinstance(captions, Tensor):
            captions = caption_tokens(captions)
        tokens = captions.to(images.device)

        # A token that comes twice is there once. SuperClass also weighs tokens by inverse document
        # frequency; the paper does not say whether it does, so all of a caption weigh the same.
        bags = torch.zeros(len(tokens), self.width, device=images.device)
        bags.scatter_add_(1, tokens.clamp(min=0), (tokens != _NO_TOKEN).float())
        bags.clamp_(max=1)
        return bags / bags.sum(1, keepdim=True).clamp(min=1)  # without words: zeros, no loss

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits and distribution, (B, width) each -> (B,)"""
        return -(target * prediction.float().log_softmax(-1)).sum(-1)
