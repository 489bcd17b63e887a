"""A dataset of the Hugging Face Hub at one commit."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nst_data.errors import NstError, UsageError
from nst_data.hub.errors import translate_hub_errors
from nst_data.hub.licenses import license_at
from nst_data.hub.quiet import quiet
from nst_data.hub.reference import HubReference
from nst_data.hub.retries import call_with_retries
from nst_data.sources.cells import refuse_path
from nst_data.sources.files import read_file
from nst_data.sources.labels import LabelOptions
from nst_data.sources.parquet import ParquetFiles
from nst_data.sources.saved import ArrowDataset
from nst_data.sources.source import Content, Source
from nst_data.sources.streamed import StreamedParquet
from nst_data.sources.tar import TarFiles
from nst_data.store.file_tree import FileTree, StoredFile
from nst_data.store.indexes import Indexes

_TIMEOUT_SECONDS = 30
_SHA = re.compile(r"[0-9a-f]{40}")


def open_hub(reference: HubReference, labels: LabelOptions | None, column: str | None, stream: bool, indexes: Indexes | None) -> Source:
    """Open a dataset of the Hub at the commit that its revision currently points to.

    Raises NstError if it cannot be reached or read, UsageError if a config or split must be named.
    """
    with translate_hub_errors(str(reference), may_be_path=True), quiet("datasets"):
        sha = _resolve_commit(reference)
        builder = _builder(reference, sha)
        split = _resolve_choice(reference, "split", list(builder.config.data_files or {}), reference.split)
        hub_split = HubSplit(reference, sha, builder, split)
        if all(file.endswith(".parquet") for file in hub_split.files):
            source: Source = hub_split.parquet(labels, column, stream)
        elif stream:
            raise UsageError(f"`stream`: {reference} is not all parquet, and only parquet can be streamed; remove `stream`")
        elif all(file.endswith(".tar") for file in hub_split.files):
            source = TarFiles(hub_split.location, hub_split.download(), hub_split.files, labels, indexes and indexes.alone)
        else:
            source = hub_split.dataset(labels, column)
        source.pin(sha)
        source.license = license_at(reference.repo, sha, "dataset")
    return source


class HubSplit:
    """The files of one split at one commit."""

    def __init__(self, reference: HubReference, sha: str, builder: Any, split: str) -> None:  # noqa: ANN401 - datasets ships no types
        self.reference, self.sha, self.builder, self.split = reference, sha, builder, split
        self.location = f"{reference.repo}@{sha}:{builder.config.name}/{split}"
        top = f"hf://datasets/{reference.repo}@{sha}/"
        urls = [str(url) for url in builder.config.data_files[split]]
        if not all(url.startswith(top) for url in urls):  # later versions of datasets reject these themselves
            raise NstError(f"{reference}: its card names data files that are not in the repo; expected files of its own")
        self.files = sorted((url.removeprefix(top) for url in urls), key=str.encode)

    def download(self) -> list[str]:
        """Download the files; returns their paths in the local cache of the Hub."""
        from huggingface_hub import hf_hub_download

        def download_file(file: str) -> str:
            return call_with_retries(lambda: str(hf_hub_download(self.reference.repo, file, repo_type="dataset", revision=self.sha)))

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(download_file, self.files))

    def parquet(self, labels: LabelOptions | None, column: str | None, stream: bool) -> ParquetFiles:
        """The split as parquet files, downloaded or streamed, with the same rows and keys either way."""
        features = self.builder.info.features
        if stream:
            tree = FileTree(f"hf://datasets/{self.reference.repo}@{self.sha}")
            with ThreadPoolExecutor(8) as pool:
                stored = list(pool.map(partial(_stat_file, tree), self.files))
            source: ParquetFiles = StreamedParquet(self.location, tree, stored, self.files, column, features)
        else:
            source = ParquetFiles(self.location, self.download(), self.files, column, False, features)
        if labels is not None:
            source.read_labels(labels)
        return source

    def dataset(self, labels: LabelOptions | None, column: str | None) -> ArrowDataset:
        """The split in any other format, as `datasets` reads it."""
        from datasets import load_dataset

        repo, config = self.reference.repo, self.builder.config.name
        dataset = call_with_retries(lambda: load_dataset(repo, config, split=self.split, revision=self.sha))
        return ArrowDataset(self.location, dataset, labels, column, _resolve_in_cache)


def _stat_file(tree: FileTree, name: str) -> StoredFile:
    file = tree.stat(name)
    if file is None:
        raise NstError(f"{tree.address_of(name)}: no such file")
    return file


def _resolve_commit(reference: HubReference) -> str:
    from huggingface_hub import HfApi

    if reference.revision is not None and _SHA.fullmatch(reference.revision):
        return reference.revision
    info = call_with_retries(
        lambda: HfApi().dataset_info(reference.repo, revision=reference.revision, timeout=_TIMEOUT_SECONDS), may_be_path=True
    )
    return str(info.sha)


def _builder(reference: HubReference, sha: str) -> Any:  # noqa: ANN401
    """The dataset builder of `datasets` for the repo, without running any code from it."""
    from datasets import get_dataset_config_names, load_dataset_builder

    names = call_with_retries(lambda: get_dataset_config_names(reference.repo, revision=sha))
    config = _resolve_choice(reference, "config", names, reference.config)
    builder = call_with_retries(lambda: load_dataset_builder(reference.repo, config, revision=sha))
    if builder.hash != sha:
        raise NstError(f"{reference}: datasets found another commit ({builder.hash}) in its cache; expected {sha}; try again online")
    return builder


def _resolve_choice(reference: HubReference, noun: str, names: list[str], requested: str | None) -> str:
    if requested is None and len(names) == 1:
        return names[0]
    if requested is None or requested not in names:
        example = f"{reference.repo}:{names[0]}" if noun == "config" else f"{reference.repo}/{names[0]}"
        missing = "no " + noun if requested is None else f"{noun} {requested!r}"
        raise UsageError(f"{reference}: names {missing}, expected one of {', '.join(names)}; as in {example}")
    return requested


def _resolve_in_cache(path: str) -> Content:
    """Resolve paths of files that `datasets` downloaded or unpacked; a repo's tables cannot refer to any other local file."""
    from datasets import config
    from huggingface_hub import constants

    normal = os.path.normpath(path)
    if any(Path(normal).is_relative_to(top) for top in (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)):
        return partial(read_file, normal)
    return refuse_path(path)
