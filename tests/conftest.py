"""Strictness for every test: no silent broadcasting or promotion, and eight devices to shard over."""

import os

# Before jax starts its backends. What a test compiles runs a few times, on toys: LLVM need not optimize it.
# Tests that start processes pass their own environment. Of two equal flags the later counts; set to nothing,
# XLA_FLAGS stays so.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", " ") and (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two processes share two cores, and PyTorch's threads spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_TORCH_COMPILE", "1")  # `moshi` would compile for 20 s

import closeness
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    what = "bounds on float32 are this many times narrower: what fails stands near its edge"
    parser.addoption("--margin", type=float, default=1.0, metavar="FACTOR", help=what)


def pytest_configure(config):
    closeness.tighten(config.getoption("--margin"))
