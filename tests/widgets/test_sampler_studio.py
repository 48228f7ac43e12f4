"""Every control of the sampler studio samples what the plain functions sample."""

import asyncio

import pytest
import torch

pytest.importorskip("ipywidgets")

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.generation.images import generate
from maetok_lab.pictures import image_grid
from maetok_lab.tokenizer.foreign import RawPixels
from maetok_lab.widgets.front import as_png
from maetok_lab.widgets.sampler_studio import SamplerStudio

TOKENIZER = RawPixels(8)
SPACE = LatentSpace(TOKENIZER.fingerprint, torch.tensor(0.0), torch.tensor(0.7))


def model(seed=0, num_classes=3):
    torch.manual_seed(seed)
    model = DiffusionTransformer(
        DIFFUSION["test"], num_tokens=4, latent_dim=48, num_classes=num_classes
    ).eval()
    for parameter in model.parameters():  # a fresh model's velocity is zero, whatever it is asked
        torch.nn.init.normal_(parameter, std=0.1)
    model.tokenizer_fingerprint = TOKENIZER.fingerprint
    model.trained_path = "linear"
    return model


MODELS = {0.9: model(), 0.5: model(1)}


@pytest.fixture
def studio():
    studio = SamplerStudio(
        MODELS, SPACE, TOKENIZER, class_names=["cat", "dog", "fish"], count=4, num_steps=5
    )
    assert studio.view
    return studio


def sampled(rate=0.9, labels=(0, 1, 2, 0), seed=0, **changes):
    sampling = {"num_steps": 5, "method": "euler", "guidance": Guidance(3.0, 0.0, 0.75)} | changes
    return generate(MODELS[rate], TOKENIZER, SPACE, torch.tensor(labels), seed=seed, **sampling)


def assert_shows(studio, images):
    """The last point: there the model's guess is the sample for Euler; the state is it for all."""
    studio.controls.show.value = "state"
    tiles = studio.tiles.tiles
    assert tiles["sheet"] == as_png(image_grid(images, columns=2, padding=0))
    assert tiles["names"] == [studio.class_names[label] for label in studio.labels]


def assert_tiles(studio, images):
    studio.controls.show.value = "state"
    assert studio.tiles.tiles["sheet"] == as_png(image_grid(images, columns=2, padding=0))


def test_each_control_samples_anew_what_it_says(studio):
    see = studio.controls
    assert_shows(studio, sampled())
    see.label.value = 1
    assert_shows(studio, sampled(labels=[1] * 4))
    see.seed.value = 7
    assert_shows(studio, sampled(labels=[1] * 4, seed=7))
    see.scale.value, see.interval.value = 1.5, (0.2, 0.9)
    now = {"labels": [1] * 4, "seed": 7, "guidance": Guidance(1.5, 0.2, 0.9)}
    assert_shows(studio, sampled(**now))
    see.method.value, see.steps.value = "heun", 3
    now |= {"method": "heun", "num_steps": 3}
    assert_shows(studio, sampled(**now))
    see.ema.value = dict(see.ema.options)["0.5"]
    assert_shows(studio, sampled(0.5, **now))


def test_a_weaker_model_can_guide(studio):
    weak = model(2)
    studio = SamplerStudio(
        MODELS, SPACE, TOKENIZER, weak_models={"null class": None, 250: weak},
        class_names=["cat", "dog", "fish"], count=4, num_steps=5,
    )  # fmt: skip
    assert studio.view
    see = studio.controls
    assert see.guide.options == ("null class", "step 250")
    assert_shows(studio, sampled())
    see.guide.value = "step 250"
    assert_shows(studio, sampled(weak_model=weak))
    assert "5 model rows and 3 of the weaker model an image" in studio.cost_line.value
    see.scale.value = 1.0
    assert_shows(studio, sampled(guidance=None))
    see.guide.value, see.scale.value = "null class", 3.0
    assert_shows(studio, sampled())


def test_an_unconditional_model_is_guided_by_a_weaker_one():
    strong, weak = model(num_classes=0), model(2, num_classes=0)
    studio = SamplerStudio(
        strong, SPACE, TOKENIZER, weak_models={"earlier": weak}, count=2, num_steps=2
    )
    assert studio.view
    assert studio.tiles.way["scale"] == 3.0  # the first that is named guides
    studio.controls.guide.value = "null class"
    assert studio.tiles.way["scale"] == 1.0
    studio.controls.guide.value = "earlier"
    expected = generate(
        strong, TOKENIZER, SPACE, torch.zeros(2, dtype=torch.long), num_steps=2,
        guidance=Guidance(3.0, 0.0, 0.75), weak_model=weak,
    )  # fmt: skip
    assert_tiles(studio, expected)


def test_a_place_of_the_way_can_be_clicked_again(studio):
    for _ in range(2):
        studio.tiles.set_state({"goto": 2})
        assert studio.controls.place.value == 2
        studio.controls.place.value = 5


def test_the_slider_walks_back_along_the_way(studio):
    see = studio.controls
    assert (see.place.value, see.place.max) == (5, 5)
    see.show.value = "state"
    ends = {}
    for place in (0, 5):
        see.place.value = place
        ends[place] = studio.tiles.tiles["sheet"]
        assert studio.tiles.way["place"] == place
        assert f"after step {place}," in studio.position.value
    assert ends[0] != ends[5]
    noise = SPACE.denormalise(studio.points[0].state)
    see.place.value = 0
    decoded = TOKENIZER.decode(noise).clamp(-1, 1)
    assert studio.tiles.tiles["sheet"] == as_png(image_grid(decoded, columns=2, padding=0))
    assert studio.tiles.way["times"] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert (studio.tiles.way["low"], studio.tiles.way["high"]) == (0.0, 0.75)


def test_the_cost_is_told_before_and_the_time_after(studio):
    assert studio.cost.rows == 5 + 3  # the last 3 of 5 steps begin at t <= 0.75
    assert "8 model rows an image" in studio.cost_line.value
    assert "took" in studio.cost_line.value


def test_a_new_wish_ends_the_sampling_that_runs(studio):
    see = studio.controls

    async def wishes():
        see.steps.value = 100
        await asyncio.sleep(0.02)
        early = len(studio.points)
        see.steps.value = 4
        await studio._task
        return early

    assert asyncio.run(wishes()) < 100
    assert len(studio.points) == 5
    assert_shows(studio, sampled(num_steps=4))


def test_an_unconditional_model_has_no_classes_and_no_guidance():
    studio = SamplerStudio(model(num_classes=0), SPACE, TOKENIZER, count=2, num_steps=2)
    assert studio.sample().shape == (2, 3, 8, 8)


def test_the_twin_is_the_way_of_the_samples(studio):
    import matplotlib.pyplot

    figure = studio.twin()
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[-1] == "sample"
    assert words[0] == "guess at t = 0.80"
    matplotlib.pyplot.close(figure)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="the latent space belongs to tokenizer other"):
        SamplerStudio(MODELS, LatentSpace("other", torch.tensor(0.0), torch.tensor(1.0)), TOKENIZER)
    stranger = model(2)
    stranger.tokenizer_fingerprint = "other"
    with pytest.raises(ValueError, match="the diffusion model belongs to tokenizer other"):
        SamplerStudio(MODELS, SPACE, TOKENIZER, weak_models={"earlier": stranger})
    with pytest.raises(ValueError, match="1 class names for a model of 3"):
        SamplerStudio(MODELS, SPACE, TOKENIZER, class_names=["cat"])
