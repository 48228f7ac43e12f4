"""Pictures, tars and Parquet files that somebody damaged, or made to harm: each is read or refused.

    python tests/attack/pictures.py IMAGES CONTAINERS SEED

Small valid files are mutated and read in a child process of limited memory, in which nothing may be
started. One has survived when its pixels have the right shape, or when it is refused in one line.
"""

import contextlib
import io
import json
import os
import random
import resource
import struct
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from child import Child

SECONDS = 60.0  # for one to be read
BYTES = 5 << 30  # of address space beyond the libraries': 24 a pixel of the largest that is read
SMALL = 400 << 20  # bytes that a small picture may take, whatever its shape
SIZE = 16  # of the squares that pictures are cut to
DAMAGES = 5  # of one file, at most
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
NUMBERS = [0, 1, 2, 255, 256, 4097, 65535, 65536, 10**6, 10**8, 2**31 - 1, 2**31, 2**32 - 1]


class Outcome(NamedTuple):
    """What became of many mutations."""

    tried: int
    survived: int  # read or refused in one line, within their time and memory
    read: int  # of these, those that gave pixels
    failures: list[str]  # how each of the others was made, and what came
    most_megabytes: int  # that one took, of the small ones


# The child: it reads ------------------------------------------------------------------------------


def is_one_line(problem):
    """Whether an error says something, in one line."""
    text = str(problem)
    return bool(text.strip()) and len(text.splitlines()) == 1 and "MemoryError" not in text


def read_image(path):
    """Read and cut a file in every way, and as an upload -> "read", "refused", or what is wrong."""
    from maetok_lab.data.readers import CROPS, BrokenImageError, read_rgb, scale_crop
    from maetok_lab.widgets.uploads import read_upload

    data = Path(path).read_bytes()
    crops = [lambda image, crop=crop: crop(image, SIZE) for crop in CROPS.values()]
    crops.append(lambda image: scale_crop(image, SIZE, scale=0.83, down=0.9, across=0.2))
    fate = "read"
    for number, crop in enumerate(crops):
        try:
            square = read_rgb(data if number % 2 else path, at_least=SIZE, crop=crop)
        except BrokenImageError as problem:
            if not is_one_line(problem):
                return f"refused with {problem!r}"
            fate = "refused"
            break
        if (square.mode, square.size) != ("RGB", (SIZE, SIZE)):
            return f"read as {square.mode} {square.size}"
    try:
        image = read_upload(data, name="cat", length=len(data), limit=8 << 20, image_size=SIZE)
    except ValueError as problem:
        sound = is_one_line(problem) and str(problem).startswith("cat ")
        return fate if sound else f"upload refused with {problem!r}"
    sound = image.shape == (3, SIZE, SIZE) and image.abs().max() <= 1
    return fate if sound else f"uploaded as {tuple(image.shape)}"


def read_container(path):
    """Open a tar or Parquet file and read it to its end -> "read", "refused", or what is wrong."""
    from maetok_lab.data.images import open_images

    try:
        source = open_images(path, split="train", image_size=SIZE)
        images, labels = source.batch(slice(None))
        facts = (source.fingerprint, source.content, source.captions, source.class_names)
    except (ValueError, FileNotFoundError) as problem:
        named = is_one_line(problem) and os.path.basename(path) in str(problem)
        return "refused" if named else f"refused with {problem!r}"
    sound = all(facts) and images.shape == (len(labels), 3, SIZE, SIZE) and len(labels) > 0
    return "read" if sound else f"read as {tuple(images.shape)}, {len(labels)} labels"


def peak():
    """The most memory that was resident since the last call, in bytes."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    Path("/proc/self/clear_refs").write_text("5")
    return int(lines["VmHWM"].split()[0]) << 10, int(lines["VmRSS"].split()[0]) << 10


def child():
    """Answer lines "KIND PATH" with [what became of it, bytes that it took], as JSON."""
    import warnings

    import torch

    from maetok_lab.data import images
    from maetok_lab.widgets import uploads

    assert images
    assert uploads
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # what is mapped already counts too
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    started = []

    def watch(event, arguments):
        if event in STARTS:
            started.append(event)
            raise PermissionError(event)

    sys.addaudithook(watch)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        kind, path = json.loads(line)
        before = peak()[1]
        try:
            fate = (read_image if kind == "image" else read_container)(path)
        except BaseException as error:
            fate = f"{type(error).__name__}: {error}"
        fate = f"it started {started}" if started else fate
        started.clear()
        print(json.dumps([fate, peak()[0] - before]), file=answers, flush=True)


class Reader(Child):
    """A process that reads."""

    script = __file__
    seconds = SECONDS

    def read(self, kind, path):
        """What the child says of one, and the bytes that it took."""
        answer = self.ask(kind, path)
        return (answer, 0) if isinstance(answer, str) else answer


# Valid ones ---------------------------------------------------------------------------------------


def saved(image, kind, **options):
    """A picture's file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_images():
    """Small pictures of every kind and mode -> (suffix, bytes) of each."""
    import numpy as np
    from PIL import Image, ImageCms, features

    numbers = np.random.default_rng(0)
    clear = Image.fromarray(numbers.integers(0, 256, (20, 24, 4), dtype=np.uint8))
    deep = Image.fromarray(numbers.integers(0, 65536, (20, 24), dtype=np.uint16))
    colour = clear.convert("RGB")
    palette = colour.quantize(9)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [palette] * 3}
    files = [
        (".png", saved(colour, "PNG", exif=exif, icc_profile=profile)),
        (".png", saved(clear, "PNG")),
        (".png", saved(deep, "PNG", transparency=7)),
        (".png", saved(palette, "PNG", transparency=bytes(range(9)))),
        (".png", saved(colour.convert("1"), "PNG")),
        (".png", saved(clear.convert("LA"), "PNG", save_all=True, append_images=[clear] * 3)),
        (".jpg", saved(colour, "JPEG", exif=exif, icc_profile=profile)),
        (".jpeg", saved(colour, "JPEG", progressive=True)),
        (".jpg", saved(colour.convert("CMYK"), "JPEG")),
        (".gif", saved(palette, "GIF", transparency=2, comment=b"a" * 300, **frames)),
        (".bmp", saved(colour, "BMP")),
        (".bmp", saved(palette, "BMP")),
        (".ppm", saved(colour, "PPM")),
        (".pgm", saved(deep, "PPM")),
        (".tif", saved(colour, "TIFF", exif=exif)),
        (".tif", saved(deep, "TIFF", compression="tiff_lzw")),
        (".tiff", saved(clear, "TIFF", compression="tiff_adobe_deflate")),
        (".tiff", saved(colour, "TIFF", compression="jpeg", save_all=True, append_images=[clear])),
        (".tiff", saved(colour.convert("1"), "TIFF", compression="group4")),
    ]
    if features.check("webp"):
        files.append((".webp", saved(colour, "WEBP", exif=exif, icc_profile=profile)))
        files.append((".webp", saved(clear, "WEBP", lossless=True, **frames)))
    if features.check("avif"):
        files.append((".avif", saved(clear, "AVIF", exif=exif)))
    if features.check("jpg_2000"):
        files.append((".jp2", saved(clear, "JPEG2000")))
        files.append((".jp2", saved(deep, "JPEG2000", tile_size=(8, 8))))
    return files


def write_containers(folder):
    """A tar and a few Parquet files of small pictures, whole -> their paths."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    # a picture of each class beside what describes it
    pictures = []
    for seed in range(24):
        pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        pictures.append(saved(Image.fromarray(pixels), "PNG" if seed % 2 else "JPEG"))
    with tarfile.open(folder / "plain.tar", "w") as tar:
        for number, picture in enumerate(pictures):
            label = {"label": number % 3, "caption": f"number {number}"}
            add(tar, f"{number:03d}.{'png' if number % 2 else 'jpg'}", picture)
            add(tar, f"{number:03d}.json", json.dumps(label).encode())
    with tarfile.open(folder / "long.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, picture in enumerate(pictures):
            add(tar, f"{'é' * 120}/{number:03d}.png", picture)

    # as the hub writes them and as others do
    plain = {"image": pictures, "label": [number % 3 for number in range(24)]}
    words = {"caption": [f"number {number}" for number in range(24)], "split": ["train"] * 24}
    hub = [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)]
    options = {"row_group_size": 7, "write_page_checksum": False}
    pq.write_table(pa.table(plain), folder / "plain.parquet", **options)
    pq.write_table(pa.table(plain | words), folder / "zstd.parquet", compression="zstd", **options)
    hub = pa.table({"image": hub, "label": pa.array(plain["label"]).dictionary_encode()} | words)
    pq.write_table(hub, folder / "hub.parquet", **options)
    return sorted(folder.iterdir())


def add(tar, name, data):
    """Put a file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# Mutations ----------------------------------------------------------------------------------------


def flipped(data, dice, _):
    """Some bytes changed, most often where a header is."""
    data = bytearray(data)
    for _ in range(dice.randint(1, DAMAGES)):
        end = len(data) if dice.random() < 0.4 else min(len(data), 200)
        data[dice.randrange(end)] = dice.choice([0, 255, dice.randrange(256)])
    return bytes(data)


def cut(data, dice, _):
    """Cut off, or a piece of it missing, doubled or blank."""
    first, last = sorted(dice.randrange(len(data)) for _ in range(2))
    middle = dice.choice([b"", data[first:last] * 2, bytes(last - first)])
    return dice.choice([data[:first], data[:first] + middle + data[last:]])


def spliced(data, dice, files):
    """Its beginning, and the end of another one."""
    other = dice.choice(files)[1]
    return data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]


def odd_number(data, dice, _):
    """A number of two or four bytes in its head that is far too small or large."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 2)):
        place = dice.randrange(min(len(data), 120))
        number = dice.choice(NUMBERS)
        width = dice.choice([2, 4])
        packed = (number & ((1 << 8 * width) - 1)).to_bytes(width, dice.choice(["big", "little"]))
        data[place : place + width] = packed
    return bytes(data)


def with_right_sums(data):
    """A PNG's chunks, as far as they can be told apart, with the sums that fit what is in them."""
    place = 8
    parts = [data[:8]]
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        inside = data[place + 4 : place + 8 + length]
        parts.append(chunk(inside[:4], inside[4:]))
        place += 12 + length
    return b"".join(parts)


def chunk(kind, content):
    """A chunk of a PNG."""
    sums = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sums


def odd_shape(_, dice, __):
    """A PNG without an error in it, as long as one may be, or one that says so and holds less."""
    long = dice.choice([65535, 10**6])
    shapes = [(long, 1), (1, long), (long, 3), (2**31 - 1, 1), (30000, 30000), (30000, 2000)]
    width, height = dice.choice(shapes)
    bits, colour, channels = dice.choice([(8, 2, 3), (16, 0, 1), (8, 6, 4), (1, 0, 1), (16, 6, 4)])
    row = bytes(1 + (width * bits * channels + 7) // 8) if width <= 10**7 else b""
    # all of it is there, or only a beginning where it would be long
    rows = height if len(row) * height < 10**7 else dice.randrange(5)
    packed = zlib.compress(row * rows, 1)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@cache
def packed_zeros():
    """A hundred megabytes in less than one, and one in less than ten kilobytes."""
    return zlib.compress(bytes(10**8), 1), zlib.compress(bytes(10**6), 1)


def bomb(_, dice, files):
    """Small files of which a part unpacks to much, or takes long."""
    png, jpeg = files[0][1], next(data for suffix, data in files if suffix == ".jpeg")
    many, zeros = packed_zeros()
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    texts = chunk(b"zTXt", b"a\0\0" + zeros) * dice.choice([1, 100])
    profile = chunk(b"iCCP", b"a\0\0" + many)
    directory = b"".join(
        struct.pack("<HHII", tag, 1, 2 ** dice.choice([10, 20, 31]), 8) for tag in range(256, 9000)
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 8744) + directory + bytes(4)
    return dice.choice(
        [
            png[:33] + texts + png[33:],
            png[:33] + profile + png[33:],
            png[:33] + chunk(b"eXIf", tiff) + png[33:],
            tiff,
            jpeg[:-2] + scan * dice.choice([50, 5000, 100_000]) + b"\xff\xd9",
            jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0II" * dice.choice([3, 10**6]) + jpeg[2:],
        ]
    )


def another_kind(_, dice, __):
    """Something else under a picture's name, of which some would start a program."""
    from PIL import Image

    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(w) (r) file\n"
    image = Image.new("RGB", (9, 9))
    kinds = [saved(image, kind) for kind in ("EPS", "PCX", "TGA", "ICO", "PDF", "DDS", "SGI")]
    binary = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(script), 0, 0, 0, 0, 0xFFFF) + bytes(2)
    others = [
        script,
        binary + script,
        b"",
        b"\0" * 99,
        b"<svg xmlns='x'/>",
        b"\x1f\x8b\x08",
        b"GIF",
    ]
    return dice.choice(kinds + others)


def odd_member(data, dice, _):
    """A tar of which one header says something else, with its right sum."""
    data = bytearray(data)
    headers = [place for place in range(0, len(data), 512) if data[place + 257 :][:5] == b"ustar"]
    place = dice.choice(headers)
    size = dice.choice([-1536, -512, -1, 0, 2**31, 2**40, 2**62, 2**80, dice.randrange(10**5)])
    choice = dice.randrange(4)
    if choice < 2:
        mark = b"\x80" if size >= 0 else b"\xff"
        data[place + 124 : place + 136] = mark + (size % 2**88).to_bytes(11, "big")
    elif choice == 2:
        data[place + 156] = dice.choice(b"0123456789SLKxgVDMN\0")
    else:
        name = dice.choice([b"../../x.png", b"/etc/x.png", b"\xff.png", b"a/" * 49 + b"\n"])
        data[place : place + 100] = name.ljust(100, b"\0")[:100]
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    return bytes(data)


def damaged_end(data, dice, _):
    """A Parquet file with bytes of its footer changed."""
    data = bytearray(data)
    (length,) = struct.unpack("<I", data[-8:-4])
    for _ in range(dice.randint(1, DAMAGES)):
        data[-1 - dice.randrange(length + 8)] = dice.choice([0, 255, dice.randrange(256)])
    return bytes(data)


def mutated_image(files, dice):
    """(how it was made, suffix, bytes) of one."""
    suffix, data = dice.choice(files)
    ways = [flipped, flipped, cut, spliced, odd_number, odd_number, odd_shape, another_kind, bomb]
    way = dice.choice(ways)
    data = way(data, dice, files)
    if suffix == ".png" and way in (flipped, odd_number) and dice.random() < 0.6:
        data = with_right_sums(data)
    return way.__name__, suffix, data


def mutated_container(files, dice):
    """(how it was made, suffix, bytes) of one."""
    suffix, data = dice.choice(files)
    own = odd_member if suffix == ".tar" else damaged_end
    way = dice.choice([flipped, cut, spliced, odd_number, own, own])
    return way.__name__, suffix, way(data, dice, files)


def attack(child, kind, files, mutate, count, seed):
    """Read the valid files, which have to be sound, and `count` mutations of them -> Outcome."""
    failures = []
    fates = Counter()
    most = 0
    for number in range(-len(files), count):
        dice = random.Random(f"{kind} {seed} {number}")
        way = "valid"
        if number < 0:
            suffix, data = files[number]
        else:
            way, suffix, data = mutate(files, dice)
        path = Path(child.place.name) / f"train-{number}{suffix}"
        path.write_bytes(data)
        fate, took = child.read(kind, path)
        path.unlink()
        # of these two some are as large as a picture may be
        if way not in ("odd_shape", "odd_number"):
            most = max(most, took)
            fate = f"it took {took >> 20} MB" if took > SMALL else fate
        if fate not in (["read"] if number < 0 else ["read", "refused"]):
            failures.append(f"{number} {way} {suffix}, {len(data)} bytes: {fate}")
        elif number >= 0:
            fates[fate] += 1
    return Outcome(count, sum(fates.values()), fates["read"], failures, most >> 20)


def mutated_images(count, seed, child=None):
    """Read `count` mutated pictures, cut in every way and as uploads -> Outcome.

    `child` is one that is there already.
    """
    with contextlib.nullcontext(child) if child else Reader() as reader:
        return attack(reader, "image", valid_images(), mutated_image, count, seed)


def mutated_containers(count, seed, child=None):
    """Open `count` mutated tars and Parquet files and read them to their end -> Outcome."""
    with tempfile.TemporaryDirectory() as place:
        paths = write_containers(Path(place))
        files = [(path.suffix, path.read_bytes()) for path in paths]
    with contextlib.nullcontext(child) if child else Reader() as reader:
        return attack(reader, "container", files, mutated_container, count, seed)


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        child()
    else:
        images, containers, seed = map(int, sys.argv[1:])
        for outcome in (mutated_images(images, seed), mutated_containers(containers, seed)):
            for failure in outcome.failures:
                print(failure)
            print(
                f"{outcome.tried} tried, {outcome.survived} survived, of which {outcome.read} were"
                f" read; a small one took at most {outcome.most_megabytes} MB"
            )
