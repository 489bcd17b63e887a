"""README, CONTRIBUTING and docs/: links resolve, commands, recipes and programs are right, and those of README and the quick start run.

What a block of code is, its fence says: `sh` runs here, `bash` is parsed by the program itself, `yaml` is a recipe, `python` compiles and
finds what it imports, `text` is no code. Only README and the quick start have `sh`; theirs needs no Hub, cluster or data of one's own.
"""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from nst_cli.commands import COMMANDS

from nst_data.digits import write_digits
from nst_train.recipes.reading import parse_recipe

ROOT = Path(__file__).parent.parent
QUICK_START = ROOT / "docs" / "index.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = [ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]
MARKDOWN = MarkdownIt().enable("table")
OWN_FILE = re.compile(r"\b(?:benchmarks|cli|docs|examples|nst_data|nst_train|tests)/[\w/.-]+\.(?:md|png|py|yaml)\b")


def tokens(page):
    for token in MARKDOWN.parse(page.read_text("utf-8")):
        yield token
        yield from token.children or ()


def fenced(page, *languages):
    return [token.content for token in tokens(page) if token.type == "fence" and token.info in languages]


def anchors(page):
    """The names that GitHub gives a page's headings."""
    parsed = MARKDOWN.parse(page.read_text("utf-8"))
    titles = ["".join(part.content for part in parsed[at + 1].children) for at, token in enumerate(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES + RECORDS, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_resolves(page):
    links = [link for token in tokens(page) if (link := token.attrGet("href") or token.attrGet("src"))]
    broken = []
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.is_relative_to(ROOT) or not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert broken == []


def test_every_file_of_ours_that_a_page_or_an_example_names_exists():
    texts = [*PAGES, ROOT / "Makefile", *(ROOT / "examples").iterdir()]
    named = {(text.name, name) for text in texts if text.is_file() for name in OWN_FILE.findall(text.read_text("utf-8"))}
    assert ("README.md", "examples/image_folder.yaml") in named
    assert {(text, name) for text, name in named if not (ROOT / name).exists()} == set()


def test_readme_is_under_nine_kilobytes_and_names_no_host_of_a_package_registry():
    readme = (ROOT / "README.md").read_bytes()
    assert len(readme) < 9000
    assert re.findall(rb"pypi|pythonhosted|download\.pytorch|conda", readme) == []


def commands(page):
    """The command lines of nst in a page's code, as words: of its blocks, and of the code inside its text."""
    lines = [line for block in fenced(page, "", "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [token.content for token in tokens(page) if token.type == "code_inline"]
    for line in lines:
        line = line.removeprefix(".venv/bin/")
        if re.match(r"(torchrun .* )?nst [a-z]", line):
            yield shlex.split(line, comments=True)


def options_of(command):
    loaded = COMMANDS[command].load(command)
    several = [loaded, *getattr(loaded, "commands", {}).values()]
    return {name for one in several for parameter in one.params for name in parameter.opts}


def test_every_command_and_option_in_the_docs_is_one_of_the_program():
    known = {name: options_of(name) for name in COMMANDS}
    unknown, seen = [], set()
    for page in PAGES:
        for words in commands(page):
            command = words[words.index("nst") + 1]
            options = {word for word in words[words.index("nst") + 2 :] if word.startswith("--")}
            seen.add(command)
            unknown += [(page.name, command, option) for option in sorted(options - known.get(command, set()))]
            assert command in known, (page.name, words)
        alone = [token.content.split()[0] for token in tokens(page) if token.type == "code_inline" and token.content.startswith("--")]
        unknown += [(page.name, option) for option in alone if not any(option in options for options in known.values())]
    assert unknown == []
    assert seen == known.keys()


OTHER_PROGRAMS = re.compile(r"(.*/)?python |pip install |hf download |ray start |export \w+=|#|$")
LACKING = {"MissingParameter", "BadOptionUsage"}  # what the program says of a name alone, such as `nst show` or `nst label --teacher`


def test_every_block_of_code_says_what_it_is():
    for page in PAGES:
        runs = {"sh"} if page in (ROOT / "README.md", QUICK_START) else set()
        plain = {""} if page.parent == ROOT else {"bash", "text", "yaml"}
        assert {token.info for token in tokens(page) if token.type == "fence"} <= runs | plain | {"python"}, page.name


def refusal(words):
    """What the program has against a command line: the exception's name, or None where it takes all of it."""
    name, *arguments = words[words.index("nst") + 1 :]
    command = COMMANDS[name].load(name)
    if hasattr(command, "commands") and arguments:  # `nst review freeze`
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context(name, list(arguments))
    except Exception as error:
        return type(error).__name__
    return None


def test_the_program_takes_every_command_line_of_the_docs_as_it_stands():
    """Those in blocks whole; code inside a text may name a command, or an option of it, alone."""
    refused, parsed = [], 0
    for page in PAGES:
        lines = [line for block in fenced(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        whole = [shlex.split(line, comments=True) for line in lines if re.match(r"(torchrun .* )?nst [a-z]", line)]
        others = [line for line in lines if not re.match(r"(torchrun .* )?nst [a-z]", line)]
        assert [line for line in others if not OTHER_PROGRAMS.match(line)] == [], page.name
        for words in commands(page):
            why = refusal(words)
            parsed += why is None
            if why and (words in whole or why not in LACKING):
                refused.append((page.name, why, words))
    assert refused == []
    assert parsed > 200


def test_recipes_in_the_docs_are_accepted(tmp_path):
    whole = yaml.safe_load((ROOT / "examples" / "image_folder.yaml").read_text())
    blocks = [block for page in PAGES for block in fenced(page, "yaml")]
    blocks += re.findall(r"cat > \S+ <<'END'\n(.*?)^END$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        recipe = whole | yaml.safe_load(block)
        without = {"test"} if "holdout" in recipe else set()  # one of them alone
        parse_recipe(yaml.safe_dump({key: value for key, value in recipe.items() if key not in without}), tmp_path / "recipe.yaml")


def test_the_python_in_the_docs_compiles_and_finds_what_it_imports():
    for page in PAGES:
        for block in fenced(page, "python"):
            for node in ast.walk(ast.parse(block, page.name)):
                for module in [alias.name for alias in node.names] if isinstance(node, ast.Import) else []:
                    assert importlib.util.find_spec(module.partition(".")[0]), (page.name, module)
                if isinstance(node, ast.ImportFrom):
                    assert importlib.util.find_spec(node.module.partition(".")[0]), (page.name, node.module)
                    if node.module.startswith("nst_"):
                        there = set(dir(importlib.import_module(node.module)))  # the names, without loading what they stand for
                        assert {alias.name for alias in node.names} <= there, page.name


def test_the_functions_and_classes_that_contributing_names_are_in_the_code():
    defined = set()
    for package in ("nst_data", "nst_train", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
            defined |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            defined |= {node.name for node in nodes if isinstance(node, ast.alias)}  # what timm has
            defined |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # a JSON key
    named = {token.content for token in tokens(ROOT / "CONTRIBUTING.md") if token.type == "code_inline"}
    named = {name for name in named if re.fullmatch(r"_\w+|(?!nst_)[a-z]+_\w+|[A-Z]\w+", name)}
    assert len(named) > 10
    assert named <= defined


@pytest.mark.slow
def test_the_commands_of_the_readme_and_the_quick_start_run_one_after_the_other(tmp_path):
    """As a reader would type them in a clone, with the environment that the tests have; the quick start finds what README's have trained.

    Left out, by name, is what `make test` has done before (the environment). `make demo` takes minutes, and test_digits.py runs it: here
    only the digits that it leaves behind are written.
    """
    done_before = {"python3 -m venv .venv", ". .venv/bin/activate", "pip install -e ."}
    readme = ROOT / "README.md"
    lines = [line for page in (readme, QUICK_START) for block in fenced(page, "sh") for line in block.splitlines()]
    assert {"make demo", *done_before} <= set(lines)
    write_digits(tmp_path / "nst-store" / "demo" / "digits" / "digits", seed=0)
    script = "\n".join(line for line in lines if line not in {"make demo", *done_before})
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    programs = ["\n".join(fenced(readme, "python")), fenced(ROOT / "docs" / "python-api.md", "python")[0]]  # what they need is there now
    for shell in (["bash", "-euxc", script], *([sys.executable, "-c", program] for program in programs)):
        done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
