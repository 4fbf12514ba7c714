import pytest

from affect_jax.names import check_patterns, selects

NAMES = ("backbone/conv1/kernel", "backbone/layer1_0/conv1/kernel", "classifier/bias", "classifier/kernel")


def test_regexes_select_whole_names():
    selected = selects(["backbone/conv1", "classifier/.*"])
    assert [name for name in NAMES if selected(name)] == ["classifier/bias", "classifier/kernel"]


def test_regexes_that_match_no_name_are_listed_with_the_nearest_names():
    check_patterns(["backbone/.*", "classifier/bias"], NAMES, "optim.freeze")
    with pytest.raises(ValueError, match=r"optim\.freeze has regexes that match no name") as error:
        check_patterns(["backbone/.*", "classifer/.*", "backbone/conv1"], NAMES, "optim.freeze")
    first, second = str(error.value).splitlines()[1:]
    assert first.startswith("  'classifer/.*'; the nearest are classifier/bias, classifier/kernel, ")
    assert second.startswith("  'backbone/conv1'; the nearest are backbone/conv1/kernel, ")
