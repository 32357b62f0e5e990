from pathlib import Path

from mmjax.convert.coverage import page

DOCS = Path(__file__).resolve().parents[2] / "docs" / "huggingface.md"


def test_the_page_is_what_the_tables_say():
    assert DOCS.read_text() == page(), "run: python -m mmjax.convert.coverage > docs/huggingface.md"
