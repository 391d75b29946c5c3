"""A client for labgrid's protocol, limited to what is needed to acquire places: one session with one coordinator.

The message classes come from the coordinator (gRPC server reflection), so the labgrid package, which conflicts with
pyserial, is not needed. labgrid does not promise a stable protocol: the client checks that the messages and fields it
uses exist before it sends anything. Supported is the protocol of labgrid 25.0 (the first with gRPC) to 26.0
(labgrid/remote/proto/labgrid-coordinator.proto, labgrid/remote/coordinator.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pytest_esp.errors import PortError

SUPPORTED = "labgrid 25.0 to 26.0"
CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a coordinator's response."""

_CALL_TIMEOUT = 5.0
_ACQUIRE_TIMEOUT = 30.0  # seconds; the coordinator gives an exporter 10 s for each resource
_START_TIME = 0.5  # seconds without a new resource after which an exporter has announced all of them
_SERVICE = "labgrid.Coordinator"
_NEEDED = {
    "ClientInMessage": ("sync", "startup", "subscribe"),
    "ClientOutMessage": ("sync", "updates"),
    "UpdateResponse": ("resource", "del_resource", "place", "del_place"),
    "Place": ("name", "aliases", "tags", "matches", "acquired", "acquired_resources", "reservation", "changed"),
    "Resource": ("path", "cls", "params", "extra", "avail"),
    "AcquirePlaceRequest": ("placename",),
    "ReleasePlaceRequest": ("placename", "fromuser"),
    "CreateReservationRequest": ("filters",),
    "PollReservationRequest": ("token",),
    "CancelReservationRequest": ("token",),
    "Reservation": ("owner", "token", "state"),
}
"""The messages and fields that are used."""

# The coordinator links the stream and the calls by their TCP connection, so a new session must not share an old
# connection. The pings are as frequent as labgrid's coordinator permits.
_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)

ResourcePath = tuple[str, str, str, str]
"""Exporter, group, class, name."""


class CallError(PortError):
    """The coordinator refused a call, or did not respond.

    Attributes:
        code: gRPC's status code, e.g. ``"UNAVAILABLE"``.
    """

    def __init__(self, message: str, code: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True)
class Place:
    """A place of the lab.

    Attributes:
        owner: who has acquired it, ``"host/user"``; empty if nobody has.
        reservation: the token of the reservation that it is kept for; empty if there is none.
        acquired: the resources that were acquired with it.
        changed: time of its last change, in seconds since the epoch, by the coordinator's clock.
    """

    name: str
    aliases: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    matches: tuple[ResourcePath, ...] = ()
    owner: str = ""
    reservation: str = ""
    acquired: frozenset[ResourcePath] = frozenset()
    changed: float = 0.0

    def has(self, path: ResourcePath) -> bool:
        """Return whether a resource belongs to the place."""
        return any(
            all(not pattern or fnmatchcase(part, pattern) for part, pattern in zip(path, match, strict=True))
            for match in self.matches
        )

    def describe_matches(self) -> str:
        """Return its resource matches, as ``labgrid-client add-match`` takes them."""
        return ", ".join("/".join(filter(None, match)) for match in self.matches) or "nothing: it has no match"


@dataclass(frozen=True)
class Resource:
    """A resource that an exporter offers.

    Attributes:
        available: whether it is available now, e.g. plugged in.
    """

    path: ResourcePath
    params: Mapping[str, Any]
    extra: Mapping[str, Any]
    available: bool


class Connection:
    """A session with the coordinator at *address*. It keeps all places and resources up to date.

    Args:
        address: ``"host:port"``.
        user: ``"host/user"``, the owner of the places that this session acquires.
        on_change: called after each change, and at the end of the session, in a separate thread.

    Raises:
        PortError: if it does not respond, or does not speak a supported protocol.
    """

    def __init__(self, address: str, user: str, on_change: Callable[[], None]) -> None:
        self.address = address
        self.user = user
        self.places: dict[str, Place] = {}
        self.resources: dict[ResourcePath, Resource] = {}
        self._on_change = on_change
        self._ended = threading.Event()
        self._synced: dict[int, threading.Event] = {}
        self._numbers = itertools.count(1)
        self._knows_all = False
        self._last_new: dict[str, float] = {}
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._channel, self._messages = _open(address)
        try:
            self._stream = self._channel.stream_stream(
                f"/{_SERVICE}/ClientStream",
                request_serializer=self._messages["ClientInMessage"].SerializeToString,
                response_deserializer=self._messages["ClientOutMessage"].FromString,
            )(iter(self._requests.get, None))
            self._thread = threading.Thread(target=self._receive, name=f"labgrid-{address}", daemon=True)
            self._thread.start()
            self._send(startup={"version": f"pytest-esp ({SUPPORTED})", "name": user})
            self._send(subscribe={"all_places": True})
            self._send(subscribe={"all_resources": True})
            self.sync()
            self._knows_all = True
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the coordinator still serves the session."""
        return not self._ended.is_set()

    def close(self) -> None:
        """End the session. Acquired places stay acquired."""
        self._ended.set()
        self._requests.put(None)
        self._channel.close()

    def sync(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Wait until all of the coordinator's updates up to this call have arrived.

        Raises:
            PortError: if it does not respond in *timeout* seconds.
        """
        number = next(self._numbers)
        done = self._synced[number] = threading.Event()
        self._send(sync={"id": number})
        if not done.wait(timeout) or not self.alive:
            self._synced.pop(number, None)
            self.close()
            raise silent(self.address, "it ended the session" if done.is_set() else f"timed out after {timeout} s")

    def is_starting(self, exporter: str) -> bool:
        """Return whether an exporter is still announcing its resources.

        Acquiring one of them in this time blocks the coordinator for 10 s: it waits for the exporter's consent while
        it holds the lock that it needs to read the exporter's messages.
        """
        return time.monotonic() - self._last_new.get(exporter, -_START_TIME) < _START_TIME

    # -- calls

    def acquire(self, place: str) -> None:
        """Acquire a place.

        Raises:
            CallError: e.g. FAILED_PRECONDITION if someone else owns it, or an exporter does not agree.
        """
        self._call("AcquirePlace", _ACQUIRE_TIMEOUT, placename=place)

    def release(self, place: str, user: str) -> None:
        """Release a place if *user* owns it.

        Raises:
            CallError: if the coordinator does not respond.
        """
        self._call("ReleasePlace", _ACQUIRE_TIMEOUT, placename=place, fromuser=user)

    def reserve(self, tags: Mapping[str, str]) -> str:
        """Queue for a place with *tags* (including its name), and return the reservation's token.

        Raises:
            CallError: if the coordinator refuses.
        """
        reply = self._call("CreateReservation", _CALL_TIMEOUT, filters={"main": {"filter": dict(tags)}})
        return str(reply.reservation.token)

    def poll(self, token: str) -> None:
        """Keep a reservation alive; it ends after a minute without a poll.

        Raises:
            CallError: FAILED_PRECONDITION if it has ended.
        """
        self._call("PollReservation", _CALL_TIMEOUT, token=token)

    def cancel(self, token: str) -> None:
        """Cancel a reservation.

        Raises:
            CallError: FAILED_PRECONDITION if the reservation has ended.
        """
        self._call("CancelReservation", _CALL_TIMEOUT, token=token)

    def reservations(self) -> list[tuple[str, str]]:
        """Return owner and token of all reservations.

        Raises:
            CallError: if the coordinator does not respond.
        """
        return [(item.owner, item.token) for item in self._call("GetReservations", _CALL_TIMEOUT).reservations]

    def version(self) -> str:
        """Return the coordinator's labgrid version. It sends that only to exporters, in its first message.

        Raises:
            CallError: if it does not respond.
        """
        import grpc

        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = self._channel.stream_stream(
            f"/{_SERVICE}/ExporterStream",
            request_serializer=self._messages["ExporterInMessage"].SerializeToString,
            response_deserializer=self._messages["ExporterOutMessage"].FromString,
        )(iter(requests.get, None), timeout=_CALL_TIMEOUT)
        try:
            return str(next(call).hello.version)
        except (grpc.RpcError, StopIteration) as error:
            raise _call_error(self.address, "ExporterStream", error) from error
        finally:
            call.cancel()
            requests.put(None)

    def _call(self, name: str, timeout: float, **fields: Any) -> Any:
        import grpc

        request = self._messages[f"{name}Request"](**fields)
        try:
            return self._channel.unary_unary(
                f"/{_SERVICE}/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=self._messages[f"{name}Response"].FromString,
            )(request, timeout=timeout)
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel was closed meanwhile
            raise _call_error(self.address, name, error) from error

    # -- the stream

    def _send(self, **kind: Any) -> None:
        self._requests.put(self._messages["ClientInMessage"](**kind))

    def _receive(self) -> None:
        import grpc

        try:
            for message in self._stream:
                for update in message.updates:
                    self._apply(update)
                if message.HasField("sync") and (done := self._synced.pop(message.sync.id, None)):
                    done.set()
                self._on_change()
        except (grpc.RpcError, ValueError):
            pass
        finally:
            self._ended.set()
            for done in list(self._synced.values()):
                done.set()
            self._on_change()

    def _apply(self, update: Any) -> None:
        """Apply a change. The dictionaries are replaced, not modified: other threads iterate over them."""
        kind = update.WhichOneof("kind")
        if kind == "place":
            place = _place(update.place)
            self.places = {**self.places, place.name: place}
        elif kind == "del_place":
            self.places = {name: place for name, place in self.places.items() if name != update.del_place}
        elif kind == "resource":
            resource = _resource(update.resource)
            if self._knows_all and resource.path not in self.resources:
                self._last_new[resource.path[0]] = time.monotonic()
            self.resources = {**self.resources, resource.path: resource}
        elif kind == "del_resource":
            gone = update.del_resource
            where = (gone.exporter_name, gone.group_name, gone.resource_name)
            self.resources = {
                path: item for path, item in self.resources.items() if (path[0], path[1], path[3]) != where
            }


def _place(message: Any) -> Place:
    return Place(
        name=message.name,
        aliases=frozenset(message.aliases),
        tags=dict(message.tags),
        matches=tuple((match.exporter, match.group, match.cls, match.name) for match in message.matches),
        owner=message.acquired,
        reservation=message.reservation,
        acquired=frozenset(_path(text) for text in message.acquired_resources),
        changed=message.changed,
    )


def _path(text: str) -> ResourcePath:
    exporter, group, cls, name = (text.split("/") + [""] * 4)[:4]
    return (exporter, group, cls, name)


def _resource(message: Any) -> Resource:
    where = message.path
    return Resource(
        path=(where.exporter_name, where.group_name, message.cls, where.resource_name),
        params=dict(_values(message.params)),
        extra=dict(_values(message.extra)),
        available=message.avail,
    )


def _values(entries: Any) -> Iterator[tuple[str, Any]]:
    for key, value in entries.items():
        kind = value.WhichOneof("kind")
        yield key, None if kind is None else getattr(value, kind)


# -- connecting


def _open(address: str) -> tuple[Any, dict[str, Any]]:
    """Return a channel to the coordinator, and its message classes.

    Raises:
        PortError: see `Connection`.
    """
    try:
        import grpc
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
    except ImportError as error:
        raise PortError(
            f"labgrid boards need the package {error.name or error}", hint="pip install 'pytest-esp[labgrid]'"
        ) from error
    channel: Any = grpc.insecure_channel(address, options=_CHANNEL)
    try:
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=_SERVICE)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(stub.ServerReflectionInfo(iter([question]), timeout=CONNECT_TIMEOUT))
        if answer.HasField("error_response"):
            raise _stranger(address, f"the service {_SERVICE} is missing")
        return channel, _message_classes(address, answer.file_descriptor_response.file_descriptor_proto)
    except (grpc.RpcError, StopIteration) as error:
        channel.close()
        raise _call_error(address, "ServerReflectionInfo", error) from error
    except BaseException:
        channel.close()
        raise


def _message_classes(address: str, files: Any) -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool: Any = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
    service = pool.FindServiceByName(_SERVICE)
    types = service.file.message_types_by_name
    for name, fields in _NEEDED.items():
        if name not in types:
            raise _stranger(address, f"the message {name} is missing")
        if missing := [key for key in fields if key not in types[name].fields_by_name]:
            raise _stranger(address, f"the message {name} lacks {', '.join(missing)}")
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in types.items()}


def silent(address: str, why: str) -> CallError:
    """Return the error for a coordinator that does not respond."""
    return CallError(
        f"the labgrid coordinator {address} does not respond: {why}",
        "UNAVAILABLE",
        hint=f"check that labgrid-coordinator is running there and reachable from this machine{_proxy_hint()}",
    )


def _proxy_hint() -> str:
    """Return a hint about gRPC's use of a proxy if the environment sets one."""
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    return f"; gRPC goes through the proxy of {proxies[0]} unless no_proxy names the host" if proxies else ""


def _stranger(address: str, why: str) -> PortError:
    return PortError(
        f"{address} does not speak a labgrid protocol that this version of pytest-esp supports: {why}",
        hint=f"use {SUPPORTED}",
    )


def _call_error(address: str, name: str, error: Exception) -> PortError:
    """Return the error for a failed call, from gRPC's error."""
    code, details = "UNAVAILABLE", str(error) or "the connection was closed"
    with contextlib.suppress(AttributeError, ValueError):  # grpc.RpcError's type does not declare these methods
        code, details = getattr(error, "code")().name, getattr(error, "details")() or ""  # noqa: B009
    if code == "UNIMPLEMENTED":
        error = _stranger(address, f"{name}: {details}")
        error.hint = f"{error.hint}{_proxy_hint()}"
        return error
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return silent(address, details.rpartition("last error: ")[2])
    return CallError(f"the labgrid coordinator {address} refused {name}: {details}", code)
