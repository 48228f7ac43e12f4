"""The latent map: one point a row, classes told apart, quality beside the picture."""

import pandas as pd
import pytest
from matplotlib import pyplot

from maetok_lab.plots.projection import plot_projection


def frame(count=30, classes=3):
    table = pd.DataFrame(
        {
            "x": range(count),
            "y": [i % 7 for i in range(count)],
            "label": [i % classes for i in range(count)],
        }
    )
    table.attrs = {
        "settings": {"method": "umap"},
        "quality": {"trustworthiness": 0.93, "knn_accuracy": 0.5},
    }
    return table


def test_every_row_is_a_point_of_its_class():
    ax = plot_projection(frame(), class_names=["a", "b", "c"])
    assert [len(points.get_offsets()) for points in ax.collections] == [10, 10, 10]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    assert ax.collections[1].get_offsets()[0].tolist() == [1, 1]
    assert ax.get_xlabel() == "UMAP 1 (no unit)\ntrustworthiness 0.93, kNN 0.50; 30 images"


def test_classes_have_colours_of_their_own_and_beyond_twelve_another_marker():
    ax = plot_projection(frame(40, 14))
    colours = {tuple(part.get_facecolor()[0]) for part in ax.collections}
    assert len(colours) == 14
    first, twelfth, thirteenth = (ax.collections[index] for index in (0, 11, 12))
    shapes = [part.get_paths()[0].vertices.tolist() for part in (first, twelfth, thirteenth)]
    assert shapes[0] == shapes[1] != shapes[2]


def test_labels_can_be_given_or_left_out():
    own_ax = pyplot.figure().add_subplot()
    assert plot_projection(frame(), labels=[0] * 30, ax=own_ax) is own_ax
    assert len(own_ax.collections) == 1
    assert len(plot_projection(frame().drop(columns="label")).collections) == 1
    with pytest.raises(ValueError, match="29 labels for 30 rows"):
        plot_projection(frame(), labels=[0] * 29)
    with pytest.raises(ValueError, match="label 2 has no name among the 2"):
        plot_projection(frame(), class_names=["a", "b"])
