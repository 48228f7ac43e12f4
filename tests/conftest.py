"""What all tests share: one thread a worker, and where the repository is."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; kernels of notebooks inherit it
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole notebooks first: they take longest, and the other workers do the rest meanwhile."""
    items.sort(key=lambda item: "test_notebooks.py" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _digests_of_these_tests_alone(tmp_path_factory) -> None:
    """What was read from images is kept beside them, not in the user's own cache."""
    os.environ["MAETOK_LAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def make_pictures():
    """`make_pictures(count, image_size)`: a stand-in for ImageSource, images and labels in memory;
    every fourth one must not be mirrored. `images` (n, 3, H, W) can be changed.
    """
    import torch

    from maetok_lab.data import batches

    def make(
        count: int, image_size: int, *, seed: int = 0, num_classes: int = 3
    ) -> SimpleNamespace:
        random = torch.Generator().manual_seed(seed)
        pixels = torch.rand(count, 3, image_size, image_size, generator=random) * 2 - 1
        labels = torch.arange(count) % num_classes
        flippable = torch.arange(count) % 4 != 3

        def batch(indices, *, flip=None):
            indices = torch.as_tensor(indices)
            images = source.images[indices].clone()
            if flip is not None:
                mirrored = flip & flippable[indices]
                images[mirrored] = images[mirrored].flip(-1)
            return images, labels[indices]

        def read(indices, *, flip=None, scale_crops=None):
            assert scale_crops is None
            images = source.batch(indices, flip=flip)[0]
            # levels of 0 .. 255 as numbers: so they can be infinite too
            return batches.Pictures(((images.double() + 1) * 127.5), indices)

        source = Pictures(
            images=pixels,
            labels=labels,
            flippable=flippable,
            batch=batch,
            read=read,
            image_size=image_size,
            num_classes=num_classes,
            fingerprint=f"pictures-{count}-{image_size}-{seed}",
            in_memory=True,
            count_broken=lambda messages: None,
        )
        return source

    return make


@pytest.fixture(scope="session")
def in_two_processes():
    """`in_two_processes(work, timeout=60)`: what `work(rank, port, queue)` put into the queue in
    each of two processes, which may meet at a port of this machine that was free.
    """
    import torch

    def run(work, *, timeout: float = 60) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = torch.multiprocessing.get_context("fork")
        queue = context.Queue()
        workers = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
        for worker in workers:
            worker.start()
        results = [queue.get(timeout=timeout) for _ in workers]
        for worker in workers:
            worker.join()
        return results

    return run


# Locks --------------------------------------------------------------------------------------------

# without importing the library, and torch with it: this takes 0.2 seconds
HOLDER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
locks.LEASE_SECONDS, locks.BEAT_SECONDS = float(sys.argv[3]), float(sys.argv[4])
try:
    lock = locks.lock_folder(Path(sys.argv[2]))
    print("held", flush=True)
    time.sleep(600)
except locks.RunLocked as problem:
    print(problem, flush=True)
"""


@pytest.fixture
def hold_lock(repository):
    """`hold_lock(folder)`: a process, not this one, that takes the folder's lock and keeps it.

    It prints "held", which is waited for, or the error. `inside` is a command that starts it.
    """
    processes = []

    def hold(folder, *, lease=60.0, beat=2.0, inside=(), wait=True) -> subprocess.Popen:
        file = repository / "maetok_lab" / "runs" / "locks.py"
        words = [sys.executable, "-c", HOLDER, file, folder, lease, beat]
        process = subprocess.Popen(
            [*inside, *map(str, words)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        processes.append(process)
        assert not wait or process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


# Models of a few weights, for tests that draw images ----------------------------------------------


def fill(module):
    """Random weights everywhere, also where a model starts as the identity."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


@pytest.fixture
def tokenizer():
    """3 tokens of 2 channels for images of 8 px, with drop path, which eval mode must switch off.

    Its weights are also known as "weights".
    """
    from maetok_lab.identity import remember_name
    from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
    from maetok_lab.tokenizer.towers import TowerConfig

    tower = TowerConfig(width=16, depth=2, num_heads=2, drop_path=0.5)
    config = TokenizerConfig(
        image_size=8, patch_size=4, num_latent_tokens=3, latent_dim=2, encoder=tower, decoder=tower
    )
    tokenizer = fill(Tokenizer(config))
    remember_name(tokenizer, "weights")
    return tokenizer


@pytest.fixture
def model():
    """A diffusion model of four classes on its latents."""
    from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer

    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    return fill(DiffusionTransformer(config, num_tokens=3, latent_dim=2, num_classes=4))


class Pictures(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


PARAMETERS = """\
preset = "tiny"  # sizes
seed = 0  # of every draw
scale = 1.0  # of the answer
steps = 10  # how long
runs = None  # folder"""


@pytest.fixture
def make_notebook():
    """`make_notebook(path, *code)`: a notebook with five parameters and one section a piece of
    code; -> its path.
    """
    nbformat = pytest.importorskip("nbformat")
    v4 = nbformat.v4

    def make(path: Path, *code: str) -> Path:
        cells = [
            v4.new_markdown_cell("# Title"),
            v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        ]
        for number, source in enumerate(code, start=1):
            cells += [v4.new_markdown_cell(f"## Part {number}"), v4.new_code_cell(source)]
        nbformat.write(v4.new_notebook(cells=cells), path)
        return path

    return make
