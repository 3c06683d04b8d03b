"""Law: a call uses what the weight holds, whoever wrote it and how; a pack is kept on request only, per version."""

import gc
import threading
import tracemalloc

import pytest
import torch
import torch.nn.functional as F

import gossamer as gs
from gossamer.ops.packs import KEPT, KeptPacks

X = torch.randint(-3, 4, (2, 16, 6, 6)).float()


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def check(weight, **options):
    y = gs.ops.conv2d(X, weight, padding=1, skip="input", **options)
    assert torch.equal(y, F.conv2d(X, weight, padding=1))


def sgd(weight):
    weight.grad = integers(*weight.shape)
    torch.optim.SGD([weight], lr=1.0).step()


def loaded(weight):
    layer = torch.nn.Conv2d(16, weight.shape[0], 3, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": integers(*weight.shape)})


def in_inference_mode(weight):
    with torch.inference_mode():
        weight.add_(1)
        check(weight)


@torch.no_grad()
def scaled(weight):
    weight.mul_(2)


def other_data(weight):
    weight.data = integers(*weight.shape)
    check(weight)
    weight.data = integers(*weight.shape)  # perhaps at the address of the first


def moved(weight):
    weight.data = weight.data.clone()
    weight.data.view(-1)[1] += 1


def relaid(weight):
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def one_element(weight):
    weight.view(-1)[1] += 1


def shared(weight):
    storage = weight.data.untyped_storage()
    torch.empty(0).set_(storage, 0, (weight.numel(),))[7] += 1


COUNTED = {
    "optimizer step": sgd,
    "load_state_dict": loaded,
    "in place": scaled,
    "one element in place": one_element,
    "in place, inference mode": in_inference_mode,
    "through a view": lambda weight: weight.detach()[0].zero_(),
    "other place, one element": moved,
    "other layout": relaid,
}
UNCOUNTED = {
    "step through .data": lambda weight: weight.data.add_(integers(*weight.shape)),
    "a filter through .data": lambda weight: weight.data[5].zero_(),
    "one element through .data": lambda weight: weight.data.view(-1)[1].add_(1),
    "one element through numpy": lambda weight: weight.detach().numpy().__setitem__((0, 0, 1, 1), 9.0),
    "one element through DLPack": lambda weight: torch.from_dlpack(weight.detach())[1, 2, 0, 1].add_(1),
    "one element through the storage": shared,
    "other .data": other_data,
}


@pytest.mark.parametrize("change", [*COUNTED.values(), *UNCOUNTED.values()], ids=[*COUNTED, *UNCOUNTED])
@pytest.mark.parametrize("filters", [8, 130])
def test_a_call_uses_what_the_weight_holds(change, filters):
    weight = torch.nn.Parameter(integers(filters, 16, 3, 3))
    check(weight)
    change(weight)
    check(weight)


@pytest.mark.parametrize("change", UNCOUNTED.values(), ids=UNCOUNTED)
def test_modules_and_gradients_use_it_too(change):
    """Between a forward and the next, in eager and compiled calls, for the input gradient as well."""
    layer, torchs = gs.nn.Conv2d(16, 8, 3, padding=1, bias=False, skip="input"), torch.nn.Conv2d(16, 8, 3, padding=1)
    layer.weight = torchs.weight = torch.nn.Parameter(integers(8, 16, 3, 3))
    torchs.bias = None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found = []
        for module in (torchs, layer, compiled):
            x = X.clone().requires_grad_()
            y = module(x)
            y.sum().backward()
            found.append((y, x.grad))
        for y, gradient in found[1:]:
            assert torch.equal(y, found[0][0]) and torch.equal(gradient, found[0][1])
        change(layer.weight)


@pytest.mark.parametrize("change", COUNTED.values(), ids=COUNTED)
def test_a_kept_pack_is_made_anew_after_what_torch_counts(change):
    weight = torch.nn.Parameter(integers(130, 16, 3, 3))
    check(weight, keep_packed=True)
    change(weight)
    check(weight, keep_packed=True)


def test_other_strides_over_the_same_memory():
    """Same address, same version, same numbers in memory."""
    x, weight = integers(1, 48, 5, 5), torch.nn.Parameter(integers(48, 48, 3, 3))
    for _ in range(2):
        y = gs.ops.conv2d(x, weight, padding=1, skip="input", keep_packed=True)
        assert torch.equal(y, F.conv2d(x, weight, padding=1))
        weight.data = weight.data.transpose(0, 1)


@pytest.fixture
def packs(monkeypatch):
    """The names of the kernels' calls to pack."""
    calls = []
    get = KeptPacks.get

    def counted(self, weight, role, pack):
        return get(self, weight, role, lambda w: calls.append(role) or pack(w))

    monkeypatch.setattr(KeptPacks, "get", counted)
    return calls


def test_a_kept_pack_is_made_once_per_role(packs):
    weight = torch.nn.Parameter(integers(8, 16, 3, 3))
    for _ in range(4):
        x = X.clone().requires_grad_()
        gs.ops.conv2d(x, weight, padding=1, skip="input", keep_packed=True).sum().backward()
    assert [role.split()[-1] for role in packs] == ["forward", "transposed"]
    sgd(weight)
    check(weight, keep_packed=True)
    assert [role.split()[-1] for role in packs] == ["forward", "transposed", "forward"]


def test_an_inference_tensor_is_packed_at_every_use(packs):
    with torch.inference_mode():
        weight = integers(8, 16, 3, 3)
        for _ in range(3):
            check(weight, keep_packed=True)
            weight.add_(1)
    assert len(packs) == 3


def test_packs_die_with_their_weights():
    gc.collect()
    before = len(KEPT)
    weights = [torch.nn.Parameter(integers(8, 16, 3, 3)) for _ in range(5)]
    for weight in weights:
        check(weight, keep_packed=True)
    assert len(KEPT) == before + 5
    del weight
    weights.clear()
    gc.collect()
    assert len(KEPT) == before


def test_a_layer_that_has_settled_on_dense_keeps_no_pack():
    x, weight, site = X.where(X != 0, 1), torch.nn.Parameter(integers(8, 16, 3, 3)), gs.planner.Site()
    before = len(KEPT)
    gs.ops.conv2d(x, weight, skip="input", site=site, keep_packed=True)
    assert len(KEPT) == before + 1
    for _ in range(100):
        gs.ops.conv2d(x, weight.detach(), site=site)
    with torch.no_grad():
        for _ in range(40):
            gs.ops.conv2d(x, weight, site=site)
    assert len(KEPT) == before


def test_no_memory_grows_over_hundreds_of_steps():
    """Of Python's, and of tensors: a step makes a version of the weight, a pack of it each way, and a fresh input."""
    weight, bias = torch.nn.Parameter(torch.randn(16, 16, 3, 3) / 12), torch.nn.Parameter(torch.zeros(16))
    optimizer, site = torch.optim.SGD([weight, bias], lr=1e-4), gs.planner.Site()

    def step(skip):
        x = torch.randn(1, 16, 5, 5).relu().requires_grad_()
        optimizer.zero_grad()
        gs.ops.conv2d(x, weight, bias, padding=1, relu=True, skip=skip, site=site, keep_packed=True).sum().backward()
        optimizer.step()

    def tensors():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)), len(KEPT)

    for i in range(100):
        step(("auto", "input")[i % 2])
    count = tensors()
    tracemalloc.start()
    for i in range(100):
        step(("auto", "input")[i % 2])
    first = tracemalloc.get_traced_memory()[0]
    for i in range(300):
        step(("auto", "input")[i % 2])
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 24 * 1024, f"{grown} bytes of Python objects"
    assert tensors() == count


def test_threads_share_layers():
    """Some run while others pack: each gets its own right answer."""
    weights = [integers(8, 16, 3, 3) for _ in range(3)]
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for i in range(40):
            x = torch.randint(-3, 4, (1, 16, 5, 5), generator=generator).float().requires_grad_()
            weight = weights[i % 3]
            one, two = (f(x, weight, padding=1) for f in (gs.ops.conv2d, F.conv2d))
            skipping = gs.ops.conv2d(x, weight, padding=1, skip="input", keep_packed=bool(i % 2))
            dy = torch.ones_like(two)
            gradients = [torch.autograd.grad(y, x, dy)[0] for y in (one, two, skipping)]
            if not (torch.equal(one, two) and torch.equal(skipping, two) and torch.equal(*gradients[:2])):
                wrong.append((seed, i))
            if not torch.equal(*gradients[1:]):
                wrong.append((seed, i, "gradient"))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_replicas_of_a_layer():
    """What DataParallel does on each call: new tensors that hold the weights, used once, in threads."""
    layer = torch.nn.Conv2d(16, 8, 3, padding=1)
    site = gs.planner.Site()
    results = {}

    def work(i):
        replica = layer.weight.clone()
        results[i] = gs.ops.conv2d(
            X[i : i + 1], replica, layer.bias, padding=1, skip="input", site=site, keep_packed=True
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cat([results[0], results[1]]).sum().backward()
    expected = torch.autograd.grad(F.conv2d(X, layer.weight, layer.bias, padding=1).sum(), layer.weight)[0]
    assert torch.equal(layer.weight.grad, expected)
