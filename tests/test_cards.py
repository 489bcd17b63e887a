from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from nst_data.cards import as_text, write_dataset_card, write_model_card
from nst_data.described import Described
from nst_data.manifest import Input, Request
from nst_data.store import Store

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](http://y)",
    "![x](http://y/z.png)",
    "<http://y>",
    "`code`",
    "``",
    "a|b",
    "a\\|b",
    "two\nlines\r\n\n# of text",
    "# heading",
    "- item",
    "1. item",
    "1) item",
    "> quote",
    "---",
    "*bold* _it_ ~~no~~",
    "jack-o'-lantern",
    'a "quoted" name',
    "R&D &amp; more",
    "{{ 7 * 7 }}",
    "</td></table>",
    "tab\tand   spaces",
]


class Text(HTMLParser):
    """What a reader sees of HTML, and the tags in it."""

    def __init__(self, html):
        super().__init__()
        self.seen, self.tags = "", []
        self.feed(html)

    def handle_data(self, data):
        self.seen += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def split(card):
    """The front matter's content, and the HTML of the rest."""
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(body)


def rows_of(html, heading):
    """The cells under a heading's table, as text, and the tags inside them."""
    table = html.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0].partition("<tbody>")[2]
    cells = [[Text(cell.partition("</td>")[0]) for cell in row.split("<td")[1:]] for row in table.split("<tr>")[1:]]
    return [[cell.seen.partition(">")[2] for cell in row] for row in cells], {tag for row in cells for cell in row for tag in cell.tags}


def request(kind, **settings):
    return Request(kind=kind, settings=settings, inputs={"pool": Input(ref="/data/<b>|x`", digest="0123456789abcdef")})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def generation_card(store, names, labeled=3):
    staging = store.begin(request("generation", batch_size=8), "flowers")
    counts = {"pool": labeled, "labeled": labeled, "errors": 0, "per_class": dict.fromkeys(names, 1234)}
    write_dataset_card(staging, names, counts)
    return (staging.build / "README.md").read_text()


def edition_card(store, names, unique=3):
    staging = store.begin(request("edition", min_confidence=0.3), "flowers", generation=1)
    one = {"labeled": 1, "unique": 1, "copies": 1}
    counts = {"labeled": 9, "dropped": {"over_quota": 2}, "unique": unique, "copies": 4, "classes_without_images": names}
    write_dataset_card(staging, names, counts | {"per_class": dict.fromkeys(names, one)})
    return (staging.build / "README.md").read_text()


def model_card(folder, names, metrics=None):
    counts = {"parameters": 12345, "steps": 10}
    folder = folder / "net" / "gen-0"
    folder.mkdir(parents=True, exist_ok=True)
    write_model_card(Described(folder, folder, request("teacher", model="<i>|`x`"), names, counts), metrics or {})
    return (folder / "README.md").read_text()


def in_one_line(name):
    return " ".join(name.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_shows_as_it_is_and_never_as_markup(name):
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(as_text(name))
    assert Text(html).tags == ["p"]
    assert Text(html).seen.rstrip("\n") == in_one_line(name)


def test_class_names_stand_as_text_in_the_card_of_a_generation(store):
    _, html = split(generation_card(store, HOSTILE))
    assert rows_of(html, "Labels per class") == ([[in_one_line(name), "1,234"] for name in HOSTILE], set())


def test_class_names_stand_as_text_in_the_card_of_an_edition(store):
    _, html = split(edition_card(store, HOSTILE))
    assert rows_of(html, "Images per class") == ([[in_one_line(name), "1", "1", "1"] for name in HOSTILE], set())
    assert f"classes without any image: {', '.join(map(in_one_line, HOSTILE))}\n" in Text(html).seen


def test_class_names_stand_as_text_in_the_card_of_a_teacher(tmp_path):
    _, html = split(model_card(tmp_path, HOSTILE))
    classes = Text(html.partition("<h2>Classes</h2>")[2].partition("</ol>")[0])
    assert classes.tags == ["ol", *["li"] * len(HOSTILE)]
    assert classes.seen.split("\n")[2:-1] == [in_one_line(name) for name in HOSTILE]


def test_paths_and_settings_stand_as_text_in_a_card(tmp_path):
    _, html = split(model_card(tmp_path, ["ant", "bee"]))
    assert rows_of(html, "Made from") == ([["pool", "/data/<b>|x`", "0123456789ab"]], {"code"})
    assert rows_of(html, "Settings") == ([["model", "<i>|`x`"]], set())


def test_the_front_matter_of_a_generation_names_its_tables(store):
    front, _ = split(generation_card(store, ["ant", "bee"]))
    assert {table.pop("description").partition(" ")[0] for table in front["configs"]} == {"flowers@gen-1"}
    assert front["configs"] == [
        {
            "config_name": "pseudo_labels",
            "data_files": [{"split": "train", "path": "pseudo_labels/train-*.parquet"}],
            "default": True,
        },
        {"config_name": "errors", "data_files": [{"split": "train", "path": "errors/train-*.parquet"}]},
    ]


def test_the_front_matter_of_an_edition_names_its_table(store):
    front, html = split(edition_card(store, ["ant", "bee"]))
    assert [table["config_name"] for table in front["configs"]] == ["balanced"]
    assert "dropped, over_quota: 2" in Text(html).seen


@pytest.mark.parametrize(("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9 - 1, "100M<n<1B"), (10**9, "1B<n<10B")])
def test_the_size_category_counts_the_rows(store, rows, size):
    front, _ = split(generation_card(store, ["ant", "bee"], rows))
    assert front["size_categories"] == [size]


def test_the_card_of_a_teacher_shows_its_metrics(tmp_path):
    front, html = split(model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.948, "images": 5000}}))
    assert (front["library_name"], front["pipeline_tag"]) == ("timm", "image-classification")
    assert "test: top-1 94.80% on 5,000 images" in Text(html).seen


def test_a_teachers_card_written_again_shows_the_newest_metrics(tmp_path):
    model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.5, "images": 5}})
    _, html = split(model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.6, "images": 5}}))
    assert "60.00%" in html
    assert "50.00%" not in html
