"""The loops of training: what they give, and what they refuse."""

import pytest
import torch

from synthboot.kernels import library, training

compiled = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")


@compiled
def test_rows_outside_the_window_are_refused() -> None:
    scores = torch.zeros(2, 1, 8, 24)
    training.attention_weights(scores, 16, 24, 2, 1.0)
    assert torch.allclose(scores.sum(-1), torch.ones(2, 1, 8))
    with pytest.raises(ValueError, match="lie outside"):
        training.attention_weights(scores, 16, 23, 2, 1.0)
    with pytest.raises(ValueError, match=r"mask is \(1, 23, 23\)"):
        training.attention_weights(scores, 16, 24, 2, 1.0, torch.ones(1, 23, 23, dtype=torch.bool))
    with pytest.raises(ValueError, match="weights is"):
        training.attention_weights(scores, 16, 24, 2, 1.0, weights=scores[:1].contiguous())


@compiled
@pytest.mark.parametrize(("dim", "shared"), [(64, True), (40, False)])
def test_positions_are_rotated_as_the_library_does_and_back(dim: int, shared: bool) -> None:
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    torch.manual_seed(0)
    x = torch.randn(3, 7, 2, dim)
    angles = torch.rand(1 if shared else 3, 7, dim // 2) * 6
    cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    rotated = torch.empty(3, 2, 7, dim)
    training.rotate(x, cos, sin, rotated.transpose(1, 2), inverse=False)
    torch.testing.assert_close(rotated.transpose(1, 2), expected, rtol=1e-6, atol=1e-6)
    back = torch.empty_like(x)
    training.rotate(rotated.transpose(1, 2), cos, sin, back, inverse=True)  # read as it lies, which is not in one piece
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="differ in shape"):
        training.rotate(x, cos, sin, rotated, inverse=False)
    with pytest.raises(ValueError, match="cos is"):
        training.rotate(x, cos[:, :5], sin, back, inverse=False)
    with pytest.raises(ValueError, match="four dimensions"):
        training.rotate(x[0], cos, sin, back, inverse=False)
