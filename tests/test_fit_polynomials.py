"""The polynomials of csrc/core/distributions.h: tools/fit_polynomials.py finds them again, with the errors it states."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import fit_polynomials  # noqa: E402

CASES = list(zip(fit_polynomials.FITS, fit_polynomials.in_header()))
# Largest error of the header's coefficients, a few per cent above what the fit reaches. Weights as in the fit: for ln the
# error of ln(1 + f) over f, for the cosine its own error.
ERRORS = (1.35e-6, 1.5e-6, 3.3e-8, 5.5e-7, 1.35e-5)


@pytest.mark.parametrize(("fit", "held"), CASES, ids=[fit.name for fit, _ in CASES])
def test_the_fit_gives_the_headers_coefficients(fit, held):
    assert len(held) == fit.degree + 1
    found = fit_polynomials.rounded(fit, fit_polynomials.solve(fit))
    # Two minimax searches meet to about 1e-8 of the largest coefficient; a float32 unit there is up to 4.8e-7.
    assert np.abs(found - held).max() <= 1e-7


@pytest.mark.parametrize(("case", "limit"), list(zip(CASES, ERRORS)), ids=[fit.name for fit, _ in CASES])
def test_the_headers_coefficients_keep_the_stated_error(case, limit):
    fit, held = case
    assert fit_polynomials.error_of(fit, held) <= limit
    assert fit_polynomials.error_of(fit, held + np.eye(len(held))[0] * 4 * limit) > limit, "the measure sees no change"


def test_the_reference_backend_holds_the_same_coefficients():
    text = (ROOT / "sff_fast" / "backends" / "reference.py").read_text()
    for _, held in CASES:
        for coefficient in held:
            assert repr(float(abs(coefficient))) in text
