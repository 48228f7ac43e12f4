"""The words of a caption as a target: CLIP's tokens, in no order, as a distribution."""

import sys

import pytest
import torch

from maetok_lab.data.images import open_images
from maetok_lab.tokenizer import text
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder, compute_targets
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.text import CONTEXT, VOCABULARY, TextTarget, caption_tokens
from maetok_lab.tokenizer.towers import TowerConfig

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=8,
    num_latent_tokens=6,
    latent_dim=4,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)
IMAGES = torch.zeros(2, 3, 16, 16)


@pytest.fixture(autouse=True)
def _vocabulary():
    pytest.importorskip("open_clip")


def test_the_vocabulary_and_tokens_are_open_clips():
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    assert tokenizer.vocab_size == VOCABULARY
    tokens = caption_tokens(["A red apple, two red apples", ""])
    assert tokens.shape == (2, CONTEXT)
    count = (tokens[0] >= 0).sum()
    assert tokens[0, :count].tolist() == tokenizer.encode("A red apple, two red apples")
    assert tokenizer.decode(tokens[0, :count].tolist()).strip() == "a red apple , two red apples"
    assert (tokens[0, count:] == -1).all()
    assert (tokens[1] == -1).all()


def test_a_bag_gives_every_token_of_the_caption_the_same_share_once():
    target = TextTarget()
    bags = target(IMAGES, ["red red apple", "sky"])
    red, apple, sky = caption_tokens(["red apple sky"])[0, :3].tolist()
    assert bags.shape == (2, target.width)
    assert bags[0].nonzero()[:, 0].tolist() == sorted([red, apple])
    assert bags[0, [red, apple]].tolist() == [0.5, 0.5]
    assert bags[1].nonzero()[:, 0].tolist() == [sky]
    assert torch.equal(target(IMAGES, caption_tokens(["red red apple", "sky"])), bags)


def test_the_loss_is_softmax_cross_entropy_by_hand_and_nothing_where_there_are_no_words():
    target, logits = TextTarget(), torch.zeros(2, VOCABULARY)
    distribution = target(IMAGES, ["red apple", ""])
    red, apple = caption_tokens(["red apple"])[0, :2]
    logits[0, red], logits[0, apple] = 2.0, 1.0
    norm = torch.tensor([VOCABULARY - 2 + 2.718281828**2 + 2.718281828]).log()
    assert torch.allclose(
        target.loss(logits, distribution), torch.cat([norm - 1.5, torch.zeros(1)]), atol=1e-4
    )
    best = torch.full((1, VOCABULARY), -100.0)
    best[0, [red, apple]] = 0.0
    assert torch.allclose(
        target.loss(best, distribution[:1]), torch.tensor([2.0]).log()
    )  # the entropy of two equal words


def test_the_emojis_captions_can_be_learnt_from_latents():
    source = open_images("emoji", split="val", image_size=16)
    indices = [0, 100, 200, 300]
    captions = [source.captions[i] for i in indices]
    images, _ = source.batch(indices)
    torch.manual_seed(0)
    decoder = AuxiliaryDecoder(AuxiliaryConfig(target="text", tower=TOWER), MODEL)
    target = compute_targets({"text": decoder}, images, captions)["text"]
    assert torch.allclose(target.sum(1), torch.ones(4))
    latents = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0))
    assert decoder(latents).shape == (4, VOCABULARY)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 0] = True
    assert torch.equal(
        decoder.loss(latents, target, mask), decoder.loss(latents, target, None)
    )  # one loss an image
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-2)
    losses = []
    for _ in range(20):
        loss = decoder.loss(latents, target, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_missing_captions_and_a_missing_package_are_said(monkeypatch):
    for captions, got in ((None, "none"), (["one"], "1")):
        with pytest.raises(ValueError, match=rf"a caption for each of the 2 images, got {got}"):
            TextTarget()(IMAGES, captions)
    text._encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    with pytest.raises(
        ImportError, match=r"open-clip-torch: pip install 'maetok-lab\[evaluation\]'"
    ):
        caption_tokens(["red"])
