"""The loss around a model's weights: grids over random directions, and the Hessian.

:func:`landscape` is all that a caller needs. ``filters`` says what a filter is, ``directions`` moves the weights in place and
puts them back, ``objective`` is the loss, ``curvature`` the Hessian, ``centres`` the weights that grids are drawn around,
``rows`` what an interrupted landscape goes on from, ``result`` the figures and the verdict.
"""

from sff_fast.landscapes.directions import Plane
from sff_fast.landscapes.result import LandscapeResult
from sff_fast.landscapes.run import landscape

__all__ = ["LandscapeResult", "Plane", "landscape"]
