"""How fast is smoothing in place, against the strongest peers and against the memory itself?

Contenders, interleaved in one process:

* limit: ``x.mul_(c)``, the in-place scale: the bytes that must be moved (8 an fp32 element), nothing else;
* ours: :func:`sff_fast.smooth_`;
* torch streaming: the same plan with torch's own generator into one reused scratch tensor, then ``lerp_``;
* second model: what the reference does, building a random model and interpolating parameter by parameter.

In the same run the result of ours is checked against the reference backend on a part of the tensor.

Run from the repository root: ``python benchmarks/bench_smooth.py [--elements 1e8] [--runs 7]``.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from timing import interleaved, ratio, write_rows

import sff_fast
from sff_fast.models.timer import Timer, TimerConfig
from sff_fast.plan import InitPlan, ParameterPlan, Segment

ALPHA = 0.7
DISTRIBUTIONS = {
    "constant": sff_fast.Constant(1.0),
    "uniform": sff_fast.Uniform(-0.03, 0.03),
    "normal": sff_fast.Normal(0.0, 0.02),
    "trunc_normal": sff_fast.TruncNormal(0.0, 0.02, -0.04, 0.04),
}


def torch_draw(scratch: torch.Tensor, distribution: object) -> None:
    """The same distribution with torch's own generator."""
    if isinstance(distribution, sff_fast.Uniform):
        scratch.uniform_(distribution.low, distribution.high)
    elif isinstance(distribution, sff_fast.Normal):
        scratch.normal_(distribution.mean, distribution.std)
    elif isinstance(distribution, sff_fast.TruncNormal):
        torch.nn.init.trunc_normal_(scratch, distribution.mean, distribution.std, distribution.a, distribution.b)
    else:
        scratch.fill_(distribution.value)


class One(torch.nn.Module):
    """One flat parameter."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(values)


def flat(label: str, dtype: torch.dtype, elements: int, runs: int, threads: int) -> dict[str, object]:
    """One distribution on one flat parameter."""
    torch.set_num_threads(threads)
    distribution = DISTRIBUTIONS[label]
    plan = InitPlan([ParameterPlan("w", (elements,), dtype, (Segment.whole(distribution, elements, "w"),))])
    model = One(torch.linspace(-0.1, 0.1, elements, dtype=torch.float32).to(dtype))
    scratch = torch.empty(elements, dtype=dtype)

    # correctness in the same run: the compiled kernel against the definition, on a prefix (numbers go by index)
    part = 300_000
    small = One(model.w.detach()[:part].clone())
    small_plan = InitPlan([ParameterPlan("w", (part,), dtype, (Segment.whole(distribution, part, "w"),))])
    sff_fast.smooth_(small, small_plan, alpha=ALPHA, seed=1, backend="reference")
    sff_fast.smooth_(model, plan, alpha=ALPHA, seed=1, threads=threads)
    assert torch.equal(model.w.detach()[:part], small.w.detach()), "the kernel differs from the reference"

    def streaming() -> None:
        torch_draw(scratch, distribution)
        model.w.detach().lerp_(scratch, 1 - ALPHA)

    seconds = interleaved(
        {
            "limit": lambda: model.w.detach().mul_(0.999),
            "ours": lambda: sff_fast.smooth_(model, plan, alpha=ALPHA, seed=1, threads=threads, again=True),
            "streaming": streaming,
        },
        runs,
    )
    return row(f"{label} {str(dtype).removeprefix('torch.')}", elements, threads, runs, seconds)


def whole_model(runs: int, threads: int) -> dict[str, object]:
    """Timer at its published size: 67 million parameters in 133 tensors."""
    torch.set_num_threads(threads)
    config = TimerConfig()
    model = Timer(config)
    plan = sff_fast.trace(lambda: Timer(config))
    elements = sum(p.numel() for p in model.parameters())
    scratch = torch.empty(max(p.numel() for p in model.parameters()))
    whole = [(p, plan[name].segments[0].distribution) for name, p in model.named_parameters()]

    def streaming() -> None:
        with torch.no_grad():
            for p, distribution in whole:
                view = scratch[: p.numel()].view(p.shape)
                torch_draw(view, distribution)
                p.lerp_(view, 1 - ALPHA)

    def second_model() -> None:
        random_model = Timer(config)
        with torch.no_grad():
            for p, q in zip(model.parameters(), random_model.parameters()):
                p.copy_(ALPHA * p + (1 - ALPHA) * q)

    seconds = interleaved(
        {
            "limit": lambda: [p.detach().mul_(0.999) for p in model.parameters()],
            "ours": lambda: sff_fast.smooth_(model, plan, alpha=ALPHA, seed=1, threads=threads, again=True),
            "streaming": streaming,
            "second model": second_model,
        },
        runs,
    )
    return row("Timer 67M", elements, threads, runs, seconds)


def row(case: str, elements: int, threads: int, runs: int, seconds: dict[str, list[float]]) -> dict[str, object]:
    """The figures of one case; second model and its ratio are empty where there is no model."""
    ns = {name: statistics.median(values) / elements * 1e9 for name, values in seconds.items()}
    second = seconds.get("second model")
    return {
        "case": case,
        "threads": threads,
        "elements": elements,
        "runs": runs,
        "limit_ns": f"{ns['limit']:.4f}",
        "ours_ns": f"{ns['ours']:.4f}",
        "streaming_ns": f"{ns['streaming']:.4f}",
        "second_model_ns": f"{ns['second model']:.4f}" if second else "",
        "ours_over_limit": f"{ratio(seconds['ours'], seconds['limit']):.3f}",
        "streaming_over_ours": f"{ratio(seconds['streaming'], seconds['ours']):.2f}",
        "second_model_over_ours": f"{ratio(second, seconds['ours']):.2f}" if second else "",
    }


def main() -> None:
    """Run all cases, print them, and append them to benchmarks/results/smooth.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--elements", type=float, default=1e8, help="elements of the flat cases (default 1e8)")
    parser.add_argument("--runs", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        for label in DISTRIBUTIONS:
            slow = label == "trunc_normal"
            rows.append(flat(label, torch.float32, int(options.elements), 3 if slow else options.runs, threads))
            print_row(rows[-1])
        for label in ("uniform", "normal"):
            rows.append(flat(label, torch.bfloat16, int(options.elements), options.runs, threads))
            print_row(rows[-1])
        rows.append(whole_model(options.runs, threads))
        print_row(rows[-1])
    print(f"written to {write_rows('smooth', rows)}")


def print_row(r: dict[str, object]) -> None:
    """One line a case."""
    text = f"{r['case']:<22} {r['threads']} thread(s)  ours {r['ours_ns']} ns/element = {r['ours_over_limit']} x limit"
    text += f", torch streaming {r['streaming_over_ours']} x ours"
    if r["second_model_over_ours"]:
        text += f", second model {r['second_model_over_ours']} x ours"
    print(text, flush=True)


if __name__ == "__main__":
    main()
