"""Checks that all parts load, in the order in which a failure says most. Takes about 15 s, and is
not timed."""

import sys
import time
import traceback

started = time.monotonic()


def step(name, action):
    try:
        print(f"  {name}: {action()} ({time.monotonic() - started:.1f} s)", flush=True)
        return True
    except BaseException:
        print(f"  {name}: FAILED", flush=True)
        traceback.print_exc(limit=-4)
        return False


def torch_():
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{sys.version.split()[0]}, torch {torch.__version__}, {name}"


def kernels():
    import torch
    import vllm.platforms

    result = f"{vllm.platforms.current_platform.device_name}"
    if torch.version.cuda is None:
        return f"{result}, nothing to try"
    from vllm import _custom_ops  # noqa: F401
    from vllm.triton_utils import HAS_TRITON
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    result += f", triton {HAS_TRITON}, {torch.ops._C.rms_norm.default._schema.name} is there"
    if not torch.cuda.is_available():
        return result
    x = torch.randn(4, 3584, device="cuda", dtype=torch.bfloat16)
    w = torch.ones(3584, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, w, 1e-6)
    wanted = torch.nn.functional.rms_norm(x.float(), (3584,), eps=1e-6)
    result += f", rms_norm off by {(out.float() - wanted).abs().max().item():.3f}"
    # the language models' heads, Qwen2.5-VL's vision heads, Qwen3-VL's
    for heads, size in ((28, 128), (16, 80), (16, 72)):
        q = torch.randn(256, heads, size, device="cuda", dtype=torch.bfloat16)
        cu = torch.tensor([0, 100, 256], device="cuda", dtype=torch.int32)
        got = flash_attn_varlen_func(
            q,
            q,
            q,
            max_seqlen_q=156,
            cu_seqlens_q=cu,
            max_seqlen_k=156,
            cu_seqlens_k=cu,
            causal=False,
            fa_version=3,
        )
        part = q[:100].transpose(0, 1).float()
        ref = torch.nn.functional.scaled_dot_product_attention(part, part, part).transpose(0, 1)
        result += f", FA3 head {size} off by {(got[:100].float() - ref).abs().max().item():.3f}"
    return result


def product():
    import av
    import snakemake
    import video_pipeline.engine.vllm.engine

    return f"av {av.__version__}, snakemake {snakemake.__version__}, {video_pipeline.__path__[0]}"


good = [step("torch", torch_), step("vLLM's kernels", kernels), step("project", product)]
sys.exit(0 if all(good) else 1)
