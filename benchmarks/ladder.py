"""The whole ladder of ablations on equal budget, in one command.

    python benchmarks/ladder.py --preset tiny --seeds 0

Prints held-out PSNR, perceptual distance and linear-probe accuracy of every rung, with and
without decoder tuning. What is in the runs folder already is not done again, so it can be
stopped anywhere.
"""

import argparse

from maetok_lab.experiments.ladder import Ladder, climb, markdown
from maetok_lab.training.presets import TOKENIZER_TRAINING
from maetok_lab.training.rungs import LADDER, RUNGS


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, climb, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", default="tiny", choices=TOKENIZER_TRAINING, help="the size of everything"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one ladder each")
    parser.add_argument(
        "--rungs",
        nargs="+",
        default=list(LADDER),
        choices=RUNGS,
        help="which rungs, or ablations; the whole ladder by default",
    )
    parser.add_argument(
        "--source",
        default="emoji",
        help="the shipped images, or a folder, Parquet or tar shards of your own",
    )
    parser.add_argument("--labels", default="category", help="what the probe reads off the latents")
    parser.add_argument(
        "--teacher", default="semantic", help="the shipped network, or dinov2 where its weights are"
    )
    parser.add_argument("--weights", help="a local file with the teacher's weights")
    parser.add_argument(
        "--runs", dest="root", help="folder for the runs; runs/ beside the library by default"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    options = vars(parser.parse_args(arguments))
    preset = options.pop("preset")
    if options["weights"]:
        options["weights"] = {options["teacher"]: options["weights"]}
    rungs = options.pop("rungs")
    seeds = options.pop("seeds")
    table = climb((Ladder(preset, seed=seed, **options) for seed in seeds), rungs=rungs)
    print("\n" + markdown(table))


if __name__ == "__main__":
    main()
