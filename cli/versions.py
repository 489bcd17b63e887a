"""`nst list`, `nst verify` and `nst remove`: the versions and features in the store."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_data.errors import NstError
from nst_data.progress import as_text
from nst_data.store.store import Store, Version

from .messages import in_our_words, terminal
from .options import JsonOption, StoreOption, open_store, print_json

if TYPE_CHECKING:
    from nst_data.features.kept import KeptFeatures
    from nst_data.store.manifest import Manifest

_NAMED = 10  # names to list if the one asked for does not exist
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
    from nst_data.features.kept import kept_features

    if remote is not None:
        _list_remote(remote, name, json)
        return
    there = open_store(store)
    versions = [] if only_unfinished else there.versions(name)
    unfinished = [ref for ref in there.unfinished() if name in (None, ref.partition("@")[0])]
    leftovers = there.leftovers(name) if only_unfinished else {}
    kept = kept_features(there) if name in (None, "features") else []
    features = [one for one in kept if one.is_finished and not only_unfinished]
    begun = [one for one in kept if not one.is_finished]
    if json:
        left = {"leftovers": sorted(leftovers)} if only_unfinished else {}
        found = {
            "versions": [_summary(version) for version in versions if version.is_readable],
            "features": [_summary_of_features(one) for one in features],
            "unfinished": [*unfinished, *(one.ref for one in begun)],
        }
        print_json(found | left)
        return
    if only_unfinished and not unfinished and not leftovers and not begun:
        print(f"{there.location}: nothing is unfinished")
    elif not versions and not unfinished and not leftovers and not kept:
        print(f"{there.location}: {_no_versions(there, name)}")
    width = max(
        (len(ref) for ref in (*(version.ref for version in versions), *unfinished, *leftovers, *(one.ref for one in kept))), default=0
    )
    for version in versions:
        if not version.is_readable:
            print(f"{version.ref:<{width}}  unreadable   nst show {version.ref} says why")
            continue
        manifest = version.manifest
        print(f"{version.ref:<{width}}  {manifest.kind:<11} {manifest.created[:10]}  {in_a_line(manifest, version.place)}")
    for one in features:
        print(as_text(f"{one.ref:<{width}}  {_features_in_a_line(one)}"))
    for one in begun:
        done = f"{one.shards:,} shard{'s' * (one.shards != 1)}, {one.bytes / 1e6:,.1f} MB"
        print(f"{one.ref:<{width}}  unfinished   {done}; rerun its command, or nst remove {one.ref}")
    for ref in unfinished:
        done = there.how_far(ref)
        print(f"{ref:<{width}}  unfinished   {done}{'; ' * bool(done)}rerun its command, or nst remove {ref}")
    for ref, (files, size) in leftovers.items():
        print(f"{ref:<{width}}  leftover     {files:,} file{'s' * (files > 1)}, {size / 1e6:,.1f} MB; nst remove {ref}")


def _no_versions(store: Store, name: str | None) -> str:
    """The message that there are no versions of a name: it lists existing names, or says how to make the first versions."""
    called = f" called {name}" if name else ""
    names = sorted({ref.partition("@")[0] for ref in (*(version.ref for version in store.versions()), *store.unfinished())})
    if not names:
        return f"no versions{called} yet in {store.location}; `nst demo` or `nst run RECIPE.yaml` makes the first versions"
    near = difflib.get_close_matches(name or "", names, n=1)
    there = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    return f"no versions{called}; " + (f"did you mean {near[0]}?" if near else f"the store has {there}")


def _list_remote(repo: str, name: str | None, json: bool) -> None:
    from nst_data.errors import UsageError
    from nst_data.sharing.remote_versions import remote_versions

    if name is not None:
        raise UsageError(f"--remote {repo} lists a whole repository; remove {name}")
    versions = remote_versions(repo)
    if json:
        print_json({"repo": repo, "versions": [one.as_json() for one in versions]})
        return
    if not versions:
        print(f"{repo}: no tags yet; `nst push REF {repo}` makes the first")
    for one in versions:
        score = f", test top-1 {100 * one.top1:.1f}%" if one.top1 is not None else ""
        size = f", {one.bytes / 1e6:,.1f} MB" if one.manifest else ""
        about = f"{in_a_line(one.manifest, None)}{score}" if one.manifest else one.problem or "no version of nst"
        teacher = f", by {', '.join(one.teachers)}" if one.teachers else ""
        made = one.manifest.created[:10] if one.manifest else ""
        print(as_text(f"{one.tag:<16} {one.manifest.kind if one.manifest else '':<11} {made:<10}  {about}{teacher}{size}"))


def verify(refs: _Verified, store: StoreOption = None, json: JsonOption = False) -> None:
    """Recompute the checksums of the sealed files of versions: all but their cards, pictures and recorded metrics."""
    there, found, faults = open_store(store), list[dict[str, Any]](), list[str]()
    versions = [there.open(ref) for ref in dict.fromkeys(refs)]
    for version in versions:
        problems, fault = _checked(version)
        found.append({"ref": version.ref, "sound": not problems, "problems": problems})
        faults += [fault] * bool(problems)
        if not json and (len(versions) > 1 or not problems):  # for a single one, the error reports it
            print(as_text(in_our_words(fault)) if problems else as_sealed(version))
    if json:
        print_json(found if len(versions) > 1 else found[0])
    if faults:
        damaged = [one["ref"] for one in found if not one["sound"]]
        raise NstError(faults[0] if len(versions) == 1 else f"{len(damaged)} of {len(versions)} versions failed: {', '.join(damaged)}")


def _checked(version: Version) -> tuple[list[str], str]:
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
    there, left = open_store(store), list(dict.fromkeys(refs))
    while left:
        refused: dict[str, NstError] = {}
        for ref in left:
            try:
                _remove(there, ref)
            except NstError as error:  # one that is named too may have been made from it
                refused[ref] = error
        if len(refused) == len(left):
            raise next(iter(refused.values()))
        left = list(refused)


def _remove(there: Store, ref: str) -> None:
    from nst_data.features.kept import is_features_ref, remove_features

    gone = remove_features(there, ref, progress=terminal()) if is_features_ref(ref) else there.remove(ref, terminal().say)
    print(f"removed {gone if there.address is None else f'{ref} from {there.location}'}")


def _summary(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "ref": version.ref,
        "kind": manifest.kind,
        "digest": manifest.digest,
        "created": manifest.created,
        "folder": version.location,
    }


def _summary_of_features(kept: "KeptFeatures") -> dict[str, Any]:
    features = kept.features
    summary: dict[str, Any] = {"ref": kept.ref, "folder": kept.location, "bytes": kept.bytes}
    if features is None:
        return summary
    about = features.about
    of = {"source": about.request.source.ref, "model": about.request.model.ref}
    return summary | of | about.model_dump(include={"images", "errors", "dimensions", "created"})


def _features_in_a_line(kept: "KeptFeatures") -> str:
    size = f"{kept.bytes / 1e6:,.1f} MB"
    if (features := kept.features) is None:
        return f"unreadable   {size}; nst remove {kept.ref}"
    about = features.about
    of = f"{about.images:,} images of {about.request.source.ref} by {about.request.model.ref}"
    return f"{'features':<11} {about.created[:10]}  {of}, {size}"


def in_a_line(manifest: "Manifest", folder: Path | None) -> str:
    """The contents of a version in a line; given its folder, also the accuracy measured for a teacher."""
    from nst_data.store.manifest import EditionManifest, GenerationManifest, ReviewManifest, TeacherManifest
    from nst_data.store.metrics import Metrics
    from nst_data.store.places import METRICS

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
                measured = f", {METRICS} is damaged; delete it and evaluate again"
            size = f"{counts.parameters:,}" if counts.parameters < 1e6 else f"{counts.parameters / 1e6:.1f}M"
            return f"{request.model}, {size} parameters{measured}"
    raise AssertionError(manifest.kind)


def as_sealed(version: Version) -> str:
    """The line for a version whose checksums all match."""
    files = len(version.manifest.files)
    return f"{version.ref}: {files:,} file{'s' * (files != 1)} verified"
