"""Sheets put every pixel where it belongs."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from maetok_lab.pictures import image_grid, save_png, to_uint8
from maetok_lab.plots.images import plot_images, plot_reconstructions, plot_rows, show_sheet


def images(count: int, height: int = 4, width: int = 6) -> torch.Tensor:
    return (
        torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count)) * 2 - 1
    )


def test_a_grid_holds_the_images_in_reading_order_and_the_background_elsewhere():
    batch = images(5)
    sheet = image_grid(batch, columns=3, padding=2, background=-1.0)
    assert sheet.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    assert sheet.dtype == np.uint8
    pixels = to_uint8(batch).movedim(1, -1).numpy()
    for i in range(5):
        top, left = 2 + i // 3 * 6, 2 + i % 3 * 8
        assert np.array_equal(sheet[top : top + 4, left : left + 6], pixels[i])
        sheet[top : top + 4, left : left + 6] = 0
    assert not sheet.any()


def test_a_list_of_rows_keeps_its_rows_and_columns_default_to_a_square():
    rows = [images(3), images(1)]
    assert image_grid(rows).shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    assert (image_grid(rows)[8:12, 10:] == 255).all()
    assert image_grid(images(9)).shape == (3 * 6 + 2, 3 * 8 + 2, 3)


def test_values_are_clamped_and_rounded():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(values)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert torch.equal(
        to_uint8(torch.arange(256) / 127.5 - 1), torch.arange(256, dtype=torch.uint8)
    )


def test_what_is_no_batch_is_an_error():
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 4, 6\)"):
        image_grid(images(1)[0], columns=1)
    with pytest.raises(ValueError, match="no images to lay out"):
        image_grid([])
    with pytest.raises(ValueError, match="no images to lay out"):
        image_grid(images(1)[:0])


def test_a_png_is_written_whole_with_every_pixel_enlarged(tmp_path):
    sheet = image_grid(images(2), columns=2)
    path = tmp_path / "new" / "sheet.png"
    save_png(path, sheet, scale=3)
    assert np.array_equal(np.asarray(Image.open(path))[::3, 1::3], sheet)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    with pytest.raises(TypeError, match="wants uint8"):
        save_png(path, sheet.astype(float))


def test_plots_draw_on_the_axes_they_get_and_return_them():
    figure, axes = pyplot.subplots(1, 5)
    returned = [
        show_sheet(image_grid(images(4)), ax=axes[0]),
        plot_images(images(4), columns=2, ax=axes[1]),
        plot_images(images(4), titles=list("abcd"), columns=3, ax=axes[2]),
        plot_reconstructions(images(10), images(10), columns=5, ax=axes[3]),
        plot_rows({"one": images(3), "two": images(2)}, ax=axes[4]),
    ]
    assert returned == list(axes)
    assert [text.get_text() for text in axes[2].texts] == list("abcd")
    assert [text.get_text() for text in axes[4].texts] == ["one", "two"]
    figure.canvas.draw()
    assert plot_images(images(4)) is not axes[1]


def test_originals_are_above_their_reconstructions():
    originals, reconstructions = images(3), -images(3)
    drawn = plot_reconstructions(originals, reconstructions, columns=2).images[0].get_array()
    rows = [originals[:2], reconstructions[:2], originals[2:], reconstructions[2:]]
    assert np.array_equal(drawn, image_grid(rows))


def test_plots_say_what_does_not_fit():
    with pytest.raises(ValueError, match="3 titles for 4 images"):
        plot_images(images(4), titles=list("abc"), columns=2)
    with pytest.raises(
        ValueError, match=r"must have one shape, got \(4, 3, 4, 6\) and \(3, 3, 4, 6\)"
    ):
        plot_reconstructions(images(4), images(3))
