"""Latents are encoded once for some images and a tokenizer's weights, and reused for no others."""

import pytest
import torch

from maetok_lab.data.caching import cached_latents
from maetok_lab.data.latents import write_latents
from maetok_lab.identity import remember_name
from maetok_lab.runs import Run
from maetok_lab.tokenizer.foreign import RawPixels

SIZE = 8


@pytest.fixture
def no_encoding(monkeypatch):
    """`no_encoding(tokenizer)`: from now on it fails where it would encode."""

    def forbid(tokenizer):
        monkeypatch.setattr(tokenizer, "encode", lambda *_: pytest.fail("it encoded again"))

    return forbid


def test_a_finished_cache_of_the_same_tokenizer_and_images_is_found_under_any_name(
    tmp_path, make_pictures, no_encoding
):
    pixels, pictures = RawPixels(SIZE), make_pictures(12, SIZE)
    mirrored = cached_latents(pixels, pictures, "one", flips=True, root=tmp_path)
    assert mirrored.views == 2
    again = RawPixels(SIZE)
    no_encoding(again)
    for flips in (False, True):
        assert cached_latents(again, pictures, "two", flips=flips, root=tmp_path).run.name == "one"
    alternatives = make_pictures(12, SIZE, seed=1)
    other = cached_latents(pixels, alternatives, "two", root=tmp_path)
    assert (other.run.name, other.views) == ("two", 1)
    assert cached_latents(RawPixels(SIZE, 8), pictures, "three", root=tmp_path).run.name == "three"
    assert (
        cached_latents(pixels, alternatives, "four", flips=True, root=tmp_path).run.name == "four"
    )
    # two caches would do: the one of that name is taken
    assert cached_latents(pixels, alternatives, "four", root=tmp_path).run.name == "four"
    assert cached_latents(pixels, alternatives, "two", root=tmp_path).run.name == "two"


def test_mirror_images_that_a_cache_of_that_name_lacks_go_beside_it(tmp_path, make_pictures):
    parts = (RawPixels(SIZE), make_pictures(12, SIZE))
    plain = cached_latents(*parts, "a", root=tmp_path)  # as a card makes it
    for _ in range(2):
        mirrored = cached_latents(*parts, "a", flips=True, root=tmp_path)
        assert (mirrored.run.name, mirrored.views, len(mirrored)) == ("a-flips", 2, 12)
    assert cached_latents(*parts, "a", root=tmp_path).run.folder == plain.run.folder


def test_the_cache_of_before_is_not_used_when_a_weight_was_changed(
    tmp_path, pictures, tokenizer, caching
):
    before = cached_latents(tokenizer, pictures, "before", root=tmp_path)
    bias = tokenizer.to_latents.bias
    value = bias[0].item()
    bias.data[0] += 0.5
    try:
        with pytest.raises(ValueError, match="run before was made with another config"):
            cached_latents(tokenizer, pictures, "before", root=tmp_path)
        after = cached_latents(tokenizer, pictures, "after", root=tmp_path)
        assert after.run.name == "after"
        assert not torch.equal(after.all_latents(), before.all_latents())
        # nor does what was configured for the weights of before get those of now
        config = caching()
        run = Run.open("begun", config, root=tmp_path)
        with pytest.raises(ValueError, match="configured for tokenizer weights, but this is"):
            next(write_latents(tokenizer, pictures, config, run, device=torch.device("cpu")))
    finally:
        bias.data[0] = value  # the fixture is everybody's
    assert cached_latents(tokenizer, pictures, "more", root=tmp_path).run.name == "before"


@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_under_an_earlier_name_of_the_weights_is_found_and_continued(
    tmp_path, pictures, tokenizer, caching, no_encoding, finished
):
    remember_name(tokenizer, "weights")
    config = caching(shard_size=4096)  # as the first edition wrote it
    with Run.open("old", config, root=tmp_path) as run:
        if finished:
            list(write_latents(tokenizer, pictures, config, run, device=torch.device("cpu")))
            no_encoding(tokenizer)
    latents = cached_latents(tokenizer, pictures, "old", flips=True, root=tmp_path)
    assert (latents.run.name, latents.space.tokenizer, len(latents)) == ("old", "weights", 22)
