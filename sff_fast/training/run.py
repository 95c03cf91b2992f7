"""``finetune``: one run from the pre-trained weights to ``metrics.json``."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import tasks
from ..data import ForecastData
from ..distributed.parallel import Parallel, processes
from ..errors import ArgumentError, CheckpointError
from ..files import claimed_directory, read_json, write_json
from ..resident import keep_few_kernels
from .config import PRECISIONS, Settings, resolve_settings
from .evaluate import measure
from .exhausted import explained
from .fit import settle
from .identity import check_identity, describe, differences, identity_of
from .interrupts import Interrupted, StopRequest, stop_requests
from .log import RunLog, as_json, read_history
from .loop import Trainer
from .output import COMPARISON, begin_output, check_output
from .progress import Progress, Silent
from .result import RunResult, build_metrics, zero_shot_entry
from .runtime import determinism, environment, peak_memory, reset_peak_memory, seeded
from .stages import Stages
from .state import Saved, StateStore
from .strategies import STRATEGIES, check_processes, check_trainable, is_prepared
from .weights import BestWeights
from .windows import FOLDER, WindowErrors, load_windows

WEIGHTS = "weights.safetensors"
"""In a run's folder, its best weights: of runs whose test is left to a sweep."""


def finetune(
    adapter: Any,
    data: ForecastData,
    strategy: str = "sff",
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    rng: str = "philox",
    epochs: int = 10,
    batch_size: int = 32,
    lr: float | None = None,
    max_steps: int | None = None,
    schedule: str = "halving",
    patience: int | None = 3,
    optimizer: str | None = None,
    optimizer_state: str | None = None,
    weight_decay: float = 0.0,
    grad_clip: float | None = None,
    precision: str | None = None,
    release_gradients: bool | None = None,
    activation_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    max_memory: int | str | None = None,
    lp_epochs: int | None = None,
    penalty: float | None = None,
    mixout_p: float | None = None,
    ema_decay: float | None = None,
    lora_rank: int | None = None,
    sam_rho: float | None = None,
    keep_initial: bool = False,
    again: bool = False,
    deterministic: bool = False,
    device: str = "auto",
    eval_batch_size: int | None = None,
    checkpoint_every: int | None = None,
    parallel: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    plan: Any = None,
) -> RunResult:
    """Fine-tune a model by one strategy, and test the epoch that is best on the validation part.

    The model is tuned in place and ends with the best weights, in eval mode. Before that the pre-trained model is
    evaluated (the zero-shot row) and, as epoch 0, the weights that training starts from.

    Epoch 0 is no candidate for the best epoch. For ``ff`` and ``lp`` it is the pre-trained model, whose row stands beside
    the tuned ones anyway and which the verdict recommends where tuning did not help: were it a candidate, a row that says
    ``ff`` could show the untouched model and hide that tuning made it worse. ``keep_initial=True`` makes it one. Where
    training breaks off before its first epoch ends, the weights of epoch 0 are what is left, and ``best_epoch`` is 0.

    With ``out``, the best model so far is always in ``out/model``: it is written after every epoch that is better than
    all before. SIGTERM and ctrl-C end the present step, save the state, and then end the program (exit code 143, or
    KeyboardInterrupt); ``resume=True`` goes on from there and gives the same weights, bit for bit, as a run that was
    never stopped (same machine, versions and thread count). ``metrics.json`` is written last: it marks a finished run.

    Under ``torchrun`` every process calls it alike and takes its part of every batch; one of them writes, and all return the
    same result. Batches are those of one process, ``batch_size`` windows over all of them, in the same order. Their number
    and kind, which a resumed run may change, decide the order in which gradients are summed, the masks of dropout and the
    bits of stochastic rounding; nothing else.

    Args:
        adapter: The model with its pre-trained weights.
        data: The windows.
        strategy: ``"zero-shot"``, ``"tfs"`` (train from scratch), ``"ff"`` (full fine-tuning), ``"sff"`` (smoothed full
            fine-tuning, default), ``"lp"`` (linear probing: the head alone), ``"lp-ff"``, or one of those that smoothing is
            compared with: ``"noise"``, ``"shrink"``, ``"perturb"``, ``"l2-sp"``, ``"l2-init"``, ``"mixout"``, ``"ema"``,
            ``"lora"``, ``"sam"`` (docs/strategies.md).
        alpha: Share of the pre-trained weights for ``sff``, ``noise``, ``shrink`` and ``perturb``, from 0 to 1, or a mapping
            of name patterns to shares. Default: the family's, 0.7.
        seed: Decides the random weights, the order of windows and dropout; 0 to 2**64 - 1.
        out: Folder for metrics, log, model and state. Default None: nothing is written and nothing can be resumed.
        rng: Where ``sff`` and ``tfs`` take their random weights from: ``"philox"`` (the random stream, default), or
            ``"torch"``, bit for bit those that building the model gives after ``torch.manual_seed(seed)``.
        epochs: Passes over the train windows. Default 10.
        batch_size: Windows a step; the last step of an epoch takes what is left. Default 32.
        lr: Learning rate at the start. Default: the family's, 3e-5.
        max_steps: Stop after so many optimizer steps; the epoch then ends early and is validated. Default None.
        schedule: ``"halving"`` (after every epoch, default), ``"constant"`` or ``"cosine"`` (to 0 at the last step).
        patience: Stop after so many epochs in a row without a better validation MSE; None never does. Default 3.
        optimizer: ``"adam"``, ``"adamw"``, ``"fused-adam"`` or ``"fused-adamw"``. Default: ``"adam"``, or ``"fused-adam"``
            where one of the following options asks for what only that has.
        optimizer_state: Precision of the states of a fused optimizer: ``"float32"``, ``"bfloat16"`` or ``"int8"``. Default
            None: the optimizer's own, float32 for the fused ones.
        weight_decay: Default 0.
        grad_clip: Limit for the gradients' norm, all parameters together. Default None.
        precision: dtype of the parameters, ``"fp32"`` (default), ``"bf16"`` or ``"bf16-sr"``: the model is cast before
            anything else. In bf16 a step that changes a weight by less than about 0.2 % is lost to rounding; bf16-sr rounds
            stochastically instead, so that such steps add up. Errors are always computed from fp32 forecasts.
        release_gradients: Step inside the backward pass and free the gradients. The same bits; ``grad_clip`` then takes two
            passes a step. Default False.
        activation_checkpointing: Keep only the inputs of the model's layers and compute the rest again in the backward
            pass. The same bits, about a third slower. Default False.
        micro_batch: Windows in memory at a time, of each process: a batch is cut into such parts, whose gradients are added
            up. Equal to a whole batch up to rounding for losses that are means over windows. Default: the whole batch.
        max_memory: Peak memory that the run may take (of the process; on CUDA of what torch allocates), in bytes or as
            ``"6G"``. Chooses those of the five options above, and of ``eval_batch_size``, that are not given, and says
            what it chose. Default None: no limit.
        lp_epochs: For ``lp-ff``: how many of the epochs train the head alone. Default: half. Optimizer, schedule and
            patience then start anew from the best of them, which stays a candidate for the best epoch.
        penalty: Strength of the penalty of ``l2-sp`` (default 0.1) and ``l2-init`` (default 0.01).
        mixout_p: Probability with which ``mixout`` replaces a weight by the pre-trained one. Default 0.9.
        ema_decay: Decay of the average of ``ema``; 1 averages all steps alike (SWA). Default 0.999.
        lora_rank: Rank of the updates of ``lora``. Default 8.
        sam_rho: How far uphill ``sam`` takes its gradient. Default 0.05.
        keep_initial: Whether the weights before training are a candidate for the best ones. Default False.
        again: Whether ``sff`` may smooth a model that has been smoothed before. Default False: an error.
        deterministic: Use deterministic algorithms only, and one thread. Default False.
        device: ``"auto"`` (CUDA where there is one, default), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        eval_batch_size: Windows at a time in evaluations. Default 256, or what ``max_memory`` leaves room for.
        checkpoint_every: Save the state every so many steps too. Default None: at the start and after every epoch.
        parallel: With several processes, ``"ddp"`` (each has the whole model, default) or ``"fsdp"``: parameters, gradients
            and optimizer states are sharded by FSDP2; the model stays so, and is whole in ``out/model``.
        resume: Continue the run in ``out``; where there is none, start it; where it is finished, return its result.
        overwrite: Remove an earlier run in ``out`` first.
        progress: Told about every batch; see :class:`Progress`. Default: nobody.
        plan: The init plan for ``sff`` and ``tfs``. Default: ``adapter.plan()``.

    Returns:
        The result.

    Raises:
        ArgumentError: A setting is not allowed, or the lengths do not fit the model.
        OutputError: ``out`` cannot be written, is in use by another process, or holds a run and neither ``resume`` nor
            ``overwrite`` was given.
        CheckpointError: The run in ``out`` has other settings, data or model, or none of its states is whole.
        BackendError: Another process of the job was lost.
        ExhaustedError: There is not enough memory; the message says what ``max_memory`` would choose.
    """
    given = {
        "precision": precision,
        "optimizer": optimizer,
        "optimizer_state": optimizer_state,
        "release_gradients": release_gradients,
        "activation_checkpointing": activation_checkpointing,
        "micro_batch": micro_batch,
        "eval_batch_size": eval_batch_size,
    }
    with processes(parallel, device) as several, contextlib.ExitStack() as claim:
        settings = resolve_settings(
            adapter,
            strategy=strategy,
            alpha=alpha,
            seed=seed,
            rng=rng,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            max_steps=max_steps,
            schedule=schedule,
            patience=patience,
            weight_decay=weight_decay,
            grad_clip=grad_clip,
            max_memory=max_memory,
            lp_epochs=lp_epochs,
            penalty=penalty,
            mixout_p=mixout_p,
            ema_decay=ema_decay,
            lora_rank=lora_rank,
            sam_rho=sam_rho,
            keep_initial=keep_initial,
            again=again,
            deterministic=deterministic,
            device=str(several.group.device) if several.group.size > 1 else device,
            checkpoint_every=checkpoint_every,
            **given,
        )
        tasks.check(adapter, data)
        group, folder = several.group, None
        check_processes(settings.strategy, group.size)
        if out is not None:
            group.lead(lambda: claim.enter_context(claimed_directory(out, overwrite=overwrite, resume=resume)))
            folder = group.lead(lambda: check_output(out, resume, overwrite, adapter.source))
        if settings.max_memory is not None and group.size > 1:
            raise ArgumentError(
                f"max_memory chooses for one process, got {group.size}: give precision, optimizer_state, micro_batch and so on "
                f"yourself, after a look at `sff-fast plan --memory`"
            )
        settings, memory = settle(adapter, data, settings, given, folder, overwrite)
        with stop_requests(group) as stop:
            try:
                return run_one(
                    adapter,
                    data,
                    settings,
                    folder,
                    overwrite=overwrite,
                    stop=stop,
                    progress=progress if progress is not None and group.writes else Silent(),
                    plan=plan,
                    memory=memory,
                    parallel=several,
                )
            except Interrupted:
                stop.leave()
                raise


@explained
def run_one(
    adapter: Any,
    data: ForecastData,
    settings: Settings,
    folder: Path | None,
    *,
    overwrite: bool = False,
    stop: StopRequest,
    progress: Progress,
    plan: Any = None,
    zero_shot: dict[str, Any] | None = None,
    label: str | None = None,
    keep_model: bool = True,
    keep_state: bool = True,
    memory: dict[str, Any] | None = None,
    parallel: Parallel | None = None,
    test: bool = True,
    keep_weights: bool = False,
) -> RunResult:
    """One run in a folder that was checked: continued where it holds a state, returned where it is finished.

    Args:
        adapter: The model with its pre-trained weights.
        data: The windows.
        settings: The settings.
        folder: The output folder, or None.
        overwrite: Whether an earlier run in the folder is removed.
        stop: Asked between steps and between batches of evaluations.
        progress: Told about every batch.
        plan: The init plan, or None for the adapter's own.
        zero_shot: The zero-shot entry where it is known already; None measures it.
        label: What progress calls the run.
        keep_model: Whether the model is written.
        keep_state: Whether the last state is kept when the run is finished.
        memory: What becomes ``memory.json``, or None.
        parallel: The processes that do it together. Default: this one alone.
        test: Whether the best weights are tested; without, the test part is not looked at.
        keep_weights: Whether the best weights are kept in the folder, as :data:`WEIGHTS`.

    Returns:
        The result, the same in every process.

    Raises:
        Interrupted: A stop was asked for; what there is was saved.
        ExhaustedError: There is not enough memory.
    """
    description = describe(adapter, data, settings)
    parallel = Parallel() if parallel is None else parallel
    group, store, saved = parallel.group, None, None
    if folder is not None:
        store = StateStore(folder / "state", group=group)
        if not overwrite:
            finished, saved = group.lead(lambda: _look_into(folder, store, identity_of(description)))
            if finished is not None:
                return finished
    phases = STRATEGIES[settings.strategy].phases(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(determinism(settings.deterministic))
        stack.enter_context(seeded(settings.seed, settings.device))
        stages = Stages(settings.device)
        evaluation = functools.partial(
            measure,
            adapter,
            data,
            batch_size=settings.eval_batch_size,
            device=settings.device,
            stop=stop,
            progress=progress,
            parallel=parallel,
            stages=stages,
        )
        if not group.writes:  # every process would say the same
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", category=UserWarning, module=r"sff_fast\.")
        if saved is not None:
            _warn_of_changes(saved)
            zero_shot = saved.content["zero_shot"]
        of_zero_shot = None if saved is None else load_windows(folder, "zero-shot")
        check_trainable(adapter, settings)
        if settings.release_gradients:
            keep_few_kernels()  # before the first evaluation: the optimizer's own call would come too late
        reset_peak_memory(settings.device)
        progress.start(_total_windows(data, settings, saved, zero_shot, test), label or settings.strategy)
        stack.callback(progress.close)
        adapter.model.to(settings.device, PRECISIONS[settings.precision])
        parallel.place(adapter)
        stages.loaded()
        if zero_shot is None:
            zero_shot, of_zero_shot = _measure_zero_shot(evaluation, settings, data)
            zero_shot = group.say(zero_shot)  # times and peaks are those of one process
        prepared = _prepare(adapter, settings, plan, saved)
        # Only now is anything written: what is wrong with the settings or the plan has shown itself.
        if folder is not None and saved is None:
            group.lead(lambda: begin_output(folder, overwrite))
            if memory is not None:
                write_json(folder / "memory.json", memory)
        writes = folder is not None and group.writes
        if writes and saved is None and of_zero_shot is not None:
            of_zero_shot.save(folder / FOLDER / "zero-shot.safetensors")
        log = RunLog(folder / "log.jsonl" if writes else None, 0 if saved is None else saved.content["log_bytes"])
        stack.callback(log.close)
        if saved is None:
            log.write("start", **description)
            log.write("zero_shot", **zero_shot)
            if memory is not None:
                log.write("memory", **memory)
            if prepared is not None:
                log.write("prepare", **prepared)
        model_directory = folder / "model" if folder is not None and keep_model else None
        if phases:
            method = STRATEGIES[settings.strategy].method(adapter, settings, plan, None if folder is None else folder / "state")
            stack.callback(method.detach)
            method.attach(resumed=saved is not None)
            trainer = Trainer(
                adapter,
                data,
                settings,
                method=method,
                log=log,
                store=store,
                frozen={"identity": identity_of(description), "zero_shot": zero_shot, "prepared": prepared},
                best=BestWeights(None if folder is None else folder / "state" / "best.safetensors", group),
                model_directory=model_directory,
                stop=stop,
                progress=progress,
                parallel=parallel,
                stages=stages,
            )
            if saved is not None:
                trainer.restore(saved)
            else:
                trainer.begin(zero_shot["metrics"]["val"] if prepared is None else None)
            trainer.run()
            tested, windows = measure_test(evaluation, data) if test else ({"mse": None, "mae": None}, None)
            result = _result(trainer, tested, settings, zero_shot, model_directory)
            result.windows, result.zero_shot_windows = windows, of_zero_shot
        else:
            if model_directory is not None:
                parallel.save(adapter, model_directory)
            result = RunResult.of_zero_shot(zero_shot, settings.seed, model_directory, of_zero_shot)
        adapter.model.eval()
        result = group.say(result)  # times and peaks are those of one process
        entries = [result.to_json()] if phases else []
        metrics = build_metrics(description, zero_shot, entries, [result.windows] if phases else None, of_zero_shot)
        if not test:
            metrics["verdict"] = "Not tested yet: validation decides which runs are."
        result.verdict = metrics["verdict"]
        log.write("end", verdict=result.verdict, **summary_of(result))
        log.sync()
        if writes:
            if phases and result.windows is not None:
                result.windows.save(folder / FOLDER / "test.safetensors")
            if keep_weights:
                os.replace(trainer.best.path, folder / WEIGHTS)
            write_json(folder / "metrics.json", metrics)
            store.clear(keep=1 if keep_state else 0)
        group.barrier()
        return result


def _look_into(folder: Path, store: StateStore, identity: dict[str, Any]) -> tuple[RunResult | None, Saved | None]:
    """The result in a folder, where it holds a finished run, and else the save to go on from."""
    if (folder / "metrics.json").exists():
        return finished_run(folder, identity), None
    return None, _open_state(folder, store, identity)


def _open_state(folder: Path, store: StateStore, identity: dict[str, Any]) -> Saved | None:
    """The save to go on from, or None where there is none yet."""
    if (folder / "state" / COMPARISON).exists():
        raise CheckpointError(
            f"{str(folder)!r} holds a comparison, no single run: choose another folder, or start anew (overwrite)"
        )
    saved = store.load()
    if saved is not None:
        check_identity(folder, saved.content["identity"], identity)
    return saved


def _warn_of_changes(saved: Saved) -> None:
    """Say when a resumed run cannot be expected to give the bits that it would have given."""
    found = differences(saved.content["environment"], environment())
    if found:
        warnings.warn(
            f"the run is resumed under other conditions ({'; '.join(found)}): the last digits of its results may differ "
            "from those of a run that was never stopped",
            stacklevel=4,
        )


def _measure_zero_shot(
    evaluation: Callable[..., dict[str, Any]], settings: Settings, data: ForecastData
) -> tuple[dict[str, Any], WindowErrors | None]:
    began = time.monotonic()
    val, (test, windows) = evaluation("val"), measure_test(evaluation, data)
    return zero_shot_entry(val, test, time.monotonic() - began, peak_memory(settings.device)), windows


def measure_test(evaluation: Callable[..., dict[str, Any]], data: ForecastData) -> tuple[dict[str, Any], WindowErrors | None]:
    """The test metrics and the error of every window, None for a model whose forecasts are not finite."""
    windows = WindowErrors(data.context_length + data.prediction_length)
    test = evaluation("test", windows)
    return test, windows if len(windows) else None


def _prepare(adapter: Any, settings: Settings, plan: Any, saved: Saved | None) -> dict[str, Any] | None:
    """Smooth or fill the weights where the strategy does, and return the report.

    Also for a resumed run: it replaces the weights, but what preparing notes on the model is in no state.
    """
    prepare = STRATEGIES[settings.strategy].prepare
    if prepare is None:
        return None
    if saved is not None and is_prepared(adapter.model, saved.content["prepared"]):
        return saved.content["prepared"]
    return as_json(prepare(adapter, settings, plan))


def _result(
    trainer: Trainer, test: dict[str, Any], settings: Settings, zero_shot: dict[str, Any], model_directory: Path | None
) -> RunResult:
    trainer.tick()
    at = trainer.at
    return RunResult(
        strategy=settings.strategy,
        alpha=settings.alpha,
        seed=settings.seed,
        best_epoch=at.best_epoch,
        val_mse=at.best_metrics["mse"],
        test_mse=test["mse"],
        test_mae=test["mae"],
        seconds=at.seconds,
        peak_bytes=peak_memory(settings.device),
        history=at.history,
        metrics={"val": at.best_metrics, "test": test},
        smooth=trainer.frozen["prepared"],
        stopped=trainer.stopped_because(),
        diverged=at.diverged is not None,
        zero_shot=zero_shot,
        model_dir=model_directory,
    )


def summary_of(result: RunResult) -> dict[str, Any]:
    """A run's entry without its long parts, for the log."""
    return {key: value for key, value in result.to_json().items() if key not in ("metrics", "smooth")}


def finished_run(folder: Path, identity: Mapping[str, Any]) -> RunResult:
    """The result of a run that has its ``metrics.json``."""
    metrics = read_json(folder / "metrics.json", error=CheckpointError)
    check_identity(folder, identity_of(metrics), identity)
    zero_shot, settings = metrics["zero_shot"], metrics["settings"]
    model = folder / "model" if (folder / "model").exists() else None
    if not metrics["runs"]:
        return RunResult.of_zero_shot(zero_shot, settings["seed"], model, load_windows(folder, "zero-shot"))
    return RunResult(
        **metrics["runs"][0],
        history=read_history(folder / "log.jsonl"),
        zero_shot=zero_shot,
        verdict=metrics["verdict"],
        model_dir=model,
        windows=load_windows(folder, "test"),
        zero_shot_windows=load_windows(folder, "zero-shot"),
    )


def _total_windows(
    data: ForecastData, settings: Settings, saved: Saved | None, zero_shot: dict[str, Any] | None, tested: bool
) -> int:
    """Windows that are trained on or evaluated from here to the end, if nothing stops the run early."""
    strategy = STRATEGIES[settings.strategy]
    train, val, test = len(data.train), len(data.val), len(data.test)
    total = 0 if zero_shot is not None else val + test
    if not strategy.phases(settings):
        return total
    epochs = settings.epochs
    windows = epochs * train
    if settings.max_steps is not None:
        per_epoch = -(-train // settings.batch_size)
        epochs = min(epochs, -(-settings.max_steps // per_epoch))
        windows = min(windows, settings.max_steps * settings.batch_size)
    total += windows + epochs * val + (test if tested else 0)
    if saved is not None:
        at = saved.content["position"]
        return max(0, total - at["epoch"] * (train + val) - at["position"])
    return total + (0 if strategy.prepare is None else val)
