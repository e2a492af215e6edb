"""The sweep over timm's model modules: its table is whole, and the hardest modules still give what it says."""

import re
from pathlib import Path

import families
import pytest
import timm

TABLE = dict(re.findall(r"^\| (\w+) \| `\w+` \| (\w+) \|", Path(families.__file__).with_suffix(".md").read_text("utf-8"), re.M))
# Padded windows, pooled queries and keys, two resolutions, gates, positions by convolutions, heads, outlook attention, no grid at
# all. Slower ones (hiera, nest, tnt) have small networks of their own among the unit tests, or only the table.
HARDEST = ("davit", "mvitv2", "nextvit", "crossvit", "mambaout", "levit", "mobilevit", "efficientvit_mit", "volo", "xcit",
           "cpubone", "vision_transformer_relpos")


def test_the_table_has_every_module_of_this_timm_none_wrong_and_most_sound():
    modules = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert modules == set(TABLE) == set(families.MEMBERS)
    assert set(TABLE.values()) <= {"sound", "partly", "refused"}
    assert list(TABLE.values()).count("sound") >= 94


@pytest.mark.parametrize("module", HARDEST)
def test_units_and_positions_are_what_the_table_says(module):
    result, remarks = families.check(module)
    assert result == TABLE[module], remarks
