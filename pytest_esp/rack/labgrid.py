"""Acquires, keeps and releases places of labgrid labs.

A place is acquired under a name that identifies the process: ``host/pytest-PID-START-MACHINE-USER``. labgrid does not
release the places of clients that have ended, so each new connection releases those of ended processes of this
machine. A coordinator that restarts forgets all owners: places are then acquired again, unless someone else was
faster.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_esp.errors import LeaseError, PortError
from pytest_esp.names import nearest
from pytest_esp.processes import is_gone, own_start
from pytest_esp.rack.holder import HOST, PlaceHolder
from pytest_esp.rack.identity import coordinator_address, identity, lab_identity, user_id
from pytest_esp.rack.labgrid_protocol import CallError, Connection, Place, Resource

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

_log = logging.getLogger(__name__)
_SERIAL_PORT = "NetworkSerialPort"
_POLL_EVERY = 10.0  # seconds; labgrid drops a reservation that was not polled for 60 s
_REFUSED_FOR = 0.5  # seconds until a place that could not be acquired is tried again
_REFUSAL_IS_NEWS = 5.0  # seconds for which the reason of a refusal is reported
_MEND_EVERY = 1.0
_SHOW_TIMEOUT = 3.0  # seconds to wait for a port to appear
_RETURN_TIMEOUT = 20.0  # seconds; the coordinator acquires an exporter's resources again every 15 s
_OWNER = re.compile(r"([^/]+)/pytest-(\d+)-(\d+)-([0-9a-f]{8})-(.*)")


# -- what leases and boards call


def check(spec: BoardSpec) -> None:
    """Check that a board's place exists, free or held, and has a serial port.

    Raises:
        PortError: if the coordinator does not respond, has no such place, or no exporter offers its port.
    """
    lab = _lab(spec)
    connection = lab.connect()
    found = _candidates(connection, spec)
    if not found:
        raise _no_such_place(connection, spec)
    reasons = [why for place in found if (why := _why_unusable(connection, place))]
    if len(reasons) == len(found):
        raise PortError(
            "; ".join(reasons),
            board=spec.name,
            hint="check that its labgrid-exporter is running and the board is plugged in",
        )


def holder(spec: BoardSpec) -> PlaceHolder | None:
    """Return who holds a board's place in the lab; None if a suitable place is free.

    Raises:
        PortError: if the coordinator does not respond.
    """
    return _lab(spec).holder(spec)


def free_places(spec: BoardSpec) -> set[str]:
    """Return the free places that suit a board, as ``coordinator/name``; none if the coordinator is unreachable."""
    return _lab(spec).free_places(spec)


def take(spec: BoardSpec, key: str) -> HeldPlace | None:
    """Acquire a place for the board if one is free; *key* is the key given to `queue`."""
    return _lab(spec).take(spec, key)


def queue(spec: BoardSpec, key: str) -> None:
    """Reserve a place for the waiting board *key*, so that nobody who came later gets it first. Call it often."""
    _lab(spec).queue(spec, key)


def leave_queue(spec: BoardSpec, key: str) -> None:
    """Cancel the reservation made by `queue`."""
    _lab(spec).leave_queue(key)


def held_place(spec: BoardSpec, rack: Rack) -> HeldPlace:
    """Return the place that this process has acquired for a board.

    Raises:
        LeaseError: if it has not acquired one.
    """
    place = _lab(spec).held_for(identity(spec, rack))
    if place is None:
        raise LeaseError(
            "the labgrid place is not acquired", board=spec.name, hint="lease the board first (Rack.lease)"
        )
    return place


def version(spec: BoardSpec) -> str:
    """Return the labgrid version of the board's coordinator.

    Raises:
        PortError: if it does not respond.
    """
    return _lab(spec).connect().version()


# -- names


@functools.cache
def _user_of(pid: int) -> str:
    """Return the owner name, ``host/user``, of the calling process *pid*. labgrid expects exactly one slash."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = user_id()
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", HOST)
    return f"{host}/pytest-{pid}-{own_start(pid) or 0}-{_machine()}-{re.sub(r'[^A-Za-z0-9_.]', '-', user)}"


@functools.cache
def _machine() -> str:
    """Return an ID that distinguishes machines with the same name, and containers with separate process IDs."""
    parts: list[str] = []
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _is_dead(owner: str) -> bool:
    """Return whether an owner in a lab is a process of this machine that has ended."""
    found = _OWNER.fullmatch(owner)
    own = _OWNER.fullmatch(_user_of(os.getpid()))
    if found is None or own is None or (found[1], found[4]) != (own[1], own[4]):
        return False
    return is_gone(int(found[2]), int(found[3]) or None)


# -- places and their ports


def _candidates(connection: Connection, spec: BoardSpec) -> list[Place]:
    """Return the suitable places, held or not: the place of that name or alias, or all with the tags."""
    places = connection.places.values()
    if spec.place:
        return [place for place in places if spec.place == place.name or spec.place in place.aliases]
    wanted = (spec.tags or {}).items()
    return [place for place in places if wanted <= {**place.tags, "name": place.name}.items()]


def _no_such_place(connection: Connection, spec: BoardSpec) -> PortError:
    if not connection.places:
        there = "the lab has no places: create one with labgrid-client create"
    elif spec.place:
        there = f"nearest: {nearest(spec.place, connection.places)}"
    else:
        tags = [f"{place.name} ({_tags(place.tags)})" for place in connection.places.values()]
        there = f"there are {', '.join(sorted(tags)[:10])}"
    wanted = f"place {spec.place!r}" if spec.place else f"place with the tags {_tags(spec.tags or {})}"
    return PortError(f"the lab {connection.address} has no {wanted}", board=spec.name, hint=there)


def _tags(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items())) or "no tags"


def _serial_ports(connection: Connection, place: Place) -> list[Resource]:
    return [item for item in connection.resources.values() if item.path[2] == _SERIAL_PORT and place.has(item.path)]


def _why_unusable(connection: Connection, place: Place) -> str:
    """Return why a place cannot be used now; empty if it can."""
    ports = _serial_ports(connection, place)
    names = ", ".join("/".join(port.path) for port in ports)
    if not ports:
        return f"the labgrid place {place.name} has no {_SERIAL_PORT} now (it matches {place.describe_matches()})"
    if len(ports) > 1:
        return f"the labgrid place {place.name} has {len(ports)} serial ports, expected one: {names}"
    if not ports[0].available:
        return f"the exporter reports that {names} of the labgrid place {place.name} is not available"
    if ports[0].extra.get("proxy_required"):
        return f"{names} of the labgrid place {place.name} is reached over SSH only (an isolated exporter)"
    return ""


# -- an acquired place


class HeldPlace:
    """A place that this process has acquired.

    Attributes:
        name: the place's name.
        lost: why this process no longer owns it; None while it does.
        on_loss: called once with `lost`, in a separate thread.
        session: the session in which this process was last seen as its owner.
    """

    def __init__(self, lab: Lab, name: str, key: str, session: Connection) -> None:
        self.name = name
        self.key = key
        self.lost: str | None = None
        self.on_loss: Callable[[str], None] | None = None
        self.session = session
        self._lab = lab
        self._pid = os.getpid()

    def url(self) -> str:
        """Return the URL of its serial port, for `serial.serial_for_url`. It changes when an exporter restarts.

        Raises:
            LeaseError: if this process no longer owns the place.
            PortError: if the coordinator or the exporter is unreachable.
        """
        begun = time.monotonic()
        while True:
            if self.lost:
                raise LeaseError(self.lost, hint="release the board and lease it again")
            connection = self._lab.connect()
            place = connection.places.get(self.name)
            ours = place is not None and place.owner == self._lab.user
            why = _why_unusable(connection, place) if place else f"the labgrid place {self.name} is gone"
            if place is not None and not why:
                (port,) = _serial_ports(connection, place)
                if ours and port.path in place.acquired and port.params.get("port"):
                    scheme = "socket" if port.params.get("protocol") == "raw" else "rfc2217"
                    return f"{scheme}://{port.params['host']}:{port.params['port']}"
            if time.monotonic() - begun > (_SHOW_TIMEOUT if why else _RETURN_TIMEOUT):
                why = why or f"the coordinator has not re-acquired the port of the labgrid place {self.name}"
                raise PortError(why, hint="check that its labgrid-exporter is running and the board is plugged in")
            self._lab.wait(0.2)

    def release(self) -> None:
        """Release the place. Has no effect if it is lost, or in a forked child."""
        if os.getpid() == self._pid:
            self._lab.release(self)

    def lose(self, why: str) -> None:
        """Record that this process no longer owns the place, and call `on_loss`."""
        self.lost = why
        if (on_loss := self.on_loss) is not None:
            try:
                on_loss(why)
            except Exception:  # keep looking after the other places
                _log.exception("could not disconnect the port of the lost place %s", self.name)


@dataclass
class _Reservation:
    token: str | None
    """None if the lab refused it or it had no effect: then the first to acquire the place gets it."""
    polled: float


class Lab:
    """The places of one coordinator, and this process's session there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.user = _user_of(os.getpid())
        self._changed = threading.Condition()
        self._connecting = threading.Lock()
        self._connection: Connection | None = None
        self._failure: PortError | None = None
        self._retry_at = 0.0
        self._held: dict[str, HeldPlace] = {}
        self._taking: set[str] = set()
        self._reservations: dict[str, _Reservation] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._keeper: threading.Thread | None = None

    # -- the session

    def connect(self, *, at_once: bool = False) -> Connection:
        """Return the session; connect if there is none.

        After a failure, the next attempt waits for ten times the duration of the failed one, unless *at_once*.

        Raises:
            PortError: if the coordinator does not respond.
        """
        with self._connecting:
            if self._connection is not None and self._connection.alive:
                return self._connection
            begun = time.monotonic()
            if self._failure is not None and begun < self._retry_at and not at_once:
                raise PortError(self._failure.message, hint=self._failure.hint)
            try:
                connection = self._begin()
            except PortError as error:
                self._failure = error
                self._retry_at = time.monotonic() + max(0.5, 10 * (time.monotonic() - begun))
                raise
            self._failure = None
            self._connection = connection
            return connection

    def _begin(self) -> Connection:
        connection = Connection(self.address, self.user, self._notify)
        try:
            self._clean_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _clean_up(self, connection: Connection) -> None:
        """Release the places of ended processes of this machine, and those that this process failed to release."""
        for place in connection.places.values():
            if self._is_left(place):
                with contextlib.suppress(CallError):
                    connection.release(place.name, place.owner)
        tokens = {reservation.token for reservation in self._reservations.values()}
        for owner, token in connection.reservations():
            if _is_dead(owner) or (owner == self.user and token not in tokens):
                with contextlib.suppress(CallError):  # another process may do the same at the same time
                    connection.cancel(token)
        connection.sync()

    def _is_left(self, place: Place) -> bool:
        """Return whether a place's owner will never release it."""
        if place.owner == self.user:
            return place.name not in self._held and place.name not in self._taking
        return _is_dead(place.owner)

    def _is_free(self, place: Place) -> bool:
        if self._refusal(place, _REFUSAL_IS_NEWS):
            return False
        own = {"", *(reservation.token for reservation in self._reservations.values())}
        return place.reservation in own and (not place.owner or self._is_left(place))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for news from the coordinator."""
        with self._changed:
            self._changed.wait(seconds)

    # -- taking

    def holder(self, spec: BoardSpec) -> PlaceHolder | None:
        """See `holder`."""
        found = _candidates(self.connect(), spec)
        if not found or any(self._is_free(place) for place in found):
            return None
        place = min(found, key=lambda place: place.changed)
        ours = _OWNER.fullmatch(place.owner)
        host, _, user = place.owner.partition("/")
        refused = self._refusal(place, _REFUSAL_IS_NEWS)
        why = f"free, but {refused}" if refused and not place.owner and not place.reservation else ""
        return PlaceHolder(
            board=spec.name,
            pid=int(ours[2]) if ours else 0,
            host=host,
            user=ours[5] if ours else user,
            purpose=f"pytest-esp, pid {ours[2]}" if ours else why,
            since=place.changed,
            place=place.name,
            others=len(found) - 1,
        )

    def free_places(self, spec: BoardSpec) -> set[str]:
        """See `free_places`."""
        try:
            found = _candidates(self.connect(), spec)
        except PortError:
            return set()
        return {f"{self.address}/{place.name}" for place in found if self._is_free(place)}

    def _refusal(self, place: Place, seconds: float) -> str:
        """Return why the place cannot be acquired, or could not in the last *seconds*; empty if it can be tried."""
        connection = self._connection
        if connection and any(connection.is_starting(port.path[0]) for port in _serial_ports(connection, place)):
            return "its exporter is starting"
        at, why = self._refused.get(place.name, (-seconds, ""))
        return why if time.monotonic() - at < seconds else ""

    def take(self, spec: BoardSpec, key: str) -> HeldPlace | None:
        """See `take`."""
        try:
            connection = self.connect()
            for place in _candidates(connection, spec):
                if self._may_try(connection, place, key) and (held := self._acquire(connection, place.name, key)):
                    self.leave_queue(key)
                    return held
        except PortError:
            return None  # the coordinator went away during the wait; it may come back
        return None

    def _may_try(self, connection: Connection, place: Place, key: str) -> bool:
        reservation = self._reservations.get(key)
        if place.reservation and (reservation is None or place.reservation != reservation.token):
            return False
        if _why_unusable(connection, place) or self._refusal(place, _REFUSED_FOR):
            return False
        if self._is_left(place):
            connection.release(place.name, place.owner)
            return True
        return not place.owner

    def _acquire(self, connection: Connection, name: str, key: str) -> HeldPlace | None:
        self._taking.add(name)
        try:
            connection.acquire(name)
            connection.sync()
            held = HeldPlace(self, name, key, connection)
            with self._changed:
                self._held[name] = held
                self._keep()
        except CallError as error:
            # Someone else was faster, or the exporter did not agree.
            self._refused[name] = (time.monotonic(), error.message)
            return None
        finally:
            self._taking.discard(name)
        self._refused.pop(name, None)
        return held

    def held_for(self, key: str) -> HeldPlace | None:
        """Return the place that is held for the board with the identity *key*."""
        return next((place for place in self._held.values() if place.key == key), None)

    def release(self, held: HeldPlace) -> None:
        """Release a place. If the coordinator is unreachable, the next connection from this machine releases it."""
        with self._changed:
            if self._held.get(held.name) is not held:
                return
            del self._held[held.name]
            self._changed.notify_all()
        with contextlib.suppress(PortError):
            connection = self.connect()
            connection.release(held.name, self.user)
            connection.sync()

    # -- the lab's own queue

    def queue(self, spec: BoardSpec, key: str) -> None:
        """See `queue`."""
        reservation = self._reservations.get(key)
        now = time.monotonic()
        try:
            connection = self.connect()
            if reservation is None:
                self._reservations[key] = _Reservation(None, now)  # in case the lab refuses
                tags = {"name": spec.place} if spec.place else dict(spec.tags or {})
                self._reservations[key].token = connection.reserve(tags)
            elif reservation.token and any(
                place.reservation == reservation.token and _why_unusable(connection, place)
                for place in connection.places.values()
            ):
                token, reservation.token = reservation.token, None
                connection.cancel(token)
            elif reservation.token and now - reservation.polled > _POLL_EVERY:
                reservation.polled = now
                connection.poll(reservation.token)
        except CallError as error:
            if error.code == "FAILED_PRECONDITION":  # the coordinator has restarted and forgotten the reservation
                self._reservations.pop(key, None)
        except PortError:
            pass  # it is away

    def leave_queue(self, key: str) -> None:
        """See `leave_queue`."""
        reservation = self._reservations.pop(key, None)
        if reservation is not None and reservation.token:
            with contextlib.suppress(PortError):
                self.connect().cancel(reservation.token)

    # -- keeping

    def _keep(self) -> None:
        """Start the thread that looks after held places, if it does not run yet. The caller holds the lock."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._look_after, name=f"labgrid-keeper-{self.address}", daemon=True)
            self._keeper.start()

    def _look_after(self) -> None:
        while True:
            with self._changed:
                if not self._held:
                    self._keeper = None
                    return
                held = list(self._held.values())
            try:
                connection = self.connect(at_once=True)
                for place in held:
                    if not place.lost:
                        self._mend(connection, place)
            except PortError:
                time.sleep(_REFUSED_FOR)  # while the coordinator is unreachable, nobody else can get the place
            self.wait(_MEND_EVERY)

    def _mend(self, connection: Connection, held: HeldPlace) -> None:
        """Acquire a place again after the coordinator's restart, or record that it is lost."""
        place = connection.places.get(held.name)
        if self._held.get(held.name) is not held:
            return  # released meanwhile
        if place is not None and place.owner == self.user:
            held.session = connection
        elif place is None:
            held.lose(f"the labgrid place {held.name} is gone from the lab {self.address}")
        elif place.owner:
            held.lose(
                f"the labgrid place {held.name} was lost to {place.owner}: the coordinator restarted and forgot its "
                "owner, or someone released it"
            )
        elif held.session is connection:  # released on purpose: the coordinator did not restart
            held.lose(f"someone released the labgrid place {held.name} (labgrid-client release --kick)")
        elif not place.reservation and not _why_unusable(connection, place) and not self._refusal(place, 0.0):
            with contextlib.suppress(CallError):
                connection.acquire(held.name)
                connection.sync()
                if self._held.get(held.name) is not held:  # released meanwhile
                    connection.release(held.name, self.user)

    def release_all(self) -> None:
        """Release all places, at the end of the process."""
        for held in list(self._held.values()):
            held.release()


_labs: dict[tuple[int, str], Lab] = {}
_labs_lock = threading.Lock()


def _lab(spec: BoardSpec) -> Lab:
    # One per process: gRPC's connections do not survive a fork.
    # One per coordinator, however it is spelled: its session releases the places that this process does not hold in it.
    key = os.getpid(), lab_identity(spec)
    with _labs_lock:
        if key not in _labs:
            _labs[key] = lab = Lab(coordinator_address(spec))
            atexit.register(lab.release_all)
        return _labs[key]
