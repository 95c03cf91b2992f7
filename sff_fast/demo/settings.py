"""What ``sff-fast demo`` runs, and why just this much of it.

The demo has to end within 4 minutes on 2 cores, the report included.
"""

from __future__ import annotations

#: What is compared.
STRATEGIES = ("zero-shot", "tfs", "ff", "sff")

#: Shares of the year for training, validation and test: until 12 September, until 19 October, until 30 December.
SPLIT = "0.7,0.1,0.2"

#: Four weeks of hours, as in the SFF paper, and seven patches of the model; of the lengths that were judged, it has the
#: lowest validation error (docs/demo-model.md).
CONTEXT_LENGTH = 672

#: Four days, as in the SFF paper, and one patch of the model: a forecast is one forward pass.
PREDICTION_LENGTH = 96

#: Contexts that tools/pretrain_demo.py judges the model with.
JUDGED_CONTEXT_LENGTHS = (384, 480, 672)

#: Hours between neighbouring windows, in all three parts.
STRIDE = 6

#: Windows a step.
BATCH_SIZE = 32

#: Passes over the train windows for each strategy.
EPOCHS = 3

#: The same for all strategies; halved every epoch as in the SFF paper. Its 3e-5 is for a model a hundred times larger.
LR = 1e-4
SCHEDULE = "halving"

#: The SFF paper's share of the pre-trained weights.
ALPHA = 0.7
SEED = 0
