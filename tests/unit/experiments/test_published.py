"""The paper's tables are read as they were published."""

import pytest

from vitviz_nb.experiments import published
from vitviz_nb.experiments.published import accuracy
from vitviz_nb.utils.errors import VitvizError


@pytest.mark.parametrize(("name", "cell", "value"), [
    ("isolated_cls", {"isolated blocks": 11, "measure": "top-1", "model": "ViT-B/16"}, 78.61),
    ("cls_only_from_block", {"CLS-only from block": 10, "measure": "top-5", "model": "ViT-B/32"}, 76.02),
    ("token_head", {"head reads": "mean of patch tokens", "measure": "top-1", "model": "ViT-B/32"}, 80.87),
    ("foreground_background", {"shown": "background", "measure": "top-5", "model": "ResNet-50"}, 18.32),
])
def test_a_published_number_is_the_papers(name: str, cell: dict, value: float):
    table = accuracy(name).table
    row = table[(table[list(cell)] == list(cell.values())).all(axis=1)]
    assert row["value"].tolist() == [value] and row[["low", "high", "n"]].isna().all(axis=None)


def test_a_published_table_begins_with_what_varies_and_can_be_drawn():
    result = accuracy("isolated_cls")
    assert result.table.columns[0] == "isolated blocks" and "Published" in result.title
    axis = result.plot()
    assert [line.get_label() for line in axis.containers] == ["ViT-B/16, top-1", "ViT-B/16, top-5"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0\1", b"a,b\n1,2\n",
                                     b"isolated blocks,model,measure,value\n1,ViT,top-1,x\n"])
def test_a_table_that_is_missing_or_damaged_is_named_with_the_mend(content, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "data_dir", lambda: tmp_path)
    (tmp_path / "paper").mkdir()
    if content is not None:
        (tmp_path / "paper" / "isolated_cls.csv").write_bytes(content)
    with pytest.raises(VitvizError, match=r"isolated_cls.csv is missing or damaged .*\. Restore it with git checkout"):
        accuracy("isolated_cls")


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(VitvizError, match="token_head.*Did you mean isolated_cls"):
        accuracy("isolated_clss")
