"""The data engine: sources, pseudo-label corpora, selection and the store. Never imports torch.

All functions take what they act on as positional arguments: the store, names and versions, sources, settings. Everything else is
keyword-only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_data.adoption import adopt
    from nst_data.errors import NstError, UsageError
    from nst_data.features.features import Features
    from nst_data.features.kept import remove_features
    from nst_data.formats.export import Exported, export
    from nst_data.inspection.churn import Churn, diff
    from nst_data.inspection.quality import Quality, quality
    from nst_data.progress import Progress
    from nst_data.review.freeze import freeze
    from nst_data.review.picks import Picks
    from nst_data.selection.balance import add_copies, most_confident
    from nst_data.selection.editions import Engine, balance
    from nst_data.selection.filters import reject, reject_duplicates, reject_unsure
    from nst_data.selection.holdout import hold_out
    from nst_data.self_contained.remote import StreamedEdition
    from nst_data.settings import BalanceSettings, PickSettings
    from nst_data.sharing.copy import copy
    from nst_data.sharing.lineage import LineageNode, lineage
    from nst_data.sharing.pull import pull
    from nst_data.sharing.push import push
    from nst_data.sources import Source, open_source
    from nst_data.store.indexes import Indexes
    from nst_data.store.places import Place
    from nst_data.store.store import Store, Version

    __version__: str

__all__ = [
    "BalanceSettings",
    "Churn",
    "Engine",
    "Exported",
    "Features",
    "Indexes",
    "LineageNode",
    "NstError",
    "PickSettings",
    "Picks",
    "Place",
    "Progress",
    "Quality",
    "Source",
    "Store",
    "StreamedEdition",
    "UsageError",
    "Version",
    "__version__",
    "add_copies",
    "adopt",
    "balance",
    "copy",
    "diff",
    "export",
    "freeze",
    "hold_out",
    "lineage",
    "most_confident",
    "open_source",
    "pull",
    "push",
    "quality",
    "reject",
    "reject_duplicates",
    "reject_unsure",
    "remove_features",
]

_MODULES = {
    "BalanceSettings": "settings",
    "Churn": "inspection.churn",
    "Engine": "selection.editions",
    "Exported": "formats.export",
    "Features": "features.features",
    "Indexes": "store.indexes",
    "LineageNode": "sharing.lineage",
    "NstError": "errors",
    "PickSettings": "settings",
    "Picks": "review.picks",
    "Place": "store.places",
    "Progress": "progress",
    "Quality": "inspection.quality",
    "Source": "sources",
    "Store": "store.store",
    "StreamedEdition": "self_contained.remote",
    "UsageError": "errors",
    "Version": "store.store",
    "add_copies": "selection.balance",
    "adopt": "adoption",
    "balance": "selection.editions",
    "copy": "sharing.copy",
    "diff": "inspection.churn",
    "export": "formats.export",
    "freeze": "review.freeze",
    "hold_out": "selection.holdout",
    "lineage": "sharing.lineage",
    "most_confident": "selection.balance",
    "open_source": "sources",
    "pull": "sharing.pull",
    "push": "sharing.push",
    "quality": "inspection.quality",
    "reject": "selection.filters",
    "reject_duplicates": "selection.filters",
    "reject_unsure": "selection.filters",
    "remove_features": "features.kept",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the exported object, imported on first use
    if name == "__version__":
        from importlib.metadata import version

        return version("nst")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
