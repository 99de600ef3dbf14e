"""Archive storage: objects in a folder or in an S3-compatible store."""

from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from agentrpc.settings import Settings

__all__ = ["ObjectError", "ObjectMissing", "Objects"]

_READ = 1024 * 1024
_RETRIES = 4
# A request takes as long as its object is large. After so long without a byte it is made again, where it had got to;
# and so long it may take altogether.
_STALLED = timedelta(seconds=30)
_LONGEST = timedelta(hours=12)


class ObjectError(Exception):
    """Archive storage cannot be read or written. The message is for people, without addresses or keys."""


class ObjectMissing(ObjectError):
    """The object is not there."""


class Objects:
    """The store that the settings name.

    Args:
        settings: With `archive_url`.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.archive_url is not None
        where = urlsplit(settings.archive_url)
        self._store: LocalStore | S3Store
        if where.scheme == "file":
            folder = Path(unquote(where.path))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = LocalStore(folder)
        else:
            self._store = _s3(settings, where.netloc, where.path.strip("/"))

    async def put(self, key: str, content: AsyncIterator[bytes]) -> None:
        """Write an object, as a whole or not at all. Raises ObjectError, and what `content` raises."""
        failed: list[BaseException] = []

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in content:
                    yield chunk
            except BaseException as error:
                failed.append(error)
                raise

        try:
            await obstore.put_async(self._store, key, chunks(), max_concurrency=2)
        except (BaseError, OSError) as error:
            if failed:
                raise failed[0] from None
            raise _told(error) from error

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Write a small object. Raises ObjectError."""
        try:
            await obstore.put_async(self._store, key, content)
        except (BaseError, OSError) as error:
            raise _told(error) from error

    async def get(self, key: str) -> AsyncIterator[bytes]:
        """Read an object in pieces. Raises ObjectError, ObjectMissing."""
        try:
            found = await obstore.get_async(self._store, key)
            async for chunk in found.stream(min_chunk_size=_READ):
                yield bytes(chunk)
        except (BaseError, OSError) as error:
            raise _told(error) from error

    async def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix. Raises ObjectError."""
        try:
            found = await obstore.list(self._store, prefix=prefix).collect_async()
        except (BaseError, OSError) as error:
            raise _told(error) from error
        return [entry["path"] for entry in found]

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, of which some may have gone already. Raises ObjectError."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                continue
            except (BaseError, OSError) as error:
                raise _told(error) from error


def _told(error: Exception) -> ObjectError:
    if isinstance(error, (NotFoundError, FileNotFoundError)):
        return ObjectMissing("the object is not in archive storage any more")
    return ObjectError(f"archive storage cannot be read or written ({type(error).__name__})")


def _s3(settings: Settings, bucket: str, prefix: str) -> S3Store:
    config: dict[str, Any] = {"region": settings.archive_s3_region}
    if settings.archive_s3_endpoint is not None:
        config["endpoint"] = settings.archive_s3_endpoint
    key, secret = settings.archive_s3_access_key_id, settings.archive_s3_secret_access_key
    if key is not None and secret is not None:
        config |= {"access_key_id": key.get_secret_value(), "secret_access_key": secret.get_secret_value()}
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,  # type: ignore[arg-type]  # a TypedDict of these
        client_options={
            "allow_http": (settings.archive_s3_endpoint or "").startswith("http://"),
            "timeout": _LONGEST,
            "read_timeout": _STALLED,
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _LONGEST},
    )
