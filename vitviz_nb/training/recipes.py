"""How each embedded model is trained: architecture, data, optimization and objective."""

import dataclasses

from ..datasets.sprites import STYLES
from ..utils import validate
from ..utils.errors import VitvizError

SIZE = 64  # px
COLORED = ("3d", "cartoon", "flat")
WITH_WORDS = (*COLORED, *COLORED, "word")  # reading is learned late: more words than this slow everything down

# Few augmentations leave the colors of a feature visualization as the neuron prefers them (data/models/README.md).
_PICTURES = {"steps": 64, "copies": 1, "tv": 0.04, "jitter": 0.125, "color": 0.1, "noise": 0.05, "spread": 0.2, "leak": 0.1}
# The gradients of a robust model are smoother: they need more steps and less regularization.
_PICTURES_ROBUST = {**_PICTURES, "steps": 128, "tv": 0.014, "jitter": 0.09}


@dataclasses.dataclass(frozen=True)
class Training:
    """How one embedded model is trained; by default from random weights, on labels. Cards hold these fields.

    A ``patch_drop_rate`` of the architecture holds until the last fifth of the steps (PatchDropout, Liu et al. 2022): the
    transformer sees almost twice as many scenes in the same time.
    """

    architecture: dict  # class and arguments, as models.cards.build takes them
    styles: tuple[str, ...] = COLORED  # one given twice is drawn twice as often; the others are held out for tests of transfer
    steps: int = 4500
    batch: int = 128  # scenes in a step
    peak: float = 3e-3  # the largest learning rate, which then falls to 0 along a cosine
    warmup: int = 200  # steps to reach the peak
    decay: float = 0.05  # of the weights
    start: str | None = None  # the model whose trained weights it starts from
    radius: float = 0.0  # L2 norm of the adversarial perturbation of each scene (PGD), of the whole image in [0, 1]; 0 for none
    every_token: bool = False  # dense supervision: each patch token of the last block predicts the concept, not only CLS
    teacher: str | None = None  # the model whose predictions the distillation token learns (DeiT)
    captions: bool = False  # match scenes and captions with a text tower (CLIP) instead of labels
    seed: int = 0  # of weights, scenes and perturbations
    pictures: dict = dataclasses.field(default_factory=lambda: _PICTURES)  # Recipe.quick's settings for this model

    def __post_init__(self):
        for name, low, high in (("steps", 1, 10**9), ("batch", 1, 2**16), ("warmup", 1, 10**9), ("seed", 0, 2**40)):
            validate.whole(name, getattr(self, name), low, high)
        for name, high in (("peak", 1e38), ("decay", 1e6), ("radius", 1e6)):
            validate.real(name, getattr(self, name), 0, high)
        for style in self.styles:
            validate.choice("styles", style, STYLES)
        if self.every_token + bool(self.teacher) + self.captions > 1:
            raise VitvizError("Each of every_token, teacher and captions sets what a model learns from; a recipe takes one.")


def _timm(path: str, **arguments) -> dict:
    return {"class": f"timm.models.{path}", "arguments": {"num_classes": 256, **arguments}}


_VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "patch_drop_rate": 0.5}
_RESNET = {"block": "timm.models.resnet.BasicBlock", "layers": (1, 2, 2, 1), "channels": (48, 96, 160, 256)}
TRAININGS = {
    "emoji-vit-standard": Training(_timm("vision_transformer.VisionTransformer", **_VIT), WITH_WORDS, steps=11_000),
    "emoji-vit": Training(_timm("vision_transformer.VisionTransformer", **_VIT), steps=5000, peak=2e-3,
                          start="emoji-vit-standard", radius=2.0, every_token=True, seed=1,
                          # Shifts by more than a patch, so that no position in it is left out; low frequencies first.
                          pictures={**_PICTURES_ROBUST, "jitter": 0.14, "blur": 0.1}),
    # The first 384,000 of the 1,408,000 scenes that emoji-vit-standard sees, with captions instead of labels (and in smaller
    # batches: see below); 128 is the width of the embedding.
    "emoji-clip": Training(_timm("vision_transformer.VisionTransformer", **_VIT | {"num_classes": 128}), WITH_WORDS,
                           steps=6000, batch=64, captions=True),
    "emoji-resnet": Training(_timm("resnet.ResNet", **_RESNET), steps=5500),
    "emoji-resnet-robust": Training(_timm("resnet.ResNet", **_RESNET), steps=2500, peak=2e-3, start="emoji-resnet", radius=2.0,
                                    seed=1),
    # Batches of 64: on a CPU, where scenes are what costs, they learn more of each (loss 3.7 instead of 4.1 after 25,600).
    "emoji-deit": Training(_timm("deit.VisionTransformerDistilled", **_VIT), steps=5500, batch=64, teacher="emoji-resnet"),
    "emoji-coat": Training(_timm("coat.CoaT", img_size=SIZE, patch_size=4, embed_dims=(64, 96, 96, 96),
                                 serial_depths=(1, 1, 1, 1), parallel_depth=1, num_heads=8), steps=4000, batch=64),
    "emoji-convit": Training(_timm("convit.ConVit", img_size=SIZE, patch_size=8, embed_dim=32, depth=6, num_heads=4,
                                   local_up_to_layer=4), steps=1900),
    "emoji-pit": Training(_timm("pit.PoolingVisionTransformer", img_size=SIZE, patch_size=8, stride=4, base_dims=(24, 24, 24),
                                depth=(1, 2, 2), heads=(2, 4, 8)), batch=64),
    "emoji-swin": Training(_timm("swin_transformer.SwinTransformer", img_size=SIZE, patch_size=4, embed_dim=48,
                                 depths=(2, 2, 2), num_heads=(2, 4, 8), window_size=4), batch=64),
    "emoji-twins": Training(_timm("twins.Twins", img_size=SIZE, patch_size=4, embed_dims=(48, 96, 192), num_heads=(2, 4, 6),
                                  mlp_ratios=(4, 4, 4), depths=(1, 2, 2), sr_ratios=(4, 2, 1), wss=(4, 4, 4)), steps=4000,
                            batch=64),
}
# Each family once more, for feature visualization: adversarially trained, as emoji-vit. Large batches, because on a GPU, where
# this takes minutes, launching is what costs.
for _name, _steps in (("coat", 1400), ("convit", 1000), ("pit", 2100), ("swin", 2100), ("twins", 1800)):
    TRAININGS[f"emoji-{_name}-robust"] = dataclasses.replace(
        TRAININGS[f"emoji-{_name}"], steps=_steps, batch=256, peak=2e-3, start=f"emoji-{_name}", radius=2.0, seed=1,
        pictures=_PICTURES_ROBUST, every_token=_name in ("coat", "convit", "pit"))  # the other two average over all tokens
