"""As in ``torch/utils/data/dataset.py``, without its checks and its methods for subclasses."""

from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    def __getitem__(self, index: object) -> T_co:
        raise NotImplementedError("Subclasses of Dataset should implement __getitem__.")
