"""Which class of a model a data set's class is: never a guess."""

from functools import cache

from timm.data import ImageNetInfo

from ..utils.errors import VitvizError


def label_indices(classes: list[int], names: list[str], class_names: list[str]) -> list[int]:
    """Classes of a data set as indices into the class names of a model.

    Two lists that agree class by class are matched by position (as for torchvision's data sets, ImageNet's repeated names
    included). Else a class is matched by its name in any case, for ImageNet's 1,000 also by any of its synonyms or its WordNet
    id (n02012849), or by its number.

    Args:
        classes: indices into ``names``.
        names: of the data set's classes; several synonyms are separated by ", ".
        class_names: the model's.

    Raises:
        VitvizError: one of ``classes`` fits none of the model's, or two.
    """
    imagenet = _imagenet() if len(class_names) == 1000 else []
    if not all(name.startswith(synonyms[2]) for name, synonyms in zip(class_names, imagenet, strict=False)):
        imagenet = []
    indices: dict[str, set[int]] = {}
    for i, name in enumerate(class_names):
        for written in (name, *(imagenet[i] if imagenet else ())):
            indices.setdefault(written.casefold(), set()).add(i)
    matches = []
    for name in names:
        number = {int(name)} if name.isdecimal() and int(name) < len(class_names) else set()
        matches.append(indices.get(name.casefold()) or indices.get(name.split(",")[0].casefold()) or number)
    if len(names) == len(class_names) and all(i in match for i, match in enumerate(matches)):
        return list(classes)
    wanted = sorted(set(classes))
    if unknown := [names[i] for i in wanted if not matches[i]]:
        raise VitvizError(f"The model knows no class {unknown[0]!r} ({len(unknown)} of the labels are not among its "
                          f"{len(class_names)} class names, such as {class_names[0]!r}). Name the folders as it does.")
    if several := [i for i in wanted if len(matches[i]) > 1]:
        fitting = [f"{k} ({', '.join(imagenet[k][:2]) if imagenet else class_names[k]})" for k in sorted(matches[several[0]])]
        raise VitvizError(f"The class {names[several[0]]!r} fits {len(fitting)} classes of the model: {' and '.join(fitting)}. "
                          f"Name its folder by {'WordNet id' if imagenet else 'number'}.")
    return [next(iter(matches[i])) for i in classes]


@cache
def _imagenet() -> list[tuple[str, ...]]:
    """Of each of ImageNet's 1,000 classes the WordNet id, all synonyms in one, and each synonym."""
    info = ImageNetInfo("imagenet-1k")
    described = [info.index_to_description(i) for i in range(1000)]
    return [(wordnet, text, *text.split(", ")) for wordnet, text in zip(info.label_names(), described, strict=True)]
