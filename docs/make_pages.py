"""Executed notebooks as pages of the site: `python docs/make_pages.py [--runs FOLDER]`.

Takes the newest finished copy of each notebook at `--preset`, as `python -m maetok_lab run` left it
in the runs folder, and writes docs/executed/NAME.md with its pictures. A notebook without such a
copy keeps the page that it has.
"""

import argparse
from pathlib import Path

from builder.executed import newest_copy, write_page
from builder.notebooks import EXECUTED, notebook_paths

from maetok_lab.runs import runs_root


def main() -> None:
    """Write the pages, and print what they weigh."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", help="folder of the runs; by default runs/ beside the library")
    parser.add_argument("--preset", default="tiny", help="of the copies (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=EXECUTED, help="default: docs/executed")
    arguments = parser.parse_args()
    runs = runs_root(arguments.runs).absolute()
    arguments.output.mkdir(parents=True, exist_ok=True)

    # one page a notebook, and what it weighs in git
    total = 0
    for path in notebook_paths():
        copy = newest_copy(runs, path.stem, arguments.preset)
        if copy is None:
            print(f"{path.stem}: no finished copy at preset {arguments.preset} in {runs}")
            continue
        files = write_page(copy, path.stem, arguments.output)
        size = sum(file.stat().st_size for file in files)
        total += size
        print(f"{path.stem}: {len(files) - 1} pictures, {size / 1e3:.0f} kB, of {copy.folder.name}")
    print(f"{total / 1e6:.2f} MB in {arguments.output}")


if __name__ == "__main__":
    main()
