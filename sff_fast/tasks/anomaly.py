"""Anomaly detection: how far a series is from what the model expects of it, and whether that finds the anomaly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..errors import ArgumentError, require
from ..metrics import NotFiniteError
from ..metrics.sums import to_double
from .base import Evaluation


class AnomalyEvaluation(Evaluation):
    """Squared and absolute error of every scored row, and on the test part how well they tell the anomaly."""

    def __init__(self, data: Any, part: str) -> None:
        super().__init__(data, part)
        self._border = (0, len(data.series)) if part == "train" else getattr(data, part).border
        rows = self._border[1] - self._border[0]
        shape = (rows, len(data.columns))
        # Train windows overlap: their errors are summed. Every other row is scored once.
        self._squared, self._absolute = np.zeros(shape), np.zeros(shape)
        self._counts = np.zeros(rows, dtype=np.int64)
        self._windows = 0

    @classmethod
    def check(cls, adapter: Any, data: Any) -> None:
        """The model must detect anomalies, in windows of this length, and expect something of all but a segment of them."""
        adapter.check_task("anomaly", data.context_length)
        require("sklearn", "anomaly", "scikit-learn")
        expected = adapter.reconstruct(data.train.batch(torch.tensor([0])).values)
        unknown = torch.isnan(expected).all(dim=2)[0].to("cpu", torch.int64)
        silent = int(unknown.cumprod(0).sum())
        if data.segment_length < silent < data.context_length:
            raise ArgumentError(
                f"segment_length must be at least {silent} for this {adapter.variant} model, which expects nothing of the "
                f"first {silent} rows of a window, got {data.segment_length}"
            )

    def predict(self, adapter: Any, batch: Any, seed: int) -> torch.Tensor:
        """What the model expects at every point."""
        return adapter.reconstruct(batch.values, seed=seed)

    def update(self, output: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        """Add the errors of the rows that count."""
        error = to_double(output) - to_double(batch.values)
        steps = torch.arange(error.shape[1])
        counted = (steps >= batch.scored[:, :1]) & (steps < batch.scored[:, 1:])
        if self.part == "train":
            # Windows of the train part begin where the model may expect nothing yet.
            counted &= steps >= self.data.segment_length
        error = torch.where(counted[..., None], error, 0.0)
        if not torch.isfinite(error).all():
            row, step, channel = (int(i) for i in (~torch.isfinite(error)).nonzero()[0])
            raise NotFiniteError(
                f"the expected value is not finite in row {int(batch.start[row]) + step + 1}, channel {channel}: "
                "the weights have diverged; lower the learning rate or use a higher precision"
            )
        squared, absolute = error.square(), error.abs()
        where = (batch.start[:, None] + steps - self._border[0])[counted].numpy()
        np.add.at(self._squared, where, squared[counted].numpy())
        np.add.at(self._absolute, where, absolute[counted].numpy())
        np.add.at(self._counts, where, 1)
        self._windows += len(error)
        points = counted.sum(dim=1) * error.shape[2]
        return {"mse": squared.sum(dim=(1, 2)) / points, "mae": absolute.sum(dim=(1, 2)) / points}

    def to_json(self) -> dict[str, Any]:
        """The errors; of the test part also what :func:`detection` says."""
        points = int(self._counts.sum()) * self._squared.shape[1]
        mse = math.fsum(self._squared.ravel().tolist()) / points
        errors = {
            "mse": mse,
            "mae": math.fsum(self._absolute.ravel().tolist()) / points,
            "rmse": math.sqrt(mse),
            "windows": self._windows,
            "mse_per_channel": (self._squared.sum(axis=0) / self._counts.sum()).tolist(),
            "mae_per_channel": (self._absolute.sum(axis=0) / self._counts.sum()).tolist(),
        }
        if self.part != "test":
            return errors
        labels = self.data.labels
        anomaly = (labels.begin - self._border[0], labels.end - self._border[0])
        return {**errors, **detection(self._squared.mean(axis=1), anomaly, self.data.segment_length)}


def segment_edges(rows: int, segment_length: int) -> np.ndarray:
    """Where segments of a series begin, and the end of the last.

    What is left at the end makes a segment of its own from half of the length on. A shorter rest belongs to the segment before
    it: the mean of a few rows is high more easily than that of many.

    Args:
        rows: Rows of the series, at least 1.
        segment_length: Rows in a segment.

    Returns:
        int64, one more than there are segments, from 0 to ``rows``.
    """
    count = max(1, (2 * rows + segment_length) // (2 * segment_length))  # a half is rounded up
    return np.append(np.arange(count) * segment_length, rows)


def detection(scores: np.ndarray, anomaly: tuple[int, int], segment_length: int) -> dict[str, Any]:
    """How well the scores of rows tell where an anomaly lies. Nothing is point-adjusted.

    Segments: their score is the mean of their rows', labelled are those that share a row with the anomaly. ``rank`` is the
    best rank of a labelled segment, 1 for the highest score; segments without a label that have the same score come
    first. ``quantile`` is the rank divided by the number of segments. Rows: ``auc_roc``, ``auc_pr`` (average precision)
    and ``f1_best``, the highest F1 over all thresholds, with its threshold, as scikit-learn computes them.

    Args:
        scores: float64 [T], higher for stranger rows.
        anomaly: The anomaly's first row and the row after its last.
        segment_length: Rows in a segment; the last one may differ, see :func:`segment_edges`.

    Returns:
        The figures, and ``segment_scores``.

    Source: Liu et al., arXiv:2402.02368, section 4.3 (segments, rank and quantile); Kim et al., "Towards a rigorous
        evaluation of time-series anomaly detection", AAAI 2022 (why no point adjustment).
    """
    metrics = require("sklearn.metrics", "anomaly", "scikit-learn")
    edges = segment_edges(len(scores), segment_length)
    begins, ends = edges[:-1], edges[1:]
    segments = [float(scores[begin:end].mean()) for begin, end in zip(begins, ends)]
    labelled = np.flatnonzero((begins < anomaly[1]) & (ends > anomaly[0]))
    best = max(segments[index] for index in labelled)
    rank = 1 + sum(score >= best for index, score in enumerate(segments) if index not in set(labelled.tolist()))
    rows = np.zeros(len(scores), dtype=np.int64)
    rows[anomaly[0] : anomaly[1]] = 1
    precision, recall, thresholds = metrics.precision_recall_curve(rows, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    top = int(np.argmax(f1[:-1]))
    return {
        "segments": len(segments),
        "segment_scores": segments,
        "labelled_segments": labelled.tolist(),
        "rank": rank,
        "quantile": rank / len(segments),
        "auc_roc": None if rows.all() else float(metrics.roc_auc_score(rows, scores)),
        "auc_pr": float(metrics.average_precision_score(rows, scores)),
        "f1_best": float(f1[top]),
        "f1_threshold": float(thresholds[top]),
    }
