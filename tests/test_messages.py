import subprocess
import sys
from pathlib import Path

import pytest
from nst_cli.messages import reword_for_cli, set_command


@pytest.mark.parametrize(
    ("command", "said", "shown"),
    [
        ("train", "use `workers` 0, a smaller `batch_size`", "use --workers 0, a smaller --batch-size"),
        ("train", "choose matching weights with `start`", "choose matching weights with --start-from"),
        ("train", "without `pseudo`; remove `pool`", "without --pseudo; remove --pool"),
        ("label", "`calibration` fits the temperature", "--calibrate fits the temperature"),
        ("label", "give its current location as `pool`", "give its current location as SOURCE"),
        ("adopt", "x.parquet: column `key` is int64, found `key` (int64)", "x.parquet: column `key` is int64, found `key` (int64)"),
        ("adopt", "`key` refers to images; add `pool`", "--key refers to images; add --pool"),
        ("run", "continue without them with `max_unreadable` 0.1", "continue without them with `run.max_unreadable` 0.1"),
        ("run", "label: `workers` 4: applies to ray", "label: `workers` 4: applies to ray"),
        (
            "run",
            "there; choose another name or number",
            "there; give the recipe another name, as with --set name=NAME (what stays the same is reused)",
        ),
        ("label", "there; choose another name or number", "there; choose another name or number"),
        ("label", "or `store.remove('net@gen-0')` first", "or `nst remove net@gen-0` first"),
        ("label", "`store.open('net@gen-0').verify()` shows all", "`nst verify net@gen-0` shows all"),
        ("run", "`pull(store, 'A/B@gen-1', name='NAME')`", "`nst pull A/B@gen-1 --as NAME`"),
        ("train", "`balance(..., BalanceSettings(embed_images=True))` makes one", "`nst balance --embed-images` makes one"),
        ("show", "`store.versions()` shows what there is, `adopt(...)` it", "`nst list` shows what there is, `nst adopt` it"),
        ("show", "`embed(...)` uses them, `remove_features(store, 'features@ab12')`", "`nst embed` uses them, `nst remove features@ab12`"),
        ("review", "give answers on the review page", "give answers in `nst look`"),
        ("show", "`hf auth login`, `f(x`, `other(1)`", "`hf auth login`, `f(x`, `other(1)`"),
    ],
)
def test_settings_are_options_and_calls_are_commands(command, said, shown):
    set_command(command)
    assert reword_for_cli(said) == shown


def test_the_package_runs_as_the_command_does():
    nst = [str(Path(sys.executable).with_name("nst"))]
    module = [sys.executable, "-m", "nst_cli"]
    shown = [subprocess.run([*words, "--help"], capture_output=True, check=True).stdout for words in (nst, module)]
    assert b"Usage: nst [OPTIONS] COMMAND" in shown[1]
    assert shown[0] == shown[1]
