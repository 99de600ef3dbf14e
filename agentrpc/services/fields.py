"""Changing a resource: which fields an update names, and whether it was read before (AIP-134, AIP-154)."""

from collections.abc import Collection, Sequence

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from agentrpc.errors import Aborted, InvalidArgument

__all__ = ["check_etag", "copy_path", "etag_of", "settable_paths"]


def etag_of(revision: int) -> str:
    """The etag of a revision."""
    return f'"{revision}"'


def check_etag(etag: str, revision: int, what: str) -> None:
    """Raise ETAG_MISMATCH unless the caller's etag is empty or that of the revision.

    Args:
        etag: As the caller sent it.
        revision: Of the stored resource.
        what: Such as `session`, for the message.
    """
    current = etag_of(revision)
    if etag and etag != current:
        raise Aborted(
            f"the {what} was changed meanwhile: read it, apply your change to it, and try again",
            reason="ETAG_MISMATCH",
            metadata={"etag": current},
        )


def settable_paths(mask: FieldMask, given: Message, settable: Collection[str]) -> list[str]:
    """The paths to set: the populated ones without a mask, all with `*`; output-only ones are passed over (AIP-134).

    Args:
        mask: The update_mask.
        given: The resource as the caller sent it.
        settable: The names of its fields that callers set.

    Raises:
        InvalidArgument: UPDATE_MASK_INVALID.
    """
    if not mask.paths:
        return [field.name for field, _ in given.ListFields() if field.name in settable]
    if list(mask.paths) == ["*"]:
        return list(settable)
    paths = []
    for path in mask.paths:
        descriptor = given.DESCRIPTOR
        parts = path.split(".")
        for at, part in enumerate(parts):
            field = descriptor.fields_by_name.get(part)
            last = at == len(parts) - 1
            if field is None or (not last and (field.is_repeated or field.message_type is None)):
                raise InvalidArgument(
                    f"update_mask names {path[:80]!r}, which does not exist: use such as {', '.join(sorted(settable))}",
                    reason="UPDATE_MASK_INVALID",
                    metadata={"path": path},
                )
            descriptor = field.message_type or descriptor
        if parts[0] in settable:
            paths.append(path)
    return paths


def copy_path(source: Message, target: Message, path: str) -> None:
    """Set the field at `path` of `target` to what it is in `source`; lists and maps as a whole."""
    _copy(source, target, path.split("."))


def _copy(source: Message, target: Message, parts: Sequence[str]) -> None:
    name = parts[0]
    field = source.DESCRIPTOR.fields_by_name[name]
    if len(parts) > 1:
        _copy(getattr(source, name), getattr(target, name), parts[1:])
        return
    target.ClearField(name)
    if field.is_repeated:
        getattr(target, name).MergeFrom(getattr(source, name))
    elif field.message_type is not None:
        if source.HasField(name):
            getattr(target, name).CopyFrom(getattr(source, name))
    elif not field.has_presence or source.HasField(name):
        setattr(target, name, getattr(source, name))
