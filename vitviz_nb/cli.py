"""The command ``vitviz``: feature visualizations and more, without a notebook."""

import argparse
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Event, current_thread, main_thread

from .utils.errors import VitvizError

_INTERRUPTED = "vitviz: interrupted; what was finished is kept, and the same command goes on."


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0; 1 for problems that the doctor found; 2 for errors that a user can fix; 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot show a name gets it with escapes
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: print(f"vitviz: {message}", file=sys.stderr)
    try:
        with _interruptible():
            options = _parser().parse_args(arguments)
            if options.run is not _cache:
                from .models import loading  # noqa: F401, and torch with it
        code = options.run(options) or 0
        print(end="", flush=True)
        return code
    except VitvizError as error:
        print(f"vitviz: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        if isinstance(error, BrokenPipeError):  # vitviz models '*' | head
            return 0
        print(f"vitviz: {error}", file=sys.stderr)
        return 2


@contextmanager
def _interruptible() -> Iterator[None]:
    """Exit with 130 at Ctrl-C: a KeyboardInterrupt inside an import comes out as any error there is."""
    def leave(*_) -> None:
        print(_INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(130)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"vitviz: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vitviz", description="Feature visualizations of the neurons of vision transformers.",
                     epilog="The notebooks in notebooks/ explain what the pictures mean; begin with 00_start_here.ipynb.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, description: str, **more) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=f"{description[0].upper()}{description[1:]}.",
                                  formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        sub.set_defaults(run=run)
        return sub

    device, force, how, network = (_Parser(add_help=False) for _ in range(4))
    device.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    force.add_argument("--force", action="store_true", help="replace files at --out that this command did not make")
    how.add_argument("--recipe", default="quick", choices=["quick", "fourier", "paper"],
                     help="quick (default: what suits the model), fourier or paper")
    how.add_argument("--seed", type=int, default=0, help="of the random start and augmentation (default 0)")
    network.add_argument("--checkpoint", type=_path, help="file of your own weights for the timm name")
    network.add_argument("--image-size", type=int, help="side of a timm model's input in px (default: the model's own)")

    command("doctor", _doctor, "say what this machine has, what is missing, and which files of the kit are damaged")
    sub = command("cache", _cache, "say how much the cache holds, and where")
    sub.add_argument("--clear", action="store_true", help="empty it; downloaded weights stay")
    sub = command("models", _models, "list the models that can be loaded by name")
    sub.add_argument("pattern", nargs="?", help="also list timm's pretrained models that match, such as '*clip*'")

    sub = command("render", _render, "render feature visualizations of neurons", parents=[network, how, device, force],
                  epilog="examples:\n  vitviz render emoji-vit --layer -1 --neurons 0-15 --out pictures\n"
                         "  vitviz render vit_base_patch16_224 --layer 10 --neurons 0-3 --images photos --out pictures\n\n"
                         "writes sheet.png (all pictures with captions), neuron_N.png, pictures.npz and manifest.json.")
    sub.add_argument("model", help="an embedded model, or any timm name (its weights are downloaded)")
    sub.add_argument("--layer", type=int, required=True, help="counted from 0 in forward order; -1 is the last")
    sub.add_argument("--neurons", required=True, type=_ranges, help="numbers and ranges: 0-15 or 2,5,7-9")
    sub.add_argument("--kind", help="mlp, channel, logit, cls, query, key, value, attention, residual (default: the model's)")
    sub.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    sub.add_argument("--images", type=_path, help="folder of reference images for the scores (default: Emoji World)")
    sub.add_argument("--untrained", action="store_true", help="random weights, to see what training changes")
    sub.add_argument("--out", type=_path, required=True, help="folder for the pictures; made if missing")

    sub = command("train", _train, "train an embedded model on Emoji World; goes on from its checkpoint if there is one",
                  parents=[device, force])
    sub.add_argument("model", help="a model that has a recipe: emoji-vit, emoji-resnet, emoji-swin, …")
    sub.add_argument("--steps", type=int, help="fewer updates than the recipe's, to try it out")
    sub.add_argument("--out", type=_path, default=Path("trained"),
                     help="folder for weights, card and checkpoint (default: trained); the kit's own are in data/models")

    sub = command("atlas", _atlas, "render the neurons of whole layers, for sliders that answer at once",
                  parents=[network, how, device],
                  epilog="example:\n  vitviz atlas emoji-swin --layers -1 --out data/atlas/emoji-swin\n\n"
                         "writes manifest.json, and sprite sheets and a table for each layer.\n"
                         "Killed at any moment, the same command goes on, and the atlas becomes the same, file for file; other\n"
                         "settings never touch the pictures in a folder. Several machines: see data/atlas/README.md.")
    sub.add_argument("model", help="an embedded model, or any timm name")
    sub.add_argument("--layers", default="all", type=_layers,
                     help="all (default), or numbers and ranges: 0-3 or 2,5; -1 is the last")
    sub.add_argument("--count", type=int, help="so many evenly spaced neurons of each layer (default: all)")
    sub.add_argument("--photos", action="store_true", help="score against the kit's photographs (default: Emoji World)")
    sub.add_argument("--title", help="what captions call the network (default: its name)")
    sub.add_argument("--out", type=_path, required=True, help="folder for the atlas; made if missing")

    sub = command("gallery", _gallery, "write an atlas as a page for a website: its neurons and their top images",
                  parents=[force], epilog="example:\n  vitviz gallery emoji-vit --out site\n\n"
                         "writes site/index.html, which needs no network and no other file; only if it would be larger than\n"
                         "10 MB its images go beside it, into site/images. site/index.html#5:203 opens neuron 203 of layer 5.")
    sub.add_argument("atlas", help="the folder of an atlas, or the name of one that ships, such as emoji-vit")
    sub.add_argument("--out", type=_path, required=True, help="folder for the page; made if missing")

    sub = command("serve", _serve, "start a shared visualizer, which notebooks use by vv.connect: a Dask scheduler and workers",
                  epilog="example:\n  vitviz serve --host 0.0.0.0 --certificate class.pem\n\n"
                         "Beyond this machine everything is encrypted, and only who has the certificate is let in; it is made\n"
                         "if there is none. Who has it can run any code here: see notebooks/teaching/shared_gpu.md.")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)")
    sub.add_argument("--port", type=int, default=8786, help="of the scheduler (default 8786)")
    sub.add_argument("--workers", type=int, default=1, help="processes that compute (default 1; 0: other machines bring theirs)")
    sub.add_argument("--certificate", type=_path, help="file with key and certificate (default beyond this machine: vitviz.pem)")

    sub = command("background", _background, "measure the paper's table of foreground and background on images with boxes",
                  parents=[device, force],
                  epilog="example, with ImageNet and its boxes:\n"
                         "  vitviz background vit_base_patch32_224 resnet50 --images imagenet/train \\\n"
                         "      --boxes LOC_train_solution.csv --out table.csv\n\n"
                         "prints and writes accuracy in percent; what is done is kept, and the same command goes on.")
    sub.add_argument("model", nargs="+", help="any timm names with ImageNet's classes")
    sub.add_argument("--images", type=_path, required=True, help="a folder with a subfolder for each class, as n01440764")
    sub.add_argument("--boxes", type=_path, required=True, help="LOC_train_solution.csv, or a CSV: file,left,top,right,bottom")
    sub.add_argument("--per-class", type=int, help="so many images of each class (default: all that have boxes)")
    sub.add_argument("--out", type=_path, required=True, help="CSV file for the table")

    sub = command("grade", _grade, "collect the results of exercises from executed notebooks, without executing anything",
                  parents=[force],
                  epilog="example:\n  vitviz grade handed_in --out grades.csv\n\n"
                         "reads what vv.check printed in every notebook below the folder. Columns: file, exercise, and result\n"
                         "(right, not yet, unclear, error, not run or missing). A student can write 'Right' into a file: run\n"
                         "a sample again.")
    sub.add_argument("folder", type=_path, help="what students handed in, such as a subfolder for each")
    sub.add_argument("--out", type=_path, required=True, help="CSV file for the table")
    return parser


def _ranges(text: str) -> list[range]:
    """``0-15`` or ``2,5,7-9`` as ranges, not yet counted out: a layer's size is known only with its model."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part, re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers and ranges such as 0-15 or 2,5,7-9")
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return ranges


def _layers(text: str) -> str | list[range]:
    return text if text == "all" else [range(-1, 0)] if text == "-1" else _ranges(text)


def _path(text: str) -> Path:
    from .utils import validate

    try:
        return validate.path("the value", text)
    except VitvizError as error:
        raise argparse.ArgumentTypeError(error) from None


def _doctor(options) -> int:
    from .course.setup import doctor

    return 1 if doctor() else 0


def _cache(options) -> None:
    from .utils import cache
    from .utils.paths import cache_dir

    if options.clear:
        cache.evict(0)
    sizes = [size for _, size, _ in cache.contents()]
    print(f"{len(sizes)} results in {cache_dir()}: {sum(sizes) / 1e6:.1f} MB of at most {cache.limit() / 1e6:g} MB "
          f"(VITVIZ_CACHE_LIMIT); downloaded weights are not counted")


def _models(options) -> None:
    from .models.cards import embedded_names, read_card
    from .models.loading import list_models

    for name in embedded_names():
        card = read_card(name)
        try:
            print(f"{name:<20} {card['parameters'] / 1e6:.1f} M parameters, accuracy on unoccluded scenes "
                  f"{_percent(card['accuracy']['unoccluded'])}")
        except (KeyError, TypeError):
            raise VitvizError(f"The card of {name} has no accuracy on unoccluded scenes; run vitviz doctor.") from None
    if options.pattern is None:
        print("and any timm model: vitviz models '*clip*' searches their names")
        return
    names = list_models(options.pattern)[len(embedded_names()):]
    if not names:
        raise VitvizError(f"No pretrained timm model matches {options.pattern!r}; '*' stands for any letters, as in '*clip*'.")
    print("\n".join(names))


def _render(options) -> int:
    from .datasets.image_folder import image_folder
    from .models.loading import load
    from .models.sites import check_neurons, find_site
    from .utils import files
    from .visualize.recipe import Recipe
    from .visualize.rendering import Rendering
    from .visualize.visualizer import Visualizer

    if options.images and options.images.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise VitvizError(f"--out {options.out} is in the folder of --images, so that the pictures would be reference images the "
                          f"next time; name a folder outside of {options.images}.")
    model = load(options.model, not options.untrained, options.device, options.checkpoint, image_size=options.image_size)
    recipe = Recipe.named(options.recipe, model)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    site = find_site(model, options.layer, options.kind)
    neurons = check_neurons(site, chain.from_iterable(options.neurons))
    images = image_folder(options.images, model) if options.images else None
    visualizer = Visualizer(model, recipe, images)
    Rendering.check_folder(options.out, neurons, options.force)
    files.ready(options.out, "--out")
    rendering = visualizer.render(site.layer, neurons, site.kind, options.seed)
    rendering.save(options.out, options.force)
    counts = ", ".join(f"{rendering.scores.status.count(s)} {s}" for s in ("alive", "weak", "dead"))
    rest = "" if rendering.finished else "; interrupted: the same command makes those that are not finished again"
    print(f"{len(neurons)} picture{'s' * (len(neurons) > 1)} of {model.title} {site} in {options.out} ({counts}){rest}")
    return 0 if rendering.finished else 130


def _train(options) -> None:
    from .training.loop import train

    card = train(options.model, options.out, options.device, options.steps, options.force)
    for group, accuracy in card["accuracy"].items():
        print(f"{group:<24}{_percent(accuracy)}, n = {accuracy['n']}")


def _percent(accuracy: dict) -> str:
    """A card's accuracy with its interval, in percent."""
    low, high = accuracy["interval95"]
    return f"{100 * accuracy['top1']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def _atlas(options) -> None:
    from .datasets.image_set import ImageSet
    from .datasets.photographs import photos
    from .models.loading import load
    from .models.sites import find_site
    from .visualize.atlas_maker import make_atlas
    from .visualize.recipe import Recipe

    model = load(options.model, True, options.device, options.checkpoint, image_size=options.image_size)
    ranges = [range(find_site(model).layer + 1)] if options.layers == "all" else options.layers
    layers = [find_site(model, layer).layer for layer in chain.from_iterable(ranges)]
    images = ImageSet(model, photos(), 10**7) if options.photos else None
    atlas = make_atlas(model, layers, options.out, Recipe.named(options.recipe, model), options.seed, neurons=options.count,
                       images=images, title=options.title)
    size = sum(file.stat().st_size for file in options.out.iterdir() if file.is_file()) / 1e6
    count = sum(len(atlas.neurons(layer)) for layer in atlas.facts["layers"])
    print(f"{count} pictures of {model.title} in {options.out} ({size:.1f} MB)")


def _gallery(options) -> None:
    from .widgets.browser import export

    page = export(options.atlas, options.out, options.force)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


def _serve(options) -> None:
    from .visualize.shared import LOOPBACK, serve

    certificate = options.certificate or (None if options.host in LOOPBACK else Path("vitviz.pem"))
    with serve(options.host, options.port, options.workers, certificate) as cluster:
        secret = f", {str(certificate)!r}" if certificate else ""
        print(f"in a notebook: client = vv.connect({cluster.scheduler_address!r}{secret})", flush=True)
        Event().wait()


def _background(options) -> None:
    from .experiments.background import paper_table
    from .experiments.result import is_table
    from .models.loading import load
    from .utils import files, validate

    if options.per_class is not None:
        validate.whole("--per-class", options.per_class, 1)
    if options.out.resolve() == options.boxes.resolve():
        raise VitvizError(f"--out {options.out} is the file of --boxes, which would be lost; name another.")
    files.ready(options.out.parent, "The folder of --out,")
    files.check_target(options.out, is_table, options.force)
    models = [load(name, device=options.device) for name in options.model]
    result = paper_table(models, options.images, options.boxes, options.per_class)
    result.save(options.out, force=options.force)
    shares = result.relative_to(shown="whole").where(shown=["foreground", "background"])
    for title, table in ((result.quantity, result.table), (f"{shares.quantity}, as the paper's table", shares.table)):
        print(f"{title}:")
        for row in table.itertuples():
            print(f"  {row.model:<44}{row.shown:<12}{row.measure}  {row.value:6.2f}  "
                  f"(95 % interval {row.low:.2f} to {row.high:.2f}, n = {row.n})")
    print(f"written to {options.out}")


def _grade(options) -> None:
    from .course.grading import COLUMNS, grade
    from .utils import files

    table, remarks = grade(options.folder)
    files.write(options.out, table.to_csv(index=False), ours=lambda path: path.read_text("utf-8").startswith(",".join(COLUMNS)),
                force=options.force)
    print(*remarks, sep="\n", end="\n" * bool(remarks))
    print(f"{(table['result'] == 'right').sum()} of {len(table)} exercises right, in {table['file'].nunique()} notebooks with "
          f"checks; written to {options.out}")
