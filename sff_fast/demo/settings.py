"""What ``sff-fast demo`` runs, and why just this much of it.

The demo has to end within 4 minutes on 2 cores, the report included. One thread trains 2100 windows a second (forward,
backward and Adam, 672 -> 96) and forecasts 10,700 (Xeon with AVX-512, torch 2.13). With the settings below there are
16,038 train, 2340 validation and 4968 test windows: 144,000 windows trained and 49,000 forecast make 75 seconds, which
leaves a machine of half the speed, start-up and report well within the limit.
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

#: Hours between neighbouring windows, in all three parts. Windows an hour apart share all but one of their 768 values:
#: six times the time for little more information.
STRIDE = 6

#: Windows a step.
BATCH_SIZE = 32

#: Passes over the train windows for each strategy.
EPOCHS = 3

#: The same for all strategies; halved every epoch as in the SFF paper, whose 3e-5 is for a model a hundred times as
#: large. Of 1e-4 and 3e-4, the one with the lower validation error for each of TFS, FF and SFF.
LR = 1e-4
SCHEDULE = "halving"

#: The SFF paper's share of the pre-trained weights.
ALPHA = 0.7
SEED = 0

#: Threads of torch. A step on so small a model is over before a second thread pays: on 2 idle cores FF took 20 s with
#: two threads and 22 s with one; beside other work two took 100 s and more, as they wait for each other all the time.
THREADS = 1
