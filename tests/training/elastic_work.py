"""What the tests of interrupted jobs run, in one or more processes: `elastic_work.py ROOT [kill |
slow]` trains into ROOT.

"kill": once, after step 12, the last process is killed with SIGKILL. "slow": a step takes a tenth
of a second longer.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from share_work import DIFFUSION, Averages, open_run, pictures

from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.runs import Run
from maetok_lab.training.diffusion import train_diffusion

CONFIG = dataclasses.replace(DIFFUSION, num_steps=60, save_every=5)


def main(root: str, how: str = "") -> None:
    """Cache latents and train on them; what is there is continued."""
    state, done = PartialState(cpu=True), Path(root) / "killed"
    caching = LatentCaching(tokenizer="weights", images="pictures", dtype="fp32", shard_size=5)
    cache = open_run(state, root, "cache", caching)
    for _ in write_latents(Averages(), pictures(), caching, cache, device=torch.device("cpu")):
        pass
    run = open_run(state, root, "diffusion", CONFIG)
    start = run.checkpoint_steps()
    # one write, with its end of line: two processes share the pipe
    last = start[-1] if start else 0
    place = f"process {state.process_index} of {state.num_processes}"
    print(f"{place} starts after {last}\n", end="", flush=True)
    for record in train_diffusion(CONFIG, LatentDataset(Run(f"{root}/cache")), run, cpu=True):
        time.sleep(0.1 * (how == "slow"))
        if (
            how == "kill"
            and record.step == 12
            and state.process_index == state.num_processes - 1
            and not done.exists()
        ):
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
