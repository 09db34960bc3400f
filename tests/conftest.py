"""Shared by all tests: a tiny random Wan checkpoint on disk, one pool of gloo processes, one Ray cluster."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A background job ignores the first of these, nohup the second, and so would the children that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples every time, as slow as the machine is. Others: make test ARGUMENTS="--hypothesis-profile=explore".
settings.register_profile("longtake", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("longtake"), derandomize=False)
settings.load_profile("longtake")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the session's Ray cluster runs in one process, and begins first: it waits more than it computes."""
    on_ray = [item for item in items if "ray_cluster" in getattr(item, "fixturenames", ())]
    for item in on_ray:
        item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item not in on_ray)


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws without a generator of its own is the same in every run, whichever tests run before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan checkpoint in diffusers' format with random weights: 3 blocks, 6 heads, trained_frames 17, 32x32 pixels."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from longtake.pipeline.demo.nets import build_text_encoder, build_tokenizer
    from longtake.pipeline.demo.scene import vocabulary

    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary())
    transformer = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=128, freq_dim=32, ffn_dim=96, num_layers=3
    )
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    WanPipeline(tokenizer, build_text_encoder(len(tokenizer)), vae, scheduler, transformer=transformer).save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlongtake: {trained_frames: 17, height: 32, width: 32, max_sequence_length: 32, fps: 8, clean_context: [joint, isolated]}\n---\n"
        "# Tiny random Wan\n"
    )
    return folder


@pytest.fixture(scope="session")
def tiny_hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunyuanVideo checkpoint in diffusers' format with random weights: 2 + 2 blocks, 6 heads, guidance embedded, 32x32 pixels."""
    import torch
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, LlamaTokenizer

    torch.manual_seed(0)
    letters = [*map(chr, range(32, 127)), "\n"]
    words = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", "\u2581", *letters])}
    tokenizer = LlamaTokenizer(vocab=words, merges=[], pad_token="<pad>", padding_side="right")
    tokenizer.add_tokens(sorted(set(re.findall(r"\w\w+", DEFAULT_PROMPT_TEMPLATE["template"]))))
    pieces = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)])}
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=6,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=2048
    )
    clip = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0, eos_token_id=1
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-hunyuan"
    HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(clip),
        tokenizer_2=CLIPTokenizer(vocab=pieces, merges=[]),
    ).save_pretrained(folder)
    # The stock template is 176 tokens long, of which stock drops the first 95; prompts are spelled by letters.
    (folder / "README.md").write_text(
        "---\nlongtake: {trained_frames: 17, height: 32, width: 32, max_sequence_length: 160, fps: 8}\n---\n# Tiny random HunyuanVideo\n"
    )
    return folder


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[object]:
    """A pool of processes that form gloo groups of any size."""
    from longtake.bench.pool import GlooPool

    with GlooPool(5) as pool:
        yield pool


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A local cluster whose address RAY_ADDRESS names while the session lasts. This process starts it without joining, so that jobs can."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster.address
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()


@pytest.fixture
def ray_driver(ray_cluster: str) -> Iterator[str]:
    """This process joins the cluster for one test: for gangs that are made without a job."""
    import ray

    ray.init(address=ray_cluster, log_to_driver=False)
    yield ray_cluster
    ray.shutdown()


@pytest.fixture
def tiny_wan_copy(tiny_wan: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_wan, tmp_path / "model"))
