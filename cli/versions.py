"""`nst list`, `nst show`, `nst verify` and `nst remove`: reading the store."""

import json as jsonlib
from typing import Annotated, Any

import typer

from nst_data.errors import NstError
from nst_data.store import Version

from .options import JsonOption, StoreOption, open_store, print_json

Ref = Annotated[str, typer.Argument(metavar="REF", help="name@gen-N or name@gen-N.K; a name alone means its newest version.")]


def list_versions(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this name.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the versions in the store, and those under way."""
    there = open_store(store)
    versions = there.versions(name)
    unfinished = [ref for ref in there.unfinished() if name in (None, ref.partition("@")[0])]
    if json:
        print_json({"versions": [_summary(version) for version in versions if version.is_readable], "unfinished": unfinished})
        return
    if not versions and not unfinished:
        print(f"{there.root}: nothing {f'called {name} ' if name else ''}yet; `nst demo` or `nst run RECIPE.yaml` makes the first versions")
    for version in versions:
        if not version.is_readable:
            print(f"{version.ref:<32} unreadable   nst show {version.ref} says why")
            continue
        print(f"{version.ref:<32} {version.manifest.kind:<11} {version.manifest.created[:16]}  {_line(version)}")
    for ref in unfinished:
        print(f"{ref:<32} unfinished   run its command again to go on, or nst remove {ref}")


def show(ref: Ref, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show what a version is and what it was made from."""
    version = open_store(store).open(ref)
    manifest = version.manifest
    if json:
        print_json(manifest.model_dump(mode="json"))
        return
    print(f"{version.ref}  {manifest.kind}  {_line(version)}")
    print(f"folder    {version.folder}\ndigest    {manifest.digest}\ncreated   {manifest.created}, {manifest.seconds:,.1f} s")
    print("made from")
    for role, made_from in manifest.request.inputs.items():
        print(f"  {role:<10} {made_from.ref}  {made_from.digest[:12]}")
    print("settings")
    for key, value in manifest.request.settings.items():
        print(f"  {key:<24} {_text(value)}")
    if "batch_size" in manifest.machine:
        names = ("device", "precision", "batch_size", "threads")
        print("computed  " + ", ".join(f"{name.replace('_', ' ')} {manifest.machine[name]}" for name in names))
    print("counts")
    for key, value in manifest.counts.items():
        if key != "per_class":
            print(f"  {key:<24} {_text(value)}")
    _print_classes(manifest.counts.get("per_class", {}))


def verify(ref: Ref, store: StoreOption = None, json: JsonOption = False) -> None:
    """Recompute the checksums of a version."""
    version = open_store(store).open(ref)
    problems = version.verify()
    if json:
        print_json({"ref": version.ref, "sound": not problems, "problems": problems})
    elif not problems:
        print(f"{version.ref}: {len(version.manifest.files)} files, all as sealed")
    if problems:
        raise NstError(f"{version.ref} is damaged: {'; '.join(problems)}. Remove it and make or pull it again")


def remove(ref: Ref, store: StoreOption = None) -> None:
    """Delete a version that nothing else was made from, or one under way."""
    if "@" not in ref:
        raise typer.BadParameter(f"name the version to delete, as in {ref}@gen-1", param_hint="REF")
    print(f"removed {open_store(store).remove(ref)}")


def _summary(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "ref": version.ref,
        "kind": manifest.kind,
        "digest": manifest.digest,
        "created": manifest.created,
        "folder": str(version.folder),
    }


def _line(version: Version) -> str:
    counts = version.manifest.counts
    if version.manifest.kind == "generation":
        return f"{counts['labeled']:,} images labeled"
    if version.manifest.kind == "edition":
        return f"{counts['copies']:,} entries, {counts['unique']:,} images"
    metrics = version.folder / "metrics.json"
    test = jsonlib.loads(metrics.read_text("utf-8")).get("test") if metrics.exists() else None
    measured = f", test top-1 {100 * test['top1']:.1f}%" if test else ""
    return f"{version.manifest.request.settings['model']}, {counts['parameters']:,} parameters{measured}"


def _text(value: Any) -> str:  # noqa: ANN401 - a value of a manifest
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_classes(per_class: dict[str, Any]) -> None:
    if not per_class:
        return
    print("per class")
    for name, value in list(per_class.items())[:20]:
        numbers = ", ".join(f"{rows:,} {what}" for what, rows in value.items()) if isinstance(value, dict) else f"{value:,}"
        print(f"  {name:<24} {numbers}")
    if len(per_class) > 20:
        print(f"  and {len(per_class) - 20} more: --json shows all")
