"""`nst push`, `nst pull`, `nst copy` and `nst lineage`: versions on the Hub and in other stores."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_data.progress import escape_unprintable

from .messages import cli_progress, reword_for_cli
from .options import JsonOption, StoreOption, open_store, print_json
from .versions import describe_verified

if TYPE_CHECKING:
    from rich.text import Text

    from nst_data.sharing.lineage import LineageNode
    from nst_data.store.version import Version


def push(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF...",
            help="Versions in the store: name@gen-N or name@gen-N.K; a name alone: its newest. Parents "
            "are uploaded before the versions derived from them.",
            show_default=False,
        ),
    ] = None,
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository: a dataset for labels, a model for a teacher.", show_default=False)
    ] = "",
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Tag name; the version's number by default.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Allow a public repository; new ones are private by default.")] = False,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous", help="Omit keys and source names, and replace image hashes by row numbers: a hash reveals who holds an image."
        ),
    ] = False,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="For the card, such as cc-by-4.0; by default that of the existing card.")
    ] = None,
    pool_source: Annotated[str | None, typer.Option(metavar="TEXT", help="For the card: where the pool's images come from.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Upload versions to the Hub, one commit and tag each. Pushing again updates only the card, metrics and links on main; existing tags
    never move."""
    from nst_data.errors import UsageError
    from nst_data.sharing.push import push as push_version
    from nst_data.sharing.push import sort_parents_first

    if not refs:
        raise UsageError("nst push REF... OWNER/NAME: " + ("REF is missing" if "/" in repo else "OWNER/NAME is missing"))
    opened_store = open_store(store)
    versions = sort_parents_first({version.ref: version for version in map(opened_store.open, refs)}.values())
    if tag and len(versions) > 1:
        raise UsageError(f"--tag {tag} applies to one version, but {len(versions)} were given; push that one alone, or remove --tag")
    are_teachers = {version.manifest.kind == "teacher" for version in versions}
    if len(are_teachers) > 1:
        raise UsageError(f"{repo}: datasets and models need separate repositories; push {' and '.join(refs)} separately")
    if same := [one.ref for one in versions if sum(one.number == other.number for other in versions) > 1]:
        raise UsageError(f"{' and '.join(same)} would get the same tag in {repo}; push them to different repositories")
    details: dict[str, Any] = {"public": public, "anonymous": anonymous, "license": license, "pool_source": pool_source}
    pushed = []
    for version in versions:
        place = push_version(opened_store, version, repo, tag=tag, **details, progress=cli_progress())
        pushed.append({"ref": version.ref, "repo": place.repo, "tag": place.tag, "commit": place.commit, "digest": place.digest})
        if not json:
            print(f"pushed {version.ref} to {place.ref}, commit {place.commit[:12]}")
    if json:
        print_json(pushed if len(pushed) > 1 else pushed[0])
        return
    next_command = f"nst pull {place.ref}" if are_teachers == {False} else f"nst label POOL --teacher hf-hub:{place.ref} --corpus NAME"
    print(f"  next: {next_command}")


def pull(
    reference: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[@VERSION]", help="A dataset or model that nst pushed; default: its newest version.")
    ],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name in the store, if not its own.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a version from the Hub into the store, each file checked. Resumes where it stopped when rerun."""
    from nst_data.sharing.pull import pull as pull_version

    version = pull_version(open_store(store), reference, name=name, progress=cli_progress())
    manifest = version.manifest
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": manifest.digest, "kind": manifest.kind})
        return
    print(f"{describe_verified(version)}\n  {version.location}\n  next: {_next_command(version)}")


def _next_command(version: "Version") -> str:
    """The next command to suggest for a pulled version."""
    from nst_data.self_contained.images import needs_pool
    from nst_data.store.manifest import is_anonymous

    match version.manifest.kind:
        case "generation":
            return f"nst balance {version.ref}"
        case "review":
            return f"nst show {version.name}@gen-N --truth {version.ref}"
        case "teacher":
            return f"nst label POOL --teacher {version.ref} --corpus NAME"
    if needs_pool(version) and is_anonymous(version.manifest):  # its images cannot be found in any pool
        return f"nst show {version.ref}"
    pool = " --pool POOL" if needs_pool(version) else ""
    return f"nst train --labeled LABELED --pseudo {version.ref}{pool} --model MODEL --name NAME"


def copy(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A version in the store; a name alone means its newest one.")],
    to: Annotated[str, typer.Argument(metavar="STORE", help="The other store: a folder, or s3://BUCKET/PREFIX.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a version into another store, each file checked. Its inputs are not copied."""
    from nst_data.sharing.copy import copy as copy_version

    version = copy_version(open_store(store), ref, open_store(to), progress=cli_progress())
    if json:
        print_json({"ref": version.ref, "folder": version.location, "digest": version.manifest.digest, "kind": version.manifest.kind})
        return
    print(f"{describe_verified(version)}\n  {version.location}")


def lineage(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A version in the store, or OWNER/NAME[@VERSION] on the Hub.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show everything a version was made from, back to the first teacher, in the store and on the Hub."""
    from nst_data.sharing.lineage import lineage as lineage_of

    root = lineage_of(open_store(store), ref)
    if json:
        print_json(root.as_json())
        return
    from rich.console import Console
    from rich.tree import Tree

    def add_inputs(node: "LineageNode", tree: Tree) -> None:
        for parent in node.inputs:
            add_inputs(parent, tree.add(_format_node(parent)))

    tree = Tree(_format_node(root))
    add_inputs(root, tree)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(tree, soft_wrap=not console.is_terminal)


def _format_node(node: "LineageNode") -> "Text":
    from rich.text import Text

    line = Text(f"{node.role}: " if node.role else "", style="dim")
    line.append(escape_unprintable(node.ref), style="bold" if node.kind != "source" else "")
    parts = [node.kind if node.kind not in ("source", "version") else "", node.created, f"hf:{node.place}" if node.place else ""]
    parts += [f"test top-1 {100 * node.top1:.1f}%" if node.top1 is not None else "", node.digest[:12]]
    line.append("  " + "  ".join(filter(None, parts)), style="dim")
    if node.is_repeated:
        line.append("  (as above)", style="dim")
    if node.note:
        line.append(f"  ({escape_unprintable(reword_for_cli(node.note))})", style="yellow")
    return line
