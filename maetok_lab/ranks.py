"""Call a function in several processes of one `torch.distributed` group, from a notebook's cell.

    images = in_processes(8, place, lab.generate, model, tokenizer, space, labels)
    with Ranks(8, place, Call(function, arguments, {})) as ranks:
        for item in ranks: ...  # what the generator `function` yields in the first process

torchrun starts the processes and ends all when one of them ends badly. What goes to and fro lies in
a folder of its own: the call, what the first process says, and errors.
"""

import contextlib
import dataclasses
import glob
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import GeneratorType
from typing import Any

import psutil
import torch

from maetok_lab.device import usable_cores
from maetok_lab.files import write_bytes
from maetok_lab.processes import join_group

LOOK_SECONDS = 0.1  # between two looks at what the processes said
PATIENCE_SECONDS = 25.0  # for a step and a checkpoint, once they are asked to stop
BROKEN_SECONDS = 10.0  # that a process waits in vain for one that died


@dataclasses.dataclass(frozen=True)
class Call:
    """What every process is to do."""

    function: Callable
    arguments: tuple
    options: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write the call for `work`. Raises TypeError for what other processes cannot have."""
        # functions of a notebook are in no module that another process could import
        try:
            torch.save(self, folder / "call")
        except (pickle.PicklingError, AttributeError, TypeError) as problem:
            raise TypeError(
                f"{self.function.__name__} cannot be called in other processes: {problem}"
            ) from None


def in_processes(
    processes: int, device: torch.device, function: Callable, /, *arguments: Any, **options: Any
) -> Any:
    """`function(*arguments, **options)` by a group of processes that share its work.

    Each has a GPU, or on a CPU a share of its cores; one process calls it here. -> what it returns
    in the first. Raises what it raises in any, RuntimeError for a process that was killed,
    ValueError for more than there are GPUs.
    """
    if processes == 1:
        return function(*arguments, **options)
    with Ranks(processes, device, Call(function, arguments, options)) as ranks:
        for _ in ranks:
            pass
        return ranks.result


def yielded(
    processes: int, device: torch.device, function: Callable, /, *arguments: Any, **options: Any
) -> Iterator[Any]:
    """As `in_processes`, of a generator: what it yields in the first process."""
    if processes == 1:
        yield from function(*arguments, **options)
        return
    with Ranks(processes, device, Call(function, arguments, options)) as ranks:
        yield from ranks


class Ranks:
    """Processes at work on one call. Iterating gives what a generator yields in the first one.

    Leaving the `with` asks them to stop, as SIGTERM does, and ends those that go on.
    """

    def __init__(self, processes: int, device: torch.device, call: Call):
        check_processes(processes, device)
        self.processes = processes
        self.result: Any = None  # of the function, once it has returned
        self._is_stopped = False
        self._folder = tempfile.TemporaryDirectory(prefix="maetok-lab-")
        self.folder = Path(self._folder.name)
        call.save(self.folder)
        # Its own session: ^C and other signals to the group of this process are passed on by us.
        command = [sys.executable, "-m", "maetok_lab.ranks", "start", str(self.folder)]
        with open(self.folder / "log", "w") as log:
            self._launcher = subprocess.Popen(
                [*command, str(processes), device.type, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        messages = _Frames(self.folder / "messages")
        while True:
            # looked at before the messages: whoever has ended says nothing after that
            has_ended = self._launcher.poll() is not None
            for kind, value in messages.new():
                if kind == "item":
                    yield value
                elif kind == "print":
                    print(value, end="", flush=True)
                else:
                    warnings.warn(value, stacklevel=2)
            if has_ended:
                break
            time.sleep(LOOK_SECONDS)
        if self._launcher.returncode != 0:
            problem = self._problem()
            if problem is not None:
                raise problem
            return
        self.result = torch.load(self.folder / "result", weights_only=False)

    def stop(self) -> None:
        """Ask every process to stop, as SIGTERM does: a training ends after its step."""
        self._is_stopped = True
        for path in _pid_files(self.folder):
            # one that comes to its end removes its file
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGTERM)

    def close(self) -> None:
        """End what still runs, and forget the folder."""
        if self._launcher.poll() is None:
            self.stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(PATIENCE_SECONDS)
        if self._launcher.poll() is None:
            for child in psutil.Process(self._launcher.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self._launcher.kill()
            self._launcher.wait()
        self._folder.cleanup()

    def _problem(self) -> Exception | None:
        """What to raise for processes that ended badly; None if they were to stop."""
        errors = sorted(self.folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
        log = (self.folder / "log").read_text()[-2000:]
        killed = self.folder / "killed"
        if killed.exists():  # the others then fail too, for want of it
            rank, number = killed.read_text().split()
            name = signal.Signals(int(number)).name
            problem = RuntimeError(
                f"process {rank} of {self.processes} was ended by {name}"
                f"{' (out of memory?)' if name == 'SIGKILL' else ''}, and the others with it;"
                " the same again goes on from what is stored"
            )
            problem.add_note(log)
            return problem
        if not errors and self._is_stopped:
            return None
        if not errors:
            return RuntimeError(f"{self.processes} processes ended without a result:\n{log}")
        problem, place, trace = pickle.loads(errors[0].read_bytes())
        problem.add_note(f"(in process {place} of {self.processes})\n{trace}")
        return problem


def check_processes(processes: int, device: torch.device) -> None:
    """ValueError for a number of processes that cannot be, or without a GPU for each."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes must be a whole number >= 1, not {processes!r}")
    if processes == 1 or device.type == "cpu":
        return
    gpus = torch.cuda.device_count()
    if device.index is not None or gpus < processes:
        raise ValueError(
            f"processes={processes} on {device} needs as many GPUs, and there are {gpus}; take"
            f' processes={max(1, gpus)} with device="cuda", or device="cpu"'
        )


class _Frames:
    """A file of pickles one behind the other, which one process writes and another one reads."""

    def __init__(self, path: Path):
        self.path = path
        self._place = 0  # up to which it was read

    def add(self, frame: object) -> None:
        """Write one more."""
        packed = pickle.dumps(frame)
        with open(self.path, "ab") as file:
            file.write(len(packed).to_bytes(8, "big") + packed)

    def new(self) -> Iterator[Any]:
        """Those that were written whole since the last look."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._place)
            while len(head := file.read(8)) == 8:
                packed = file.read(int.from_bytes(head, "big"))
                if len(packed) < int.from_bytes(head, "big"):
                    return
                self._place = file.tell()
                yield pickle.loads(packed)


# In the other processes ---------------------------------------------------------------------------


def start(folder: Path, processes: str, device: str, owner: int) -> None:
    """Start the processes of a call by torchrun, in this process; end them with their `owner`."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    threading.Thread(target=end_with_parent, args=[owner], daemon=True).start()
    command = ["--standalone", "--nproc-per-node", processes, "--module", "maetok_lab.ranks"]
    try:
        run.main([*command, "work", str(folder), device])
    except ChildFailedError as problem:
        # by the agent's own SIGTERM end those that were not to blame
        for rank, failure in problem.failures.items():
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                (folder / "killed").write_text(f"{rank} {-failure.exitcode}")
        sys.exit(1)


def work(folder: Path, device: str) -> None:
    """Make the call of `folder`, as one process of the group."""
    rank, processes = join_group(cpu=device == "cpu")
    torch.set_num_threads(max(1, usable_cores() // processes))
    pid_file = folder / f"{_pid_prefix()}{rank}"
    write_bytes(pid_file, str(os.getpid()).encode())
    threading.Thread(target=_end_with_others, args=[folder], daemon=True).start()
    messages = _Frames(folder / "messages")
    failed = False
    try:
        call = torch.load(folder / "call", weights_only=False, map_location=_own_device)
        with _said_as(messages) if rank == 0 else contextlib.nullcontext():
            result = call.function(*call.arguments, **call.options)
            if isinstance(result, GeneratorType):
                for item in result:
                    if rank == 0:
                        messages.add(("item", item))
                result = None
        if rank == 0:
            torch.save(result, folder / "result")
        torch.distributed.destroy_process_group()
    except Exception as problem:
        _write_error(folder / f"error-{rank}", problem, rank)
        failed = True
    finally:
        # no longer missed by the others
        pid_file.unlink(missing_ok=True)
    # At once: in one of ten ends Python's own way met a thread of the exchange, and aborted
    # (see `processes`).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed)


@contextlib.contextmanager
def _said_as(messages: _Frames) -> Iterator[None]:
    """Inside, what is printed and warned of becomes messages."""

    class Printed(io.TextIOBase):
        def write(self, text: str) -> int:
            messages.add(("print", text))
            return len(text)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        messages.add(("warning", str(message)))

    with contextlib.redirect_stdout(Printed()), warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _write_error(path: Path, problem: Exception, rank: int) -> None:
    trace = traceback.format_exc()
    try:
        packed = pickle.dumps((problem, rank, trace))
        pickle.loads(packed)
    except Exception:  # an error of any kind, with any arguments: its words are enough
        plain = RuntimeError(f"{type(problem).__name__}: {problem}")
        packed = pickle.dumps((plain, rank, trace))
    # whole or not at all: torchrun ends this process as soon as it hears of another one's error
    write_bytes(path, packed)


def _own_device(storage: Any, location: str) -> Any:
    """What was on the caller's GPU is on this process's own."""
    if location.startswith("cuda"):
        return storage.cuda()  # the device that joining the group has set
    return storage


def end_with_parent(parent: int) -> None:
    """End this process, and so what it started, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with_others(folder: Path) -> None:
    """End this process soon after another one of its group died, or torchrun did.

    A process that was killed leaves the others in an exchange that never ends.
    """
    torchrun = os.getppid()
    while os.getppid() == torchrun and not any(map(_is_missed, _pid_files(folder))):
        time.sleep(LOOK_SECONDS)
    time.sleep(BROKEN_SECONDS)
    os._exit(1)


def _is_missed(pid_file: Path) -> bool:
    """Whether a process is gone that did not come to its end: there it removes its file first."""
    with contextlib.suppress(FileNotFoundError):
        return not _is_alive(int(pid_file.read_text())) and pid_file.exists()
    return False


def _pid_prefix() -> str:
    return f"pid-{socket.gethostname()}-"


def _pid_files(folder: Path) -> list[Path]:
    """Those of this machine's processes."""
    return list(folder.glob(f"{glob.escape(_pid_prefix())}*"))


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    match sys.argv[1:]:
        case "start", folder, processes, device, owner:
            start(Path(folder), processes, device, int(owner))
        case "work", folder, device:
            work(Path(folder), device)
