"""Random configurations of modules against PyTorch, and recomputed."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import DRAWN, agrees, check, examples
from hypothesis import given
from hypothesis import strategies as st

import bpcore as bp
from bpcore.functional import convolution
from bpcore.layout import Layout


@pytest.mark.parametrize("kind", DRAWN, ids=lambda kind: kind.__name__)
@given(data=st.data(), chunk=st.sampled_from([1, 1 << 20]), check=check)
@examples
def test_drawn(kind, data, chunk, check, torch):
    """Convolutions of whole batches at once, and image by image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "CHUNK", chunk)
        agrees(torch, *data.draw(DRAWN[kind]), check=check)


@given(drawn=st.one_of(DRAWN[bp.TransformerBlock], DRAWN[bp.LSTM], DRAWN[bp.Embedding]))
@examples
def test_recompute(drawn):
    """u, dz and dθ are those of the body, bit for bit, its masks of dropout too."""
    body, *inputs = drawn
    generator = np.random.default_rng(0)
    z = [generator.standard_normal(x) if isinstance(x, tuple) else x for x in inputs]
    module = bp.Recompute(body)
    theta, mode = bp.initialize(module, dtype="float64"), bp.Mode(training=True, seed=4, look=True)
    u, saved = body.forward(theta["body"], *z, mode=mode)
    again, little = module.forward(theta, *z, mode=mode)
    v, layout = generator.standard_normal(u.shape), Layout(module)
    gradients = [np.full(layout.trained, np.nan) for _ in range(2)]
    windows = [layout.windows(gradient) for gradient in gradients]
    dz = body.backward(theta["body"], saved, v, windows[0]["body"]), module.backward(theta, little, v, windows[1])
    np.testing.assert_array_equal(again, u)
    np.testing.assert_array_equal(*gradients)
    for one, other in zip(*((d if isinstance(d, tuple) else (d,)) for d in dz), strict=True):
        np.testing.assert_array_equal(one, other)
