"""
The C++ kernels on raw addresses. Call them through gossamer.kernels.cpu, which checks its arguments.

Addresses are integers (`tensor.data_ptr()`); sizes are elements unless called bytes.
"""

def isa() -> str:
    """The instruction set in use."""

def set_isa(name: str) -> None:
    """
    Switch every later call to `name`; ValueError when this machine cannot run it.
    """

def available_isas() -> list[str]:
    """Built, and run by this CPU; narrow to wide."""

def best_isa() -> str:
    """What is chosen unless GOSSAMER_ISA says otherwise."""

def built_isas() -> list[str]: ...
def ops_of(isa: str) -> list[str]:
    """
    Ops that `isa` was built with code of its own for; others run the code of a narrower one.
    """

def openmp_library() -> str:
    """
    The file of the OpenMP runtime in use; empty when built without OpenMP.
    """

def compiler() -> str: ...
def detect(
    x: int,
    rows: int,
    cols: int,
    element_size: int,
    is_float: bool,
    bm: int,
    bn: int,
    capacity: int,
    flags: int,
    offsets: int,
    indices: int,
    index_size: int,
    cleared: bool,
    threads: int,
    /,
) -> None: ...
def gather(x: int, element_size: int, index: tuple[int, ...], values: int, threads: int, /) -> bool: ...
def scatter(values: int, element_size: int, index: tuple[int, ...], dense: int, threads: int, /) -> bool: ...
def gather_mm_workspace(element_size: int, index: tuple[int, ...], batch: int, n: int, threads: int, /) -> int: ...
def gather_mm(
    a: int,
    element_size: int,
    index: tuple[int, ...],
    b: tuple[int, ...],
    batch: int,
    b_batch: int,
    n: int,
    c: int,
    transposed: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def grouped_workspace(element_size: int, out_rows: int, threads: int, /) -> int: ...
def grouped_mm(
    x: int,
    element_size: int,
    x_rows: int,
    k: int,
    source: int,
    source_size: int,
    target: int,
    target_size: int,
    positions: int,
    offsets: int,
    groups: int,
    weights: int,
    transposed: bool,
    n: int,
    y: int,
    out_rows: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def grouped_outer(
    x: int,
    element_size: int,
    x_rows: int,
    k: int,
    dy: int,
    dy_rows: int,
    n: int,
    source: int,
    source_size: int,
    target: int,
    target_size: int,
    positions: int,
    offsets: int,
    groups: int,
    dw: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def repeated(index: tuple[int, ...], bits: int, threads: int, /) -> int: ...
def work_in_range(index: tuple[int, ...], work: int, segments: int, bits: int, /) -> int: ...
def mask(x: int, mask: int, n: int, element_size: int, threads: int, /) -> None: ...
def select_workspace(n: int, threads: int, /) -> int: ...
def select(
    scores: int, allowed: int, n: int, k: int, largest: bool, mask: int, workspace: int, threads: int, /
) -> int: ...
def dsd_workspace(
    storage: int,
    in_place: bool,
    index: tuple[int, ...],
    n: int,
    work: int,
    segments: int,
    work_checked: bool,
    threads: int,
    /,
) -> int: ...
def dsd(
    values: int,
    storage: int,
    scale: int,
    index: tuple[int, ...],
    order: int,
    order_size: int,
    transposed: bool,
    b: tuple[int, ...],
    n: int,
    c: int,
    column_major: bool,
    work: int,
    segments: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def fan_in_mm_workspace(element_size: int, batch: int, cols: int, /) -> int: ...
def fan_in_mm(
    x: tuple[int, ...],
    batch: int,
    cols: int,
    values: int,
    element_size: int,
    indices: int,
    index_size: int,
    rows: int,
    k: int,
    y: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def fan_in_mm_t_workspace(element_size: int, batch: int, rows: int, cols: int, k: int, threads: int, /) -> int: ...
def fan_in_mm_t(
    dy: tuple[int, ...],
    batch: int,
    rows: int,
    values: int,
    element_size: int,
    indices: int,
    index_size: int,
    k: int,
    dx: int,
    cols: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def fan_in_sdd_workspace(element_size: int, batch: int, cols: int, /) -> int: ...
def fan_in_sdd(
    dy: tuple[int, ...],
    x: tuple[int, ...],
    batch: int,
    rows: int,
    cols: int,
    element_size: int,
    indices: int,
    index_size: int,
    k: int,
    values: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def fan_in_step_workspace(c: tuple[int, ...], threads: int, /) -> int: ...
def fan_in_step(
    x: tuple[int, ...],
    c: tuple[int, ...],
    at: tuple[int, ...],
    positives: int,
    count: int,
    loss: int,
    optimizer: int,
    scale: float,
    rate: float,
    decay: float,
    beta1: float,
    gain1: float,
    beta2: float,
    gain2: float,
    root: float,
    eps: float,
    seed: int,
    step: int,
    grad_x: int,
    total: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def fan_in_topk_workspace(c: tuple[int, ...], best: int, threads: int, /) -> int: ...
def fan_in_topk(
    x: tuple[int, ...],
    c: tuple[int, ...],
    at: tuple[int, ...],
    first: int,
    excluded: tuple[int, ...],
    best: int,
    scores: int,
    ids: int,
    workspace: int,
    threads: int,
    /,
) -> int: ...
def fan_in_rewire_workspace(c: tuple[int, ...], how: tuple[int, ...], threads: int, /) -> int: ...
def fan_in_rewire(
    c: tuple[int, ...],
    at: tuple[int, ...],
    how: tuple[int, ...],
    threshold: float,
    init: float,
    workspace: int,
    threads: int,
    /,
) -> int: ...
def fan_in_draw(
    out: int,
    index_size: int,
    rows: int,
    k: int,
    cols: int,
    taken: int,
    count: int,
    seed: int,
    step: int,
    first: int,
    threads: int,
    /,
) -> bool: ...
def sdd(
    a: tuple[int, ...],
    b: tuple[int, ...],
    k: int,
    element_size: int,
    index: tuple[int, ...],
    values: int,
    packed: int,
    next: int,
    threads: int,
    /,
) -> bool: ...
def skip_conv_weight_workspace(conv: tuple[int, ...], skip_dy: bool, threads: int, /) -> int: ...
def skip_conv_weight(
    x: int,
    dy: int,
    bits: int,
    conv: tuple[int, ...],
    skip_dy: bool,
    dw: int,
    channels_last: bool,
    counts: int,
    workspace: int,
    threads: int,
    /,
) -> None: ...
def transpose(
    index: tuple[int, ...], counts: int, offsets_t: int, indices_t: int, index_size_t: int, order: int, threads: int, /
) -> bool: ...
def skip_mv_workspace(c: int, /) -> int: ...
def skip_mv(
    x: int,
    batch: int,
    c: int,
    w: int,
    type: int,
    k: int,
    bias: int,
    threshold: float,
    y: int,
    counts: int,
    workspace: int,
    threads: int,
    /,
) -> None: ...
def gated_mv_workspace(k: int, /) -> int: ...
def gated_mv(
    x: int, batch: int, c: int, w: int, type: int, k: int, bias: int, gate: int, y: int, workspace: int, threads: int, /
) -> None: ...
def few_rows(x: int, rows: int, k: int, w: int, type: int, n: int, bias: int, y: int, threads: int, /) -> None: ...
def open_mv(
    x: int,
    batch: int,
    c: int,
    q: int,
    scale: int,
    slack: int,
    k: int,
    bias: int,
    gate: int,
    norms: int,
    threads: int,
    /,
) -> None: ...
def skip_pack_outs(outputs: int, /) -> int: ...
def skip_pack_lanes(channels: int, r: int, /) -> int: ...
def skip_pack(
    weight: int,
    outputs: int,
    channels: int,
    r: int,
    s: int,
    out_stride: int,
    in_stride: int,
    r_stride: int,
    s_stride: int,
    packed: int,
    threads: int,
    /,
) -> None: ...
def skip_conv_workspace(conv: tuple[int, ...], transposed: bool, threads: int, /) -> int: ...
def skip_conv(
    x: int,
    packed: int,
    bias: int,
    bits: int,
    conv: tuple[int, ...],
    transposed: bool,
    relu: bool,
    y: int,
    y_bits: int,
    counts: int,
    workspace: int,
    threads: int,
    /,
) -> None: ...
def page_append(
    keys: int,
    values: int,
    key_heads: int,
    sources: int,
    pages: tuple[int, ...],
    requests: tuple[int, ...],
    extremes: tuple[int, ...],
    moments: tuple[int, ...],
    sketches: tuple[int, ...],
    threads: int,
    /,
) -> bool: ...
def page_attention_workspace(
    pages: tuple[int, ...],
    requests: tuple[int, ...],
    shape: tuple[int, ...],
    first_heads: int,
    lists: tuple[int, ...],
    threads: int,
    /,
) -> int: ...
def page_attention(
    q: int,
    pages: tuple[int, ...],
    requests: tuple[int, ...],
    shape: tuple[int, ...],
    first_heads: int,
    lists: tuple[int, ...],
    scale: float,
    cap: float,
    out: int,
    lse: int,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def attention_plan_size(texts: tuple[int, ...], mask: tuple[int, ...], /) -> int: ...
def attention_plan(texts: tuple[int, ...], mask: tuple[int, ...], plan: int, threads: int, /) -> int: ...
def attention_workspace(
    texts: tuple[int, ...], sizes: tuple[int, ...], mask: tuple[int, ...], plan: int, threads: int, /
) -> int: ...
def attention(
    q: tuple[int, ...],
    k: tuple[int, ...],
    v: tuple[int, ...],
    out: tuple[int, ...],
    lse: tuple[int, ...],
    texts: tuple[int, ...],
    sizes: tuple[int, ...],
    mask: tuple[int, ...],
    plan: int,
    scale: float,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def attention_backward_workspace(sizes: tuple[int, ...], threads: int, /) -> int: ...
def attention_backward(
    dout: tuple[int, ...],
    q: tuple[int, ...],
    k: tuple[int, ...],
    v: tuple[int, ...],
    out: tuple[int, ...],
    lse: tuple[int, ...],
    dq: tuple[int, ...],
    dk: tuple[int, ...],
    dv: tuple[int, ...],
    texts: tuple[int, ...],
    sizes: tuple[int, ...],
    mask: tuple[int, ...],
    plan: int,
    scale: float,
    workspace: int,
    threads: int,
    /,
) -> bool: ...
def page_scores(
    form: int,
    query_heads: int,
    group: int,
    first_heads: int,
    pages: tuple[int, ...],
    requests: tuple[int, ...],
    summaries: tuple[int, ...],
    scores: int,
    threads: int,
    /,
) -> bool: ...
def page_key_scores(
    q: int,
    query_heads: int,
    group: int,
    first_heads: int,
    pages: tuple[int, ...],
    requests: tuple[int, ...],
    codes: tuple[int, ...],
    scores: int,
    threads: int,
    /,
) -> bool: ...
def page_choose(
    scores: int,
    query_heads: int,
    group: int,
    first_heads: int,
    heads: int,
    together: bool,
    lengths: int,
    requests: int,
    cols: int,
    page: int,
    count: int,
    chosen: int,
    threads: int,
    /,
) -> bool: ...
def relu_bits(x: int, rows: int, cols: int, y: int, bits: int, threads: int, /) -> None: ...
def keep_bits(x: int, bits: int, rows: int, cols: int, y: int, threads: int, /) -> None: ...
def reorder(x: int, batch: int, rows: int, cols: int, y: int, threads: int, /) -> None: ...
def read(x: int, bytes: int, threads: int, /) -> int: ...
