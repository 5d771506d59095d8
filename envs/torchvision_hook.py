"""Lets torchvision be imported when its compiled operators do not load.

Where PyTorch's CPU index is out of reach, pip gives the CUDA build of torchvision, whose compiled
part does not load beside a CPU build of torch. The Python part, all that transformers and vLLM use
here, needs no more than the operator schemas that torchvision's ``_meta_registrations`` refers to.
``envs/install.sh`` puts this module into the virtual environment only if ``import torchvision``
fails, with a ``.pth`` file that calls ``install()`` in every process: vLLM inspects models in a
child process, so a fix inside the workflow's own code would miss it.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries = []  # a torch Library takes its schemas with it when it is collected


class _Loader(SourceFileLoader):
    """Defines the operators just before torchvision runs."""

    def exec_module(self, module):
        import torch  # not earlier: most processes of the environment never need it

        if not _libraries:
            library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                library.define(schema)
            _libraries.append(library)
        super().exec_module(module)


class _Finder:
    """Gives torchvision's usual spec, with the loader above."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


def install():
    """Watch for the import of torchvision in this process."""
    sys.meta_path.insert(0, _Finder)
