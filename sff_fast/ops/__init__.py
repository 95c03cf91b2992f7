"""Smoothing and the optimizer's step as ``torch.library`` operators, so that ``torch.compile`` takes them into its graph.

``sff_fast.smooth_`` and the optimizers call the kernels themselves; these operators are for functions that are compiled.
Importing this package registers them:

    torch.ops.sff_fast.smooth_(params, table, values)
    torch.ops.sff_fast.adamw_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, ...)
    torch.ops.sff_fast.optimizer_step_(params, grads, places, handle)      # what a compiled FusedAdamW.step() calls

All write in place, on the CPU or on a GPU, wherever the tensors lie, and give the bits of the eager calls.
"""

from sff_fast.ops.optimizer import adamw_, optimizer_step_, round_streams
from sff_fast.ops.smoothing import Bucket, bucket, smooth_

__all__ = ["Bucket", "adamw_", "bucket", "optimizer_step_", "round_streams", "smooth_"]
