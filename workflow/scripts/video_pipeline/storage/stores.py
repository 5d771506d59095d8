"""Reads objects of stores: S3 and services with its API, Google Cloud Storage, Azure, Hugging Face.

obstore reads the first three (docs/internals.md says why).

Credentials come from the environment only, and so do endpoints: ``AWS_ENDPOINT_URL`` (MinIO, R2),
``GOOGLE_*``, ``AZURE_*``, ``HF_ENDPOINT``. obstore's documentation of ``S3Config``, ``GCSConfig``
and ``AzureConfig`` lists the variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from video_pipeline.config.source import BUCKET, scheme_of
from video_pipeline.storage.access import Access, check_object
from video_pipeline.storage.blobs import Blob
from video_pipeline.storage.errors import VideoReadError

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem
    from obstore.store import ObjectStore

_STREAM_BYTES = 8 << 20


class Listed(NamedTuple):
    """An object of a store, from a listing."""

    address: str
    size: int
    version: str  # changes when its content does


class StoreBlob(Blob):
    """An object at ``s3://``, ``gs://`` or ``az://``."""

    def __init__(self, address: str, access: Access) -> None:
        check_object(address, access)
        self._store, self._key = store_of(address), key_of(address)

    @cached_property
    def _meta(self) -> Any:
        import obstore

        with explained():
            return obstore.head(self._store, self._key)

    @property
    def size(self) -> int:
        return int(self._meta["size"])

    @property
    def version(self) -> str:
        return str(self._meta["e_tag"] or "")

    def read(self, start: int, stop: int) -> bytes:
        import obstore

        with explained():
            return bytes(obstore.get_range(self._store, self._key, start=start, end=stop))

    def pieces(self) -> Iterator[bytes]:
        import obstore

        with explained():
            for piece in obstore.get(self._store, self._key).stream(_STREAM_BYTES):
                yield bytes(piece)


class HubBlob(Blob):
    """A file at ``hf://``, as ``hf://datasets/owner/name@revision/path``."""

    def __init__(self, address: str, access: Access) -> None:
        check_object(address, access)
        self._path = address.partition("://")[2]

    @cached_property
    def _info(self) -> dict[str, Any]:
        with explained():
            return dict(_hub().info(self._path))

    @property
    def size(self) -> int:
        if self._info["type"] != "file":
            raise VideoReadError("is a directory, not a file")
        return int(self._info["size"])

    @property
    def version(self) -> str:
        return str(self._info.get("blob_id") or "")

    def read(self, start: int, stop: int) -> bytes:
        with explained():
            return bytes(_hub().cat_file(self._path, start, stop, cache_type="none"))


def store_blob(address: str, access: Access) -> Blob:
    """The object at an address of a store. Raises :class:`VideoReadError` if it may not be read."""
    kind = HubBlob if scheme_of(address) == "hf" else StoreBlob
    return kind(address, access)


def listed(prefix: str) -> Iterator[Listed]:
    """The objects whose addresses begin with ``prefix``, in the order of the store. Raises
    :class:`VideoReadError`."""
    if scheme_of(prefix) == "hf":
        yield from _listed_on_hub(prefix)
        return
    import obstore

    scheme, bucket = scheme_of(prefix), _bucket(prefix)
    with explained():
        # A store lists only by whole folder names.
        for batch in obstore.list(store_of(prefix), key_of(prefix).rpartition("/")[0] or None):
            for meta in batch:
                address = f"{scheme}://{bucket}/{meta['path']}"
                if address.startswith(prefix):
                    yield Listed(address, meta["size"], meta["e_tag"] or "")


def _listed_on_hub(prefix: str) -> Iterator[Listed]:
    start = prefix.removeprefix("hf://")
    with explained():
        files = _hub().find(start.rpartition("/")[0], detail=True)
    for path, info in sorted(cast("dict[str, dict[str, Any]]", files).items()):
        if path.startswith(start):
            yield Listed(f"hf://{path}", info["size"], str(info.get("blob_id") or ""))


def check_address(address: str) -> None:
    """Raise :class:`ValueError` if ``address`` names no object of a store."""
    if scheme_of(address) == "hf":
        _, _, path = address.partition("://")
        if path.count("/") < 2:
            raise ValueError(f"{address!r:.200}: expected hf://datasets/owner/name/path")
    elif not BUCKET.fullmatch(_bucket(address)) or not key_of(address):
        raise ValueError(
            f"{address!r:.200}: expected {scheme_of(address)}://bucket/path, without user, port or "
            "query"
        )


def _bucket(address: str) -> str:
    return address.partition("://")[2].partition("/")[0]


def key_of(address: str) -> str:
    """The key of the object at ``address``, in its bucket."""
    return address.partition("://")[2].partition("/")[2]


def store_of(address: str) -> ObjectStore:
    """The store of an ``s3://``, ``gs://`` or ``az://`` address, with the credentials of the
    environment. Raises :class:`VideoReadError` if they make no sense."""
    return _open_store(scheme_of(address), _bucket(address))


@lru_cache(maxsize=32)
def _open_store(scheme: str, bucket: str) -> ObjectStore:
    from obstore.store import AzureStore, GCSStore, S3Store

    # The environment may name an endpoint without TLS: that is the user's choice.
    plain = any(
        value.startswith("http://")
        for name, value in os.environ.items()
        if name.upper().startswith(("AWS_ENDPOINT", "AZURE_", "GOOGLE_"))
    )
    # A silence is limited, and not a whole request: its body may be large, or wait for room.
    times = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "86400s"}
    options: Any = {**times, "allow_http": plain}
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    # A body that breaks off late is asked for again, too.
    retries = {"max_retries": 5, "retry_timeout": timedelta(days=1)}
    with explained():
        store: ObjectStore = kinds[scheme](bucket, client_options=options, retry_config=retries)
    return store


@lru_cache(maxsize=1)
def _hub() -> HfFileSystem:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of stores into :class:`VideoReadError`."""
    try:
        yield
    except (VideoReadError, MemoryError):
        raise
    except FileNotFoundError:
        raise VideoReadError("the store has no such object") from None
    except PermissionError as error:
        raise VideoReadError(f"the store refuses access: {_first_line(error)}") from None
    except Exception as error:  # Each client has exceptions of its own.
        raise VideoReadError(f"the store: {_first_line(error)}{_hint(error)}") from error


def _hint(error: Exception) -> str:
    """The hint about missing credentials, without which the clients ask the cloud's own machine."""
    texts = ("169.254.169.254", "Account must be specified", "401 ")
    if any(text in str(error) for text in texts):
        return ". The environment has no credentials for it: docs/remote.md names the variables"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.300}"
