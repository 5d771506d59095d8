# Everything that the jobs need, but the workflow itself, which the jobs read from your folder.
#
#     docker build --target gpu --tag video-pipeline:gpu .
#     docker build --target cpu --tag video-pipeline:cpu .
#
# workflow/envs/gpu.def builds the first without Docker. docs/snakemake.md says how to use them.

FROM python:3.12-slim-bookworm AS base
# FFmpeg for torchcodec; a compiler for the kernels that Triton makes when vLLM starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg g++ \
    && rm -rf /var/lib/apt/lists/*

FROM base AS cpu
COPY envs/cpu.txt /tmp/cpu.txt
# PyPI has torch for GPUs only.
RUN grep -E '^torch(vision)?==' /tmp/cpu.txt > /tmp/torch.txt \
    && pip install --no-cache-dir --no-deps -r /tmp/torch.txt \
        --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir --no-deps -r /tmp/cpu.txt

FROM base AS gpu
# As NVIDIA's own images say it: enroot gives a container no GPU without the first, and no container
# gets the GPU's decoder without `video` in the second.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
COPY envs/gpu.txt /tmp/gpu.txt
RUN pip install --no-cache-dir --no-deps -r /tmp/gpu.txt
