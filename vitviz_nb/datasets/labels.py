"""Which class of a model a data set's class is: never a guess."""

from functools import cache

from timm.data import ImageNetInfo

from ..utils.errors import VitvizError


class Labels:
    """The classes of a data set, each as an index into the class names of a model.

    Two lists that agree class by class are matched by position (as for torchvision's data sets, ImageNet's repeated names
    included). Else a class is matched by its name in any case, for ImageNet's 1,000 also by any of its synonyms or its WordNet
    id (n02012849), or by its number.

    Args:
        names: of the data set's classes; several synonyms are separated by ", ".
        class_names: the model's.
    """

    def __init__(self, names: list[str], class_names: list[str]):
        self._names, self._class_names, self._imagenet = names, class_names, []
        if len(class_names) == 1000 and all(map(str.startswith, class_names, (first for _, _, first, *_ in _imagenet()))):
            self._imagenet = _imagenet()
        indices: dict[str, set[int]] = {}
        for i, name in enumerate(class_names):
            for written in (name, *(self._imagenet[i] if self._imagenet else ())):
                indices.setdefault(written.casefold(), set()).add(i)
        self._matches = []
        for name in names:
            number = {int(name)} if name.isdecimal() and int(name) < len(class_names) else set()
            self._matches.append(indices.get(name.casefold()) or indices.get(name.split(",")[0].casefold()) or number)
        if len(names) == len(class_names) and all(i in match for i, match in enumerate(self._matches)):
            self._matches = [{i} for i in range(len(names))]

    def of(self, classes: list[int]) -> list[int]:
        """The model's indices of these classes; VitvizError, naming it, for a class that fits none of the model's, or two."""
        wanted = sorted(set(classes))
        if unknown := [i for i in wanted if not self._matches[i]]:
            raise VitvizError(f"The model knows no class {self._names[unknown[0]]!r} ({len(unknown)} of the labels are not among "
                              f"its {len(self._class_names)} class names, such as {self._class_names[0]!r}). Name the folders as "
                              f"it does.")
        for i in wanted:
            if len(self._matches[i]) > 1:
                fitting = [f"{k} ({', '.join(self._imagenet[k][:2]) if self._imagenet else self._class_names[k]})"
                           for k in sorted(self._matches[i])]
                raise VitvizError(f"The class {self._names[i]!r} fits {len(fitting)} classes of the model: "
                                  f"{' and '.join(fitting)}. Name its folder by {'WordNet id' if self._imagenet else 'number'}.")
        return [next(iter(self._matches[i])) for i in classes]


@cache
def _imagenet() -> list[tuple[str, ...]]:
    """Of each of ImageNet's 1,000 classes the WordNet id, all synonyms in one, and each synonym."""
    info = ImageNetInfo("imagenet-1k")
    described = [info.index_to_description(i) for i in range(1000)]
    return [(wordnet, text, *text.split(", ")) for wordnet, text in zip(info.label_names(), described, strict=True)]
