"""The user's own text in a card."""

import pytest
from wording import mentions

from nst_data.cards.own_text import BEGIN, END, OwnText, own_text, read_card
from nst_data.errors import NstError

TEXTS = [
    "\n\n",
    "\nThese are *my* words.\n",
    "",
    "\n# A heading\n\n- item\n\n```python\nprint(1)\n```\n---\n\n",
    "\r\nWindows\r\n\r\nwrote this\r\n",
    "\nno line end",
    f"\nhow it works: {BEGIN} mine {END} and on\n",
    "\n漢字 \u2028 \x85 {{ 7 * 7 }} {% for %}\n",
]
HEAD = "---\ntags:\n- nst\n- noisy-student\n---\n\n# flowers@gen-1\n\nwritten by nst\n"


@pytest.mark.parametrize("text", TEXTS)
def test_own_text_survives_any_number_of_rewritings_byte_for_byte(text):
    card = HEAD + OwnText(text).section
    for _ in range(3):
        assert own_text(card) == OwnText(text)
        card = HEAD.replace("written", "written again") + own_text(card).section


def test_a_new_card_has_both_marks_and_says_what_they_are_for():
    section = own_text("").section
    assert section.split("\n")[1:] == [
        "<!-- The rest of this file is written anew by nst; what you write between the next two lines stays as it is. -->",
        "<!-- nst: your own text begins -->",
        "",
        "<!-- nst: your own text ends -->",
        "",
    ]


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda card: card.replace(END, ""), "that ends your own text was missing"),
        (lambda card: card.replace(BEGIN, ""), "begins your own text … not where"),
        (lambda card: card.replace(BEGIN, "@").replace(END, BEGIN).replace("@", END), "begins your own text … not where"),
    ],
)
def test_text_beside_a_damaged_mark_is_kept_and_told_and_kept_again(damage, missing):
    found = own_text(damage(HEAD + OwnText("\n## Mine\r\n\nkeep me\n").section))
    assert "\n## Mine\r\n\nkeep me\n" in found.text
    assert "written by nst" not in found.text
    assert mentions(found.problem, missing)
    assert found.problem in found.section
    again = own_text(HEAD + found.section)
    assert again == OwnText(found.text)  # told once


def test_marks_among_the_names_of_a_card_are_no_marks():
    head = f"---\ntags:\n- nst\n- noisy-student\nname: 'x\n\n{BEGIN}\n\n  y'\n---\n\n# flowers\n\n```\nnst label '{BEGIN}'\n```\n"
    assert own_text(head + OwnText("\nmine\n").section) == OwnText("\nmine\n")


def test_a_card_that_nst_did_not_write_is_kept_whole():
    found = own_text("---\nlicense: mit\n---\n\n# My flowers\n\nwith a description\n")
    assert found.text == "\n\n# My flowers\n\nwith a description\n"
    assert "was not written by nst" in found.problem


def test_rules_within_a_card_that_nst_did_not_write_begin_no_front_matter():
    card = "# Mine\n\n---\n\nbetween rules\n\n---\n\nafter\n"
    assert own_text(card).text == "\n" + card


@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n", HEAD])
def test_a_card_without_any_text_of_the_users_has_none(card):
    assert own_text(card) == OwnText()


def test_a_card_is_read_with_its_line_ends(tmp_path):
    assert read_card(tmp_path) == ""
    (tmp_path / "README.md").write_bytes(b"a\r\nb\n")
    assert read_card(tmp_path) == "a\r\nb\n"


def test_a_card_that_is_no_text_is_refused_and_left_alone(tmp_path):
    (tmp_path / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(NstError, match=r"README\.md:.*found other bytes; save.*UTF-8"):
        read_card(tmp_path)
