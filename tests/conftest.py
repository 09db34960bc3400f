"""Shared by all tests: a tiny random Wan checkpoint on disk, one pool of gloo processes, one Ray cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan checkpoint in diffusers' format with random weights: 3 blocks, 6 heads, trained_frames 17, 32x32 pixels."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from longtake.pipeline.demo.nets import build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=128, freq_dim=32, ffn_dim=96, num_layers=3
    )
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    WanPipeline(tokenizer, build_text_encoder(len(tokenizer)), vae, scheduler, transformer=transformer).save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlongtake: {trained_frames: 17, height: 32, width: 32, max_sequence_length: 32, fps: 8}\n---\n# Tiny random Wan\n"
    )
    return folder


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[object]:
    """A pool of processes that form gloo groups of any size; see pool.py."""
    from pool import GlooPool

    with GlooPool(3) as pool:
        yield pool


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A local cluster whose address RAY_ADDRESS names while the session lasts."""
    import ray

    context = ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    address = context.address_info["address"]
    os.environ["RAY_ADDRESS"] = address
    yield address
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()


@pytest.fixture
def tiny_wan_copy(tiny_wan: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_wan, tmp_path / "model"))
