from mmjax.core.errors import nearest


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("zebra", ["text", "image"]) == ""
    assert nearest("imag", ["text", "image"]) == " (did you mean 'image'?)"
