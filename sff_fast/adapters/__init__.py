"""Model families behind one interface: load, train, forecast, save.

A family is a subclass of :class:`Adapter`. Those of this package are registered here; another package adds its own with
:func:`register`, or by an entry point of the group ``sff_fast.families`` that names the class.
"""

from sff_fast.adapters.base import Adapter, Forecast, Limits
from sff_fast.adapters.registry import FamilyInfo, families, load, register, tiny
from sff_fast.adapters.timer import TimerAdapter
from sff_fast.adapters.ttm import TTMAdapter
from sff_fast.adapters.units import UniTSAdapter

__all__ = [
    "Adapter",
    "FamilyInfo",
    "Forecast",
    "Limits",
    "TTMAdapter",
    "TimerAdapter",
    "UniTSAdapter",
    "families",
    "load",
    "register",
    "tiny",
]

register(TimerAdapter)
register(TTMAdapter)
register(UniTSAdapter)
