"""labgrid's protocol, as far as a client that takes places needs it: one session at one coordinator.

The messages are built from what the coordinator says of itself (gRPC server reflection), so that the labgrid package,
which does not go with pyserial, is not needed. labgrid promises no stability of its protocol: what is used of it is
looked for, and its absence said, before anything is sent. It is that of labgrid 25.0 (the first with gRPC) to 26.0
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
"""Seconds after which a coordinator is one that does not answer."""

_CALL_TIMEOUT = 5.0
_ACQUIRE_TIMEOUT = 30.0  # the coordinator gives an exporter 10 s for each resource
_START_TIME = 0.5  # seconds without a new resource after which an exporter has told all
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
"""The messages that are used, and which of their fields."""

# The stream and the calls belong together by their TCP connection, and a new one must not get an old one's. The
# pings are as often as labgrid's coordinator permits.
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
    """The coordinator refused a call, or did not answer.

    Attributes:
        code: gRPC's, e.g. ``"UNAVAILABLE"``.
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
        acquired: the resources that came with it.
        changed: when its owner, or anything else of it, changed last: seconds since the epoch, by the coordinator.
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
        """Tell whether a resource belongs to it."""
        return any(
            all(not pattern or fnmatchcase(part, pattern) for part, pattern in zip(path, match, strict=True))
            for match in self.matches
        )

    def describe_matches(self) -> str:
        """Return what it is made of, as ``labgrid-client add-match`` takes it."""
        return ", ".join("/".join(filter(None, match)) for match in self.matches) or "nothing: it has no match"


@dataclass(frozen=True)
class Resource:
    """What an exporter offers.

    Attributes:
        available: whether it is there now, e.g. plugged in.
    """

    path: ResourcePath
    params: Mapping[str, Any]
    extra: Mapping[str, Any]
    available: bool


class Connection:
    """A session at the coordinator of *address*, with all places and resources, which it keeps up to date.

    Args:
        address: ``"host:port"``.
        user: ``"host/user"``, by which the lab knows who has acquired what.
        on_change: called after each change, and at the end of the session, in a thread of its own.

    Raises:
        PortError: if it does not answer, or is no coordinator of a known kind.
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
        """End the session. What was acquired stays acquired."""
        self._ended.set()
        self._requests.put(None)
        self._channel.close()

    def sync(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Wait until everything that the coordinator knew at the time of the call is here.

        Raises:
            PortError: if it does not answer in *timeout* seconds.
        """
        number = next(self._numbers)
        done = self._synced[number] = threading.Event()
        self._send(sync={"id": number})
        if not done.wait(timeout) or not self.alive:
            self._synced.pop(number, None)
            self.close()
            raise silent(self.address, "it has ended the session" if done.is_set() else f"nothing came in {timeout} s")

    def is_starting(self, exporter: str) -> bool:
        """Tell whether an exporter is just making its resources known.

        To acquire one of them meanwhile locks the coordinator up for 10 s: it waits for the exporter's consent with the
        lock held that it needs to go on reading what that exporter says.
        """
        return time.monotonic() - self._last_new.get(exporter, -_START_TIME) < _START_TIME

    # -- calls

    def acquire(self, place: str) -> None:
        """Acquire a place.

        Raises:
            CallError: e.g. FAILED_PRECONDITION if it is somebody else's, or an exporter does not take part.
        """
        self._call("AcquirePlace", _ACQUIRE_TIMEOUT, placename=place)

    def release(self, place: str, user: str) -> None:
        """Release a place if *user* has it.

        Raises:
            CallError: if the coordinator does not answer.
        """
        self._call("ReleasePlace", _ACQUIRE_TIMEOUT, placename=place, fromuser=user)

    def reserve(self, tags: Mapping[str, str]) -> str:
        """Queue for a place with *tags* (its name is one of them), and return the reservation's token.

        Raises:
            CallError: if the coordinator refuses.
        """
        reply = self._call("CreateReservation", _CALL_TIMEOUT, filters={"main": {"filter": dict(tags)}})
        return str(reply.reservation.token)

    def poll(self, token: str) -> None:
        """Keep a reservation, which otherwise ends after a minute.

        Raises:
            CallError: FAILED_PRECONDITION if it has ended.
        """
        self._call("PollReservation", _CALL_TIMEOUT, token=token)

    def cancel(self, token: str) -> None:
        """Leave the queue.

        Raises:
            CallError: FAILED_PRECONDITION if the reservation has ended.
        """
        self._call("CancelReservation", _CALL_TIMEOUT, token=token)

    def reservations(self) -> list[tuple[str, str]]:
        """Return owner and token of all reservations.

        Raises:
            CallError: if the coordinator does not answer.
        """
        return [(item.owner, item.token) for item in self._call("GetReservations", _CALL_TIMEOUT).reservations]

    def version(self) -> str:
        """Return the version of labgrid that the coordinator runs: it tells exporters only, in its first message.

        Raises:
            CallError: if it does not answer.
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
        """Take over one change. The dictionaries are replaced, not changed: other threads go through them."""
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
    """Return a channel to the coordinator, and the classes of its messages.

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
            raise _stranger(address, f"it has no service {_SERVICE}")
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
            raise _stranger(address, f"it has no message {name}")
        if missing := [key for key in fields if key not in types[name].fields_by_name]:
            raise _stranger(address, f"its message {name} has no {', '.join(missing)}")
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in types.items()}


def silent(address: str, why: str) -> CallError:
    """Return the error of a coordinator that does not answer."""
    return CallError(
        f"the labgrid coordinator {address} does not answer: {why}",
        "UNAVAILABLE",
        hint=f"check that labgrid-coordinator is running there and reachable from this machine{_proxy_hint()}",
    )


def _proxy_hint() -> str:
    """Return what gRPC does with the environment of a network behind a proxy, if this is one."""
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    return f"; gRPC goes through the proxy of {proxies[0]} unless no_proxy names the host" if proxies else ""


def _stranger(address: str, why: str) -> PortError:
    return PortError(
        f"{address} does not speak a labgrid protocol that this version of pytest-esp supports: {why}",
        hint=f"it knows the protocol of {SUPPORTED}",
    )


def _call_error(address: str, name: str, error: Exception) -> PortError:
    """Return what a failed call means, from gRPC's error."""
    code, details = "UNAVAILABLE", str(error) or "the connection was closed"
    with contextlib.suppress(AttributeError, ValueError):  # neither grpc.RpcError nor ValueError have them by type
        code, details = getattr(error, "code")().name, getattr(error, "details")() or ""  # noqa: B009
    if code == "UNIMPLEMENTED":
        error = _stranger(address, f"{name}: {details}")
        error.hint = f"{error.hint}{_proxy_hint()}"
        return error
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return silent(address, details.rpartition("last error: ")[2])
    return CallError(f"the labgrid coordinator {address} refuses {name}: {details}", code)
