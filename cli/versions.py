"""`nst list`, `nst verify` and `nst remove`: the versions and features in the store."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_data.errors import NstError
from nst_data.progress import escape_unprintable
from nst_data.store.store import Store, Version

from .messages import cli_progress, reword_for_cli
from .options import JsonOption, StoreOption, open_store, print_json

if TYPE_CHECKING:
    from nst_data.features.kept import StoredFeatures
    from nst_data.store.manifest import Manifest

_MAX_NAMED = 10  # names to list if the one asked for does not exist
_Removable = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        help="name@gen-N, name@gen-N.K, name@review-N or features@DIGEST, as `nst list` shows them, in any order.",
    ),
]
_Verified = Annotated[
    list[str], typer.Argument(metavar="REF...", help="name@gen-N, name@gen-N.K or name@review-N; a name alone means its newest version.")
]
Ref = Annotated[
    str, typer.Argument(metavar="REF", help="name@gen-N, name@gen-N.K or name@review-N; a name alone means its newest version.")
]


def list_versions(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this name.")] = None,
    remote: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="List a repository on the Hub instead.")] = None,
    only_unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only unfinished versions and, on s3://, files left by killed processes.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the versions and features in the store, finished and unfinished, or a repository on the Hub."""
    from nst_data.features.kept import list_features

    if remote is not None:
        _list_remote(remote, name, json)
        return
    opened_store = open_store(store)
    versions = [] if only_unfinished else opened_store.versions(name)
    unfinished = [ref for ref in opened_store.unfinished() if name in (None, ref.partition("@")[0])]
    leftovers = opened_store.leftovers(name) if only_unfinished else {}
    stored = list_features(opened_store) if name in (None, "features") else []
    features = [entry for entry in stored if entry.is_finished and not only_unfinished]
    unfinished_features = [entry for entry in stored if not entry.is_finished]
    if json:
        extra = {"leftovers": sorted(leftovers)} if only_unfinished else {}
        report = {
            "versions": [_summary(version) for version in versions if version.is_readable],
            "features": [_summary_of_features(entry) for entry in features],
            "unfinished": [*unfinished, *(entry.ref for entry in unfinished_features)],
        }
        print_json(report | extra)
        return
    if only_unfinished and not unfinished and not leftovers and not unfinished_features:
        print(f"{opened_store.location}: nothing is unfinished")
    elif not versions and not unfinished and not leftovers and not stored:
        print(f"{opened_store.location}: {_no_versions_message(opened_store, name)}")
    width = max(
        (len(ref) for ref in (*(version.ref for version in versions), *unfinished, *leftovers, *(entry.ref for entry in stored))), default=0
    )
    for version in versions:
        if not version.is_readable:
            print(f"{version.ref:<{width}}  unreadable   nst show {version.ref} says why")
            continue
        manifest = version.manifest
        print(f"{version.ref:<{width}}  {manifest.kind:<11} {manifest.created[:10]}  {describe_version(manifest, version.local_folder)}")
    for entry in features:
        print(escape_unprintable(f"{entry.ref:<{width}}  {_describe_features(entry)}"))
    for entry in unfinished_features:
        progress = f"{entry.shards:,} shard{'s' * (entry.shards != 1)}, {entry.bytes / 1e6:,.1f} MB"
        print(f"{entry.ref:<{width}}  unfinished   {progress}; rerun its command, or nst remove {entry.ref}")
    for ref in unfinished:
        progress = opened_store.describe_progress(ref)
        print(f"{ref:<{width}}  unfinished   {progress}{'; ' * bool(progress)}rerun its command, or nst remove {ref}")
    for ref, (files, size) in leftovers.items():
        print(f"{ref:<{width}}  leftover     {files:,} file{'s' * (files > 1)}, {size / 1e6:,.1f} MB; nst remove {ref}")


def _no_versions_message(store: Store, name: str | None) -> str:
    """The message that there are no versions of a name: it lists existing names, or says how to make the first versions."""
    called = f" called {name}" if name else ""
    names = sorted({ref.partition("@")[0] for ref in (*(version.ref for version in store.versions()), *store.unfinished())})
    if not names:
        return f"no versions{called} yet in {store.location}; `nst demo` or `nst run RECIPE.yaml` makes the first versions"
    near = difflib.get_close_matches(name or "", names, n=1)
    existing = ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else "")
    return f"no versions{called}; " + (f"did you mean {near[0]}?" if near else f"the store has {existing}")


def _list_remote(repo: str, name: str | None, json: bool) -> None:
    from nst_data.errors import UsageError
    from nst_data.sharing.remote_versions import remote_versions

    if name is not None:
        raise UsageError(f"--remote {repo} lists a whole repository; remove {name}")
    versions = remote_versions(repo)
    if json:
        print_json({"repo": repo, "versions": [version.as_json() for version in versions]})
        return
    if not versions:
        print(f"{repo}: no tags yet; `nst push REF {repo}` makes the first")
    for version in versions:
        score = f", test top-1 {100 * version.top1:.1f}%" if version.top1 is not None else ""
        size = f", {version.bytes / 1e6:,.1f} MB" if version.manifest else ""
        about = f"{describe_version(version.manifest, None)}{score}" if version.manifest else version.problem or "no version of nst"
        teacher = f", by {', '.join(version.teachers)}" if version.teachers else ""
        created = version.manifest.created[:10] if version.manifest else ""
        print(
            escape_unprintable(
                f"{version.tag:<16} {version.manifest.kind if version.manifest else '':<11} {created:<10}  {about}{teacher}{size}"
            )
        )


def verify(refs: _Verified, store: StoreOption = None, json: JsonOption = False) -> None:
    """Recompute the checksums of the sealed files of versions: all but their cards, pictures and recorded metrics."""
    opened_store, results, faults = open_store(store), list[dict[str, Any]](), list[str]()
    versions = [opened_store.open(ref) for ref in dict.fromkeys(refs)]
    for version in versions:
        problems, fault = _check_version(version)
        results.append({"ref": version.ref, "sound": not problems, "problems": problems})
        faults += [fault] * bool(problems)
        if not json and (len(versions) > 1 or not problems):  # for a single one, the error reports it
            print(escape_unprintable(reword_for_cli(fault)) if problems else describe_verified(version))
    if json:
        print_json(results if len(versions) > 1 else results[0])
    if faults:
        damaged = [result["ref"] for result in results if not result["sound"]]
        raise NstError(faults[0] if len(versions) == 1 else f"{len(damaged)} of {len(versions)} versions failed: {', '.join(damaged)}")


def _check_version(version: Version) -> tuple[list[str], str]:
    """The problems found in a version, and a line that reports them."""
    try:
        problems = version.verify()
    except NstError as error:  # such as a manifest that cannot be read
        return [str(error)], str(error)
    except OSError as error:  # such as a file of another user
        fault = f"{version.ref}: {error.filename or 'its files'}: {error.strerror}"
        return [fault], fault
    return problems, f"{version.ref} is damaged: {'; '.join(problems)}. Remove it and make or pull it again"


def remove(refs: _Removable, store: StoreOption = None) -> None:
    """Delete versions that nothing else was made from, unfinished ones, or features, which are computed again when needed."""
    opened_store, remaining = open_store(store), list(dict.fromkeys(refs))
    while remaining:
        refused: dict[str, NstError] = {}
        for ref in remaining:
            try:
                _remove(opened_store, ref)
            except NstError as error:  # one that is named too may have been made from it
                refused[ref] = error
        if len(refused) == len(remaining):
            raise next(iter(refused.values()))
        remaining = list(refused)


def _remove(store: Store, ref: str) -> None:
    from nst_data.features.kept import is_features_ref, remove_features

    removed = remove_features(store, ref, progress=cli_progress()) if is_features_ref(ref) else store.remove(ref, cli_progress().say)
    print(f"removed {removed if store.address is None else f'{ref} from {store.location}'}")


def _summary(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "ref": version.ref,
        "kind": manifest.kind,
        "digest": manifest.digest,
        "created": manifest.created,
        "folder": version.location,
    }


def _summary_of_features(stored: "StoredFeatures") -> dict[str, Any]:
    features = stored.features
    summary: dict[str, Any] = {"ref": stored.ref, "folder": stored.location, "bytes": stored.bytes}
    if features is None:
        return summary
    about = features.about
    origin = {"source": about.request.source.ref, "model": about.request.model.ref}
    return summary | origin | about.model_dump(include={"images", "errors", "dimensions", "created"})


def _describe_features(stored: "StoredFeatures") -> str:
    size = f"{stored.bytes / 1e6:,.1f} MB"
    if (features := stored.features) is None:
        return f"unreadable   {size}; nst remove {stored.ref}"
    about = features.about
    origin = f"{about.images:,} images of {about.request.source.ref} by {about.request.model.ref}"
    return f"{'features':<11} {about.created[:10]}  {origin}, {size}"


def describe_version(manifest: "Manifest", folder: Path | None) -> str:
    """The contents of a version in a line; given its folder, also the accuracy measured for a teacher."""
    from nst_data.store.manifest import EditionManifest, GenerationManifest, ReviewManifest, TeacherManifest
    from nst_data.store.metrics import Metrics
    from nst_data.store.places import METRICS_NAME

    match manifest:
        case GenerationManifest(counts=counts):
            return f"{counts.labeled:,} images labeled"
        case EditionManifest(counts=counts):
            return f"{counts.copies:,} entries, {counts.unique:,} images"
        case ReviewManifest(counts=counts):
            return f"{counts.answered:,} images answered, {sum(counts.per_class.values()):,} with a class"
        case TeacherManifest(counts=counts, request=request):
            try:
                top1 = Metrics.read(folder).test_top1 if folder else None
                measured = "" if top1 is None else f", test top-1 {100 * top1:.1f}%"
            except NstError:  # said in place of it: the other versions are listed all the same
                measured = f", {METRICS_NAME} is damaged; delete it and evaluate again"
            size = f"{counts.parameters:,}" if counts.parameters < 1e6 else f"{counts.parameters / 1e6:.1f}M"
            return f"{request.model}, {size} parameters{measured}"
    raise AssertionError(manifest.kind)


def describe_verified(version: Version) -> str:
    """The line for a version whose checksums all match."""
    files = len(version.manifest.files)
    return f"{version.ref}: {files:,} file{'s' * (files != 1)} verified"
