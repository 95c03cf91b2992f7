"""The family units: loading, saving, data sets, loss and forecast."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sff_fast import adapters
from sff_fast.adapters import UniTSAdapter, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.models.units import UniTS, UniTSConfig, UniTSTask

load = functools.partial(adapters.load, allow_pickle=True)

TASKS = (
    UniTSTask("LTF_A_p6", "A", 3, seq_len=16, pred_len=6),
    UniTSTask("CLS_B", "B", 2, "classification", num_class=4),
    UniTSTask("C", "C", 1),
)
SMALL = UniTSConfig(TASKS, d_model=16, n_heads=8, e_layers=2, patch_len=4, prompt_num=3)


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UniTS(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def golden(test_data):
    return load("units", test_data / "golden" / "units"), load_file(test_data / "golden" / "units" / "io.safetensors")


def assert_same_tensors(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# --- loading and saving -----------------------------------------------------------------------------------------------


def test_the_published_layout_gives_the_official_outputs_for_all_tasks(golden):
    adapter, io = golden
    found = {
        "long_term_forecast": adapter.forecast(io["long_term_forecast.input"], 96).mean,
        "imputation": adapter.impute(io["imputation.input"], io["imputation.mask"].bool()),
        "anomaly_detection": adapter.reconstruct(io["anomaly_detection.input"]),
    }
    for task, output in found.items():
        # The required agreement with the official source; the values stay below 4.
        torch.testing.assert_close(output, io[f"{task}.output"], rtol=0, atol=1e-5)
    target = torch.randn(2, 96, 7, generator=torch.Generator().manual_seed(0))
    loss = adapter.loss(batch_of(io["long_term_forecast.input"], target))
    torch.testing.assert_close(loss, (io["long_term_forecast.output"] - target).square().mean(), rtol=1e-6, atol=0)


def test_an_archive_is_saved_as_published_and_opened_by_a_fresh_process_as_plain_tensors(golden, test_data, tmp_path):
    golden[0].save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "units.pth"]
    program = f"""
import torch
found = torch.load({str(tmp_path / "saved" / "units.pth")!r}, weights_only=True)
published = torch.load({str(test_data / "golden" / "units" / "units.pth")!r}, weights_only=True)
assert list(found) == list(published) == ["student"]
assert list(found["student"]) == list(published["student"])
for name, tensor in published["student"].items():
    assert type(found["student"][name]) is torch.Tensor and not found["student"][name].requires_grad
    assert torch.equal(found["student"][name], tensor), name
import sys
sys.path.insert(0, {str(__file__.rsplit("/", 2)[0])!r})
import sff_fast
from safetensors.torch import load_file
io = load_file({str(test_data / "golden" / "units" / "io.safetensors")!r})
adapter = sff_fast.load("units", {str(tmp_path / "saved")!r}, allow_pickle=True)
forecast = adapter.forecast(io["long_term_forecast.input"], 96).mean
assert (forecast - io["long_term_forecast.output"]).abs().max() <= 1e-5
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_and_prompts_that_nobody_uses_are_recognised_and_written_back(model, tmp_path, prefix, suffix):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    state[f"{prefix}cls_prompts.A"] = torch.ones(2, 3)
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"student": state}, path)
    adapter = load("units", path)
    assert_same_tensors(adapter.model.state_dict(), model.state_dict())
    adapter.save(tmp_path / "saved")
    if suffix == ".safetensors":
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert_same_tensors({name: saved[name] for name in state}, state)
    else:
        assert_same_tensors(torch.load(tmp_path / "saved" / "units.pth", weights_only=True)["student"], state)


def test_tensors_without_a_wrapper_are_saved_without_one(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "x.pt")
    load("units", tmp_path / "x.pt").save(tmp_path / "saved")
    assert_same_tensors(torch.load(tmp_path / "saved" / "units.pth", weights_only=True), model.state_dict())


@pytest.mark.parametrize("pretrain", [False, True])
def test_sizes_and_tasks_are_read_off_the_tensors_where_there_is_no_configuration(tmp_path, pretrain):
    torch.manual_seed(3)
    model = UniTS(replace(SMALL, pretrain=pretrain, prompt_num=5, e_layers=3, patch_len=8, stride=None)).eval()
    torch.save({"student": model.state_dict()}, tmp_path / "x.pth")
    found = load("units", tmp_path / "x.pth").model
    assert_same_tensors(found.state_dict(), model.state_dict())
    assert found.config.datasets == {"A": 3, "B": 2, "C": 1}
    assert {task.name: task.num_class for task in found.config.tasks if task.num_class} == {"CLS_B": 4}
    x = torch.randn(2, 16, 3)
    assert torch.equal(found.forecast(x, "A", 8), model.forecast(x, "A", 8))


def test_a_task_belongs_to_the_data_set_that_its_name_holds(tmp_path):
    tasks = tuple(UniTSTask(f"CLS_{name}", name, 2, "classification", num_class=2) for name in ("ETT", "ETTm", "Heart"))
    torch.save({"student": UniTS(replace(SMALL, tasks=tasks[::-1])).state_dict()}, tmp_path / "x.pth")
    found = load("units", tmp_path / "x.pth").model.config.tasks
    assert {task.name: task.dataset for task in found} == {task.name: task.dataset for task in tasks}


def test_heads_stride_and_dropout_are_options_that_no_shape_tells(model, tmp_path):
    torch.save({"student": model.state_dict()}, tmp_path / "x.pth")
    config = load("units", tmp_path / "x.pth", n_heads=4, stride=2, dropout=0.3).model.config
    assert (config.n_heads, config.stride, config.dropout) == (4, 2, 0.3)
    config = load("units", tmp_path / "x.pth").model.config
    assert (config.n_heads, config.stride, config.dropout) == (8, 4, 0.1)


def test_the_configuration_beside_the_weights_is_read_and_must_fit(model, tmp_path):
    config = replace(SMALL, n_heads=2, dropout=0.25)
    UniTSAdapter(UniTS(config)).save(tmp_path / "m")
    assert load("units", tmp_path / "m").model.config == config
    assert load("units", tmp_path / "m", n_heads=4).reload().model.config.n_heads == 4
    path = tmp_path / "m" / "config.json"
    for change, message in (
        ({"d_model": 32}, r"the tensor '.*' has the shape \[.*16\], the configuration asks for \[.*32\]"),
        ({"e_layers": 3}, r"30 missing \(first 'blocks.2.seq_att_block.norm1.weight'\)"),
        ({"n_heads": 3}, "config.json': UniTSConfig: d_model must be a multiple of n_heads"),
        ({"dropout": "a"}, "dropout must lie in"),
    ):
        path.write_text(json.dumps({**config.to_dict(), "model": {**config.to_dict()["model"], **change}}))
        with pytest.raises(CheckpointError, match=message):
            load("units", tmp_path / "m")
    path.write_text(json.dumps({"d_model": 16}))
    with pytest.raises(CheckpointError, match="expected the entries 'model' and 'tasks'"):
        load("units", tmp_path / "m")


def test_a_task_whose_data_set_cannot_be_found_asks_for_the_configuration(model, tmp_path):
    state = model.state_dict()
    state["category_tokens.CLS_B"] = torch.zeros(1, 9, 4, 16)
    torch.save({"student": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"'CLS_B' has tokens for 9 channels, .* put the config.json"):
        load("units", tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 5}, "multiple of n_heads"),
        ({"format": "onnx"}, "format must be 'ckpt' or 'safetensors', got 'onnx'"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"dataset": "New"}, r"no prompts for the data set 'New', only for ETTh1: give channels"),
        ({"channels": 3}, "channels=3 says how wide a new data set is: give its name"),
        ({"dataset": "ETTh1", "channels": 3}, "'ETTh1' has 7 channels in this units checkpoint, got channels=3"),
        ({"dataset": "New", "channels": 0}, "enc_in must be an integer of at least 1, got 0"),
        ({"dataset": "New", "channels": 3, "seed": "a"}, "seed must be an integer, got 'a'"),
    ],
)
def test_a_bad_option_is_refused(test_data, options, message):
    with pytest.raises(ArgumentError, match=message):
        load("units", test_data / "golden" / "units", **options)


# --- data sets --------------------------------------------------------------------------------------------------------


def test_prompts_are_chosen_by_the_number_of_channels_or_by_name(model):
    adapter, x = UniTSAdapter(model), torch.randn(2, 16, 3)
    with torch.no_grad():
        assert torch.equal(adapter.reconstruct(x), model.anomaly_detection(x, "A"))
        assert torch.equal(adapter.reconstruct(x[:, :, :2]), model.anomaly_detection(x[:, :, :2], "B"))
        # The prompts for one channel serve any number, each channel on its own.
        wide = torch.randn(2, 16, 5)
        found, mask = adapter.impute(wide, torch.ones_like(wide).bool().triu()), torch.ones_like(wide).bool().triu()
        for channel in range(5):
            one = model.imputation(wide[:, :, channel : channel + 1], mask[:, :, channel : channel + 1], "C")
            torch.testing.assert_close(found[:, :, channel : channel + 1], one)
        chosen = UniTSAdapter(model, dataset="C")
        torch.testing.assert_close(chosen.reconstruct(x)[:, :, 1:2], model.anomaly_detection(x[:, :, 1:2], "C"))


def test_a_choice_that_is_not_clear_or_not_there_is_an_error_that_lists_what_is():
    tasks = (UniTSTask("a", "A", 3), UniTSTask("b", "B", 3), UniTSTask("c", "C", 2))
    model, x = UniTS(replace(SMALL, tasks=tasks)), torch.zeros(1, 16, 5)
    with pytest.raises(ArgumentError, match="for 3 channels are there for several data sets: load it with dataset= one of A, B"):
        UniTSAdapter(model).reconstruct(x[:, :, :3])
    with pytest.raises(ArgumentError, match=r"no prompts for 5 channels, only for A \(3\), B \(3\), C \(2\): .* channels=5"):
        UniTSAdapter(model).reconstruct(x)
    with pytest.raises(ArgumentError, match="'B' are for 3 channels, got data with 5: load it with another dataset"):
        UniTSAdapter(model, dataset="B").reconstruct(x)


@pytest.mark.parametrize("pretrain", [False, True])
def test_a_new_data_set_gets_prompts_by_seed_and_leaves_the_rest_alone(tmp_path, pretrain):
    torch.manual_seed(1)
    model = UniTS(replace(SMALL, pretrain=pretrain))
    torch.save({"student": {"module." + name: tensor for name, tensor in model.state_dict().items()}}, tmp_path / "x.pth")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    adapters = [load("units", tmp_path / "x.pth", dataset="New", channels=5, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    tokens = [adapter.model.prompt_tokens["New"] for adapter in adapters]
    assert tokens[0].shape == (1, 5, 3, 16)
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
    assert 0.01 < tokens[0].std() < 0.03
    assert not adapters[0].model.mask_tokens["New"].any()
    found = adapters[0].model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert adapters[0].forecast(torch.randn(2, 16, 5), 8).mean.shape == (2, 8, 5)
    assert set(adapters[0].plan()) == {name for name, _ in adapters[0].model.named_parameters()}

    adapters[0].save(tmp_path / "saved")
    saved = torch.load(tmp_path / "saved" / "units.pth", weights_only=True)["student"]
    assert torch.equal(saved["module.prompt_tokens.New"], tokens[0])
    back = load("units", tmp_path / "saved", dataset="New")
    assert {name: t.shape for name, t in back.model.state_dict().items()} == {name: t.shape for name, t in found.items()}
    assert all(torch.equal(back.model.state_dict()[name], tensor) for name, tensor in found.items())


# --- loss and forecast ------------------------------------------------------------------------------------------------


def test_the_horizon_of_a_task_is_forecast_as_published_and_any_other_whole(model):
    adapter, x = UniTSAdapter(model), torch.randn(2, 16, 3)
    with torch.no_grad():
        # 16 + 6 hold five whole patches; the official source leaves the last two steps at the mean.
        published = adapter.forecast(x, 6).mean
        assert torch.equal(published, model.forecast(x, "A", 6))
        torch.testing.assert_close(published[:, 4:], x.mean(1, keepdim=True).expand(-1, 2, -1))
        whole = adapter.forecast(x, 5).mean
        assert torch.equal(whole, model.forecast(x, "A", 8)[:, :5])
        assert (whole[:, 4:] - x.mean(1, keepdim=True)).abs().max() > 1e-3
        # Another context than the task's.
        assert torch.equal(adapter.forecast(x[:, :15], 6).mean, model.forecast(x[:, :15], "A", 9)[:, :6])
        target = torch.zeros(2, 5, 3)
        torch.testing.assert_close(adapter.loss(batch_of(x, target)), whole.square().mean())


def test_the_head_is_the_one_that_makes_values_of_tokens():
    adapter = tiny("units")
    names = [name for name, _ in adapter.head_parameters()]
    assert names == [name for name, _ in adapter.model.named_parameters() if name.startswith("forecast_head.")]
    assert len(names) == 10


def test_a_tiny_model_takes_any_number_of_channels():
    adapter = tiny("units")
    for channels in (1, 7):
        assert adapter.forecast(torch.randn(2, 50, channels), 20).mean.shape == (2, 20, channels)
