"""Make the two pictures of README's first screen: ``python notebooks/teaching/wall.py``.

A wall of a real ViT's neurons by depth, from its atlas, evenly spaced so that nobody chose them; and classes of ``emoji-vit``,
which were chosen, for being recognizable.
"""

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vitviz_nb as vv
from vitviz_nb.plotting.image_grid import Tile, contact_sheet, to_image

HERE = Path(__file__).parent
LAYERS, SIDE, MARGIN, GAP = (1, 3, 5, 7, 9, 11), 116, 64, 4
CLASSES = ["watermelon", "strawberry", "sunflower", "hamburger", "pineapple", "lemon", "octopus", "Santa Claus"]

atlas = vv.Atlas.open("vit-small-dinov2-saliency")
step = SIDE + GAP
wall = Image.new("RGB", (MARGIN + 8 * step, len(LAYERS) * step), "white")
draw = ImageDraw.Draw(wall)
for row, layer in enumerate(LAYERS):
    neurons = atlas.neurons(layer)
    draw.text((2, row * step + SIDE // 2 - 8), f"layer {layer}", font=ImageFont.load_default(15), fill="#1b1b1b")
    for column, picture in enumerate(atlas.rendering(layer, neurons[:: len(neurons) // 8][:8]).pictures):
        wall.paste(to_image(picture, SIDE), (MARGIN + column * step, row * step))
wall.save(HERE / "wall_vit_small.webp", quality=80)

model = vv.load("emoji-vit")
recipe = replace(vv.Recipe.quick(model), steps=160, jitter=0.125, tv=0.03)  # a little cleaner than quick's, for a second more
classes = vv.Visualizer(model, recipe).render(-1, CLASSES, kind="logit")
tiles = [Tile(picture, [name]) for picture, name in zip(classes.pictures, CLASSES, strict=True)]
contact_sheet(tiles, "Eight of emoji-vit's 256 classes", side=112).save(HERE / "classes_emoji_vit.webp", quality=90)
