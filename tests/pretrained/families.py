"""The sweep: in one small network of each of timm's model modules, are units, positions and prefix tokens what the kit says?

``python tests/pretrained/families.py [module ...]`` prints one line a module; without arguments it also writes families.md.
Weights are random (seed 0), so nothing is downloaded. What a site reads is compared with what hooks of this file's own see, and
where it lies with a probe of this file's own: one square of an image is replaced, and the tokens that change most must be there.
"""

import itertools
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vitviz_nb.models.reading import at_sites
from vitviz_nb.models.sites import Site, find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

SIZES = (128, 160, 192, 224, 240, 256, 299, 331, 384)
SQUARES = 16
MIXED = "mixed"
_DEPTH = {"depth": 2}
MEMBERS = {
    "beit": ("beit_base_patch16_224", _DEPTH), "byoanet": ("halonet_h1", {}), "byobnet": ("mobileone_s1", {}),
    "cait": ("cait_xxs24_224", _DEPTH), "coat": ("coat_tiny", {}), "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}), "convnext": ("convnextv2_atto", {}), "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}), "csatv2": ("csatv2", {}), "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}), "davit": ("davit_tiny", {}), "deepseek_vit": ("deepseek_vit_412m", _DEPTH),
    "deit": ("deit_tiny_distilled_patch16_224", {}), "densenet": ("densenet121", {}), "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}), "edgenext": ("edgenext_xx_small", {}), "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}), "efficientnet": ("mobilenetv2_035", {}),
    "efficientvim": ("efficientvim_m1", {}), "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}), "eva": ("eva02_tiny_patch14_224", {}), "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}), "focalnet": ("focalnet_tiny_srf", {}), "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", _DEPTH), "ghostnet": ("ghostnet_050", {}), "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}), "hiera": ("hiera_tiny_224", {}), "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "hrnet": ("hrnet_w18_small", {}), "iformer": ("iformer_t", {}), "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}), "inception_v3": ("inception_v3", {}),
    "inception_v4": ("inception_v4", {}),
    "lcnetv2": ("lcnetv2_small", {}), "levit": ("levit_128s", {}), "lowformer": ("lowformer_b0", {}),
    "mambaout": ("mambaout_femto", {}), "maxxvit": ("maxvit_rmlp_pico_rw_256", {}), "metaformer": ("poolformer_s12", {}),
    "mlp_mixer": ("mixer_s32_224", {}), "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv5": ("mobilenetv5_base", {}), "mobilevit": ("mobilevitv2_050", {}), "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", _DEPTH), "nasnet": ("nasnetalarge", {}), "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}), "nfnet": ("nfnet_l0", {}), "pit": ("pit_ti_distilled_224", {}),
    "pnasnet": ("pnasnet5large", {}), "pvt_v2": ("pvt_v2_b0", {}), "qwen3_vit": ("qwen3_vit_88m", _DEPTH),
    "rdnet": ("rdnet_tiny", {}), "regnet": ("regnety_002", {}), "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m0_9", {}), "res2net": ("res2net50_48w_2s", {}), "resnest": ("resnest14d", {}),
    "resnet": ("resnet10t", {}), "resnetv2": ("resnetv2_18", {}), "rexnet": ("rexnet_100", {}), "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}), "sequencer": ("sequencer2d_s", {}), "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}), "starnet": ("starnet_s050", {}), "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {}), "swin_transformer_v2": ("swinv2_tiny_window8_256", {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {}), "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_patch16_224", {}), "tresnet": ("tresnet_m", {}), "twins": ("twins_svt_small", {}), "vgg": ("vgg11", {}),
    "visformer": ("visformer_tiny", {}), "vision_transformer": ("vit_tiny_patch16_224", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", _DEPTH),
    "vision_transformer_sam": ("samvit_base_patch16", _DEPTH), "vitamin": ("vitamin_small_224", {}), "volo": ("volo_d1_224", {}),
    "vovnet": ("vovnet39a", {}), "xception": ("legacy_xception", {}), "xception_aligned": ("xception41", {}),
    "xcit": ("xcit_nano_12_p16_224", {}),
}


def build(name: str, arguments: dict, sizes: tuple[int, ...] = SIZES) -> VisionModel:
    """The network with random weights at the smallest of ``sizes`` that it takes."""
    native = timm.get_pretrained_cfg(name)
    for size in sizes if not native or not native.fixed_input_size or "vit" in name else (native.input_size[-1],):
        for more in ({"img_size": size}, {}):
            torch.manual_seed(0)
            try:
                model = VisionModel(timm.create_model(name, **arguments, **more), name, size)
                with torch.no_grad():
                    model.forward(torch.rand(1, 3, size, size))
                return model
            except (TypeError, VitvizError, AssertionError, RuntimeError, ValueError):
                continue
    raise RuntimeError(f"{name} takes none of the sizes {SIZES}")


def squares(size: int, side: int) -> list[tuple[int, int]]:
    """(top, left) of the squares that are replaced, the corners of the image among them."""
    places = torch.randint(0, size - side + 1, (SQUARES, 2), generator=torch.Generator().manual_seed(5))
    places[:4] = torch.tensor([[0, 0], [0, size - side], [size - side, 0], [size - side, size - side]])
    return [tuple(place) for place in places.tolist()]


def probe(model: VisionModel, sites: list[Site], side: int) -> dict[Site, str]:
    """What the probe by squares of ``side`` pixels says of each site that claims positions: "" where it finds them, MIXED where
    it finds none (each token depends on the whole image), else which other arrangement of the tokens explains it better."""
    size, random = model.image_size, torch.Generator().manual_seed(6)
    images = torch.rand(1, 3, size, size, generator=random).repeat(1 + SQUARES, 1, 1, 1)
    for image, (top, left) in zip(images[1:], squares(size, side), strict=True):
        image[:, top:top + side, left:left + side] = torch.rand(3, side, side, generator=random)
    changes: dict[Site, list[Tensor]] = {}
    for part in images[1:].split(4):
        read = at_sites(model, sites, torch.cat([images[:1], part]), lambda site, tokens: tokens.clone())
        for site, tokens in zip(sites, read, strict=True):
            changes.setdefault(site, []).append((tokens[1:] - tokens[:1]).norm(dim=2))
    return {site: misplaced(torch.cat(each), site.grid, size, side) for site, each in changes.items() if site.grid}


def misplaced(changes: Tensor, grid: tuple[int, int], size: int, side: int) -> str:
    """What is wrong with the positions of tokens, from how much (squares, tokens) each changes with each square.

    Both the changes and where the squares are lose their means, over tokens and over squares, so that neither a token that always
    changes nor a square that changes everything counts. What is left agrees in the true arrangement of the tokens more than with
    the squares shuffled, and no other arrangement agrees better by more than three standard errors over squares.
    """
    rows, columns = grid
    if changes.shape[1] != rows * columns:
        return f"{changes.shape[1]} tokens, not {rows} x {columns}"
    covered = torch.stack([_blob(top, left, side, size, rows, columns) for top, left in squares(size, side)])
    changes, covered = (part / part.sum(1, keepdim=True).clamp_min(1e-20) for part in (changes, covered))
    changes, covered = (part - part.mean(0) for part in (changes, covered))
    agreement = changes @ covered.T  # of each square's changes with each square's place
    random = torch.Generator().manual_seed(8)
    shuffled = torch.stack([agreement[range(SQUARES), torch.randperm(SQUARES, generator=random)].sum() for _ in range(500)])
    own = agreement.diagonal()
    if own.sum() <= shuffled.mean() + 4 * shuffled.std():
        return MIXED
    for name, order in arrangements(rows, columns).items():
        better = (changes[:, order] * covered).sum(1) - own
        if better.mean() > 3 * better.std() / SQUARES**0.5:
            return f"in the order {name} its tokens explain the squares better"
    return ""


def _blob(top: int, left: int, side: int, size: int, rows: int, columns: int) -> Tensor:
    """(rows * columns,): a square's place on the grid, blurred by a token."""
    places = [torch.exp(-(((torch.arange(n) + 0.5) - (start + side / 2) / size * n) / max(1, side / size * n)) ** 2)
              for n, start in ((rows, top), (columns, left))]
    return (places[0][:, None] * places[1]).flatten()


def arrangements(rows: int, columns: int) -> dict[str, Tensor]:
    """Orders (rows * columns,) in which a network may keep its tokens, other than row by row, by name."""
    raster = torch.arange(rows * columns).view(rows, columns)
    found = {"flipped vertically": raster.flip(0), "flipped horizontally": raster.flip(1),
             "one token later": raster.flatten().roll(1), "one token earlier": raster.flatten().roll(-1),
             "column by column": raster.T if rows == columns else raster.flatten().view(columns, rows).T}
    for height, width in itertools.product(range(2, rows + 1), range(2, columns + 1)):
        if rows % height == columns % width == 0 and (height, width) != (rows, columns):
            down, across = rows // height, columns // width
            windows = raster.view(down, height, across, width)
            found |= {f"by windows of {height} x {width}": windows.transpose(1, 2),
                      f"within windows of {height} x {width}": windows.permute(1, 3, 0, 2),
                      f"back from windows of {height} x {width}": raster.view(down, across, height, width).transpose(1, 2),
                      f"back from within {height} x {width}": raster.view(height, width, down, across).permute(2, 0, 3, 1)}
    return {name: order.flatten() for name, order in found.items() if not torch.equal(order.flatten(), raster.flatten())}


def values(model: VisionModel, sites: list[Site]) -> dict[Site, str]:
    """What is wrong with what is read at each site that reads a layer's input: other values than the layer is given."""
    given: dict[tuple[str, int], Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(path: str, x: Tensor) -> None:
        given[path, counts[path]] = x.clone()
        counts[path] += 1

    handles = [model.module.get_submodule(path).register_forward_pre_hook(lambda _, given, path=path: keep(path, given[0]))
               for path in {site.path for site in sites}]
    images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(7))
    try:
        with torch.no_grad():
            model.forward(model.normalize(images))
    finally:
        for handle in handles:
            handle.remove()
    wrong = {}
    for site, tokens in zip(sites, at_sites(model, sites, images, lambda site, tokens: tokens.clone(), prefix=True), strict=True):
        layer, x = model.module.get_submodule(site.path), given[site.path, site.call]
        convolution = isinstance(layer, nn.Conv2d)
        x = (x.movedim(1, -1) if convolution else x).reshape(2, -1, layer.weight.shape[1])
        same = x.shape == tokens.shape and torch.allclose(x.sort(1).values, tokens.sort(1).values, atol=1e-5)
        wrong[site] = "" if same and site.units == layer.weight.shape[1] else "other values than the closing layer is given"
    return wrong


def check(module: str) -> tuple[str, str]:
    """(result, remarks) of a module's member; where it has no grid in a small image, in one of 224 px."""
    found = judge(build(*MEMBERS[module]))
    return found if found[0] != "partly" or found[1].startswith("224 ") else judge(build(*MEMBERS[module], (224,)))


def judge(model: VisionModel) -> tuple[str, str]:
    """(result, remarks) of a network."""
    try:
        found = find_sites(model)
        own = find_site(model).kind
    except VitvizError as error:
        return "refused", str(error)
    sites = [site for kind, some in found.items() if kind not in ("logit", "cls", "attention") for site in some]
    fine = [site for site in sites if site.order is not None]
    placed = probe(model, sites, model.image_size // 16)
    placed |= probe(model, fine, model.image_size // max(site.grid[0] for site in fine)) if fine else {}
    if found.get("residual") and MIXED not in [placed.get(site) for site in found["residual"]]:
        placed |= {site: "no square is found, though the residual stream that it is computed from shows all of them"
                   for site, said in placed.items() if said == MIXED and site.kind in ("query", "key", "value")}
    mixed = [site for site, said in placed.items() if said == MIXED]
    faults = [f"{site} ({site.path}): {fault}" for site, fault in [
        *placed.items(), *values(model, [site for site in sites if site.given]).items()] if fault not in ("", MIXED)]
    shown = ", ".join(f"{len(some)} {kind}" for kind, some in found.items())
    trunk = [site for kind in ("mlp", "channel", "residual") for site in found.get(kind, [])]
    lost = [str(site) for site in trunk if not site.grid]
    orders = {"reordered" for site in trunk if site.order is not None}
    remarks = [f"{model.image_size} px: {shown}", *orders]
    if mixed:
        remarks.append(f"{len(mixed)} of {len(placed)} too mixed to be probed")
    if faults:
        return "WRONG", "; ".join([*remarks, f"{len(faults)} faults", *faults[:4]])
    if own == "logit":
        return "refused", "; ".join([*remarks, "only logits"])
    if lost:
        return "partly", "; ".join([*remarks, f"no grid in {len(lost)} of {len(trunk)} layers: {', '.join(lost[:3])}"])
    return "sound", "; ".join(remarks)


def main(modules: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, total = [], time.time()
    for module in modules or sorted(MEMBERS):
        start = time.time()
        try:
            result, remarks = check(module)
        except Exception as error:  # what the sweep is there to find
            result, remarks = "CRASH", f"{type(error).__name__}: {str(error)[:200]}"
        rows.append(f"| {module} | `{MEMBERS[module][0]}` | {result} | {remarks} |")
        print(f"{time.time() - start:5.1f} s {rows[-1]}", flush=True)
    counts = Counter(row.split(" | ")[2] for row in rows)
    print(dict(counts), f"{time.time() - total:.0f} s")
    if not modules:
        head = Path(__file__).with_name("families.md")
        head.write_text("\n".join(["# One small network of each of timm's model modules", "", _INTRODUCTION, "",
                                   ", ".join(f"**{n} {result}**" for result, n in counts.most_common()) + ".", "",
                                   "| module | network | result | sites |", "|---|---|---|---|", *rows, ""]))


_INTRODUCTION = (
    "Can the kit read neurons and positions in any timm architecture? One small network per model module, with random weights, "
    "at the smallest image size that it takes. "
    f"Written by `python tests/pretrained/families.py` with timm {timm.__version__}.\n\n"
    "- *Sound*: at every site units and activations equal those of independent hooks, and no other order of its tokens explains "
    "better which of them change when one square of the image changes.\n"
    "- *Too mixed to be probed* (counted for each network): sites where, with random weights, every token depends equally on "
    "the whole image.\n"
    "- *Partly*: some layers are read without a grid of positions.\n"
    "- *Refused*: the kit reports that it cannot read the network.")

if __name__ == "__main__":
    main(sys.argv[1:])
