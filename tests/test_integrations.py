"""Smoothing and the fused optimizers inside other packages' loops; with the real packages."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sff_fast
from sff_fast.errors import ArgumentError, CheckpointError, DataError, MissingPackageError
from sff_fast.integrations.record import SmoothingRecord
from sff_fast.integrations.torch_optim import fused

ROOT = Path(__file__).resolve().parents[1]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------------- without a package
@pytest.mark.parametrize("name", ["transformers", "lightning", "accelerate", "peft", "gluonts"])
def test_a_package_that_is_missing_comes_with_the_pip_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"sff_fast.integrations.{name}", raising=False)
    with pytest.raises(MissingPackageError, match=r"pip install 'sff_fast\[integrations\]'"):
        __import__(f"sff_fast.integrations.{name}")


@pytest.mark.parametrize("state", [None, {}, {"smoothing": 3}, {"smoothing": ["x"]}])
def test_a_damaged_record_is_refused(state):
    with pytest.raises(CheckpointError, match="the record of smoothing must be a dict with a list"):
        SmoothingRecord(nn.Linear(2, 2)).load_state_dict(state)


# ---------------------------------------------------------------------- torch.optim
def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    """A loop of somebody's own, with a schedule and clipping."""
    generator, losses = torch.Generator().manual_seed(seed), []
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(steps):
        x = torch.randn(8, 6, generator=generator)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def a_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1))


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("after", [0, 7])
def test_the_fused_optimizer_goes_on_where_torchs_was(cls, after):
    theirs, ours = a_net(), a_net()
    groups = lambda m: [{"params": m[0].parameters(), "weight_decay": 0.1}, {"params": m[2].parameters(), "lr": 3e-3}]  # noqa: E731
    first, second = (cls(groups(m), lr=1e-2, betas=(0.8, 0.95), eps=1e-7) for m in (theirs, ours))
    train(theirs, first, after, 0)
    train(ours, second, after, 0)
    swapped = fused(second)
    assert type(swapped).__name__ == f"Fused{cls.__name__}"
    assert train(theirs, first, 10, 1) == pytest.approx(train(ours, swapped, 10, 1), rel=1e-5)
    for a, b in zip(theirs.parameters(), ours.parameters()):
        # The same formulas; sums in another order: 1e-6 after 100 steps (tests/test_fused_adamw.py).
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    untouched = 0 if not after else after + 0
    assert all(int(s["step"]) == untouched for s in second.state.values())


def test_names_and_further_options_reach_the_fused_optimizer():
    net = a_net()
    result = fused(torch.optim.AdamW(net.named_parameters(), lr=1e-2), state_dtype="int8")
    assert result.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()]
    train(net, result, 2, 0)
    assert {s["exp_avg"].dtype for s in result.state.values()} == {torch.uint8}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), {}, "optimizer must be a torch.optim.AdamW or torch.optim.Adam, got SGD"),
        (lambda p: torch.optim.AdamW(p), {"lr": 0.1}, "lr belongs to the groups of the optimizer that is replaced"),
        (lambda p: torch.optim.AdamW(p), {"state_dtype": "int4"}, "state_dtype must be one of"),
    ],
)
def test_what_cannot_be_swapped_is_refused(make, options, message):
    with pytest.raises(ArgumentError, match=message):
        fused(make(a_net().parameters()), **options)


# ---------------------------------------------------------------------- transformers
def a_gpt(seed: int = 0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    sizes = {"vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
    return transformers.GPT2LMHeadModel(config)


def a_trainer(model, folder: Path, callbacks, steps: int, optimizer: bool = True, **options):
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging

    from sff_fast.integrations.transformers import fused_optimizer

    logging.disable_progress_bar()
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(8 * 16).reshape(16, 8) % 17]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    chosen = fused_optimizer(args, state_dtype="bfloat16") if optimizer else None
    return Trainer(model, args, train_dataset=rows, callbacks=callbacks, optimizer_cls_and_kwargs=chosen)


@pytest.mark.filterwarnings("ignore")  # the packages' own
def test_the_trainer_smooths_once_and_a_resumed_run_gives_the_bits_of_one_in_one_piece(tmp_path, capsys):
    from sff_fast.integrations.transformers import SmoothingCallback

    smoothed, whole, callback = a_gpt(), a_gpt(), SmoothingCallback(alpha=0.6, seed=4)
    expected = sff_fast.smooth_(smoothed, None, 0.6, 4)
    trainer = a_trainer(whole, tmp_path / "whole", [callback], 4)  # seeds torch: nothing may draw between this and train()
    started = []

    class Look(type(callback).__mro__[1]):  # transformers.TrainerCallback: sees the model behind ours
        def on_train_begin(self, args, state, control, model, **_):
            started.append(copy.deepcopy(model))

    trainer.add_callback(Look())
    trainer.train()
    assert equal(started[0], smoothed)
    assert callback.report.plan_hash == expected.plan_hash
    assert type(trainer.optimizer.optimizer).__name__ == "FusedAdamW"
    assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [0.1, 0.0]
    record = json.loads((tmp_path / "whole/checkpoint-2/sff_fast.json").read_text())["smoothing"]
    assert [(one["seed"], one["plan_hash"]) for one in record] == [(4, expected.plan_hash)]

    resumed, again = a_gpt(9), SmoothingCallback(alpha=0.6, seed=4)
    goes_on = a_trainer(resumed, tmp_path / "whole", [again], 4)
    goes_on.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert again.report is None
    assert equal(resumed, whole)
    assert [one["seed"] for one in sff_fast.smoothing_of(resumed)] == [4]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_resumes_a_run_that_was_not_smoothed_is_refused(tmp_path):
    from sff_fast.integrations.transformers import SmoothingCallback

    a_trainer(a_gpt(), tmp_path, [], 2).train()
    with pytest.raises(ArgumentError, match="the run resumed at step 2 was not smoothed when it began: leave"):
        a_trainer(a_gpt(), tmp_path, [SmoothingCallback()], 4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("option", [{"release_gradients": True}, {"max_norm": 1.0}])
def test_what_is_the_trainers_business_is_refused(option):
    pytest.importorskip("transformers")
    from sff_fast.integrations.transformers import fused_optimizer

    with pytest.raises(ArgumentError, match=f"{next(iter(option))} cannot be used inside transformers' Trainer"):
        fused_optimizer(None, **option)


# ---------------------------------------------------------------------- peft
def a_peft(base, **options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, **options))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_base_gets_the_bits_of_smoothing_it_before_and_adapters_stay():
    from sff_fast.integrations.peft import smooth_base_

    before, base = a_gpt(), a_gpt()
    model = a_peft(base)
    adapters = {name: p.clone() for name, p in model.named_parameters() if "lora_" in name}
    plan = None  # type(base)(base.config), through the wrapper
    first = sff_fast.smooth_(before, plan, {"*.attn.*": 0.5, "*": 0.8}, 3)
    report = smooth_base_(model, plan, {"*.attn.*": 0.5, "*": 0.8}, 3)
    assert report.shrink == first.shrink
    assert len(adapters) == 2
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in adapters.items())
    bare = model.unload()
    assert equal(bare, before)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_only_the_adapters_of_a_smoothed_base_learn():
    from sff_fast.integrations.peft import smooth_base_

    model = a_peft(a_gpt())
    smooth_base_(model, None, 0.7, 0)
    start = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = sff_fast.FusedAdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    ids = torch.arange(16).reshape(2, 8) % 17
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "magnitudes that were computed from the base's weights"),
        ({"init_lora_weights": "pissa"}, r"was begun from the base's weights \(init_lora_weights='pissa'\)"),
        ({"modules_to_save": ["lm_head"]}, "trains a copy of a layer of the base"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_depend_on_the_base_are_refused_with_the_right_order(options, message):
    from sff_fast.integrations.peft import smooth_base_

    base = a_gpt()
    model = a_peft(base, **options)
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=message) as caught:
        smooth_base_(model, None, 0.7)
    assert "before get_peft_model" in str(caught.value)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_merged_adapter_and_a_bare_model_are_refused():
    from sff_fast.integrations.peft import smooth_base_

    model = a_peft(a_gpt())
    model.merge_adapter()
    with pytest.raises(ArgumentError, match="has its adapter merged into the base"):
        smooth_base_(model)
    with pytest.raises(ArgumentError, match=r"model must be a peft\.PeftModel, got Linear"):
        smooth_base_(nn.Linear(2, 2))


# ---------------------------------------------------------------------- lightning and accelerate, in processes of their own
LIGHTNING = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning, torch
import sff_fast
from sff_fast.errors import ArgumentError
from sff_fast.integrations.lightning import SmoothingCallback

folder = sys.argv[1]
build = lambda: torch.nn.Linear(5, 3)

class Module(lightning.LightningModule):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.model = build()
        self.start = None
    def on_train_start(self):
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
    def training_step(self, batch, i):
        return self.model(batch).square().mean()
    def configure_optimizers(self):
        return sff_fast.FusedAdamW(self.model.parameters(), lr=1e-2)

def fit(seed, callbacks, epochs, **kw):
    module = Module(seed)
    loader = torch.utils.data.DataLoader(torch.arange(40.).reshape(8, 5) / 40, batch_size=4)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, loader, **kw)
    return module, trainer

plan = sff_fast.trace(build)
expected = Module(0).model
sff_fast.smooth_(expected, plan, 0.5, 2)
first = SmoothingCallback(plan, 0.5, 2)
module, trainer = fit(0, [first], 1)
assert all(torch.equal(v, module.start[k]) for k, v in expected.state_dict().items())
trainer.save_checkpoint(folder + "/one.ckpt")
whole, _ = fit(0, [SmoothingCallback(plan, 0.5, 2)], 2)
second = SmoothingCallback(plan, 0.5, 2)
resumed, _ = fit(7, [second], 2, ckpt_path=folder + "/one.ckpt")
assert second.report is None
assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
assert [one["seed"] for one in sff_fast.smoothing_of(resumed.model)] == [2]
_, plain = fit(0, [], 1)
plain.save_checkpoint(folder + "/plain.ckpt")
for callback, options, word in ((SmoothingCallback(plan), {"ckpt_path": folder + "/plain.ckpt"}, "was not smoothed"),
                                (SmoothingCallback(plan, attribute="net"), {}, "its modules are model")):
    try:
        fit(0, [callback], 2, **options)
    except ArgumentError as error:
        assert word in str(error), error
    else:
        raise AssertionError(word)
print("lightning agrees")
"""

ACCELERATE = """
import sys, torch
from accelerate import Accelerator
import sff_fast
from sff_fast.integrations.accelerate import smooth_once_

build = lambda: torch.nn.Linear(5, 3)

def begin(seed, steps, resume_from=None):
    torch.manual_seed(seed)
    model = build()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, sff_fast.FusedAdamW(model.parameters(), lr=1e-2))
    report = smooth_once_(accelerator, model, build, 0.5, 2, resume_from=resume_from)
    for _ in range(steps):
        loss = model(torch.arange(10.).reshape(2, 5)).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    return accelerator, model, report

_, start, report = begin(0, 0)
torch.manual_seed(0)
expected = build()
sff_fast.smooth_(expected, build, 0.5, 2)
assert all(torch.equal(v, start.state_dict()[k]) for k, v in expected.state_dict().items())
half, _, _ = begin(0, 3)
half.save_state(sys.argv[1] + "/state")
_, whole, _ = begin(0, 5)
_, resumed, report = begin(8, 2, sys.argv[1] + "/state")
assert report is None
assert [one["seed"] for one in sff_fast.smoothing_of(resumed)] == [2]
assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
print("accelerate agrees")
"""


# A process of their own: both packages change global state (warning filters, process groups, a singleton a process).
@pytest.mark.parametrize(("name", "code"), [("lightning", LIGHTNING), ("accelerate", ACCELERATE)])
def test_a_run_that_goes_on_is_not_smoothed_again_and_gives_the_bits_of_one_in_one_piece(name, code, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{name} agrees" in done.stdout


# ---------------------------------------------------------------------- GluonTS and fev
def entries(count: int = 3, channels: int = 0) -> list[dict]:
    import pandas as pd

    t = np.arange(160)
    shape = (1,) if not channels else (channels, 1)
    waves = [np.sin(t / (3 + i)) * np.ones(shape) * (i + 1) + 10 * i for i in range(count)]
    rows = [np.squeeze(wave) if not channels else wave + np.arange(channels)[:, None] for wave in waves]
    return [
        {"target": row.astype(np.float32), "start": pd.Period("2024-01-01", freq="h"), "item_id": f"series {i}"}
        for i, row in enumerate(rows)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "kind"), [("timer", "QuantileForecast"), ("chronos-bolt", "QuantileForecast")])
def test_gluonts_evaluates_the_forecasts_to_the_errors_that_numpy_finds(family, kind):
    pytest.importorskip("gluonts")
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MAE, MSE
    from gluonts.model import evaluate_model

    from sff_fast.integrations.gluonts import AdapterPredictor

    adapter = sff_fast.tiny(family)
    data = entries()
    _, template = split(data, offset=-24)
    test = template.generate_instances(prediction_length=24)
    predictor = AdapterPredictor(adapter, 96, 24, batch_size=2)
    found = list(predictor.predict(test.input))
    assert [(type(f).__name__, f.item_id, str(f.start_date)) for f in found] == [
        (kind, f"series {i}", "2024-01-06 16:00") for i in range(3)
    ]
    past = np.stack([row["target"][40:136] for row in data]).astype(np.float64)
    mean, std = past.mean(1, keepdims=True), past.std(1, keepdims=True)
    context = torch.from_numpy(((past - mean) / std).astype(np.float32)).unsqueeze(2)
    own = adapter.forecast(context, 24).mean[:, :, 0].double().numpy() * std + mean
    # A batch of 2 and one of 1 against one of 3: the models' own float32 sums.
    np.testing.assert_allclose([f.mean for f in found], own, rtol=1e-4, atol=1e-5)
    table = evaluate_model(predictor, test_data=test, metrics=[MSE(forecast_type="mean"), MAE("mean")])
    wrong = own - np.stack([row["target"][136:] for row in data])
    assert float(table["MSE[mean]"].iloc[0]) == pytest.approx(np.square(wrong).mean(), rel=1e-4)
    assert float(table["MAE[mean]"].iloc[0]) == pytest.approx(np.abs(wrong).mean(), rel=1e-4)


def test_targets_of_several_channels_keep_their_channels():
    pytest.importorskip("gluonts")
    from sff_fast.integrations.gluonts import AdapterPredictor

    adapter = sff_fast.tiny("timer")
    (found,) = AdapterPredictor(adapter, 96, 24, batch_size=2).predict(entries(1, channels=3))
    assert found.mean.shape == (24, 3)
    flat = entries(1, channels=3)[0]
    for i in range(3):
        (alone,) = AdapterPredictor(adapter, 96, 24).predict([{**flat, "target": flat["target"][i]}])
        np.testing.assert_allclose(found.mean[:, i], alone.mean, rtol=1e-4, atol=1e-5)


def test_sample_paths_become_a_sample_forecast():
    pytest.importorskip("gluonts")
    from sff_fast.integrations.gluonts import AdapterPredictor

    (found,) = AdapterPredictor(sff_fast.tiny("chronos-t5"), 64, 8, num_samples=5).predict(entries(1))
    assert found.samples.shape == (5, 8)


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        ({"target": np.ones(40)}, {}, "'series 0' has 40 steps, expected at least context_length"),
        ({"target": np.r_[np.arange(159.0), np.nan]}, {}, "'series 0' holds NaN or infinity in its last 96 steps"),
        ({"target": np.ones(160)}, {}, "'series 0' is constant over its last 96 steps"),
        ({}, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({}, {"prediction_length": 0}, "prediction_length must be an integer of at least 1, got 0"),
        ({}, {"scaler": ([0.0, 0.0], [1.0, 1.0])}, "scaler must have one mean for each of the 1 channels"),
    ],
)
def test_series_that_cannot_be_forecast_are_named(edit, options, message):
    pytest.importorskip("gluonts")
    from sff_fast.data import Scaler
    from sff_fast.integrations.gluonts import AdapterPredictor

    options = dict(options)
    if "scaler" in options:
        options["scaler"] = Scaler(*options["scaler"])
    length = options.pop("prediction_length", 24)
    with pytest.raises((DataError, ArgumentError), match=message):
        list(AdapterPredictor(sff_fast.tiny("timer"), 96, length, **options).predict([{**entries(1)[0], **edit}]))


@pytest.mark.filterwarnings("ignore")
def test_fevs_predictions_have_the_columns_of_its_schema_and_the_forecasts_numbers():
    datasets = pytest.importorskip("datasets")
    from sff_fast.integrations.fev import predictions
    from sff_fast.integrations.gluonts import AdapterPredictor

    found = list(AdapterPredictor(sff_fast.tiny("chronos-bolt"), 96, 24).predict(entries()))
    # fev.Task.predictions_schema of horizon 24 and quantile_levels [0.1, 0.5]; fev itself asks for an older `datasets`.
    columns = datasets.Features({name: datasets.List(datasets.Value("float64"), 24) for name in ("predictions", "0.1", "0.5")})
    table = datasets.Dataset.from_list(predictions(found, [0.1, 0.5]), features=columns)
    np.testing.assert_array_equal(np.array(table["predictions"]), [f.mean for f in found])
    np.testing.assert_array_equal(np.array(table["0.1"]), [f.quantile(0.1) for f in found])


@pytest.mark.filterwarnings("ignore")
def test_fev_finds_the_error_of_the_forecasts_that_numpy_finds(tmp_path, monkeypatch):
    fev, datasets = pytest.importorskip("fev"), pytest.importorskip("datasets")
    pd = pytest.importorskip("pandas")
    from sff_fast.integrations.fev import predictions
    from sff_fast.integrations.gluonts import AdapterPredictor

    rows, past = entries(), [{**row, "target": row["target"][:-24]} for row in entries()]
    table = [
        {
            "id": row["item_id"],
            "timestamp": pd.date_range("2024-01-01", periods=160, freq="h").to_numpy(),
            "target": row["target"],
        }
        for row in rows
    ]
    pd.DataFrame(table).to_parquet(tmp_path / "waves.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # fev 0.10 asks for datasets<5, since it derives a class from one that has lost an argument there: how S3 is logged in to.
    monkeypatch.setattr(fev.utils, "PatchedDownloadConfig", datasets.DownloadConfig)
    task = fev.Task(
        dataset_path=str(tmp_path / "waves.parquet"),
        horizon=24,
        eval_metric="MAE",
        extra_metrics=["MQL"],
        quantile_levels=[0.1, 0.5],
    )
    found = list(AdapterPredictor(sff_fast.tiny("chronos-bolt"), 96, 24).predict(past))
    summary = task.evaluation_summary([predictions(found, task.quantile_levels)], model_name="tiny")
    truth = np.stack([row["target"][-24:] for row in rows]).astype(np.float64)
    wrong = truth - np.stack([forecast.mean for forecast in found])
    assert summary["test_error"] == summary["MAE"] == pytest.approx(np.abs(wrong).mean(), rel=1e-5)  # fev has float32
    pinball = []
    for level in task.quantile_levels:
        off = truth - np.stack([forecast.quantile(level) for forecast in found])
        pinball.append(2 * np.maximum(level * off, (level - 1) * off).mean())
    assert summary["MQL"] == pytest.approx(np.mean(pinball), rel=1e-5)


def test_quantiles_and_shapes_that_fev_cannot_have_are_refused():
    pytest.importorskip("gluonts")
    from sff_fast.integrations.fev import predictions
    from sff_fast.integrations.gluonts import AdapterPredictor

    predictor = AdapterPredictor(sff_fast.tiny("timer"), 96, 24)
    with pytest.raises(ArgumentError, match=r"the model gives no quantile 0\.1"):
        predictions(predictor.predict(entries(1)), [0.1])
    with pytest.raises(ArgumentError, match="fev takes a target at a time, got a forecast of 2 channels"):
        predictions(predictor.predict(entries(1, channels=2)))
