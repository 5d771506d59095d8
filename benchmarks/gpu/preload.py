"""What the processes of the plain loop's DataLoader import, once for all of them."""

import av  # noqa: F401
import qwen_vl_utils  # noqa: F401
import torch.utils.data  # noqa: F401
from transformers import AutoProcessor  # noqa: F401

import benchmarks.plain_loop
import benchmarks.stock  # noqa: F401
