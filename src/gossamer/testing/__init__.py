"""What the tests of this library use and a user's tests may: a table of cases, strategies, derived assertions, a clock.

from gossamer.testing import CASES, assert_same_bits

for case in CASES:
    x = case.dense()
    pattern = gs.detect(x, case.tile)
    assert_same_bits(gs.ops.scatter(gs.ops.gather(x, pattern), pattern), x)
"""

from gossamer.testing.asserts import (
    assert_no_recompile,
    assert_same_bits,
    assert_same_tiles,
    assert_within,
    gamma,
    unit_roundoff,
)
from gossamer.testing.cases import CASES, DTYPES, Case, case, ids
from gossamer.testing.clock import Clock
from gossamer.testing.convolutions import CONVOLUTIONS, ZEROS, Convolution, convolution, hollow
from gossamer.testing.products import PRODUCTS, Product, product

__all__ = [
    "CASES",
    "CONVOLUTIONS",
    "DTYPES",
    "PRODUCTS",
    "ZEROS",
    "Case",
    "Clock",
    "Convolution",
    "Product",
    "assert_no_recompile",
    "assert_same_bits",
    "assert_same_tiles",
    "assert_within",
    "case",
    "convolution",
    "gamma",
    "hollow",
    "ids",
    "product",
    "unit_roundoff",
]
