"""Images with ground truth: scenes drawn on the fly, folders of one's own, and any of them numbered for a model.

``emoji_world``: ``EmojiWorld``, endless labeled scenes with masks, contexts and captions (``backgrounds``, ``sprites`` and
``drawing`` make them; ``data/emoji_world`` holds the art). ``image_folder``: a folder of images, with bounding ``boxes``.
``photographs``: labeled photographs with masks, those that ship and two data sets to download.
``image_set``: ``ImageSet``, what every experiment takes: a world, a folder, a torchvision data set or a tensor as one numbered
set at a model's size, with masks and ``labels`` among its classes; and ``derangement``, the label-shuffle control.
``preprocessing``: timm's resizing and cropping of a model's images, masks and boxes.
"""
