"""Model families behind one interface: load, train, forecast, save.

A family is a subclass of :class:`Adapter`. Those of this package are registered here; another package adds its own with
:func:`register`, or by an entry point of the group ``sff_fast.families`` that names the class.
"""

from sff_fast.adapters.base import Adapter, Forecast, Limits
from sff_fast.adapters.chronos_2 import Chronos2Adapter
from sff_fast.adapters.chronos_bolt import ChronosBoltAdapter
from sff_fast.adapters.chronos_t5 import ChronosT5Adapter
from sff_fast.adapters.moirai import MoiraiAdapter
from sff_fast.adapters.moirai_2 import Moirai2Adapter
from sff_fast.adapters.moirai_moe import MoiraiMoEAdapter
from sff_fast.adapters.moment import MomentAdapter
from sff_fast.adapters.registry import FamilyInfo, families, load, register, tiny
from sff_fast.adapters.sundial import SundialAdapter
from sff_fast.adapters.timer import TimerAdapter
from sff_fast.adapters.timer_84m import Timer84mAdapter
from sff_fast.adapters.timesfm_2_0 import TimesFM20Adapter
from sff_fast.adapters.timesfm_2_5 import TimesFM25Adapter
from sff_fast.adapters.timesfm_2_5_google import TimesFM25GoogleAdapter
from sff_fast.adapters.timesfm_3_google import TimesFM3GoogleAdapter
from sff_fast.adapters.ttm import TTMAdapter
from sff_fast.adapters.units import UniTSAdapter

__all__ = [
    "Adapter",
    "Chronos2Adapter",
    "ChronosBoltAdapter",
    "ChronosT5Adapter",
    "FamilyInfo",
    "Forecast",
    "Limits",
    "Moirai2Adapter",
    "MoiraiAdapter",
    "MoiraiMoEAdapter",
    "MomentAdapter",
    "SundialAdapter",
    "TTMAdapter",
    "Timer84mAdapter",
    "TimerAdapter",
    "TimesFM3GoogleAdapter",
    "TimesFM20Adapter",
    "TimesFM25Adapter",
    "TimesFM25GoogleAdapter",
    "UniTSAdapter",
    "families",
    "load",
    "register",
    "tiny",
]

# A foreign checkpoint is said to be of the first one whose marks it has all of, and Bolt's files have those of T5 too.
register(Chronos2Adapter)
register(ChronosBoltAdapter)
register(ChronosT5Adapter)
register(MomentAdapter)
register(SundialAdapter)
register(MoiraiAdapter)
register(Moirai2Adapter)
register(MoiraiMoEAdapter)
register(TimerAdapter)
register(TimesFM25Adapter)
register(TimesFM20Adapter)
register(TimesFM25GoogleAdapter)
register(TimesFM3GoogleAdapter)
register(Timer84mAdapter)
register(TTMAdapter)
register(UniTSAdapter)
