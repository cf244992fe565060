"""Which kernels run where, what is said when they cannot, and that a model computes the same with them."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch

from model import HybridCache, HybridConfig, HybridLM, ModelError
from model.kernels import backend
from model.kernels.backend import asked, choose, kernels_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def forget():
    asked.cache_clear()
    choose.cache_clear()


@pytest.fixture(autouse=True)
def ask(monkeypatch):
    """Sets CISPO_KERNELS, which is unset until then, as for a process that starts; no choice is left behind."""

    def set_variable(name):
        monkeypatch.setenv(backend.VARIABLE, name)
        forget()

    monkeypatch.delenv(backend.VARIABLE, raising=False)
    forget()
    yield set_variable
    forget()


def test_cpus_run_the_torch_code():
    assert kernels_for(torch.zeros(1, 1, 64)) is None


@pytest.mark.parametrize(
    "dtype, head_dim, name",
    [
        (torch.float32, 64, "triton"),
        (torch.bfloat16, 128, "triton"),
        (torch.float64, 64, None),
        (torch.float32, 48, None),
    ],
    ids=["float32 d64", "bfloat16 d128", "float64 d64", "float32 d48"],
)
def test_cuda_devices_run_triton_where_it_has_the_dtype_and_width(dtype, head_dim, name):
    pytest.importorskip("triton")
    kernels = choose(None, CUDA, dtype, head_dim)
    assert (kernels and kernels.name) == name


def test_cuda_devices_run_the_torch_code_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert choose(None, CUDA, torch.float32, 64) is None


def test_torch_can_be_asked_for(ask):
    ask("torch")
    assert kernels_for(torch.zeros(1, 1, 64)) is None
    assert choose("torch", CUDA, torch.float32, 64) is None


def test_an_unknown_name_is_refused(ask):
    ask("tritn")
    with pytest.raises(ModelError, match="CISPO_KERNELS names .* one of torch, triton, fla, but it is 'tritn'"):
        kernels_for(torch.zeros(1, 1, 64))


@pytest.mark.parametrize("absent, name", [("triton", "triton"), ("fla", "fla"), ("triton", "fla")])
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, absent, name):
    monkeypatch.setitem(sys.modules, absent, None)
    package = {"triton": "triton", "fla": "flash-linear-attention"}[absent]
    with pytest.raises(ModelError, match=rf'"{name}" need the package {package}, .* pip install \'cispo\[gpu\]\''):
        choose(name, CUDA, torch.float32, 64)


def test_triton_by_name_must_have_the_dtype_and_width():
    pytest.importorskip("triton")
    with pytest.raises(ModelError, match="cannot run here: they have .* and not torch.float64 with heads of 24"):
        choose("triton", CUDA, torch.float64, 24)


@pytest.fixture
def fla(monkeypatch):
    """A module in the place of flash-linear-attention, which cannot be imported without a device."""
    for name in ("fla", "fla.ops", "fla.ops.simple_gla"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


def test_fla_needs_a_device(fla):
    pytest.importorskip("triton")
    with pytest.raises(ModelError, match='"fla" cannot run here: they need a CUDA device, .* on cpu'):
        choose("fla", CPU, torch.float32, 64)


@pytest.mark.parametrize("version, runs", [("3.6.0", False), ("3.7.1", True)])
def test_fla_is_refused_where_triton_would_miscompile_it(fla, monkeypatch, version, runs):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    if runs:
        assert choose("fla", CUDA, torch.float32, 64).name == "fla"
        return
    with pytest.raises(ModelError, match="cannot run here: Triton 3.6.0 compiles .* upgrade Triton to 3.7.1"):
        choose("fla", CUDA, torch.float32, 64)


def model_results(device):
    """What a model computes in its three ways to run, and the gradients of all its weights."""
    torch.manual_seed(0)
    lm = HybridLM(HybridConfig(num_hidden_layers=2, attn_type_list=(0, 1), initializer_range=0.2)).to(device)
    tokens = torch.arange(75, device=device) * 7 % 64
    borders = torch.tensor([0, 66, 75], device=device)
    positions = torch.cat([torch.arange(66), torch.arange(9)]).to(device)
    hidden = lm(tokens, positions, borders)
    weights = dict(lm.named_parameters())
    gradients = torch.autograd.grad(hidden.sin().sum(), list(weights.values()), allow_unused=True)
    results = {"hidden": hidden.detach()} | dict(zip(weights, gradients, strict=True))
    cache, slots = HybridCache(lm.config, 4, 80, device), torch.tensor([3, 1], device=device)
    results["prompt"] = lm.prefill(tokens[:14], torch.tensor([0, 9, 14], device=device), slots, cache)
    results["more of it"] = lm.prefill(tokens[14:22], torch.tensor([0, 1, 8], device=device), slots, cache)
    results["a token"] = lm.decode(tokens[22:24], slots, cache)
    results["state"] = cache.states[0]
    return {name: value for name, value in results.items() if value is not None}


def test_a_model_computes_the_same_with_the_triton_kernels(ask):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ask("torch")
    wanted = model_results(device)
    ask("triton")
    assert kernels_for(torch.zeros(1, 1, 16, device=device)).name == "triton"
    found = model_results(device)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        largest = max(float(value.abs().max()), 1e-3)
        assert float((found[name] - value).abs().max()) < 1e-5 * largest, name
    assert not torch.equal(found["state"], wanted["state"])  # it was other code
