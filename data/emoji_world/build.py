"""Build the sprites of Emoji World from open emoji art.

    python data/emoji_world/build.py [--work DIR]

Fetches three npm packages and two Debian fonts by name (``npm pack`` and ``apt-get download``; ``dpkg-deb`` unpacks),
draws every concept in five styles at 64 x 64 px, and writes beside this file:

* ``concepts.csv``: one row per concept, in sheet order;
* ``3d.webp``, ``cartoon.webp``, ``flat.webp``: RGBA sprite sheets, ``COLUMNS`` sprites a row;
* ``line.png``, ``word.png``: the opacity of black drawings, the same order.

Run again only to change the world itself: trained models depend on these pixels. Needs Pillow and fontTools (which
comes with matplotlib). Licenses of what is drawn: LICENSES.md beside this file.
"""

import argparse
import csv
import json
import subprocess
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
COLUMNS, SPRITE = 30, 64
NPM = ("emoji-datasource-twitter@16.0.0", "@lobehub/fluent-emoji-3d@1.1.0", "unicode-emoji-json@0.9.0")
DEBIAN = ("fonts-noto-color-emoji", "fonts-symbola", "fonts-dejavu-core")

# Signs that are letters, arrows or plain shapes carry no object worth recognizing; clock faces and flags look the same.
LEFT_OUT_SUBCATEGORIES = {
    "alphanum", "arrow", "av-symbol", "geometric", "punctuation", "math", "gender", "keycap", "currency", "flag",
    "family", "transport-sign", "zodiac", "person-gesture", "hand-single-finger",
}
LEFT_OUT = {f"clock{h}{m}" for h in range(1, 13) for m in ("", "30")} | {
    "waxing_crescent_moon", "first_quarter_moon", "moon", "waning_gibbous_moon", "last_quarter_moon",
    "waning_crescent_moon", "new_moon", "middle_finger", "copyright", "registered", "tm", "cigarette", "smoking",
    "mute", "speaker", "sound", "loud_sound",
}
# Kept although their subcategory is left out: each is a shape of its own.
KEPT = {
    "infinity", "heavy_dollar_sign", "question", "exclamation", "red_circle", "large_orange_diamond",
    "small_red_triangle", "wheelchair", "restroom", "capricorn", "arrow_right", "heavy_plus_sign", "+1", "point_up_2",
    "sos", "free", "diamond_shape_with_a_dot_inside", "arrows_clockwise", "high_brightness", "leo",
}

# 32 concepts of each of eight categories, drawn in every style, no two of which look the same: those of the embedded models.
TRAINED = {
    "Animals & Nature": """dog cat mouse2 tiger rabbit horse cow2 pig bear panda_face lion_face monkey elephant sheep camel
        rooster penguin duck owl frog turtle snake whale octopus fish crab snail bee spider butterfly cactus sunflower""",
    "Food & Drink": """apple banana lemon grapes watermelon strawberry cherries pineapple pear tomato eggplant carrot corn
        avocado hot_pepper bread croissant cheese_wedge hamburger pizza fries hotdog egg sushi doughnut cookie birthday
        lollipop icecream coffee wine_glass beer""",
    "Travel & Places": """car bus fire_engine ambulance tractor bike motor_scooter steam_locomotive railway_car rocket
        helicopter airplane ship boat canoe anchor house office hospital church european_castle statue_of_liberty tent
        volcano full_moon crescent_moon rainbow sunny cloud snowman umbrella traffic_light""",
    "Activities": """soccer basketball football baseball tennis bowling golf ski ice_skate boxing_glove trophy medal
        jack_o_lantern christmas_tree balloon gift fireworks dart game_die 8ball video_game joystick black_joker art
        performing_arts crystal_ball gun badminton_racquet_and_shuttlecock fishing_pole_and_fish wind_chime ticket
        frame_with_picture""",
    "Objects": """eyeglasses shirt jeans dress tophat crown mans_shoe high_heel handbag ring gem guitar trumpet violin
        microphone radio computer phone camera bulb candle flashlight book scissors pencil2 key lock hammer bomb
        briefcase package moneybag""",
    "People & Body": """eyes ear nose lips brain muscle wave ok_hand v +1 clap pray point_up_2 footprints santa mage
        merperson genie vampire zombie cop guardsman construction_worker princess baby older_man bicyclist surfer
        rowboat horse_racing dancer bust_in_silhouette""",
    "Smileys & Emotion": """grinning sunglasses nerd_face heart_eyes sob angry mask scream sleeping money_mouth_face
        zipper_mouth_face face_with_cowboy_hat thinking_face skull ghost alien space_invader robot_face clown_face
        hankey imp japanese_ogre smiley_cat see_no_evil heart broken_heart cupid kiss boom speech_balloon
        sweat_drops 100""",
    "Symbols": """recycle trident fleur_de_lis white_check_mark x o radioactive_sign biohazard_sign warning no_entry
        no_smoking no_bicycles wheelchair restroom peace_symbol yin_yang atom_symbol star_of_david latin_cross om_symbol
        wheel_of_dharma infinity heavy_dollar_sign question exclamation red_circle large_orange_diamond
        small_red_triangle arrow_right heavy_plus_sign menorah_with_nine_branches beginner""",
}

CONTEXT_OF_SUBCATEGORY = {
    "animal-mammal": "grass", "animal-bird": "sky", "animal-amphibian": "forest", "animal-reptile": "sand",
    "animal-marine": "sea", "animal-bug": "forest", "plant-flower": "grass", "plant-other": "forest",
    "food-fruit": "tablecloth", "food-vegetable": "wood", "food-prepared": "tablecloth", "food-asian": "wood",
    "food-sweet": "tablecloth", "food-marine": "sea", "drink": "wood", "dishware": "tablecloth",
    "sky & weather": "sky", "place-geographic": "sky", "place-building": "road", "place-religious": "sky",
    "place-map": "wallpaper", "place-other": "night", "transport-ground": "road", "transport-water": "sea",
    "transport-air": "sky", "hotel": "wood", "time": "wallpaper", "event": "night", "sport": "grass",
    "game": "wood", "award-medal": "wallpaper", "arts & crafts": "wallpaper", "clothing": "wallpaper",
    "music": "wallpaper", "musical-instrument": "wallpaper", "light & video": "night", "book-paper": "wood",
    "money": "wood", "mail": "brick", "writing": "wood", "office": "wood", "lock": "brick", "tool": "brick",
    "science": "wallpaper", "medical": "tablecloth", "household": "wallpaper", "computer": "wood", "phone": "wood",
    "sound": "brick", "other-object": "brick", "person-fantasy": "night", "person-sport": "snow",
    "person-activity": "road", "person-resting": "wallpaper", "person-role": "brick", "person": "brick",
    "person-symbol": "sand", "body-parts": "tablecloth", "hand-prop": "tablecloth", "hands": "brick",
    "hand-fingers-open": "brick", "hand-fingers-closed": "brick", "hand-fingers-partial": "brick",
    "cat-face": "tablecloth", "monkey-face": "forest", "heart": "wallpaper", "emotion": "brick",
    "face-negative": "night", "face-costume": "night", "religion": "wallpaper", "warning": "road",
    "other-symbol": "brick", "transport-sign": "road",
}
CONTEXT_OF_CONCEPT = {  # by short name, where the subcategory's context would be odd
    **dict.fromkeys("penguin snowman snowman_without_snow ski ice_skate skier snowboarder santa mrs_claus sled seal "
                    "curling_stone snow_capped_mountain mount_fuji christmas_tree bear wolf snowflake mountain "
                    "ice_hockey_stick_and_puck snow_cloud polar_bear".split(), "snow"),
    **dict.fromkeys("camel dromedary_camel cactus scorpion desert beach_with_umbrella umbrella_on_ground desert_island "
                    "shell crab volcano footprints european_castle palm_tree lizard volleyball sauropod t-rex"
                    .split(), "sand"),
    **dict.fromkeys("full_moon crescent_moon full_moon_with_face first_quarter_moon_with_face new_moon_with_face "
                    "last_quarter_moon_with_face star stars star2 comet milky_way owl bat rocket flying_saucer "
                    "satellite jack_o_lantern crystal_ball fireworks sparkler bowling space_invader alien ghost"
                    .split(), "night"),
    **dict.fromkeys("turtle frog duck swan surfer swimmer rowboat water_polo fishing_pole_and_fish merperson anchor "
                    "ocean droplet sweat_drops sushi trident speedboat".split(), "sea"),
    **dict.fromkeys("monkey gorilla tiger tiger2 leopard panda_face tent camping deer squirrel snake mushroom mage "
                    "hedgehog fox_face boar".split(), "forest"),
    **dict.fromkeys("rooster chicken turkey hatching_chick baby_chick hatched_chick house house_with_garden tractor "
                    "horse_racing bicyclist soccer sunflower snail ladybug".split(), "grass"),
    **dict.fromkeys("balloon bee butterfly wind_chime umbrella church statue_of_liberty boom".split(), "sky"),
    **dict.fromkeys("traffic_light fuelpump cop construction_worker zombie basketball".split(), "road"),
    **dict.fromkeys("gun dart boxing_glove guitar performing_arts".split(), "brick"),
    **dict.fromkeys("game_die 8ball black_joker pizza hamburger cheese_wedge tennis violin".split(), "wood"),
}

NAMES = {"hankey": "pile of poo", "8ball": "billiard ball", "100": "hundred points", "v": "victory hand",
         "+1": "thumbs up", "x": "cross mark", "o": "hollow circle", "heart": "red heart", "mask": "masked face",
         "cop": "police officer", "phone": "telephone", "beer": "beer mug"}


def fetch(work: Path) -> None:
    """Download and unpack the sources into ``work`` unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    for package in NPM:
        folder = work / package.rsplit("@", 1)[0].replace("/", "_")
        if not folder.exists():
            archive = subprocess.run(["npm", "pack", package], cwd=work, check=True, capture_output=True, text=True)
            folder.mkdir()
            subprocess.run(["tar", "xzf", archive.stdout.split()[-1], "-C", folder], cwd=work, check=True)
    for package in DEBIAN:
        if not list(work.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=work, check=True)
        subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{package}_*.deb")), work / "debian"], check=True)


def bare(code: str) -> str:
    """A code point sequence without variation selectors, as the three sources spell it differently."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def fit(picture: Image.Image, margin: int = 2) -> Image.Image:
    """Crop to what is drawn and scale it to fill a sprite, so that size carries no clue to the source."""
    box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    picture = picture.crop(box)
    scale = (SPRITE - 2 * margin) / max(picture.size)
    # Premultiplied, or the resampling would pull the color of transparent pixels into the rim.
    size = [max(1, round(s * scale)) for s in picture.size]
    picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (SPRITE, SPRITE))
    sprite.paste(picture, [(SPRITE - s) // 2 for s in picture.size])
    return sprite


def glyph(font: ImageFont.FreeTypeFont, text: str, color: bool) -> Image.Image:
    canvas = Image.new("RGBA", (320, 320))
    ImageDraw.Draw(canvas).text((90, 70), text, font=font, embedded_color=color, fill=(0, 0, 0, 255))
    return fit(canvas)


def written(font_file: Path, name: str) -> Image.Image:
    """The name as black text on one to three lines, as large as fits."""
    words, lines = name.split(), [""]
    width = max(len(name) / min(3, len(words)), max(map(len, words)))
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width + 1:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    canvas = Image.new("RGBA", (1400, 400))
    font = ImageFont.truetype(font_file, 64)
    ImageDraw.Draw(canvas).multiline_text((20, 20), "\n".join(lines), font=font, fill=(0, 0, 0, 255), align="center")
    return fit(canvas, margin=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("emoji_sources"), help="where sources are unpacked")
    work = parser.parse_args().work
    fetch(work)

    twemoji = work / "emoji-datasource-twitter/package"
    fluent = {bare(p.stem): p for p in (work / "@lobehub_fluent-emoji-3d/package/assets").glob("*.webp")}
    named = json.loads((work / "unicode-emoji-json/package/data-by-emoji.json").read_text())
    named = {bare("-".join(f"{ord(c):x}" for c in k)): v["name"] for k, v in named.items()}
    fonts = work / "debian/usr/share/fonts/truetype"
    noto_file, symbola_file = fonts / "noto/NotoColorEmoji.ttf", fonts / "ancient-scripts/Symbola_hint.ttf"
    noto_has, symbola_has = TTFont(noto_file).getBestCmap(), TTFont(symbola_file).getBestCmap()
    noto, symbola = ImageFont.truetype(noto_file, 109), ImageFont.truetype(symbola_file, 110)

    trained = {name: category for category, names in TRAINED.items() for name in names.split()}
    rows, sheets = [], {style: [] for style in ("3d", "cartoon", "flat", "line", "word")}
    for emoji in sorted(json.loads((twemoji / "emoji.json").read_text()), key=lambda e: e["sort_order"]):
        code, short = bare(emoji["unified"]), emoji["short_name"]
        dropped = emoji["subcategory"] in LEFT_OUT_SUBCATEGORIES and short not in KEPT or short in LEFT_OUT
        if dropped or "-" in code or code not in fluent or code not in named or not emoji["has_img_twitter"]:
            continue
        if int(code, 16) not in noto_has or int(code, 16) not in symbola_has:
            continue
        category, subcategory = emoji["category"], emoji["subcategory"]
        context = CONTEXT_OF_CONCEPT.get(short) or CONTEXT_OF_SUBCATEGORY.get(subcategory, "wallpaper")
        name = NAMES.get(short, named[code])
        rows.append([name, code, category, subcategory, context, int(trained.pop(short, None) == category)])
        text = chr(int(code, 16))
        sheets["3d"].append(fit(Image.open(fluent[code]).convert("RGBA")))
        sheets["cartoon"].append(glyph(noto, text, color=True))
        sheets["flat"].append(fit(Image.open(twemoji / "img/twitter/64" / emoji["image"]).convert("RGBA")))
        sheets["line"].append(glyph(symbola, text, color=False))
        sheets["word"].append(written(fonts / "dejavu/DejaVuSans-Bold.ttf", name))
    if trained:
        raise SystemExit(f"not in every style, or in another category: {trained}")
    names = [row[0] for row in rows]
    if len(set(names)) != len(names):
        raise SystemExit(f"two concepts share a name: {sorted(n for n in names if names.count(n) > 1)}")

    with open(HERE / "concepts.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "codepoint", "category", "subcategory", "context", "trained"])
        writer.writerows(rows)
    for style, sprites in sheets.items():
        sheet = Image.new("RGBA", (COLUMNS * SPRITE, -(-len(sprites) // COLUMNS) * SPRITE))
        for i, sprite in enumerate(sprites):
            sheet.paste(sprite, (i % COLUMNS * SPRITE, i // COLUMNS * SPRITE))
        if style in ("line", "word"):
            sheet.getchannel("A").save(HERE / f"{style}.png", optimize=True)
        else:
            sheet.save(HERE / f"{style}.webp", quality=88, method=6)
    print(f"{len(rows)} concepts, {sum(row[-1] for row in rows)} of them for training, in {len(sheets)} styles")


if __name__ == "__main__":
    main()
