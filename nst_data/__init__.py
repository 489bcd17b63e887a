"""The data engine: sources, pseudo-label corpora, selection and the store. Never imports torch.

In all functions what an action is about comes first: the store, names and versions, sources, settings; the rest is given by keyword.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_data.adoption import adopt
    from nst_data.errors import NstError, UsageError
    from nst_data.formats.export import export
    from nst_data.inspection.churn import diff
    from nst_data.inspection.quality import quality
    from nst_data.review.freeze import freeze
    from nst_data.selection.editions import balance
    from nst_data.selection.holdout import hold_out
    from nst_data.settings import BalanceSettings, PickSettings
    from nst_data.sharing.copy import copy
    from nst_data.sharing.lineage import lineage
    from nst_data.sharing.pull import pull
    from nst_data.sharing.push import push
    from nst_data.sources import Source, open_source
    from nst_data.store.store import Store, Version

    __version__: str

__all__ = [
    "BalanceSettings",
    "NstError",
    "PickSettings",
    "Source",
    "Store",
    "UsageError",
    "Version",
    "__version__",
    "adopt",
    "balance",
    "copy",
    "diff",
    "export",
    "freeze",
    "hold_out",
    "lineage",
    "open_source",
    "pull",
    "push",
    "quality",
]

_MODULES = {
    "BalanceSettings": "settings",
    "NstError": "errors",
    "PickSettings": "settings",
    "Source": "sources",
    "Store": "store.store",
    "UsageError": "errors",
    "Version": "store.store",
    "adopt": "adoption",
    "balance": "selection.editions",
    "copy": "sharing.copy",
    "diff": "inspection.churn",
    "export": "formats.export",
    "freeze": "review.freeze",
    "hold_out": "selection.holdout",
    "lineage": "sharing.lineage",
    "open_source": "sources",
    "pull": "sharing.pull",
    "push": "sharing.push",
    "quality": "inspection.quality",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what the name stands for, imported when it is first used
    if name == "__version__":
        from importlib.metadata import version

        return version("nst")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
