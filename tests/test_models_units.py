"""The UniTS model against the official source's outputs, names, sizes and draws."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import sff_fast
from sff_fast.errors import ArgumentError
from sff_fast.models.units import ChannelAttention, StretchedLinear, TokenAttention, UniTS, UniTSConfig, UniTSTask

TASKS = (UniTSTask("LTF_A_p8", "A", 3, seq_len=16, pred_len=8), UniTSTask("B", "B", 1))
SMALL = UniTSConfig(TASKS, d_model=16, n_heads=4, e_layers=2, patch_len=4, prompt_num=3)


@pytest.fixture(scope="module")
def golden(test_data):
    """The golden model, with its inputs and outputs."""
    folder = test_data / "golden" / "units"
    model = UniTS(UniTSConfig.from_dict(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(torch.load(folder / "units.pth", weights_only=True)["student"])
    return model.eval(), load_file(folder / "io.safetensors")


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = UniTS(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def run(model, task, x, mask=None):
    """One task of the data set A."""
    if task == "forecast":
        return model.forecast(x, "A", 8)
    if task == "imputation":
        return model.imputation(x, torch.ones_like(x) if mask is None else mask, "A")
    return model.anomaly_detection(x, "A")


# --- equality with the official source --------------------------------------------------------------------------------


# The golden values stay below 4; 1e-5 is the required agreement, and float32 sums differ by less than 1e-6.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_equal_the_official_source(golden, dtype):
    model, io = copy.deepcopy(golden[0]).to(dtype), {name: tensor.to(dtype) for name, tensor in golden[1].items()}
    with torch.no_grad():
        found = {
            "long_term_forecast": model.forecast(io["long_term_forecast.input"], "ETTh1", 96),
            "imputation": model.imputation(io["imputation.input"], io["imputation.mask"], "ETTh1"),
            "anomaly_detection": model.anomaly_detection(io["anomaly_detection.input"], "ETTh1"),
        }
    for task, output in found.items():
        assert output.dtype == dtype
        torch.testing.assert_close(output, io[f"{task}.output"], rtol=0, atol=1e-5)


def test_state_dict_has_the_published_names_in_the_published_order(golden, test_data):
    published = torch.load(test_data / "golden" / "units" / "units.pth", weights_only=True)["student"]
    state = UniTS(golden[0].config).state_dict()
    assert list(state) == list(published)
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in published.values()]


def test_the_constructor_draws_what_the_official_one_drew_at_the_same_seed(golden, test_data):
    # The golden weights are the official constructor's draws at seed 3 plus 0.02 times normal numbers, at seed 3 again.
    published = torch.load(test_data / "golden" / "units" / "units.pth", weights_only=True)["student"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = UniTS(golden[0].config)
        torch.manual_seed(3)
        noise = [0.02 * torch.randn_like(parameter) for parameter in model.parameters()]
    for (name, parameter), added in zip(model.named_parameters(), noise, strict=True):
        # Sines and cosines may come from another CPU's library: a unit in the last place of values up to 1.
        torch.testing.assert_close((parameter + added).detach(), published[name], rtol=0, atol=2**-22, msg=name)


@pytest.mark.parametrize(("width", "parameters"), [(32, 373_464), (64, 1_057_912), (128, 3_459_000)])
def test_a_published_size_has_its_counts_and_is_drawn_and_smoothed_as_its_plan_says(width, parameters):
    def build():
        return UniTS(UniTSConfig((UniTSTask("LTF_ETTh1_p96", "ETTh1", 7),), d_model=width))

    plan = sff_fast.trace(build)
    assert (sum(p.numel for p in plan.parameters.values()), len(plan)) == (parameters, 120)
    report = sff_fast.verify(build, plan, seeds=(1, 2))
    assert report.ok, f"\n{report}"
    kinds = {segment.distribution.kind for p in plan.parameters.values() for segment in p.segments}
    assert kinds == {"uniform", "normal", "constant", "table"}

    torch.manual_seed(1)
    ours = build()
    theirs = copy.deepcopy(ours)
    sff_fast.smooth_(ours, plan, alpha=0.7, seed=5, rng="torch")
    torch.manual_seed(5)
    second = build()
    with torch.no_grad():
        for (name, found), parameter, drawn in zip(
            ours.named_parameters(), theirs.parameters(), second.parameters(), strict=True
        ):
            assert torch.equal(found, parameter * 0.7 + drawn * (1 - 0.7)), name


def test_tokens_are_drawn_task_by_task_and_classes_before_their_token():
    tasks = (UniTSTask("one", "A", 2), UniTSTask("two", "B", 3, "classification", num_class=4), UniTSTask("three", "A", 2))
    config = UniTSConfig(tasks, d_model=16, n_heads=2, e_layers=1, prompt_num=3, pretrain=True)
    torch.manual_seed(4)
    model = UniTS(config)
    torch.manual_seed(4)
    order = ["prompt_tokens.A", "cls_tokens.one", "prompt_tokens.B", "category_tokens.two", "cls_tokens.two", "cls_tokens.three"]
    shapes = [(2, 3), (2, 1), (3, 3), (3, 4), (3, 1), (2, 1)]
    for name, (channels, tokens) in zip(order, shapes, strict=True):
        expected = torch.empty(1, channels, tokens, 16).normal_(std=0.02)
        assert torch.equal(model.get_parameter(name), expected), name
    assert sorted(model.mask_tokens) == ["A", "B"]
    assert all(not tokens.any() for tokens in model.mask_tokens.values())
    names = set(model.state_dict())
    assert {name.replace("forecast_head", "pretrain_head") for name in names if name.startswith("forecast_head")} <= names


# --- parts ------------------------------------------------------------------------------------------------------------


def interpolated(values, count):
    """Linear interpolation between the centres of pixels, constant beyond the outer ones: [n] to [count]."""
    at = (np.arange(count) + 0.5) * len(values) / count - 0.5
    return np.interp(at, np.arange(len(values)), values)


@pytest.mark.parametrize(("inputs", "outputs"), [(9, 7), (14, 9), (4, 1), (9, 12), (20, 7)])
def test_a_stretched_map_is_the_interpolated_image_of_its_matrix(inputs, outputs):
    torch.manual_seed(0)
    layer = StretchedLinear(9, 7, fixed_in=3).double()
    matrix = layer.weights.detach().numpy()
    parts = []
    for part, width in ((matrix[:, :3], 3), (matrix[:, 3:], inputs - 3)):
        rows = np.stack([interpolated(row, width) for row in part])
        parts.append(np.stack([interpolated(column, outputs) for column in rows.T], axis=1))
    bias = interpolated(layer.bias.detach().numpy(), outputs)
    x = torch.randn(2, 5, inputs, dtype=torch.float64)
    expected = x.numpy() @ np.concatenate(parts, axis=1).T + bias
    np.testing.assert_allclose(layer(x, outputs).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_tokens_attend_within_their_channel_and_channels_by_one_pattern_for_all_tokens():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    for kind in (TokenAttention, ChannelAttention):
        layer = kind(SMALL).double().eval()
        query, key, value = (part.unflatten(-1, (4, 4)) for part in (x @ layer.qkv.weight.T).chunk(3, dim=-1))
        expected = torch.empty_like(query)
        for head in range(4):
            q, k, v = query[..., head, :], key[..., head, :], value[..., head, :]
            if kind is TokenAttention:
                weights = torch.einsum("bcnd,bcmd->bcnm", q, k).div(2).softmax(-1)
                expected[..., head, :] = torch.einsum("bcnm,bcmd->bcnd", weights, v)
            else:
                weights = torch.einsum("bcd,bed->bce", q.mean(2), k.mean(2)).div(2).softmax(-1)
                expected[..., head, :] = torch.einsum("bce,bend->bcnd", weights, v)
        torch.testing.assert_close(layer(x), F.linear(expected.flatten(-2), layer.proj.weight, layer.proj.bias))


def test_the_unused_projections_of_the_published_blocks_change_nothing(small):
    x = torch.randn(2, 16, 3)
    with torch.no_grad():
        before = small.forecast(x, "A", 8)
        for block in small.blocks:
            for part in (block.seq_att_block, block.var_att_block):
                part.proj.weight.fill_(math.nan)
        assert torch.equal(small.forecast(x, "A", 8), before)


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_a_context_of_broken_patches_is_filled_with_its_mean(small):
    x, small = torch.randn(2, 14, 3, dtype=torch.float64), small.double()
    with torch.no_grad():
        mean, std = x.mean(1, keepdim=True), torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        filled = torch.cat(((x - mean) / std, torch.zeros(2, 2, 3)), dim=1)
        tokens = small.position_embedding(small.patch_embeddings(filled.transpose(1, 2).unfold(-1, 4, 4)))
        hidden = torch.cat((small.prompt_tokens["A"].expand(2, -1, -1, -1), tokens), dim=2)
        for block in small.blocks:
            hidden = block(hidden)
        expected = small.forecast_head(hidden, 4, 16)[:, :14] * std + mean
        torch.testing.assert_close(small.anomaly_detection(x, "A"), expected)


def test_a_forecast_goes_on_within_the_last_patch_of_the_context(small):
    x = torch.randn(2, 14, 3)
    with torch.no_grad():
        # 14 + 6 are five whole patches: one after the four that hold the context.
        assert small.forecast(x, "A", 6).shape == (2, 6, 3)
        assert small.whole_prediction(14, 6) == 6
        # 14 + 9 are five whole patches and three steps beyond, which are the mean, as in the official source.
        nine = small.forecast(x, "A", 9)
        torch.testing.assert_close(nine[:, :6], small.forecast(x, "A", 6))
        torch.testing.assert_close(nine[:, 6:], x.mean(1, keepdim=True).expand(-1, 3, -1))
    assert [small.whole_prediction(14, n) for n in (1, 2, 3, 6, 7, 10, 11)] == [6, 6, 6, 6, 10, 10, 14]
    assert [small.whole_prediction(16, n) for n in (1, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ArgumentError, match=r"prediction_length must be at least 6 after 14 steps .* got 5"):
        small.forecast(x, "A", 5)


def test_overlapping_patches_add_up_in_reconstruction_and_forecast_nothing():
    torch.manual_seed(2)
    config = UniTSConfig(TASKS, d_model=16, n_heads=4, e_layers=1, patch_len=4, stride=2, prompt_num=3)
    model, x = UniTS(config).double().eval(), torch.randn(2, 12, 3, dtype=torch.float64)
    mean, std = x.mean(1, keepdim=True), torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    with torch.no_grad():
        patches = ((x - mean) / std).transpose(1, 2).unfold(-1, 4, 2)
        assert patches.shape[2] == 5
        hidden = torch.cat(
            (model.prompt_tokens["A"].expand(2, -1, -1, -1), model.position_embedding(model.patch_embeddings(patches))), 2
        )
        hidden = model.forecast_head.proj_in(model.blocks[0](hidden))
        mixed = model.forecast_head.pos_proj(hidden.transpose(-1, -2), 5).transpose(-1, -2) + hidden[:, :, -5:]
        values = model.forecast_head.proj_out(model.forecast_head.mlp(mixed))
        expected = torch.zeros(2, 3, 12, dtype=torch.float64)
        for patch in range(5):
            expected[..., 2 * patch : 2 * patch + 4] += values[:, :, patch]
        torch.testing.assert_close(model.anomaly_detection(x, "A"), expected.transpose(1, 2) * std + mean)
    with pytest.raises(ArgumentError, match="patches that do not overlap, got stride=2 with patch_len=4"):
        model.forecast(x, "A", 8)


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_a_patch_with_a_missing_point_is_replaced_and_the_others_are_not(small):
    x = torch.randn(1, 16, 3, dtype=torch.float64)
    small, mask = small.double(), torch.ones(1, 16, 3, dtype=torch.bool)
    mask[0, 5, 1] = False
    seen = {}
    small.blocks[0].register_forward_hook(lambda module, args, output: seen.update(tokens=args[0]))
    with torch.no_grad():
        small.imputation(x, mask, "A")
        hidden = x.masked_fill(~mask, 0)
        mean = hidden.mean(1, keepdim=True)
        count = mask.sum(1, keepdim=True)
        std = torch.sqrt(((hidden - mean) * mask).square().sum(1, keepdim=True) / count + 1e-5)
        patches = ((hidden - mean) * mask / std).transpose(1, 2).unfold(-1, 4, 4)
        tokens = small.patch_embeddings(patches)
        tokens[0, 1, 1] = small.mask_tokens["A"][0, 1, 0]
        everything = torch.cat((small.prompt_tokens["A"], tokens), dim=2)
        generated = small.prompt2forecat(everything.transpose(-1, -2), 4).transpose(-1, -2)
        tokens[0, 1, 1] = generated[0, 1, 1]
        torch.testing.assert_close(seen["tokens"][:, :, 3:], small.position_embedding(tokens))
        torch.testing.assert_close(seen["tokens"][:, :, :3], small.prompt_tokens["A"].detach())


def test_imputation_does_not_look_at_missing_values(small):
    x, mask = torch.randn(2, 20, 3), torch.rand(2, 20, 3) > 0.1
    mask[:, :, 2] = False
    with torch.no_grad():
        zeros = small.imputation(x.masked_fill(~mask, 0), mask, "A")
        nans = small.imputation(x.masked_fill(~mask, math.nan), mask.float(), "A")
    assert torch.equal(zeros, nans)
    assert zeros.isfinite().all()


def test_prompts_belong_to_a_data_set_and_channels_see_each_other(small):
    x = torch.randn(2, 16, 3)
    other = x.clone()
    other[:, :, 2] = torch.randn(2, 16)
    with torch.no_grad():
        one, two = small.anomaly_detection(x, "A"), small.anomaly_detection(other, "A")
        assert (one - two)[:, :, :2].abs().max() > 1e-4
        small.prompt_tokens["B"].fill_(math.nan)
        assert torch.equal(small.anomaly_detection(x, "A"), one)
        assert small.anomaly_detection(x[:, :, :1], "B").isnan().all()


def test_every_parameter_of_a_task_gets_a_gradient(small):
    x, mask = torch.randn(2, 16, 3), torch.rand(2, 16, 3) > 0.1
    small.train()
    unused = ("cls_head.", "prompt_tokens.B", "mask_tokens.B")
    for task, more in (("forecast", ()), ("imputation", ()), ("anomaly", ("mask_tokens.A", "prompt2forecat."))):
        small.zero_grad()
        run(small, task, x, mask).square().mean().backward()
        for name, parameter in small.named_parameters():
            if name.startswith((*unused, *more)) or "att_block.proj." in name:
                assert parameter.grad is None, name
            else:
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_alone_and_in_every_place(small):
    x = torch.randn(2, 16, 3)
    places = [name for name, module in small.named_modules() if isinstance(module, nn.Dropout) and "cls_head" not in name]
    assert len(places) == 1 + 2 * (1 + 1 + 2) + 2
    with torch.no_grad():
        assert torch.equal(small.forecast(x, "A", 8), small.forecast(x, "A", 8))
        for place in places:
            small.get_submodule(place).train()
            assert not torch.equal(small.forecast(x, "A", 8), small.forecast(x, "A", 8)), place
            small.eval()


@pytest.mark.parametrize("task", ["forecast", "imputation", "anomaly"])
def test_output_follows_the_scale_and_level_of_the_input(small, task):
    x = torch.randn(2, 16, 3, dtype=torch.float64)
    with torch.no_grad():
        # Not exact: the constant 1e-5 in the normalisation does not scale along.
        torch.testing.assert_close(run(small.double(), task, 100 * x - 7), 100 * run(small, task, x) - 7, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("task", ["forecast", "imputation", "anomaly"])
def test_half_precision_weights_keep_the_scale_of_the_data(small, task):
    x, mask = torch.randn(2, 16, 3), torch.rand(2, 16, 3) > 0.2
    with torch.no_grad():
        expected = run(small, task, x, mask)
        output = run(copy.deepcopy(small).to(torch.bfloat16), task, x, mask)
    assert output.dtype == torch.float32
    # A bfloat16 product keeps 8 bits, and some twenty of them follow one another.
    torch.testing.assert_close(output, expected, rtol=0, atol=0.15)


# --- configuration and errors -----------------------------------------------------------------------------------------


def test_a_published_configuration_is_kept_whole(test_data):
    published = json.loads((test_data / "golden" / "units" / "config.json").read_text())
    config = UniTSConfig.from_dict(published)
    assert config.datasets == {"ETTh1": 7}
    written = json.loads(json.dumps(config.to_dict()))
    assert published["tasks"] == written["tasks"]
    assert published["model"].items() <= written["model"].items()
    extended = {**written, "model": {**written["model"], "share_embedding": False}}
    assert UniTSConfig.from_dict(extended).to_dict() == extended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer of at least 1, got 0"),
        ({"d_model": 17, "n_heads": 1}, "d_model must be even .* got 17"),
        ({"n_heads": 5}, "multiple of n_heads, got d_model=16, n_heads=5"),
        ({"prompt_num": 32}, "prompt_num must be below 32 for d_model=16, got 32"),
        ({"d_model": 128, "prompt_num": 128}, "prompt_num must be below 128 for d_model=128, got 128"),
        ({"stride": 5}, "stride must be at most patch_len=4, got 5"),
        ({"e_layers": True}, "e_layers must be an integer"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"pretrain": 1}, "pretrain must be True or False, got 1"),
        ({"tasks": ()}, "tasks must name at least one task"),
        ({"tasks": (TASKS[0], TASKS[0])}, "two tasks have the name 'LTF_A_p8'"),
        ({"tasks": (TASKS[0], UniTSTask("x", "A", 4))}, "'A' has 3 channels in one task and 4 in another"),
    ],
)
def test_a_bad_size_is_refused_by_name(change, message):
    with pytest.raises(ArgumentError, match=message):
        UniTSConfig(**{**SMALL.__dict__, **change})


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["x"], r"expected \[name, .*\], got \['x'\]"),
        (["x", {"dataset": "A"}], "'enc_in'"),
        (["x", {"dataset": "a.b", "enc_in": 1}], "dataset must be a string without dots, not empty, got 'a.b'"),
        (["", {"dataset": "A", "enc_in": 1}], "name must be a string"),
        (["x", {"dataset": "A", "enc_in": 0}], "enc_in must be an integer of at least 1, got 0"),
        (["x", {"dataset": "A", "enc_in": 1, "task_name": "classification"}], "num_class is missing .* 'x'"),
        (["x", {"dataset": "A", "enc_in": 1, "seq_len": 0}], "seq_len must be an integer of at least 1, got 0"),
    ],
)
def test_a_bad_task_is_refused_by_name(pair, message):
    with pytest.raises(ArgumentError, match=message):
        UniTSTask.from_list(pair)


@pytest.mark.parametrize(
    ("x", "dataset", "message"),
    [
        (torch.zeros(2, 16, 3), "C", "no prompts for the data set 'C': expected A, B"),
        (torch.zeros(2, 16, 2), "A", "'A' has 3 channels, got x with 2"),
        (torch.zeros(2, 0, 3), "A", r"\[batch, time, channel\], got torch.float32 of shape \(2, 0, 3\)"),
        (torch.zeros(2, 16), "A", r"of shape \(2, 16\)"),
        (torch.zeros(2, 16, 3, dtype=torch.int64), "A", "got torch.int64"),
        (torch.zeros(1, 20_001, 1), "B", "x holds 5001 patches, the table of positions only 5000"),
    ],
)
def test_a_bad_input_is_refused_with_what_was_expected(small, x, dataset, message):
    with pytest.raises(ArgumentError, match=message):
        small.anomaly_detection(x, dataset)


def test_a_bad_mask_and_a_forecast_beyond_the_table_are_refused(small):
    with pytest.raises(ArgumentError, match=r"mask must have the shape of x, \(2, 16, 3\), got \(2, 16\)"):
        small.imputation(torch.zeros(2, 16, 3), torch.ones(2, 16), "A")
    with pytest.raises(ArgumentError, match="context and forecast are 5001 patches, the table of positions holds 5000"):
        small.forecast(torch.zeros(1, 16, 1), "B", 4 * 4997)
