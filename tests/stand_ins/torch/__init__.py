"""The part of torch that a run without videos needs: the base class of datasets. torch itself takes
1.2 s of CPU to import, in three processes of a small run. ``Run.stand_ins`` in tests/helpers.py
says which runs get this one."""


def set_num_threads(number: int) -> None:
    """The fork server calls it."""


def seed() -> None:
    """A decode process calls it."""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"torch.{name} is not in tests/stand_ins. A test whose runs need it has the mark as_users"
    )
