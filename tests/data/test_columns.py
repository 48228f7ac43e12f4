"""A damaged Parquet file is named, with what to do, and none decodes to far more than it is."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maetok_lab.data import columns, parquet
from maetok_lab.data import images as images_module
from maetok_lab.data.columns import open_shard, read_columns
from maetok_lab.data.images import open_images

ADVICE = "; copy or download it once more, or move it away$"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, count=24, **more):
    """Pictures of three classes, in row groups of eight."""
    table = {"image": [png(seed) for seed in range(count)], "label": [i % 3 for i in range(count)]}
    pq.write_table(pa.table(table | more), path, row_group_size=8)
    return path


@pytest.fixture
def shard(tmp_path):
    """train.parquet, beside a sound one for val."""
    write(tmp_path / "val.parquet", 2)
    return write(tmp_path / "train.parquet")


def place_of(shard, column, group):
    """The bytes of a file in which the pages of a column's row group are."""
    facts = pq.ParquetFile(shard).metadata.row_group(group).column(column)
    start = facts.dictionary_page_offset or facts.data_page_offset
    return start, start + facts.total_compressed_size


def damage(shard, column, group):
    start, stop = place_of(shard, column, group)
    data = bytearray(shard.read_bytes())
    data[start:stop] = b"\xff" * (stop - start)
    shard.write_bytes(data)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nothing of the kind", None])
def test_a_file_that_is_none_or_cut_off_is_named_with_what_to_do(shard, content):
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"train\.parquet is damaged or cut off: .+" + ADVICE):
        open_images(shard, image_size=8)
    with pytest.warns(UserWarning, match=r"left out: \S*train\.parquet is damaged or cut off"):
        open_images(shard.parent, split="val", image_size=8)


def test_damaged_labels_are_an_error_that_names_the_file(shard):
    damage(shard, 1, 1)
    with pytest.raises(ValueError, match=r"train\.parquet is damaged or cut off: .+" + ADVICE):
        open_images(shard.parent, image_size=8)


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_of_a_damaged_row_group_are_broken_pictures_with_names(shard, in_memory, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
        monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    damage(shard, 0, 1)
    message = r"broken image: train\.parquet:8: \S*train\.parquet is damaged or cut off: .+"
    with pytest.warns(UserWarning, match=message + "move it away"):
        open_images(shard.parent, image_size=8).batch(range(16))
    source = open_images(shard.parent, image_size=8)
    source.batch(range(len(source)))
    assert len(source.broken) == 8
    assert source.fingerprint
    with pytest.raises(ValueError, match=r"more than max_broken=3 broken .*train\.parquet:11: "):
        open_images(shard.parent, image_size=8, max_broken=3).batch(range(12))


def test_a_shard_that_vanishes_is_named(shard, monkeypatch):
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    source = open_images(shard.parent, image_size=8)
    shard.unlink()
    with (
        pytest.warns(UserWarning, match="No such file"),
        pytest.raises(ValueError, match=r"broken images; the last one: train\.parquet:\d+: "),
    ):
        source.batch(range(24))


def test_text_that_is_none_is_an_error_that_names_the_file(tmp_path):
    values = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(3)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])
    pictures = pa.array(values, kind)
    paths = pa.array([b"0.png", b"\xff.png", b"2.png"], pa.binary()).view(pa.string())
    pictures = pa.StructArray.from_arrays([pictures.field("bytes"), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": pictures}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet is damaged or cut off: .*Invalid UTF8"):
        open_images(tmp_path, image_size=8)


def test_one_long_value_in_every_row_is_not_decoded(tmp_path, monkeypatch):
    # 400 MB in 100 kB
    monkeypatch.setattr(columns, "_DECODED", 1 << 20)
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), [b"\0" * 10**6])
    path = tmp_path / "train.parquet"
    for name, value in (("image", long), ("caption", long.cast(pa.binary()).view(pa.string()))):
        table = pa.table({"image": [b"a"] * 400} | {name: value})
        pq.write_table(table, path, compression="zstd")
        assert path.stat().st_size < 10**6
        with open_shard(path) as file, pytest.raises(ValueError, match="decodes to more than"):
            read_columns(path, file, [name])
    with pytest.raises(ValueError, match=r"train\.parquet .* more than 0\.\d GB" + ADVICE):
        open_images(path, image_size=8)


def test_more_rows_than_bytes_are_not_listed(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": pa.nulls(10**6, pa.binary())}), path)
    with pytest.raises(ValueError, match=r"cut off: it says that it has 1000000 rows in"):
        open_images(path, image_size=8)


def test_a_few_rows_at_a_time_are_all_of_them(tmp_path, monkeypatch):
    words = pa.array(["b", "a", None] * 8).dictionary_encode()
    path = write(tmp_path / "train.parquet", number=list(range(24)), word=words)
    monkeypatch.setattr(columns, "_ROWS", 5)
    with open_shard(path) as file:
        for some in (["image"], ["label", "word"], ["number"]):
            expected = file.read(columns=some)
            actual = read_columns(path, file, some)
            assert actual.schema.equals(expected.schema)
            assert actual.to_pylist() == expected.to_pylist()
            group = read_columns(path, file, some, [1])
            assert group.to_pylist() == file.read_row_group(1, columns=some).to_pylist()
