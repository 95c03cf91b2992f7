"""Smoothing and the fused optimizers inside other people's training code: one small module a package.

Each module is imported by its name (``from sff_fast.integrations.transformers import SmoothingCallback``), so that none of
these packages is needed by the others. See docs/integrations.md.
"""
