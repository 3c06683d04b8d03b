"""What both routes of the classifier's step share: losses, optimizers, and rounding by the counter's random bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep_gradient(z, at, mask, scale, losses, LOSS: tl.constexpr):
    """Where targets of 0 and 1 stand, the gradient by the logits z; the loss of these goes to this program's place."""
    y = tl.load(at, mask=mask, other=0)
    if LOSS == "bce":
        e = tl.exp(tl.where(z < 0, z, -z))
        part = 1 / (1 + e)
        gradient = tl.where(z < 0, e * part, part) - y
        # log1p(e) to the last bit or two: log(u) is off by what 1 + e rounded away, which e / (u - 1) restores.
        u = 1 + e
        log = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1, u - 1)))
        value = tl.where(z < 0, 0, z) - y * z + log
    else:
        sign = 2 * y - 1
        slack = 1 - sign * z
        margin = tl.where(slack <= 0, 0, slack)  # NaN stays
        gradient = -2 * sign * margin
        value = margin * margin
    tl.store(at, gradient * scale, mask=mask)
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    total = tl.sum(tl.sum(tl.where(mask, value, 0), 1), 0)
    tl.store(losses + place, tl.load(losses + place) + total.to(tl.float64) * scale)


@triton.jit
def stepped(value, gradient, first, second, at, mask, rate, decay, beta1, gain1, beta2, gain2, root, eps,
            OPTIMIZER: tl.constexpr):  # fmt: skip
    """The new float32 value; states are written. decay: of Adam times the rate; root: 1 / sqrt(1 - beta2 ** step)."""
    if OPTIMIZER == "adam":
        value -= decay * value
        m = tl.load(first + at, mask=mask, other=0)
        v = tl.load(second + at, mask=mask, other=0)
        m += gain1 * (gradient - m)
        v = beta2 * v + gain2 * gradient * gradient
        tl.store(first + at, m, mask=mask)
        tl.store(second + at, v, mask=mask)
        value -= rate * m / (tl.sqrt(v) * root + eps)
    else:
        gradient += decay * value
        if OPTIMIZER == "momentum":
            gradient += beta1 * tl.load(first + at, mask=mask, other=0)
            tl.store(first + at, gradient, mask=mask)
        value -= rate * gradient
    return value


@triton.jit
def mixed(x):
    """Stafford's mix 13 of the next number of Weyl's sequence, as in `gossamer.kernels.counter`."""
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def rounded(x, label, slot, low, high):
    """bfloat16 of x[labels, slots], up or down with the odds of where it lies between, by the bits of (label, slot).

    low, high: the halves of the key of (seed, step), as int32.
    """
    step = (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.uint64)
    key = mixed(step + label.to(tl.uint64))
    bits = key.to(tl.uint32)[:, None] + slot.to(tl.uint32)[None, :] * 0x9E3779B1
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits = bits ^ (bits >> 16) ^ (key >> 32).to(tl.uint32)[:, None]
    odds = tl.where(x == x, bits >> 16, 0)
    return ((x.to(tl.uint32, bitcast=True) + odds) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def update(values, gradient, first, second, name, j, here, k, low, high, rate, decay, beta1, gain1, beta2, gain2, root,
           eps, OPTIMIZER: tl.constexpr):  # fmt: skip
    """values[label, j] and its states by gradient[labels, slots]; `name` is the number of each label, `here` which."""
    at = name[:, None] * k + j[None, :]
    value = tl.load(values + at, mask=here, other=0).to(tl.float32)
    new = stepped(
        value, gradient, first, second, at, here, rate, decay, beta1, gain1, beta2, gain2, root, eps, OPTIMIZER
    )
    if values.dtype.element_ty == tl.bfloat16:
        tl.store(values + at, rounded(new, name, j, low, high), mask=here)
    else:
        tl.store(values + at, new, mask=here)


@triton.jit
def update_bias(bias, by_bias, first, second, label, exists, rate, beta1, gain1, beta2, gain2, root, eps,
                OPTIMIZER: tl.constexpr):  # fmt: skip
    """The same of the bias, which does not decay; None stays None."""
    if bias is not None:
        value = tl.load(bias + label, mask=exists, other=0)
        new = stepped(value, by_bias, first, second, label, exists, rate, 0.0, beta1, gain1, beta2, gain2, root, eps,
                      OPTIMIZER)  # fmt: skip
        tl.store(bias + label, new, mask=exists)


@triton.jit
def along_batch(g, r, exists, batch, BR: tl.constexpr, BB: tl.constexpr):
    """(the sum over the batch, whether any is not zero) of g[r, batch]."""
    total = tl.zeros([BR, BB], dtype=tl.float32)
    live = tl.zeros([BR, BB], dtype=tl.int32)
    for left in range(0, batch, BB):
        b = left + tl.arange(0, BB)
        each = tl.load(g + r[:, None] * batch + b[None, :], mask=exists[:, None] & (b < batch)[None, :], other=0)
        total += each
        live |= (each != 0).to(tl.int32)
    return tl.sum(total, 1), tl.sum(live, 1) > 0
