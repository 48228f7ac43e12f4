"""FID's network through torch-fidelity, on random weights: no download, no code from pickles."""

import importlib.metadata
import sys

import pytest
import torch

from maetok_lab.evaluation.features import about_net, metric_name
from maetok_lab.evaluation.inception import load_inception, load_metric_net
from maetok_lab.pictures import to_uint8
from maetok_lab.rng import generator


def test_missing_weights_and_package_say_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(FileNotFoundError, match="no Inception weights at"):
        load_inception(tmp_path / "none.pth")

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        FileNotFoundError, match=r"no route to host.*load_inception\(weights=FILE\)"
    ):
        load_inception()
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"maetok-lab\[evaluation\]"):
        load_inception()


def test_features_are_torch_fidelitys_of_the_rounded_images(tmp_path, monkeypatch):
    inner = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch:  # a network without a file, to write one
        patch.setattr(inner, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(
            inner.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None
        )
        random = inner.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"]
        )
    torch.save(random.state_dict(), tmp_path / "weights.pth")
    net = load_inception(tmp_path / "weights.pth").train()
    images = 2 * torch.rand(1, 3, 32, 32, generator=generator(0, "images")) - 1
    maps = []
    random.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: maps.append(output)
    )
    with torch.no_grad():
        features, logits = random(to_uint8(images))
        by_name = net.outputs(images, ["logits", "spatial", "features"])
        torch.testing.assert_close(net.features(images), features)
    assert list(by_name) == ["logits", "spatial", "features"]
    torch.testing.assert_close(by_name["features"], features)
    torch.testing.assert_close(by_name["logits"], logits)
    torch.testing.assert_close(by_name["spatial"], maps[0][:, :7].flatten(1))
    assert [value.shape[1] for value in by_name.values()] == [1008, 7 * 17 * 17, 2048]
    assert (
        about_net(net)["net_version"]
        == f"torch_fidelity {importlib.metadata.version('torch-fidelity')}"
    )
    assert metric_name("sfd", net) == "sfid"
    assert metric_name("fd", net) == "fid"
    assert not net.model.training


def test_networks_for_metrics_go_by_name():
    assert load_metric_net("efficientnet_lite2", input_size=64).input_size == 64
    with pytest.raises(FileNotFoundError, match="no Inception weights at"):
        load_metric_net("inception", weights="nowhere.pth")
    with pytest.raises(ValueError, match="always 299 px, not 64"):
        load_metric_net("inception", input_size=64)
    with pytest.raises(ValueError, match="did you mean 'efficientnet_lite2'"):
        load_metric_net("efficientnet_lite3")
