"""The part of torch that a run without videos needs: the base class of datasets. torch itself takes
1.2 s of CPU to import, in three processes of a small run. ``Run.stand_ins`` in tests/helpers.py
says which runs get this one."""


def set_num_threads(number: int) -> None:
    """The fork server calls it."""


def seed() -> None:
    """A decode process calls it."""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"torch.{name} is missing in the stand-in for torch, tests/stand_ins. Mark tests whose runs "
        "need more than that with as_users"
    )
