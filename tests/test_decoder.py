"""The decoder: what each output depends on, by gradients; its options, sizes and beginnings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    DIM,
    HEADS,
    LABEL_TOKENS,
    LLAMA,
    PAPER,
    STYLES,
    TOKENS,
    WIDTH,
    batch_of,
    expected_mask,
    forward,
    image,
    make_row,
    model_config,
    random_decoder,
    task_documents,
)

from mmfusion.attention import ByDocument, ByRow
from mmfusion.config import DecoderConfig, ModelConfig
from mmfusion.decoder import FREQUENCIES, Decoder, Mlp, can_fuse, rotary, rotate, sinusoid
from mmfusion.losses import sums, total
from mmfusion.packing import collate
from mmfusion.sequence import Document, Label, Text

VOCABULARY = 100


def packed() -> list[list[Document]]:
    """Pairs of documents that share a row: every task's shape, two copies, several pictures."""
    rng = np.random.default_rng(7)
    tasks = task_documents(rng)
    two = [Label(3), image(rng, True, steps=3, copies=2), Text([5, 6, 7], loss=True)]
    three = [image(rng, True, steps=2), Text([8, 9]), image(rng, False), image(rng, True, steps=5)]
    split = [Label(1), image(rng, True, steps=4)]
    return [
        [tasks["interleaved"], split],
        [two, tasks["text_to_image"]],
        [tasks["image_to_text"], three],
        [tasks["image_first"], tasks["unconditional"]],
    ]


@pytest.mark.parametrize("documents", packed(), ids=lambda d: "+".join(str(len(s)) for s in d))
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("padded", [True, False])
def test_outputs_depend_on_exactly_what_the_rule_says(
    style: str, documents: list[Document], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of every output with respect to every input token, through all layers.

    So no denoised token depends on noisy tokens of another step or copy, nor on clean ones of its
    own or a later step; no next-token logits on a later token; nothing on another document.
    """
    row = make_row(180, *documents)
    batch = collate([row], padded)
    expected = expected_mask(180, *documents)  # made from the documents, without order and stream
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY).double()
    x = decoder.embed(batch).detach().requires_grad_()
    monkeypatch.setattr(decoder, "embed", lambda _: x)
    latents, logits = forward(decoder, batch) if padded else decoder(batch, ByDocument(batch))
    assert logits is not None
    generator = torch.Generator().manual_seed(0)
    seen = 0
    noisy, targets = batch.noisy_at[: batch.noisy], batch.predict_at[: batch.targets]
    for outputs, places in ((latents, noisy), (logits, targets)):
        for output, place in zip(outputs, places.tolist(), strict=False):
            random = torch.randn(output.shape, generator=generator)
            (slope,) = torch.autograd.grad((output * random).sum(), x, retain_graph=True)
            reached = slope.abs().sum(-1).numpy() > 0
            own = expected[place, : len(reached)]
            np.testing.assert_array_equal(reached, own, f"output at {place}")
            seen += 1
    assert seen == (row.weight > 0).sum() + (row.predict >= 0).sum()


@pytest.mark.parametrize("style", STYLES)
def test_inputs_reach_their_outputs_from_the_embedding_on(style: str) -> None:
    """Latents, timesteps, ids, labels and positions all change what is predicted."""
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY)
    batch = batch_of(100, [[Label(3), Text([5]), image(np.random.default_rng(0), True)]])
    changes = {
        "latent": batch.latent + 1,
        "timestep": batch.timestep / 2 + 7,
        "text_id": batch.text_id + 1,
        "label_id": batch.label_id + LABEL_TOKENS,
        "position": batch.position.flip(0),
    }
    if style == "paper":  # Llama's block reads the grid from positions
        changes["cell"] = batch.cell.flip(0)
    with torch.no_grad():
        before, _ = forward(decoder, batch)
        for name, value in changes.items():
            after, _ = forward(decoder, replace(batch, **{name: value}))
            assert not torch.allclose(before, after, atol=1e-4), name


EMPTY: dict[str, Document] = {
    "text only": [Text([5, 6, 7], loss=True)],
    "image only": [image(np.random.default_rng(0), True, steps=2)],
    "context image only": [image(np.random.default_rng(0), False)],
    "label only": [Label(2)],
    "nothing": [],
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("style", STYLES)
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(style: str, kind: str) -> None:
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY)
    padded, flat = batch_of(60, [EMPTY[kind]]), collate([make_row(60, EMPTY[kind])])
    for batch, attend in ((padded, ByRow(padded, flex=False)), (flat, ByDocument(flat))):
        decoder.zero_grad()
        part = sums(*decoder(batch, attend), batch)
        total(part, part.noisy, part.targets, 1.0).backward()
        for name, parameter in decoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("style", STYLES)
def test_every_parameter_is_of_use(style: str) -> None:
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY)
    documents = task_documents(np.random.default_rng(0))
    batch = batch_of(120, *([document] for document in documents.values()))
    latents, logits = forward(decoder, batch)
    (latents.square().sum() + logits.square().sum()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("style", STYLES)
def test_bfloat16_forward_is_close_and_fp32_at_the_end(style: str) -> None:
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY)
    documents = task_documents(np.random.default_rng(0))
    rows = [make_row(120, document) for document in documents.values()]
    batch, flat = collate(rows, padded=True), collate(rows)
    with torch.no_grad():
        exact = forward(decoder, batch)
        decoder.to(torch.bfloat16)
        rounded = forward(decoder, batch), decoder(flat, ByDocument(flat))
    for a, *others in zip(exact, *rounded, strict=True):
        for b in others:
            assert b.dtype == torch.float32
            assert b.isfinite().all()
            assert (a - b).square().mean() < 0.01 * a.square().mean()


@pytest.mark.parametrize("style", STYLES)
def test_checkpointed_activations_change_no_gradient(style: str) -> None:
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY).train()
    rows = [
        make_row(120, document) for document in task_documents(np.random.default_rng(0)).values()
    ]
    padded, flat = collate(rows, padded=True), collate(rows)
    for batch, attend in ((padded, ByRow(padded, flex=False)), (flat, ByDocument(flat))):
        slopes = []
        for decoder.checkpoint_activations in (False, True):
            decoder.zero_grad()
            latents, logits = decoder(batch, attend)
            (latents.square().sum() + logits.square().sum()).backward()
            slopes.append([p.grad.clone() for p in decoder.parameters()])
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b)


def test_mlp_is_the_same_with_its_activation_in_the_product() -> None:
    mlp = Mlp(DecoderConfig(width=64, depth=1, heads=1))
    x = torch.randn(128, 64)
    with torch.no_grad():
        fused = mlp(x)
        assert can_fuse(x) == torch.backends.mkldnn.is_available()
        assert not can_fuse(x.double())
        assert not can_fuse(x[1:])
    assert not can_fuse(x)
    torch.testing.assert_close(fused, mlp(x), rtol=1e-5, atol=1e-5)


# What is added to a token


@pytest.mark.parametrize("style", STYLES)
def test_timestep_is_added_to_noisy_tokens_only(style: str) -> None:
    decoder = random_decoder(model_config(STYLES[style]), VOCABULARY)
    row = make_row(120, task_documents(np.random.default_rng(0))["interleaved"])
    batch = collate([row], padded=True)
    with torch.no_grad():
        a = decoder.embed(batch)
        b = decoder.embed(replace(batch, timestep=batch.timestep + 100))
    changed = (a != b).any(-1).numpy()
    np.testing.assert_array_equal(changed, row.weight > 0)


def test_embedding_is_the_sum_of_its_parts() -> None:
    """Token by token, for the paper's block, from the weights alone."""
    decoder = random_decoder(model_config(PAPER), VOCABULARY)
    picture = image(np.random.default_rng(0), True, steps=3)
    row = make_row(60, [Label(4), Label(None), Text([7, 8]), picture])
    with torch.no_grad():
        made = decoder.embed(collate([row]))
        for place in range(row.used):
            kind, content = row.kind[place], int(row.content[place])
            time = torch.tensor(float(row.position[place, 0]))
            expected = decoder.time.weight @ sinusoid(time, FREQUENCIES)
            if place < 4:  # two labels of two tokens: class 4, then null, the eleventh
                which = place % LABEL_TOKENS
                label = (4 if place < 2 else 10) * LABEL_TOKENS + which
                expected += decoder.label.weight[label] + decoder.label_position.weight[which]
            elif place < 6:
                expected += decoder.text.weight[content]
            else:
                assert kind == 3
                cell = row.position[place, 1] * 4 + row.position[place, 2]
                latent = torch.from_numpy(row.latent[place])
                expected += decoder.latent_in(latent) + decoder.grid_position.weight[cell]
                if row.weight[place] > 0:
                    t = torch.tensor(float(row.timestep[place]))
                    expected += decoder.timestep(sinusoid(t, FREQUENCIES))
            torch.testing.assert_close(made[place], expected, rtol=1e-5, atol=1e-5)


def test_null_label_is_the_row_after_the_last_class() -> None:
    decoder = random_decoder(model_config(PAPER), VOCABULARY)
    with torch.no_grad():
        null = decoder.embed(batch_of(2, [[Label(None)]]))
        decoder.label.weight[10 * LABEL_TOKENS :] = decoder.label.weight[6:8]
        moved = decoder.embed(batch_of(2, [[Label(None)]]))
        three = decoder.embed(batch_of(2, [[Label(3)]]))
    assert decoder.label.weight.shape[0] == 11 * LABEL_TOKENS
    assert not torch.allclose(null, three)
    torch.testing.assert_close(moved, three)


def test_time_term_can_be_switched_off() -> None:
    rng = np.random.default_rng(0)
    picture = image(rng, False)
    for on in (True, False):
        decoder = random_decoder(model_config({**PAPER, "time_term": on}, text=None))
        with torch.no_grad():
            x = decoder.embed(batch_of(60, [[picture, picture]]))
        assert torch.equal(x[:TOKENS], x[TOKENS : 2 * TOKENS]) != on
        assert hasattr(decoder, "time") == on


def test_sincos_positions_are_those_that_learned_ones_begin_with() -> None:
    learned = Decoder(model_config(PAPER), 0)
    fixed = Decoder(model_config({**PAPER, "position": "sincos"}), 0)
    assert torch.equal(learned.grid_position.weight, fixed.grid_table)
    assert not any("grid" in name for name in fixed.state_dict())
    batch = batch_of(40, [[image(np.random.default_rng(0), True)]])
    fixed.load_state_dict(
        {k: v for k, v in learned.state_dict().items() if k != "grid_position.weight"}
    )
    assert torch.equal(fixed.embed(batch), learned.embed(batch))


def test_grid_begins_as_two_dimensional_sincos() -> None:
    """As MAE and DiT have it: sines and cosines of the column, then of the row."""
    table = Decoder(model_config(PAPER), 0).grid_position.weight
    expected = np.zeros((TOKENS, WIDTH))
    for cell in range(TOKENS):
        for half, value in enumerate((cell % 4, cell // 4)):
            for i in range(WIDTH // 4):
                angle = value / 10_000 ** (i / (WIDTH // 4))
                expected[cell, half * WIDTH // 2 + i] = np.sin(angle)
                expected[cell, half * WIDTH // 2 + WIDTH // 4 + i] = np.cos(angle)
    np.testing.assert_allclose(table.detach(), expected, atol=1e-6)


def test_rotary_angles_turn_by_differences_alone() -> None:
    """A query's product with a key depends on how far apart they are, on each axis."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 14, generator=generator).double()

    def product(at_q: list[int], at_k: list[int], shift: tuple[int, ...] = (0, 0, 0)) -> float:
        places = [[p + s for p, s in zip(at, shift, strict=True)] for at in (at_q, at_k)]
        turns = [rotary(torch.tensor([at]), 14) for at in places]
        return float((rotate(q, turns[0]) * rotate(k, turns[1])).sum())

    near = product([3, 2, 1], [1, 1, 3])
    for shift in ((5, 0, 0), (0, 5, 0), (0, 0, 5)):
        assert product([3, 2, 1], [1, 1, 3], shift) == pytest.approx(near, abs=1e-5)
        moved = [p + s for p, s in zip([3, 2, 1], shift, strict=True)]
        assert abs(product(moved, [1, 1, 3]) - near) > 1e-3
    assert product([3, 2, 1], [3, 2, 1]) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_rotary_decoder_reads_distances_alone() -> None:
    """All positions moved alike change nothing; moved unlike, they do."""
    decoder = random_decoder(model_config(LLAMA), VOCABULARY)
    batch = batch_of(120, [task_documents(np.random.default_rng(0))["interleaved"]])
    stretched = batch.position * 2
    with torch.no_grad():
        before = forward(decoder, batch)
        moved = forward(decoder, replace(batch, position=batch.position + torch.tensor([9, 2, 5])))
        other = forward(decoder, replace(batch, position=stretched))
    for a, b, c in zip(before, moved, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert (a - c).abs().max() > 0.05


# Sizes and beginnings


def size(decoder: Decoder) -> int:
    return sum(p.numel() for p in decoder.parameters())


def test_number_of_parameters() -> None:
    """Counted by hand, layer by layer."""
    w, h, d, v, k, n, f = WIDTH, 4 * WIDTH, WIDTH // HEADS, VOCABULARY, LABEL_TOKENS, TOKENS, 256
    ends = (DIM * w + w) + (f * w + w + w * w + w) + (w * DIM + DIM)
    tables = 11 * k * w + k * w + 2 * v * w
    block = 3 * w * w + (w * w + w) + 2 * 2 * d + 2 * 2 * w + (w * h + h + h * w + w)
    paper = ends + tables + n * w + f * w + 2 * block + 2 * w
    assert size(Decoder(model_config(PAPER), v)) == paper
    groups = LLAMA["kv_heads"]
    block = w * (HEADS + 2 * groups) * d + w * w + 2 * d + 2 * w + 3 * w * h
    assert size(Decoder(model_config(LLAMA), v)) == ends + tables + 2 * block + w


@pytest.mark.parametrize(
    ("width", "heads", "depth", "millions"),
    [(1024, 16, 24, 368), (1280, 20, 32, 714), (1280, 20, 30, 675), (1408, 22, 40, 1050)],
)
def test_papers_models_have_the_papers_sizes(
    width: int, heads: int, depth: int, millions: int
) -> None:
    """368M as the paper states; the others as the official code's depths count."""
    config = ModelConfig.model_validate(
        {
            "row_length": 576,
            "image": {"codec": "vae", "vae": "unused", "size": 256},
            "classes": [str(i) for i in range(1000)],
            "decoder": {"width": width, "depth": depth, "heads": heads, "time_term": False},
        }
    )
    with torch.device("meta"):
        decoder = Decoder(config, 0)
    assert size(decoder) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("style", STYLES)
def test_a_new_model_predicts_zero_latents_and_even_tokens(style: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(model_config(STYLES[style]), VOCABULARY)
    batch = batch_of(120, [task_documents(np.random.default_rng(0))["interleaved"]])
    with torch.no_grad():
        latents, logits = forward(decoder, batch)
    assert (latents == 0).all()
    assert logits.std() < 0.3


def test_initial_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    decoder = Decoder(model_config(PAPER), VOCABULARY)
    tables = {"label.weight", "label_position.weight", "text.weight", "text_out.weight"}
    for name, parameter in decoder.state_dict().items():
        if "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.startswith("latent_out") or name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name in tables:
            assert parameter.std() == pytest.approx(0.02, rel=0.2), name
        elif name != "grid_position.weight":  # Xavier-uniform
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.std() == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_models_without_text_or_classes() -> None:
    decoder = random_decoder(model_config(PAPER, classes=[], text=None), 0)
    batch = batch_of(60, [[image(np.random.default_rng(0), True)]])
    latents, logits = forward(decoder, batch)
    assert logits is None
    assert latents.isfinite().all()
    names: set[Any] = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    assert not names & {"text", "text_out", "label", "label_position"}
    assert sums(latents, logits, batch).text == 0
