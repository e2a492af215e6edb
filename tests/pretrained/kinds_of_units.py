"""What notebook 02 says of a real ViT: selectivity and effective dimensions by kind of unit, and its sheet of visualizations.

    python tests/pretrained/kinds_of_units.py 8 11           # the numbers of layers 8 and 11: two minutes of a core each
    python tests/pretrained/kinds_of_units.py 8 --sheet FILE # and the sheet of the first of them, in ten minutes more
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit/models")]
from real_vit import NAME, weights  # noqa: E402

import vitviz_nb as vv  # noqa: E402
from vitviz_nb.experiments import units  # noqa: E402
from vitviz_nb.plotting.image_grid import Tile, contact_sheet  # noqa: E402

CALLED = {"query": "queries", "key": "keys", "value": "values", "mlp": "MLP neurons",
          "mlp directions": "random directions of the MLP"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+", type=int)
    parser.add_argument("--sheet", type=Path, help="a JPEG file")
    asked = parser.parse_args()
    model = vv.load(NAME, image_size=112, checkpoint=weights())
    for layer in asked.layers:
        for result in (units.axis_alignment(model, layer=layer)[0], units.effective_dimension(model, layer=layer)):
            print(f"{result.title}, {result.quantity}\n{result.table.to_string(index=False)}\n")
    if asked.sheet:
        made = units.visualize(model, layer=asked.layers[0], neurons=8)
        tiles = [Tile(picture, []) for row in made.values() for picture in row.rendering.pictures]
        title = f"ViT-S/14, layer {asked.layers[0]} of 12: eight evenly spaced units of each kind"
        contact_sheet(tiles, title, 150, 8, [CALLED[kind] for kind in made]).save(asked.sheet, quality=80, optimize=True)


if __name__ == "__main__":
    main()
