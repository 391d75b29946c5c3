"""The operations of `esp.production`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.production import batch, factory, provisioning, quality, testing


class ProductionFace(Face):
    """`pytest_esp.operations.production`. Those that lease boards by name need no link: they may use other boards."""

    factory_program = bound(factory.factory_program)
    factory_reset = bound(factory.factory_reset)
    inspect = bound(quality.inspect)
    provision = bound(provisioning.provision)
    write_calibration_data = bound(provisioning.write_calibration_data)
    write_manufacturing_data = bound(provisioning.write_manufacturing_data)
    batch_program = staticmethod(batch.batch_program)
    quality_control = staticmethod(testing.quality_control)
    run_tests = staticmethod(testing.run_tests)
