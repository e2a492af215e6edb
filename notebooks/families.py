"""Measure every experiment of the course on the embedded models, and write ``data/families.csv``.

    python notebooks/families.py                          # the models whose weights are new since they were measured
    python notebooks/families.py emoji-swin emoji-pit     # these

About three minutes of a CPU core a model.
"""

import os
import sys
import tempfile

import pandas as pd

import vitviz_nb as vv
from vitviz_nb.experiments import families
from vitviz_nb.models.cards import embedded_names, read_card
from vitviz_nb.utils import files
from vitviz_nb.utils.paths import data_dir


def weights(name: str) -> str:
    """The beginning of the hash of a model's weights."""
    return read_card(name)["sha256"][:12]


def stale(table: pd.DataFrame) -> list[str]:
    """The models that ship whose weights are not those that were measured, and those measured that ship no more."""
    known, shipped = dict(zip(table["model"], table["weights"], strict=True)), {name: weights(name) for name in embedded_names()}
    return sorted(name for name in known.keys() | shipped.keys() if known.get(name) != shipped.get(name))


def main(names: list[str]) -> None:
    path = data_dir() / "families.csv"
    table = families.stored() if path.exists() else pd.DataFrame(columns=["model", "weights"])
    shipped = embedded_names()
    if unknown := set(names) - set(shipped):
        sys.exit(f"No embedded model is called {', '.join(sorted(unknown))}; there are {', '.join(shipped)}.")
    table = table[table["model"].isin(shipped)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITVIZ_CACHE"] = folder  # measured now, not found in a cache
        for name in names or [name for name in stale(table) if name in shipped]:
            print(name, file=sys.stderr, flush=True)
            fresh = families.measure(vv.load(name, device="cpu"))
            fresh.insert(0, "model", name)
            fresh.insert(1, "weights", weights(name))
            table = pd.concat([table[table["model"] != name], fresh], ignore_index=True)
            order = table["model"].map(shipped.index)
            table = table.assign(order=order).sort_values("order", kind="stable").drop(columns="order")
            files.write(path, table.to_csv(index=False, float_format="%.6g"))  # after each, so that an interrupted run goes on


if __name__ == "__main__":
    main(sys.argv[1:])
