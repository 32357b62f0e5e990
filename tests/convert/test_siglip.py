"""SigLIP's two widths, and the pooling head that its classifier does not read."""

import pytest
from families.siglip import BOTH, CLASSES, NO_HEAD, SIGLIP
from parity import save

from mmjax.convert import load


@pytest.mark.parametrize("field", ["vision_config.hidden_size", "text_config.projection_size"])
def test_the_towers_meet_in_one_width(field):
    """Each is changed alone where the other is not: see `families.siglip`."""
    theirs = SIGLIP.make(BOTH.of({field: 36}))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        SIGLIP.theirs(BOTH, theirs, SIGLIP.batch(theirs))


@pytest.mark.parametrize("changes", [{}, NO_HEAD])
def test_the_classifier_keeps_the_pooling_head_where_there_is_one(changes, tmp_path):
    theirs = SIGLIP.make(CLASSES.of(changes))
    assert any("head." in name for name in theirs.state_dict()) is not bool(changes)
    model, _ = load(save(theirs, tmp_path / "hf"))
    assert ("dual" in model.fusions) is not bool(changes)
