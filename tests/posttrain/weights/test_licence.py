import pytest

from posttrain.weights import licence


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("\ufeff---\r\nlicense: MIT\r\ntags: [a]\r\n---\r\ntext", "mit"),
        ("---\nlicense: [apache-2.0, mit]\n---\n", "apache-2.0"),
        ("# no front matter\nlicense: mit\n", ""),
        ("---\nlicense: {a: b}\n---\n", ""),
        ("---\n- mit\n---\n", ""),
        ("---\nlicense: 'mit <b>'\n---\n", ""),
        ("---\nlicense: !!python/object:os.system x\n---\n", ""),
        ("---\nlicense: [\n---\n", ""),
    ],
)
def test_the_licence_is_the_name_in_the_front_matter(card, name):
    assert licence.of_card(card) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apache-2.0", None),
        ("ncsa", None),
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("cc-by-nc-nd-4.0", "forbids commercial use and publishing what is made from it"),
        ("", "names no licence"),
        ("other", "names no licence"),
    ],
)
def test_what_a_licence_forbids_is_said(name, words):
    said = licence.restriction(name)
    assert said is None if words is None else words in said
