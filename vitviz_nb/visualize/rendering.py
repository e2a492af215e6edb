"""A set of pictures with all that is known of them."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..plotting.alt_text import bundle, png
from ..plotting.image_grid import Tile, contact_sheet, to_image
from ..utils import files, validate
from ..utils.errors import VitvizError
from .recipe import Recipe
from .scores import Scores


@dataclass(frozen=True, eq=False)
class Rendering:
    """Pictures of K neurons of one layer. Shows itself in a notebook; ``save`` and ``load`` keep it.

    Attributes:
        model: the model's title ("… (untrained)" for random weights).
        kind, layer, neurons: what was visualized, a neuron's number for each picture; of a direction, a number made from it.
        pictures: float32 (K, 3, S, S), RGB in [0, 1], on the CPU.
        steps: (K,), updates done; fewer than ``recipe.steps`` where it was stopped.
        curve_steps, curves: the activation without augmentation after so many steps: (n,) and (K, n), NaN where not read.
        recipe, seed: how they were made.
        scores: measured afterwards; None in the frames of a stream.
        labels: what captions call the K neurons; None for their numbers.
        directions: float32 (K, units), the weights of the neurons' sum that was visualized; None for single neurons.
    """

    model: str
    kind: str
    layer: int
    neurons: list[int]
    pictures: torch.Tensor
    steps: list[int]
    curve_steps: list[int]
    curves: torch.Tensor
    recipe: Recipe
    seed: int
    scores: Scores | None = None
    labels: list[str] | None = None
    directions: torch.Tensor | None = None

    def __repr__(self) -> str:
        return f"Rendering({self.title}: {len(self.neurons)} pictures of {self.pictures.shape[-1]} px)"

    @property
    def finished(self) -> bool:
        return all(done == self.recipe.steps for done in self.steps)

    def require_finished(self) -> "Rendering":
        """The rendering itself; VitvizError if it was interrupted. Whatever measures pictures calls this first."""
        if not self.finished:
            steps = self.recipe.steps
            raise VitvizError(f"{sum(done < steps for done in self.steps)} of {len(self.steps)} pictures of {self.model}, "
                              f"{self.kind} layer {self.layer}, are unfinished ({sum(self.steps):,} of "
                              f"{len(self.steps) * steps:,} steps done), so nothing is measured on them. The same call continues "
                              f"from there.")
        return self

    @property
    def title(self) -> str:
        against = f", percentiles among {self.scores.reference}" if self.scores else ""
        return f"{self.model}, {self.kind} layer {self.layer}, {self.recipe.work}, seed {self.seed}{against}"

    def caption(self, k: int) -> list[str]:
        """Two short lines on picture ``k``."""
        lines = [self.labels[k] if self.labels else f"neuron {self.neurons[k]}"]
        if self.scores:
            score = f"{self.scores.activation[k]:.3g}, above {self.scores.percentile[k]:.1f} %"
            lines.append(score if self.scores.status[k] == "alive" else f"{self.scores.status[k]}: {score}")
        if self.steps[k] < self.recipe.steps:
            lines.append(f"stopped at step {self.steps[k]}")
        return lines

    def sheet(self) -> Image.Image:
        """All pictures as one captioned contact sheet."""
        tiles = [Tile(self.pictures[k], self.caption(k), good=not self.scores or self.scores.status[k] == "alive")
                 for k in range(len(self.neurons))]
        return contact_sheet(tiles, self.title)

    def _repr_mimebundle_(self, include=None, exclude=None):
        named = ", ".join(self.labels or [f"neurons {self.neurons[0]}", *map(str, self.neurons[1:])])
        return bundle(self.sheet(), f"Pictures of {named}: {self.title}")

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write ``manifest.json``, ``pictures.npz``, ``sheet.png`` and ``neuron_N.png`` for each; returns the folder.

        The manifest has the SHA-256 of each file, by which the files of an earlier rendering are known: they are replaced, or
        removed where this one has none of their name.

        Raises:
            VitvizError: a folder that cannot be written, or that holds files of these names that no rendering wrote, or that
                were changed since, unless ``force``. Nothing is overwritten then.
        """
        folder = validate.path("folder", folder)
        names = [f"neuron_{n}{f'_{k}' * (len(set(self.neurons)) < len(self.neurons))}.png" for k, n in enumerate(self.neurons)]
        self.check_folder(folder, self.neurons, force)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        arrays = packed({name: value.numpy() for name, value in tensors.items()})
        facts = {name: value for name, value in vars(self).items() if name not in tensors}
        contents = {"pictures.npz": arrays, "sheet.png": png(self.sheet())}
        contents |= {name: png(to_image(picture)) for name, picture in zip(names, self.pictures, strict=True)}
        earlier = {path.name: files.sha256(path) for path in _written(folder)}
        # With what each file replaces, so that files of both renderings are known where this is interrupted.
        digests = {name: [hashlib.sha256(content).hexdigest(), *filter(None, [earlier.get(name)])]
                   for name, content in contents.items()}
        facts |= {"recipe": asdict(self.recipe), "scores": self.scores and asdict(self.scores), "version": __version__,
                  "files": digests}
        files.write(folder / "manifest.json", json.dumps(facts, indent=1) + "\n")
        for name in earlier.keys() - contents.keys():
            (folder / name).unlink(missing_ok=True)
        for name, content in contents.items():
            files.write(folder / name, content)
        return folder

    @staticmethod
    def check_folder(folder: Path, neurons: list[int], force: bool = False) -> None:
        """VitvizError if ``save`` would refuse to write pictures of these neurons there: to be called before long work, too."""
        written = [*_written(folder), *([folder / "manifest.json"] if "curve_steps" in _manifest(folder) else [])]
        for name in ("sheet.png", "pictures.npz", "manifest.json", *(f"neuron_{n}.png" for n in neurons)):
            files.check_target(folder / name, lambda path: path in written, force)

    @classmethod
    def load(cls, folder: str | Path) -> "Rendering":
        """Read what ``save`` wrote; VitvizError for a folder without it."""
        folder = validate.path("folder", folder)
        try:
            facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            content = (folder / "pictures.npz").read_bytes()
            digest, older = hashlib.sha256(content).hexdigest(), facts.pop("sha256", None)
            if digest != facts.pop("files", {"pictures.npz": [older or digest]})["pictures.npz"][0]:
                raise ValueError("its pictures are not the manifest's")
            with np.load(BytesIO(content), allow_pickle=False) as arrays:
                facts |= {name: torch.from_numpy(array) for name, array in arrays.items()}
            del facts["version"]
            facts |= {"recipe": Recipe(**facts["recipe"]), "scores": facts["scores"] and Scores(**facts["scores"])}
            if len({len(facts[name]) for name in ("pictures", "curves", "neurons", "steps")}) > 1:
                raise ValueError("its pictures are not as many as its neurons")
            return cls(**facts)
        except Exception as error:  # damaged JSON and zip files fail in many ways, none of which the user need know
            raise VitvizError(f"{folder} holds no complete rendering ({error}); it needs the manifest.json and pictures.npz "
                              f"that Rendering.save writes.") from None


def _manifest(folder: Path) -> dict:
    """The manifest in a folder; an empty one where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    return {}


def _written(folder: Path) -> list[Path]:
    """The files in a folder that a rendering wrote beside its manifest, and nobody changed since."""
    listed = _manifest(folder).get("files")
    return [path for name, digests in (listed.items() if isinstance(listed, dict) else ())
            if re.fullmatch(r"pictures\.npz|sheet\.png|neuron_\d+(_\d+)?\.png", name) and isinstance(digests, list)
            and (path := folder / name).is_file() and files.sha256(path) in digests]


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as the content of an ``.npz`` file."""
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
