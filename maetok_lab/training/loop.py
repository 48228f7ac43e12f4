"""The one training loop: draw, forward, backward, guard, step, average, log, save, picture, yield.

    for record in train(task, run): ...

A task (see `task`; `autoencoding.TokenizerTask`, `diffusion.DiffusionTask`) says what its batch is,
what its named losses are and what its checkpoint holds.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from maetok_lab.cores import Cores, every_core
from maetok_lab.device import free_memory, pick_device
from maetok_lab.layers.transformer import recompute_blocks
from maetok_lab.processes import join_group
from maetok_lab.ranks import Call, Ranks
from maetok_lab.rng import seed_step
from maetok_lab.runs import Checkpoint, Run
from maetok_lab.training.memory import ROOM, count_memory, fewest_parts
from maetok_lab.training.optim import (
    Ema,
    Guard,
    Muon,
    learning_rate_factor,
    load_optimizer_tensors,
    make_optimizers,
    moved_parameters,
    optimizer_tensors,
    set_learning_rate,
)
from maetok_lab.training.order import Share, join_parts
from maetok_lab.training.stopping import BetweenSteps, Wish, heard_signals, is_due
from maetok_lab.training.task import StepRecord, StopCondition, Task, Terms

COMPILED_STEPS = 5000  # fewer may be done before they are compiled
RECORD_SECONDS = 0.2  # between records of a training in other processes


class State:
    """What a training carries from step to step."""

    def __init__(self, task: Task, engine: Accelerator):
        config = task.config
        seed_step(config.seed, -1)
        task.build(engine.device)
        if config.recompute:
            recompute_blocks(task.module)
        self.task = task
        self.engine = engine
        self.optimizers = make_optimizers(config.optimizer, task.trained)
        self.parameters = moved_parameters(self.optimizers.values())
        self.emas = {name: Ema(task.model, decay) for name, decay in task.ema_decays.items()}
        self.guard = Guard()
        self.step = 0
        self.forward = task.module.train()
        self.cores: Cores | None = None  # where parts of a batch go through side by side

    def use(self, cores: Cores | None) -> None:
        """Share the parts of batches, and Muon's matrices, among `cores`."""
        self.cores = cores
        for optimizer in self.optimizers.values():
            if cores and isinstance(optimizer, Muon):
                optimizer.spread = cores.map

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.task.load(checkpoint)
        for name, ema in self.emas.items():
            ema.module.load_state_dict(checkpoint.tensors[name])
        load_optimizer_tensors(self.optimizers, checkpoint.tensors["optimizer"])
        self.guard.skipped = checkpoint.state["skipped"]
        self.step = checkpoint.step

    def save(self, run: Run) -> None:
        """Write everything that going on needs."""
        groups, facts = self.task.checkpoint(self.emas)
        groups["optimizer"] = optimizer_tensors(self.optimizers)
        groups |= {name: ema.module.state_dict() for name, ema in self.emas.items()}
        run.save_checkpoint(self.step, groups, {"skipped": self.guard.skipped, **facts})

    def settle(self, terms: Terms) -> None:
        """Hear of skipped steps. Raises NonFiniteTraining after too many in a row."""
        self.guard.settle(self.step, terms)
        self.task.settle(self.step, terms)


def train(
    task: Task,
    run: Run,
    *,
    cpu: bool = False,
    processes: int = 1,
    stop_when: StopCondition | None = None,
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; a record a step, none of a finished run.

    `processes` above 1 are started here (see `ranks`), and some records come. A signal ends it
    after its step, with a checkpoint. `stop_when` looks at the run at every `save_every`: what it
    returns, if anything, ends the training. Raises what `task.check` raises, and NonFiniteTraining.
    """
    # A finished run is left alone; data that are not the config's are refused before anything.
    run.reopen_if_damaged()
    if run.finished:
        run.close()
        return
    task.check()
    if processes > 1:
        with run.held():
            yield from train_in_processes(task, run, processes, cpu=cpu)
        return
    parts = 1 if task.config.accumulate == "fit" else task.config.accumulate
    engine = make_engine(task.config.batch_size, parts=parts, cpu=cpu, task=task)
    with run.held() if engine.is_main_process else contextlib.nullcontext():
        yield from train_here(State(task, engine), run, stop_when)


def train_here(state: State, run: Run, stop_when: StopCondition | None) -> Iterator[StepRecord]:
    """`train` in this process, alone or one of a group."""
    task = state.task
    engine = state.engine
    config = task.config
    if go_on(state, run, stop_when):
        return

    compile_if_it_pays(task, engine)
    state.forward = engine.prepare_model(task.module)
    with heard_signals() as signals:
        between = BetweenSteps(engine, signals, save_minutes=config.save_minutes)
        with every_core() if goes_side_by_side(task, engine) else contextlib.nullcontext() as cores:
            state.use(cores)
            for batch in task.batches(Share(engine, state.step, config.batch_size)):
                if task.config.accumulate == "fit":
                    fit_parts(state, batch)
                terms = training_step(state, batch)
                record = write_down(state, terms, run)
                yield record

                # Whoever takes the record may ask to stop, as a signal does; all processes then do.
                is_saved = is_due(state.step, config.save_every, config.num_steps)
                wish = between.agree(asked=record.stopping.is_set(), is_saved=is_saved)
                if wish and not is_saved:
                    save(state, terms, run)
                # the last checkpoint, too, may be what `stop_when` waited for
                met = is_saved and finish_early(state, run, stop_when)
                if state.step == config.num_steps and not met:
                    break
                if met or wish == Wish.STOP:
                    between.wait_for_all()
                    signals.pass_on()
                    return
        if engine.is_main_process:
            facts = {"steps": state.step, "images": state.step * config.batch_size}
            facts["skipped"] = state.guard.skipped
            run.finish({**facts, **task.summary(state.emas, state.step, run)})
        signals.pass_on()


def compile_if_it_pays(task: Task, engine: Accelerator) -> None:
    """Let torch compile what is trained: if the config says so, or in a long training on CUDA."""
    # before DDP wraps it, so that names in checkpoints stay what they are
    wanted = task.config.compile
    if wanted == "auto":
        wanted = engine.device.type == "cuda" and task.config.num_steps >= COMPILED_STEPS
    if wanted:
        if engine.is_main_process:
            print("compiling: the first steps take minutes, the others less than before")
        task.compile()


def go_on(state: State, run: Run, stop_when: StopCondition | None) -> bool:
    """Take the run's newest checkpoint, if there is one; whether that is its end."""
    if checkpoint := run.load_checkpoint():
        state.load(checkpoint)
        if finish_early(state, run, stop_when):
            return True
    # what was logged after it is about to be logged again
    if state.engine.is_main_process:
        run.rewind_metrics(state.step)
    return False


def train_in_processes(task: Task, run: Run, processes: int, *, cpu: bool) -> Iterator[StepRecord]:
    """`train` in a group of processes that are started here; records come as these go on."""
    with heard_signals() as signals:
        device = torch.device("cpu") if cpu else pick_device()
        with Ranks(processes, device, Call(records, (task, run), {"cpu": cpu})) as ranks:
            for facts in ranks:
                record = StepRecord(*facts)
                yield record
                if record.stopping.is_set() or signals.number is not None:
                    ranks.stop()
        signals.pass_on()


def records(task: Task, run: Run, *, cpu: bool) -> Iterator[tuple]:
    """What `train` yields in one process of a group, as often as somebody would look at it."""
    last = 0.0
    for record in train(task, run, cpu=cpu):
        now = time.monotonic()
        shows = record.losses or record.picture or record.step == record.num_steps
        if shows or now - last > RECORD_SECONDS:
            last = now
            yield record.step, record.num_steps, record.images, record.losses, record.picture


def write_down(state: State, terms: Terms, run: Run) -> StepRecord:
    """Log, save and picture a step where that is due. -> what the loop yields"""
    task = state.task
    config = task.config
    step = state.step
    images_seen = step * config.batch_size
    writes = state.engine.is_main_process
    logs = is_due(step, config.log_every, config.num_steps)
    saves = is_due(step, config.save_every, config.num_steps)

    # Only here does the host read numbers off the device: other steps wait for nothing.
    losses = picture = None
    if logs:
        state.settle(terms)
        losses = task.numbers(terms, state.engine)
    if logs and writes:
        facts = {"step": step, "images": images_seen, "split": "train"}
        run.log({**facts, **losses, "skipped": state.guard.skipped})
    if writes and is_due(step, config.picture_every, config.num_steps):
        picture = task.picture(state.emas, step, run)
    if saves:
        save(state, terms, run)
    return StepRecord(step, config.num_steps, images_seen, losses, picture)


def save(state: State, terms: Terms, run: Run) -> None:
    """Write a checkpoint, of a training that is sound."""
    state.settle(terms)
    if state.engine.is_main_process:
        state.save(run)


def fit_parts(state: State, batch: Any) -> None:
    """Set the config's `accumulate` to the fewest parts of a batch that fit into memory here."""
    task = state.task
    engine = state.engine
    config = task.config
    # As in the last step: there every term counts, the discriminator's too.
    share = Share(engine, config.num_steps - 1, config.batch_size)
    size = config.batch_size // engine.num_processes
    task.before_step(batch, share.parts(size), map)  # as little at once as it can

    def pass_bytes(parts: int) -> tuple[float, float]:
        """What the passes of the first of so many parts take."""
        with count_memory(engine.device) as memory:
            loss, _ = task.loss(task.module, batch, share.parts(parts)[0])
            loss.backward()
        for parameter in state.parameters:
            parameter.grad = None
        return memory[0], memory[1]

    # The optimizers' two moments come with the first step.
    room = ROOM * free_memory(engine.device)
    if not any(optimizer.state for optimizer in state.optimizers.values()):
        room -= 2 * sum(parameter.nbytes for parameter in state.parameters)
    parts = fewest_parts(size, pass_bytes, room=room)
    # All processes have as many, or one would wait for a gradient that another has sent.
    parts = int(engine.gather(torch.tensor([parts], device=engine.device)).max())
    task.config = dataclasses.replace(config, accumulate=parts)
    if engine.is_main_process:
        print(f"a batch of {size} images goes through in {parts} parts, as memory is here")


def training_step(state: State, batch: Any) -> Terms:
    """One optimizer step on this process's share of the global batch, in `accumulate` parts.

    -> named terms: means over the parts, or (B,) where every item has its own
    """
    task = state.task
    engine = state.engine
    config = task.config
    share = Share(engine, state.step, config.batch_size)

    # Draws inside modules (drop path) depend on seed and step alone: resuming repeats them.
    seed_step(config.seed, state.step)
    parts = share.parts(config.accumulate)
    task.before_step(batch, parts, map if state.cores is None else state.cores.map)
    backward = parts_in_turn if state.cores is None else parts_side_by_side
    terms = join_parts(backward(state, batch, parts))

    # A step without a finite gradient changes no weight; averages then follow unmoved weights.
    grad_norm = nn.utils.clip_grad_norm_(state.parameters, config.optimizer.clip)
    factor = learning_rate_factor(config.optimizer, state.step, config.num_steps)
    set_learning_rate(state.optimizers, factor)
    state.guard.step(state.optimizers.values(), grad_norm)
    for ema in state.emas.values():
        ema.update(state.step)
    for parameter in state.parameters:
        parameter.grad = None

    terms |= task.after_step(batch, share, factor)
    state.step += 1
    return terms


def goes_side_by_side(task: Task, engine: Accelerator) -> bool:
    """Whether parts of a batch are computed at once: on a CPU, by one process."""
    # The same on one core, where they come one after another: so it has the same numbers.
    alone = engine.device.type == "cpu" and engine.num_processes == 1
    in_parts = task.config.accumulate not in (1, "fit")
    return alone and in_parts and task.parts_are_independent


def parts_in_turn(state: State, batch: Any, parts: list[Share]) -> list[Terms]:
    """The gradient of every part, added to that of those before it. -> each part's terms"""
    terms = []
    for part in parts:
        # Gradients of several processes meet once a step, with the last part.
        engine = state.engine
        waits = engine.no_sync(state.forward) if not part.is_last else contextlib.nullcontext()
        with waits:
            loss, part_terms = state.task.loss(state.forward, batch, part)
            engine.backward(loss / len(parts))
        terms.append(part_terms)
    return terms


def parts_side_by_side(state: State, batch: Any, parts: list[Share]) -> list[Terms]:
    """The same on a CPU's cores: each has parts of its own, in one thread. -> each part's terms"""

    def gradients(part: Share) -> tuple[tuple[torch.Tensor | None, ...], Terms]:
        """Of one part: the gradient of every parameter, and its terms."""
        loss, terms = state.task.loss(state.forward, batch, part)
        loss = loss / len(parts)
        # In turn, parts would add to `.grad`; at once, each needs a place of its own.
        return torch.autograd.grad(loss, state.parameters, allow_unused=True), terms

    # Added up in the order of the parts, whoever came first: a sum's last bits depend on it. Never
    # in place: two parameters may have got one and the same tensor.
    results = state.cores.map(gradients, parts)
    for part_gradients, _ in results:
        for parameter, gradient in zip(state.parameters, part_gradients):
            if gradient is None:
                continue
            before = parameter.grad
            parameter.grad = gradient if before is None else before + gradient
    return [terms for _, terms in results]


def finish_early(state: State, run: Run, stop_when: StopCondition | None) -> bool:
    """Finish the run if `stop_when` says so of its newest checkpoint; whether it did."""
    if stop_when is None:
        return False
    # Every process looks at the same checkpoint, and so decides alike.
    state.engine.wait_for_everyone()
    facts = stop_when(run)
    if facts is None:
        return False
    if state.engine.is_main_process:
        images = state.step * state.task.config.batch_size
        run.finish({"steps": state.step, "images": images, **facts})
    return True


def make_engine(
    batch_size: int, *, parts: int = 1, cpu: bool = False, task: Task | None = None
) -> Accelerator:
    """Accelerate, whose processes each take an equal share of the global batch, in equal parts.

    Raises ValueError when they cannot.
    """
    join_group(cpu=cpu)
    look = task is not None and not task.every_weight_has_a_gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=look)
    # precision and parts are the config's: said here, the environment of a launcher says nothing
    engine = Accelerator(
        cpu=cpu,
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[unused],
    )
    if batch_size % (engine.num_processes * parts):
        in_parts = f" in {parts} parts" if parts > 1 else ""
        raise ValueError(
            f"{engine.num_processes} processes cannot share a batch of {batch_size} "
            f"equally{in_parts}"
        )
    return engine
