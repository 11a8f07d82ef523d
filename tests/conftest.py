"""Eight emulated CPU devices for every test, or no tests at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import settings

from tests.users import COMPILE_FAST

DEVICE_COUNT = 8

# All of this is read when jax, or libtpu inside it, first loads. Every process that a test starts
# inherits it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *(
            flag
            for flag in os.environ.get("XLA_FLAGS", "").split()
            if not flag.startswith("--xla_force_host_platform_device_count")
        ),
        f"--xla_force_host_platform_device_count={DEVICE_COUNT}",
        *COMPILE_FAST,
    ]
)
# libtpu compiles without a TPU if it neither asks the cloud for one nor locks the machine.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v4-8"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"

import jax  # noqa: E402
from jax.sharding import AxisType, Mesh  # noqa: E402

MeshOf = Callable[..., Mesh]

settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    """Fails the whole run if the devices are not there."""
    del config
    settings.load_profile("project")
    start()


def start() -> None:
    """Strict dtype promotion, and the devices, without which nothing runs."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    devices = jax.devices()
    if len(devices) != DEVICE_COUNT or devices[0].platform != "cpu":
        pytest.exit(
            f"the tests need {DEVICE_COUNT} emulated CPU devices, jax found {devices}; "
            "it must not have been initialised before tests/conftest.py sets XLA_FLAGS",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.fixture(scope="session")
def mesh_of() -> MeshOf:
    """`mesh_of(shape, names, explicit=False)`: a mesh of the first devices, of any size up to 8.

    Axes are Auto, or Explicit with `explicit=True`.
    """

    def build(shape: Sequence[int], names: Sequence[str], explicit: bool = False) -> Mesh:
        count = math.prod(shape)
        if count > DEVICE_COUNT:
            raise ValueError(f"a mesh of {tuple(shape)} needs {count} of {DEVICE_COUNT} devices")
        axis_type = AxisType.Explicit if explicit else AxisType.Auto
        return jax.make_mesh(
            tuple(shape),
            tuple(names),
            axis_types=(axis_type,) * len(names),
            devices=jax.devices()[:count],
        )

    return build


@pytest.fixture(autouse=True, scope="module")
def forgets_programs() -> Iterator[None]:
    """Lets go of a module's compiled programs: of thousands in a process, the CPU compiler crashes."""
    yield
    jax.clear_caches()
