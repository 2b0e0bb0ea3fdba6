"""bfloat16 on a CPU without instructions for it: one sentence that names float32, and none on other machines."""

import pytest
import torch

from relay_trl.engines.precision import has_bfloat16
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.training import RelayGRPOConfig, RelaySFTConfig

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator computes bfloat16")
MODEL = "data/arithmetic/student"


@pytest.fixture(params=[False, True], ids=["without", "with"])
def has_instructions(request, monkeypatch):
    """A CPU whose list of features has them, or has not."""
    features = {name: on for name, on in torch.cpu.get_capabilities().items() if "bf16" not in name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**features, "avx512_bf16": request.param})
    assert has_bfloat16() == request.param
    return request.param


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_engine_warns_of_what_it_computes_in(has_instructions, dtype, caplog):
    TransformersEngine.load(MODEL, dtype=dtype)
    found = warnings_of(caplog)
    assert len(found) == (0 if has_instructions or dtype == "float32" else 1)
    assert all(MODEL in words and words.endswith("set dtype: float32.") for words in found)


@pytest.mark.parametrize("kind, needed", [(RelayGRPOConfig, {}), (RelaySFTConfig, {"warmup_data": "rows.jsonl"})])
@pytest.mark.parametrize("bf16", [True, False])
def test_a_training_warns_once(has_instructions, kind, needed, bf16, caplog, tmp_path):
    kind(output_dir=str(tmp_path), use_cpu=True, bf16=bf16, **needed)
    found = warnings_of(caplog)
    assert len(found) == (1 if bf16 and not has_instructions else 0)
    assert all("bf16: false" in words and "float32" in words for words in found)
