"""Build ``objects.zip`` and ``objects.csv``: cut-out photographs on photographic backgrounds, with exact masks.

    python data/photos/build.py [--work DIR]

Fetches four Debian packages by name (``apt-get download``; ``dpkg-deb`` unpacks), sets each kept stamp of Tux Paint on a random
crop of a background that suits it, and writes beside this file:

* ``objects.zip``: ``NAME.jpg`` (224 x 224 px) and ``NAME.png`` (its mask, 1 bit, white on the object), in a fixed random
  order, so that the first so many are a sample of all;
* ``objects.csv``: of each in the same order its class, the stamp and the background it is made of.

The same packages and the same Pillow give the same files. Which stamps are drawings was seen by looking at all of them on
2026-11-27. Licenses: README.md beside this file.
"""

import argparse
import csv
import hashlib
import io
import random
import subprocess
import zipfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
STAMPS, SIZE, QUALITY = "tuxpaint-stamps-default", 224, 90
LARGEST = 1.7  # times a stamp is enlarged at most: the smallest are 50 px wide, and stay small in their picture

# Folders of drawings, signs, letters and coins.
LEFT_OUT_FOLDERS = {"symbols", "cartoon", "flags", "roadsigns", "plastic"}
# Drawings and paintings; then what has no outline (smoke, glass, glow, wires); then graves with legible names, and doubles.
LEFT_OUT = set("""
    bee echidna hedgehog whale shrimp button blue_fedora feathered_hat green_fedora propeller_hat sombrero tophat t_baseballcap
    t_glove t_jacket t_pants t_poloshirt t_scarf t_shirt t_sock t_tshirt pizza highlighter key tooth old_naval_shell eye candle
    Santa bow candy_cane hard_candy lamp santahat star stocking tree xmas_tp_bulb bluebird bunny-egg bunny-head bunny butterfly
    chick-hatched chick-in-egg chick easter/daffodil wrapped_chocolate_easter_egg wrapped_chocolate_easter_egg_2 bat_left blackcat
    ghost jackolantern_mean skull spider dreydl-gimmel dreydl-hay dreydl-nun dreydl-shin dreydl menorah confetti party-hat
    party-horn-in party-horn-out apollo_lander inukshuk-outline 7spoke256 sedan_police walnut_shelled

    glass explosion fire lightningbolt holiday_candle fireworks fireworks2 0_sun rugby_goal_posts

    grave-d grave-e grave-i final-roll-call military/fireman240a""".split())
# Classes that are not the file's name without numbers.
NAMES = dict(line.strip().split(": ") for line in """
    albino_peahen: peahen | chicken_profile: chicken | drake: duck | gander: goose | hen: chicken | tucan: toucan
    helmeted_guineafowl: guineafowl | heron_greatblue: great blue heron | heron_greatblue_flying: great blue heron
    little-penguin: penguin | magellanic_penguin: penguin | nandou: rhea | pink_flamingo: flamingo | seagull: gull
    silver-gull: gull | adelaide-rosella: rosella | rainbow-lorikeet: lorikeet
    bluegroper: blue groper | coraltrout: coral trout | moonwrasse: moon wrasse | stripedfish: striped fish
    Brown_slug: slug | xanthia: moth | chimp: chimpanzee | tamarin_emperor: emperor tamarin | european-bear: bear
    edward_bear: teddy bear | cow_white: cow | gnu-baby-stand: gnu | gnu-baby: gnu | gnu-sitting: gnu | gnu-stand: gnu
    indian_blackbuck: blackbuck | mountaingoat: mountain goat | ram: sheep | sheep_lamb: lamb | tiger_sumatran: tiger
    doe: deer | donkey_eating: donkey | pig_golden: pig | pig_golden2: pig | rabbit_little: rabbit | rhino_black: rhinoceros
    wildboar: wild boar | murray-mussel: mussel | clothespin_new: clothespin | clothespin_old: clothespin
    Apricot_whole: apricot | Cherry_Stella: cherry | apple_fuji: apple | apple_granny_smith: apple | apple_green: apple
    apple_red: apple | apple_sierra_beauty: apple | orange_seville: orange | sliced_lime: lime | sliced_orange: orange
    chilepepper: chili pepper | garlics: garlic | pattypan_squash: squash | pepper: bell pepper | pumpkin_small: pumpkin
    redlettuce: lettuce | yellowpepper: bell pepper | camera_35mm: camera | cymbal_crash: cymbal | drum_tomtom_floor: drum
    drumkit: drum kit | guitar2: electric guitar | guitar_classical: acoustic guitar | guitar_electric: electric guitar
    guitar_electric_bass: bass guitar | Lightbulb: light bulb | pen_dryerase: marker pen | scissors_small_closed: scissors
    scissors_small_open: scissors | cylinder: gas cylinder | pitcher_small: pitcher | garbagecan: garbage can
    home_compost_bin: compost bin | cementmixer: cement mixer | mallet_metal: mallet | paintbrush_large: paintbrush
    plyers: pliers | wrench_adjustable: wrench | wrench_plumbers: wrench | wheelie_bin: wheeled bin | rubberduck: rubber duck
    bandage_adhesive: adhesive bandage | mercurythermometer: thermometer | bradley: armored vehicle
    infantry-stryker: armored vehicle | f22_raptor: fighter jet | ww2_german_gun: tank | fireman200b: firefighter
    fireman240a: firefighter | grannysmith: rag doll | adeenia: desert rose | anemone_red: anemone | anthoorium: anthurium
    appooppanthady: milkweed | bolsom: balsam | chemparathi: hibiscus | flower10: hibiscus | red-gazania: gazania
    whitestar-petunia: petunia | yellow-flower: flower | lettuce_bolted: bolted lettuce | holly_leaves: holly
    liberia-palm: palm tree | tree336: pili nut tree | birch: birch tree | holm_oak: oak tree
    Candy_cane_photo_1: candy cane | Candy_cane_photo_2: candy cane | Christmas_Tree_photo: Christmas tree
    Christmas_pudding: Christmas pudding | German_Christmas_toy: incense smoker | xmaswreath: wreath
    grave-a: gravestone | grave-b: gravestone | grave-c: gravestone | grave-f: gravestone | grave-g: gravestone
    grave-h: gravestone | grave-j: gravestone | moon_3qt: moon | moon_crescent: moon | moon_full: moon | 1_mercury: Mercury
    2_venus: Venus | 3_earth: Earth | 4_mars: Mars | 5_jupiter: Jupiter | 6_saturn: Saturn | 7_uranus: Uranus
    8_neptune: Neptune | 9_pluto: Pluto | spacewalk: astronaut | voyager2: space probe | cricketball: cricket ball
    australian_rules_football: Australian rules football | football: American football | soccer: soccer ball
    inukshuk-photo: inukshuk | uk_post_box: mailbox | usps_mailbox: mailbox | beetle: car | sedan: car | sportscar2: sports car
    truck: pickup truck | pink_tricycle: tricycle | firetruck: fire truck | balloon360: hot-air balloon | 747: airplane
    garbagetruck: garbage truck | green_korean_bus: bus | indycar: race car | chineseJunk: sailing ship
    walnutBoat: walnut boat | wheel_tractor: tractor wheel""".replace("\n", "|").split("|") if line.strip())

# Package, file, and the part of it that shows a background and no object: left, top, right, bottom in percent.
LOMIRI, MATE, PLASMA = "lomiri-wallpapers-16.04", "mate-backgrounds", "plasma-workspace-wallpapers"
BACKGROUNDS = {
    "beach": (LOMIRI, "Bridge_by_Sander_Klootwijk.jpg", (0, 45, 55, 100)),
    "shrub": (LOMIRI, "Dragonfly_by_Bolly.jpg", (0, 0, 60, 100)),
    "meadow": (LOMIRI, "aitzgorri_by_Aitzol_Berasategi.jpg", (0, 0, 100, 100)),
    "planks": (LOMIRI, "friends_by_Aitzol_Berasategi.jpg", (48, 64, 100, 100)),
    "stream": (LOMIRI, "life_by_Aitzol_Berasategi.jpg", (0, 0, 100, 100)),
    "mountains": (LOMIRI, "picosdeeuropa_by_Aitzol_Berasategi.jpg", (0, 0, 100, 100)),
    "dandelions": (LOMIRI, "seeding_by_Clements_Engelhardt.jpg", (45, 15, 100, 100)),
    "rocky ground": (LOMIRI, "sunset_by_Aitzol_Berasategi.jpg", (0, 50, 60, 100)),
    "leaf": (MATE, "Blinds.jpg", (0, 0, 100, 100)),
    "dune": (MATE, "Dune.jpg", (0, 0, 100, 100)),
    "grass": (MATE, "GreenMeadow.jpg", (0, 0, 100, 100)),
    "wet leaves": (MATE, "RainDrops.jpg", (0, 0, 100, 100)),
    "road": (MATE, "Storm.jpg", (0, 0, 100, 100)),
    "wood": (MATE, "Wood.jpg", (0, 0, 100, 100)),
    "dock": (PLASMA, "BytheWater/contents/images/2560x1600.jpg", (0, 0, 100, 100)),
    "pier": (PLASMA, "ColdRipple/contents/images/2560x1600.jpg", (0, 25, 100, 100)),
    "dusk": (PLASMA, "DarkestHour/contents/images/2560x1600.jpg", (0, 30, 100, 100)),
    "pebbles": (PLASMA, "EveningGlow/contents/images/2560x1600.jpg", (12, 76, 88, 100)),
    "fallen leaves": (PLASMA, "FallenLeaf/contents/images/2560x1600.jpg", (0, 0, 100, 100)),
    "sky": (PLASMA, "Kite/contents/images/2560x1600.jpg", (0, 0, 58, 100)),
    "moss": (PLASMA, "OneStandsOut/contents/images/2560x1600.jpg", (0, 0, 100, 100)),
    "forest": (PLASMA, "Path/contents/images/2560x1600.jpg", (0, 0, 100, 100)),
    "lake": (PLASMA, "summer_1am/contents/images/2560x1600.jpg", (0, 35, 100, 100)),
    "galaxies": (None, "galaxies.jpg", (0, 0, 100, 100)),
}
# By the folder of a stamp, the longest that fits.
SUITS = {folder: [name.strip() for name in names.split(",")] for folder, names in {
    "animals": "meadow, stream, dune, grass, mountains, dandelions, forest, rocky ground, fallen leaves, moss",
    "animals/birds": "meadow, dune, sky, beach, grass, forest, lake, shrub, stream",
    "animals/fish": "dusk, lake, beach, pebbles",
    "animals/mammals/aquatic": "dusk, lake, beach, pebbles, stream",
    "animals/shellfish": "pebbles, beach, stream",
    "animals/insects": "leaf, wet leaves, moss, shrub, fallen leaves, dandelions",
    "plants": "grass, wet leaves, moss, shrub, dandelions, leaf, fallen leaves, stream",
    "plants/trees": "meadow, mountains, dune, beach, sky",
    "food": "wood, dock, planks, leaf, fallen leaves, wet leaves, pier",
    "vehicles": "road, beach, meadow, mountains, pebbles",
    "vehicles/ship": "lake, dusk, beach",
    "vehicles/flight": "sky, mountains, meadow, lake",
    "military": "road, beach, meadow, mountains, sky",
    "space": "galaxies",
    "town": "road, meadow, pebbles, grass, pier, mountains",
    "": "wood, dock, planks, pier, grass, pebbles, fallen leaves",
}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build_photos"), help="folder for the packages")
    work = parser.parse_args().work
    unpacked = {name: fetched(name, work) for name in (STAMPS, LOMIRI, MATE, PLASMA)}
    backgrounds = {name: background(unpacked, *BACKGROUNDS[name]) for name in BACKGROUNDS}
    top = unpacked[STAMPS] / "usr/share/tuxpaint/stamps"
    rows = []
    with zipfile.ZipFile(HERE / "objects.zip", "w", zipfile.ZIP_STORED) as out:
        for path in stamps(top):
            stamp = path.relative_to(top).with_suffix("").as_posix()
            choose = random.Random(stamp)  # its own, so that one stamp more or less changes no other
            folder = max((f for f in SUITS if stamp.startswith(f)), key=len)
            behind = choose.choice(SUITS[folder])
            name = stamp.replace("/", "-").lower()
            picture, mask = composed(Image.open(path).convert("RGBA"), backgrounds[behind], choose)
            for content, suffix, options in ((picture, "jpg", {"quality": QUALITY}), (mask, "png", {"optimize": True})):
                file = io.BytesIO()
                content.save(file, {"jpg": "jpeg"}.get(suffix, suffix), **options)
                out.writestr(zipfile.ZipInfo(f"{name}.{suffix}"), file.getvalue())
            rows.append({"file": f"{name}.jpg", "class": class_of(path), "stamp": f"{stamp}.png", "background": behind})
    with open(HERE / "objects.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} photographs of {len({row['class'] for row in rows})} classes, "
          f"{(HERE / 'objects.zip').stat().st_size / 1e6:.1f} MB")


def fetched(package: str, work: Path) -> Path:
    """The folder into which a Debian package is unpacked, fetched where it is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    folder = work / package
    if not folder.exists():
        subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True)
        subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{package}_*.deb")), folder], check=True)
    return folder


def stamps(top: Path) -> list[Path]:
    """The stamps that are photographs of objects, in a fixed random order."""
    found = []
    for path in top.rglob("*.png"):
        stamp = path.relative_to(top).with_suffix("")
        if path.with_suffix(".txt").exists() and not LEFT_OUT_FOLDERS & set(stamp.parts) \
                and not LEFT_OUT & {stamp.name, "/".join(stamp.parts[-2:])}:
            found.append(path)
    return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(top).as_posix().encode()).hexdigest())


def class_of(path: Path) -> str:
    return NAMES.get(path.stem) or path.stem.replace("_", " ").replace("-", " ").rstrip("0123456789 ").lower()


def background(unpacked: dict[str, Path], package: str | None, file: str, part: tuple[int, ...]) -> Image.Image:
    """The usable part of a background, at most 1,000 px wide or high."""
    path = next(unpacked[package].rglob(f"*/{file}")) if package else HERE / file
    image = Image.open(path).convert("RGB")
    left, top, right, bottom = (end * side / 100 for end, side in zip(part, image.size * 2, strict=True))
    image = image.crop((round(left), round(top), round(right), round(bottom)))
    image.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    return image


def composed(stamp: Image.Image, behind: Image.Image, choose: random.Random) -> tuple[Image.Image, Image.Image]:
    """A stamp of random size, somewhere on a random crop of a background, and its mask."""
    short = min(behind.size)
    side = choose.randint(min(short, SIZE), short)
    left, top = (choose.randint(0, length - side) for length in behind.size)
    picture = behind.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    longest = min(choose.uniform(0.55, 0.85) * SIZE, LARGEST * max(stamp.size))
    scaled = stamp.resize([max(1, round(length * longest / max(stamp.size))) for length in stamp.size], Image.Resampling.LANCZOS)
    at = tuple(choose.randint(0, SIZE - length) for length in scaled.size)
    picture.paste(scaled, at, scaled)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(scaled.getchannel("A").point(lambda a: 255 * (a > 127)), at)
    return picture, mask.convert("1")


if __name__ == "__main__":
    main()
