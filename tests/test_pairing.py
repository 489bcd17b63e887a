import pytest

from nst_data.errors import NstError
from nst_data.sources.pairing import SampleMember, classes_of_members, sample_key


def paired(spec):
    """The class of each image of a tar file with members such as `a.png a.cls:1`."""
    members = [member.partition(":") for member in spec.split()]
    return classes_of_members(
        [SampleMember(name, text if colon else None, name.endswith(".heic")) for name, colon, text in members], "x.tar"
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.png", "a"), ("a.seg.png", "a"), ("d.1/a.b.png", "d.1/a"), ("./a.png", "./a"), ("a", "a")],
)
def test_a_key_ends_at_the_first_dot_of_the_name_without_its_folders(name, key):
    assert sample_key(name) == key


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ("a.png a.cls:1 b.png b.cls:2 a.png a.cls:2", "122"),
        ("a.cls:1 a.png b.cls:2 b.png a.cls:2 a.png", "122"),
        ("a.png a.seg.png a.cls:1 b.cls:2 b.jpg", "112"),
        ("a.png b.png c.png c.cls:3 b.cls:2 a.cls:1", "123"),
        ("a.1.png a.2.png a.1.cls:1 a.2.cls:2", "12"),
        ("a.1.png a.2.png a.cls:1", "11"),
        ("a.png a.cls:1 b.png b.cls:2 a.cls:1", "12"),
        ("a.heic a.cls:1 a.png b.cls:2 b.heic b.png", "12"),
        ("a.heic b.png c.png a.cls:1 b.cls:2 c.cls:3", "23"),
        ("./a.png a.cls:1 b.png ./b.cls:2", "12"),
        ("a.png a.CLS:1 b.png c.png c.Cls:3 b.cLs:2", "123"),
    ],
)
def test_an_image_has_the_class_of_its_sample_or_else_the_only_one_of_its_name(spec, classes):
    assert paired(spec) == list(classes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.png a.cls:1 a.png a.cls:2", r"x\.tar: a\.png.*several times.*unique names"),
        ("a.jpg a.cls:1 a.png a.cls:2", r"a\.cls occurs several times in one sample"),
        ("a.png a.cls:1 b.png b.cls:2 a.cls:2", r"a\.cls occurs several times with different classes"),
        ("a.png b.png a.cls:1 b.cls:2 a.png a.cls:3", r"a\.cls occurs several times with different classes"),
        ("a.1.png a.cls:1 b.png b.cls:2 a.1.cls:2", r"a\.1\.cls occurs several times with different classes"),
        ("a.png b.png a.cls:1 b.cls:2 a.png", r"a\.png occurs several times not adjacent"),
        ("a.png b.png a.cls:1 b.cls:2 a.cls:1", r"a\.cls occurs several times not adjacent"),
        ("a.png a.cls:1 b.png b.cls:2 a.png", r"a\.png.*no class.*neighboring member a\.cls"),
        ("a.heic a.cls:1 b.png b.cls:2 a.png", r"a\.png.*no class.*neighboring member a\.cls"),
        ("a.cls:1 b.cls:2 a.heic b.png a.png", r"a\.png occurs several times not adjacent"),
        ("a.png a.cls:1 a.CLS:2", r"a\.cls occurs several times in one sample"),
        ("a.png a.cls: b.png b.cls:2", r"a\.png.*no class.*\.cls member is empty"),
    ],
)
def test_where_the_class_of_an_image_is_not_certain_the_member_is_named(spec, message):
    with pytest.raises(NstError, match=message):
        paired(spec)
