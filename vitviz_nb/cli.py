"""The command ``vitviz``: see what vision transformers learn, without a notebook."""

import argparse
import sys
import warnings
from pathlib import Path

from .utils.errors import VitvizError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what a user can mend (said on one line), 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"vitviz: {message}", file=sys.stderr)
    try:
        return options.run(options) or 0
    except VitvizError as error:
        print(f"vitviz: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vitviz: interrupted; what was finished is kept, and the same command goes on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # vitviz models | head
        sys.stderr.close()
        return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of after a block of usage."""

    def error(self, message: str):
        self.exit(2, f"vitviz: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vitviz", description="See what vision transformers learn: pictures of what their neurons respond to.",
        epilog="The notebooks in notebooks/ explain what the pictures mean; begin with 00_start_here.ipynb.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, description: str, **more) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=f"{description[0].upper()}{description[1:]}.",
                                  formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        sub.set_defaults(run=run)
        return sub

    command("doctor", _doctor, "say what this machine has and what is missing")
    sub = command("models", _models, "list the models that can be loaded by name")
    sub.add_argument("pattern", nargs="?", help="also list timm's pretrained models that match, such as '*clip*'")

    sub = command("render", _render, "make pictures of neurons",
                  epilog="examples:\n  vitviz render emoji-vit --layer -1 --neurons 0-15 --out pictures\n"
                         "  vitviz render emoji-vit --layer 3 --kind key --neurons 2,5,7 --recipe paper --out keys\n"
                         "  vitviz render vit_base_patch16_224 --layer 10 --neurons 0-3 --images photos --out pictures\n\n"
                         "writes sheet.png (all pictures with captions), neuron_N.png, pictures.npz and manifest.json.")
    sub.add_argument("model", help="an embedded model, or any timm name (its weights are downloaded)")
    sub.add_argument("--layer", type=int, required=True, help="counted from 0 in forward order; -1 is the last")
    sub.add_argument("--neurons", required=True, type=_ranges, help="numbers and ranges: 0-15 or 2,5,7-9")
    sub.add_argument("--kind", default="mlp",
                     help="mlp (default), query, key, value, attention, residual; channel for CNNs")
    sub.add_argument("--recipe", default="quick", help="quick (default) or paper")
    sub.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another picture of the same neuron (default 0)")
    sub.add_argument("--images", type=Path, help="folder of images that scores are measured against (default: Emoji World)")
    sub.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    sub.add_argument("--untrained", action="store_true", help="random weights, to see what training changes")
    sub.add_argument("--out", type=Path, required=True, help="folder for the pictures; made if missing")

    sub = command("train", _train, "train an embedded model on Emoji World; goes on from its checkpoint if there is one")
    sub.add_argument("model", help="a model that has a recipe: emoji-vit, emoji-resnet, emoji-swin, …")
    sub.add_argument("--out", type=Path, default=Path("trained"),
                     help="folder for weights, card and checkpoint (default: trained); data/models is where the kit looks")
    sub.add_argument("--steps", type=int, help="fewer updates than the recipe's, to try it out")
    sub.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")

    sub = command("atlas", _atlas, "make pictures of every neuron of whole layers, for sliders that answer at once",
                  epilog="examples:\n  vitviz atlas emoji-vit --layers all --out data/atlas/emoji-vit\n"
                         "  vitviz atlas emoji-swin --layers -1 --out data/atlas/emoji-swin\n\n"
                         "writes manifest.json, and sprite sheets and a table for each layer; says first how long it will take.\n"
                         "Killed at any moment, the same command goes on, and the atlas becomes the same, file for file; other\n"
                         "settings never touch the pictures in a folder. Several machines: see data/atlas/README.md.\n\n"
                         "read in Python, without the model:\n"
                         "  atlas = vv.Atlas.open(\"DIR\")\n"
                         "  atlas.table().sort_values(\"percentile\"); atlas.search(\"owl\"); atlas.rendering(5, [0, 1, 2])")
    sub.add_argument("model", help="an embedded model, or any timm name")
    sub.add_argument("--layers", default="all", help="all (default), or numbers and ranges: 0-3 or 2,5; -1 is the last")
    sub.add_argument("--recipe", default="quick", help="quick (default) or paper")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another picture of the same neuron (default 0)")
    sub.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    sub.add_argument("--out", type=Path, required=True, help="folder for the atlas; made if missing")

    sub = command("background", _background, "measure the paper's table of foreground and background on images with boxes",
                  epilog="example, with ImageNet and its boxes:\n"
                         "  vitviz background vit_base_patch32_224 resnet50 --images imagenet/train \\\n"
                         "      --boxes LOC_train_solution.csv --out table.csv\n\n"
                         "prints and writes right answers in percent; what is done is kept, and the same command goes on.")
    sub.add_argument("model", nargs="+", help="any timm names with ImageNet's classes")
    sub.add_argument("--images", type=Path, required=True, help="a folder with a subfolder for each class, as n01440764")
    sub.add_argument("--boxes", type=Path, required=True,
                     help="LOC_train_solution.csv, or a CSV file with the columns file,left,top,right,bottom")
    sub.add_argument("--per-class", type=int, help="so many images of each class (default: all that have boxes)")
    sub.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    sub.add_argument("--out", type=Path, required=True, help="CSV file for the table")

    sub = command("publish", _publish, "write badges and the Colab address into the README and every notebook")
    sub.add_argument("target", nargs="?", metavar="OWNER/REPO", help="on GitHub (default: the git remote 'origin')")
    return parser


def _ranges(text: str) -> list[int]:
    """``0-15`` or ``2,5,7-9`` as a list."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or dash and not last.isdecimal() or dash and int(last) < int(first):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of neurons; write numbers and ranges: 0-15 or 2,5,7-9")
        if dash and int(last) - int(first) >= 1_000_000:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} names more neurons than any layer has")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _doctor(options) -> None:
    from .course.setup import setup

    setup()


def _models(options) -> None:
    from .models.cards import embedded_names, read_card
    from .models.loading import list_models

    for name in embedded_names():
        card = read_card(name)
        share = card["accuracy"]["unoccluded"]
        low, high = share["interval95"]
        print(f"{name:<20} {card['parameters'] / 1e6:.1f} M parameters, {100 * share['top1']:.1f} % of unoccluded scenes right "
              f"(95 % interval {100 * low:.1f} to {100 * high:.1f})")
    if options.pattern is None:
        print("and any timm model: vitviz models '*clip*' searches their names")
        return
    found = list_models(options.pattern)[len(embedded_names()):]
    if not found:
        raise VitvizError(f"No pretrained timm model matches {options.pattern!r}; '*' stands for any letters, as in '*clip*'.")
    print("\n".join(found))


def _render(options) -> int:
    import dataclasses

    from .datasets.image_folder import image_folder
    from .models.loading import load
    from .models.sites import check_neurons, find_site
    from .visualize.recipe import Recipe
    from .visualize.visualizer import Visualizer

    Recipe.named(options.recipe)  # so that a wrong name is told before a model is loaded
    there = next(folder for folder in (options.out, *options.out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise VitvizError(f"--out {options.out} cannot be a folder, because {there} is a file; name a folder.")
    model = load(options.model, pretrained=not options.untrained, device=options.device)
    recipe = Recipe.named(options.recipe, model)
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    site = find_site(model, options.layer, options.kind)
    neurons = check_neurons(site, options.neurons)
    images = image_folder(options.images, model.image_size) if options.images else None
    rendering = Visualizer(model, recipe, images).render(site.layer, neurons, site.kind, options.seed)
    rendering.save(options.out)
    counts = ", ".join(f"{rendering.scores.status.count(s)} {s}" for s in ("alive", "weak", "dead"))
    left = "" if rendering.finished else "; interrupted: the same command makes those that are not finished again"
    print(f"{len(neurons)} picture{'s' * (len(neurons) > 1)} of {model.title} {site} in {options.out} ({counts}){left}")
    return 0 if rendering.finished else 130


def _train(options) -> None:
    from .training.training import train

    card = train(options.model, options.out, options.device, options.steps)
    for group, row in card["accuracy"].items():
        low, high = row["interval95"]
        print(f"{group:<24}{100 * row['top1']:5.1f} %  (95 % interval {100 * low:.1f} to {100 * high:.1f}, n = {row['n']})")


def _atlas(options) -> None:
    from .models.loading import load
    from .models.sites import find_site, find_sites
    from .visualize.atlas_maker import make_atlas
    from .visualize.recipe import Recipe

    Recipe.named(options.recipe)  # so that a wrong name is told before a model is loaded
    model = load(options.model, device=options.device)
    kind, sites = next(iter(find_sites(model).items()))
    if options.layers == "all":
        layers = range(len(sites))
    else:
        try:
            layers = [-1] if options.layers == "-1" else _ranges(options.layers)
        except argparse.ArgumentTypeError:
            raise VitvizError(f"--layers is all, -1 or numbers and ranges such as 0-3 or 2,5, got {options.layers!r}.") from None
    layers = [find_site(model, layer, kind).layer for layer in layers]
    atlas = make_atlas(model, layers, options.out, Recipe.named(options.recipe, model), options.seed)
    size = sum(file.stat().st_size for file in options.out.iterdir() if file.is_file()) / 1e6
    print(f"{sum(sites[i].units for i in atlas.facts['layers'])} pictures of {model.title} in {options.out} ({size:.1f} MB)")


def _background(options) -> None:
    from .experiments.background import normalized, paper_table
    from .models.loading import load

    models = [load(name, device=options.device) for name in options.model]
    finding = paper_table(models, options.images, options.boxes, options.per_class)
    path = finding.save(options.out)
    for title, table in ((finding.quantity, finding.table), (f"{normalized(finding).quantity}, as the paper's table",
                                                             normalized(finding).table)):
        print(f"{title}:")
        for row in table.itertuples():
            print(f"  {row.model:<44}{row.shown:<12}{row.measure}  {row.value:6.2f}  "
                  f"(95 % interval {row.low:.2f} to {row.high:.2f}, n = {row.n})")
    print(f"written to {path}")


def _publish(options) -> None:
    from .course.publish import publish

    changed = publish(options.target, Path.cwd())
    print("\n".join(map(str, changed)) if changed else "nothing to change: badges and addresses are as they should be")


if __name__ == "__main__":
    sys.exit(main())
