"""Tokenizers by name: what is listed opens, fits, and stands beside what has been published."""

import pandas as pd
import pytest
import torch

import maetok_lab as lab
from maetok_lab.tokenizer import foreign
from maetok_lab.tokenizer.registry import published_results, source_of, study_results

OFFLINE = ("shipped/tokenizer", "shipped/plain", "pixels")


@pytest.mark.parametrize("name", OFFLINE)
def test_what_is_listed_has_the_listed_shape(name):
    row = lab.tokenizers(64).loc[name]
    tokenizer = lab.open_tokenizer(name, image_size=int(row.image_size))
    assert type(tokenizer).__name__ == row["class"]
    assert tokenizer.latent_shape == (row.tokens, row.channels)


def test_tokens_follow_from_the_image_size_where_it_divides():
    assert lab.tokenizers(256).tokens["sd-vae"] == 1024
    assert lab.tokenizers(512).tokens["dc-ae-f32c32"] == 256
    assert lab.tokenizers(512).tokens["maetok-b-128"] == 128
    assert lab.tokenizers(512).image_size["rae-dinov2-b"] == 256
    assert lab.tokenizers(100).tokens.isna()["sd-vae"]


def test_every_listed_class_can_be_opened():
    classes = set(lab.tokenizers()["class"])
    assert classes == {"Tokenizer", "RawPixels", *foreign.DIFFUSERS_CLASSES}
    of_diffusers = lab.tokenizers()["source"].str.startswith("diffusers:")
    assert (of_diffusers == lab.tokenizers()["class"].isin(foreign.DIFFUSERS_CLASSES)).all()


def test_a_name_is_opened_as_its_source_but_after_a_run_of_that_name(tmp_path, monkeypatch):
    calls = []

    def opened(source, *, image_size, subfolder=None):
        calls.append((source, subfolder, image_size))

    monkeypatch.setattr(foreign, "from_diffusers", opened)
    lab.open_tokenizer("qwen-image-vae", image_size=64, root=tmp_path)
    assert calls == [("Qwen/Qwen-Image", "vae", 64)]
    (tmp_path / "taesd").mkdir()
    with pytest.raises(FileNotFoundError, match="taesd is not a run"):
        lab.open_tokenizer("taesd", image_size=64, root=tmp_path)
    assert source_of("taesd") == "diffusers:madebyollin/taesd"


def test_an_unknown_name_gets_the_nearest_of_names_and_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'sd-vea' is no run, .* mean 'sd-vae'\?"):
        lab.open_tokenizer("sd-vea", image_size=64, root=tmp_path)
    (tmp_path / "mine-tiny-s0").mkdir()
    (tmp_path / "mine-tiny-s0" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean 'mine-tiny-s0'\?"):
        lab.open_tokenizer("mine-tiny-s1", image_size=64, root=tmp_path)


def test_published_numbers_are_those_of_their_sources():
    ifid = published_results("ifid").set_index(["tokenizer", "source"]).value
    assert ifid["MAETok", "iFID, arXiv 2603.05630"] == 14.06
    assert ifid["MAETok", "InterpTok, arXiv 2610.16759"] == 14.42
    table = lab.tokenizers()
    assert table.loc["maetok-b-128", ["rfid", "ifid", "gfid"]].tolist() == [0.58, 14.06, 6.27]
    assert table.loc["sdxl-vae", ["rfid", "ifid", "gfid"]].isna().all()
    assert set(table.published_as) - {""} <= set(published_results().tokenizer)
    assert len(study_results("SiT-B").dropna(subset=["ifid", "gfid"])) == 13
    with pytest.raises(ValueError, match="unknown published measure 'iifid'; did you mean 'ifid'"):
        published_results("iifid")
    with pytest.raises(ValueError, match="unknown model of the study 'SiT-L'"):
        study_results("SiT-L")


def test_every_published_number_has_a_source_and_no_protocol_gives_two():
    table = published_results()
    assert pd.api.types.is_float_dtype(table.value)
    assert table.value.notna().all()
    assert (table.source.str.contains("arXiv") & table.address.str.contains("https://")).all()
    generated = table[table.measure == "gfid"]
    assert (generated[["model", "training", "guidance"]] != "").all(axis=None)
    protocol = ["tokenizer", "measure", "model", "training", "guidance", "source"]
    assert not table.duplicated(protocol).any()


def test_raw_pixels_and_grids_have_what_an_investigation_needs():
    pixels = lab.open_tokenizer("pixels", image_size=16)
    for word in ("grid", "latent_shape", "encode", "decode", "fingerprint"):
        assert hasattr(pixels, word)
    assert pixels.encode(torch.zeros(1, 3, 16, 16)).shape[1:] == pixels.latent_shape
