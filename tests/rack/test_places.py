"""Places of a labgrid lab are leased with their locks. The lab is played here; `tests/boards` has a real one."""

from types import SimpleNamespace

import pytest

from pytest_esp.errors import LeaseError, NoMatchError, PortError
from pytest_esp.rack import lease as module
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.holder import PlaceHolder
from pytest_esp.rack.identity import identity
from pytest_esp.rack.lease import acquire, holder_of, holders, lock_folder


class Place:
    """A place that is held."""

    def __init__(self, lab, name):
        self.lab, self.name, self.lost = lab, name, None

    def release(self):
        self.lab.free.add(self.name)


class Lab:
    """Stands for the module that talks to a coordinator; it notes who takes, queues and leaves."""

    def __init__(self):
        self.free = {"far", "near"}
        self.taken, self.queued, self.left = [], [], []
        self.silent = False

    def check(self, spec):
        if self.silent:
            raise PortError("the coordinator does not answer", board=spec.name)

    def take(self, spec, key):
        self.taken.append((spec.name, key))
        if self.silent:
            raise PortError("the coordinator does not answer", board=spec.name)
        if spec.place not in self.free:
            return None
        self.free.remove(spec.place)
        return Place(self, spec.place)

    def free_places(self, spec):
        return self.free & {spec.place}

    def queue(self, spec, key):
        self.queued.append((spec.name, key))

    def leave_queue(self, spec, key):
        self.left.append((spec.name, key))

    def holder(self, spec):
        if spec.place in self.free:
            return None
        return PlaceHolder(spec.name, 0, "lab", "alice", "soldering", 1000.0, place=spec.place)


@pytest.fixture
def lab(monkeypatch):
    lab = Lab()
    monkeypatch.setattr(module, "labgrid", lab)
    return lab


@pytest.fixture
def rack(tmp_path):
    (tmp_path / "boards.toml").write_text(
        '[rack]\nlock_dir="locks"\n[boards.far]\nbackend="labgrid"\ncoordinator="lab"\nplace="far"\n'
        '[boards.near]\nbackend="labgrid"\ncoordinator="lab"\nplace="near"\n[boards.sim]\nbackend="sim"\nchip="esp32"\n'
    )
    return load_rack(tmp_path / "boards.toml")


def key(rack, name="far"):
    return identity(rack.board(name), rack)


def test_a_place_is_taken_with_its_lock_and_given_back(lab, rack):
    (lease,) = rack.lease("far", purpose="me")
    assert (lease.place.name, lease.held, lab.free) == ("far", True, {"near"})
    assert lab.taken == [("far", key(rack))]
    assert holder_of(rack.board("far"), rack).purpose == "me"  # by the lock, before the lab is asked
    lease.release()
    assert (lease.held, lab.free) == (False, {"far", "near"})
    assert holder_of(rack.board("far"), rack) is None
    lease.release()
    assert lab.left == [("far", key(rack))]


def test_a_place_that_the_lab_has_taken_away_is_not_held(lab, rack):
    with rack.lease("far", purpose="me")[0] as lease:
        lease.place.lost = "somebody has released it"
        assert not lease.held
    assert holder_of(rack.board("far"), rack) is None


def test_a_place_that_somebody_else_holds_is_waited_for_in_its_queue(lab, rack):
    lab.free.remove("far")
    heard = []
    with pytest.raises(LeaseError, match=r"0\.1 s waiting for far; far: the labgrid place far is") as caught:
        rack.lease("far", purpose="me", timeout=0.1, on_wait=lambda holders, waited: heard.extend(holders))
    assert "ask the owner" in caught.value.hint
    assert heard[0].user == "alice"
    assert set(lab.queued) == {("far", key(rack))}
    assert lab.left == [("far", key(rack))]
    assert holder_of(rack.board("far"), rack).user == "alice"  # the lock is free again
    assert not list(lock_folder(rack).glob("*.json"))


def test_who_does_not_wait_stands_in_no_queue(lab, rack):
    lab.free.remove("far")
    with pytest.raises(LeaseError):
        rack.lease("far", purpose="me", timeout=0)
    assert lab.queued == []


def test_who_waits_for_several_stands_in_no_queue_and_takes_none(lab, rack):
    lab.free.remove("far")
    with pytest.raises(LeaseError, match="waiting for 2 of 2 boards"):
        acquire([rack.board("far"), rack.board("near")], rack=rack, purpose="me", count=2, timeout=0.1)
    assert (lab.queued, lab.taken, lab.free) == ([], [], {"near"})


def test_a_single_place_is_tried_without_asking_which_are_free(lab, rack, monkeypatch):
    monkeypatch.setattr(lab, "free_places", None)
    with rack.lease("far", purpose="me")[0] as lease:
        assert lease.place.name == "far"


def test_several_places_are_taken_together(lab, rack):
    leases = acquire([rack.board("far"), rack.board("near")], rack=rack, purpose="me", count=2, timeout=0)
    assert ([lease.place.name for lease in leases], lab.free) == (["far", "near"], set())
    for lease in leases:
        lease.release()
    assert lab.free == {"far", "near"}


def test_a_place_is_given_back_where_the_others_cannot_be_had(lab, rack):
    with rack.lease("sim", purpose="other")[0], pytest.raises(LeaseError, match="sim: held for"):
        acquire([rack.board("far"), rack.board("sim")], rack=rack, purpose="me", count=2, timeout=0)
    assert lab.free == {"far", "near"}
    assert holder_of(rack.board("far"), rack) is None


def test_a_lab_that_fails_in_the_middle_leaves_no_lock(lab, rack, monkeypatch):
    monkeypatch.setattr(lab, "check", lambda spec: None)
    lab.silent = True
    with pytest.raises(PortError, match="does not answer"):
        rack.lease("far", purpose="me")
    lab.silent = False
    assert holder_of(rack.board("far"), rack) is None


def test_a_lab_that_does_not_answer_is_passed_over(lab, rack):
    lab.silent = True
    boards = list(rack.boards.values())
    assert holders(boards, rack) == []
    with acquire(boards, rack=rack, purpose="me", timeout=0)[0] as lease:
        assert lease.spec.name == "sim"
        assert [holder.board for holder in holders(boards, rack)] == ["sim"]
    with pytest.raises(PortError, match="far: the coordinator does not answer"):
        acquire(boards, rack=rack, purpose="me", count=2, timeout=0)


def test_a_lab_that_stops_answering_is_named_at_the_end_of_the_wait(lab, rack, monkeypatch):
    lab.free.remove("far")
    calls = []

    def holder(spec):
        calls.append(spec)
        raise PortError("the coordinator does not answer", board=spec.name)

    monkeypatch.setattr(lab, "holder", holder)
    with pytest.raises(LeaseError, match=r"0\.\d s waiting for far; far: the coordinator does not answer"):
        rack.lease("far", purpose="me", timeout=0)
    assert calls


def test_boards_that_are_too_few(lab, rack):
    far = rack.board("far")
    with pytest.raises(NoMatchError, match=r"3 boards .* 1 match; far is the same hardware as far"):
        acquire([far, far], rack=rack, purpose="me", count=3)


def test_a_place_is_given_back_where_the_lease_cannot_be_signed(lab, rack, monkeypatch):
    monkeypatch.setattr(module, "HolderRecord", SimpleNamespace)  # which takes other arguments
    with pytest.raises(TypeError):
        rack.lease("far", purpose="me")
    assert lab.free == {"far", "near"}
