import pytest

from mmjax.core.errors import UserError, nearest, within


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("zebra", ["text", "image"]) == ""
    assert nearest("imag", ["text", "image"]) == " (did you mean 'image'?)"


def test_a_mistake_is_named_by_the_innermost_path():
    class OfAKindError(UserError):
        pass

    with pytest.raises(OfAKindError) as error, within("tasks.a"), within("model.b"):
        raise OfAKindError("size=3: use 2")
    assert str(error.value) == "model.b: size=3: use 2"
    for said in ("model.b.size=3: use 2", "model.b: no"):
        with pytest.raises(UserError) as error, within("model.b"):
            raise UserError(said)
        assert str(error.value) == said
    with pytest.raises(UserError, match=r"^plain$"), within(""):
        raise UserError("plain")
    with pytest.raises(ValueError, match=r"^ours$"), within("model.b"):
        raise ValueError("ours")
