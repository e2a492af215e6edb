"""Models: any network from images to logits, and where its neurons are read.

- ``loading``: ``load`` (embedded models, timm's, checkpoints), ``list_models``
- ``wrapping``: ``wrap`` (any ``nn.Module``); ``checkpoints``: weights from files of any making
- ``vision_model``: ``VisionModel``, through which every forward pass goes, and which knows what it computes at this moment
- ``sites``: ``find_sites``, ``find_site``, ``KINDS``: where activations can be read
- ``trace``, ``positions``: what one forward pass shows of MLPs and attention; where tokens lie, proven by a probe
- ``reading``: ``tokens`` and ``activations`` at those sites
- ``cards``, ``hub``: the embedded models' cards; trained weights from the Hugging Face hub
- ``hooks``: forward hooks that only their own thread sees
- ``text_tower``: the language half of ``emoji-clip``
"""
