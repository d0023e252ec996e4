"""Models of Hugging Face's transformers give the same logits and gradients by cqs as by their own attention."""

import sys

import numpy as np
import pytest

import cqs
from cqs import huggingface
from cqs.errors import BackendError, CQSError, DTypeError, OptionError
from cqs.masks import Causal, Documents, KeyLengths, Mask, NoMask, SlidingWindow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.4")

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 9},
    "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 16},
    "gpt_oss": {"sliding_window": 9, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3": {},
    "gemma4_text": {  # layers that take the keys of others get a part of the mask
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 100, "sliding_window": 9,
    },
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("default")  # what transformers warns of is not ours


@pytest.fixture(autouse=True)
def registered() -> None:
    huggingface.register()
    torch.manual_seed(0)


def model_of(kind: str):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **(SIZES | MODELS[kind]))
    )
    for name, x in model.named_parameters():
        if "sinks" in name or x.ndim > 1:
            torch.nn.init.normal_(x, std=0.3)  # so that scores differ
    return model.eval()


def by(model, implementation: str, *args, **kwargs):
    model.set_attn_implementation(implementation)
    return model(*args, **kwargs)


def near(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_models_own_attention(kind: str) -> None:
    model, tokens = model_of(kind), torch.randint(3, 100, (2, 40))
    with torch.no_grad():
        near(by(model, "cqs", tokens).logits, by(model, "eager", tokens).logits)


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_padding_is_left_out(kind: str, side: str) -> None:
    model, tokens = model_of(kind), torch.randint(3, 100, (3, 40))
    counts = torch.ones(3, 40, dtype=torch.long)
    if side == "holes":
        counts[1, [3, 7]] = 0
    else:
        counts[1, :12] = counts[2, :30] = 0
        counts = counts if side == "left" else counts.flip(1)
    with torch.no_grad():
        found, expected = (by(model, how, tokens, attention_mask=counts).logits for how in ("cqs", "eager"))
    near(found[counts.bool()], expected[counts.bool()])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", MODELS)
def test_texts_are_continued_alike(kind: str, cache: str) -> None:
    model, tokens = model_of(kind), torch.randint(3, 100, (2, 25))
    counts = torch.ones(2, 25, dtype=torch.long)
    counts[1, :10] = 0
    written = []
    for how in ("cqs", "eager"):
        model.set_attn_implementation(how)
        options = {"max_new_tokens": 15, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
        written.append(model.generate(tokens, attention_mask=counts, **options))
    assert torch.equal(*written)


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_gradients_are_those_of_the_models_own_attention(kind: str) -> None:
    model, tokens = model_of(kind), torch.randint(3, 100, (2, 30))
    gradients = []
    for how in ("cqs", "eager"):
        model.zero_grad()
        by(model, how, tokens, labels=tokens).loss.backward()
        gradients.append([x.grad.clone() for x in model.parameters() if x.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for a, b in zip(*gradients, strict=True):
        near(a, b)


def test_position_biases_are_learned() -> None:
    sizes = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.AutoConfig.for_model(
        "t5", **sizes, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
    for x in model.parameters():
        torch.nn.init.normal_(x, std=0.3)
    tokens, counts = torch.randint(3, 100, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    counts[1, 30:] = 0
    gradients = []
    for how in ("cqs", "eager"):
        model.zero_grad()
        by(model, how, tokens, attention_mask=counts, labels=tokens[:, :20].contiguous()).loss.backward()
        gradients.append({name: x.grad.clone() for name, x in model.named_parameters()})
    assert sum("relative_attention_bias" in name for name in gradients[0]) == 2
    for name, own in gradients[0].items():
        near(own, gradients[1][name])


def test_models_that_read_both_ways() -> None:
    sizes = {name: n for name, n in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("bert", **sizes)).eval()
    tokens, counts = torch.randint(3, 100, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    counts[1, 30:] = 0
    with torch.no_grad():
        found, expected = (by(model, how, tokens, attention_mask=counts)[0] for how in ("cqs", "eager"))
    near(found[counts.bool()], expected[counts.bool()])


def test_packed_texts_do_not_see_each_other() -> None:
    model, tokens = model_of("llama"), torch.randint(3, 100, (1, 40))
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    with torch.no_grad():
        found, expected = (
            by(model, how, tokens, position_ids=positions, use_cache=False).logits for how in ("cqs", "eager")
        )
    near(found, expected)


def test_options_are_those_of_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cqs.api, "attention", lambda q, k, v, **how: seen.append(how) or torch.zeros_like(q))
    huggingface.register("frugal", memory="64 MiB", workers=3)
    with torch.no_grad():
        by(model_of("llama"), "frugal", torch.randint(3, 100, (1, 20)))
    assert [(how["memory"], how["workers"], how["mask"]) for how in seen] == [("64 MiB", 3, Causal())] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "numpy"}, "`kernel` must be one of workers"),
        ({"workers": 0}, "`workers`"),
        ({"memory": "lots"}, "`memory`"),
        ({"strategy": "x"}, "`strategy`"),
        ({"engine": 3}, "`engine`"),
        ({"name": ""}, "`name`"),
    ],
)
def test_options_are_checked_when_it_is_registered(options, words: str) -> None:
    with pytest.raises(CQSError, match=words):
        huggingface.register(**options)


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.3.0")
    with pytest.raises(BackendError, match=r"`transformers` must be 5\.4 or newer, got 5\.3\.0"):
        huggingface.register()


def test_a_function_is_known_by_what_it_is_and_not_by_its_name() -> None:
    from functools import wraps

    from transformers.masking_utils import causal_mask_function

    @wraps(causal_mask_function)
    def other(b, h, q, k):
        return k > q - 3

    found = huggingface.mask_of(batch_size=1, q_length=5, kv_length=5, mask_function=other).cqs_mask
    assert np.array_equal(found[0, 0].numpy(), np.arange(5) > np.arange(5)[:, None] - 3)


def test_a_window_of_nothing_is_made_where_a_model_does_not_use_it() -> None:
    from transformers.masking_utils import sliding_window_causal_mask_function

    function = sliding_window_causal_mask_function(0)
    found = huggingface.mask_of(batch_size=1, q_length=5, kv_length=5, mask_function=function).cqs_mask
    assert not found.any()


def test_dropout_is_refused() -> None:
    config = transformers.AutoConfig.for_model("llama", **SIZES, attention_dropout=0.1)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    with pytest.raises(OptionError, match="`dropout` must be 0"):
        by(model, "cqs", torch.randint(3, 100, (1, 20)))


def test_masks_become_rules() -> None:
    from transformers import masking_utils as masks

    def rule(function, **more):
        sizes = {"batch_size": 2, "q_length": 4, "kv_length": 10, "q_offset": 6}
        found = huggingface.mask_of(**(sizes | more), mask_function=function)
        assert found.shape == (2, 1, 4, 10)
        assert found.device.type == "meta"  # nobody can compute with it by mistake
        return found.cqs_mask

    assert rule(masks.causal_mask_function) == Causal(6)
    assert rule(masks.bidirectional_mask_function) == NoMask()
    assert rule(masks.sliding_window_causal_mask_function(3)) == SlidingWindow(2, 0, 6)
    assert rule(masks.sliding_window_bidirectional_mask_function(3)) == SlidingWindow(3, 3, 6)
    even, uneven = torch.tensor([3, 3]), torch.tensor([0, 1])
    # numbers of chunks of 4, after 3 tokens of padding: of keys -1 -1 -1 0 0 0 0 1 1 1, of queries 0 1 1 1
    assert rule(masks.chunked_causal_mask_function(4, even)) == Documents([0, 1, 3], [3, 4, 3]) & Causal(6)
    assert not isinstance(rule(masks.chunked_causal_mask_function(4, uneven)), Mask)
    packed = masks.packed_sequence_mask_function(torch.tensor([[0] * 6 + [1] * 3 + [2]] * 2))
    assert rule(packed) == Documents([0, 3, 1], [6, 3, 1])
    assert rule(masks.and_masks(packed, masks.causal_mask_function)) == Documents([0, 3, 1], [6, 3, 1]) & Causal(6)
    mixed = masks.packed_sequence_mask_function(torch.tensor([[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]] * 2))
    assert not isinstance(rule(mixed), Mask)
    padded = torch.tensor([[1] * 10, [1] * 7 + [0] * 3])
    assert rule(masks.causal_mask_function, attention_mask=padded) == Causal(6) & KeyLengths([10, 7])
    assert rule(masks.bidirectional_mask_function, attention_mask=padded.flip(1)) == ~KeyLengths([0, 3])
    unknown = rule(lambda b, h, q, k: (q - k) % 2 == 0, attention_mask=padded.bool())
    expected = (np.arange(6, 10)[:, None] - np.arange(10)) % 2 == 0
    assert np.array_equal(unknown[0, 0].numpy(), expected)
    assert np.array_equal(unknown[1, 0].numpy(), expected & (np.arange(10) < 7))


def test_chunks_of_models() -> None:
    config = transformers.AutoConfig.for_model(
        "llama4_text", **SIZES, attention_chunk_size=8, intermediate_size_mlp=64, num_local_experts=2,
        no_rope_layers=[1, 0],
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens, counts = torch.randint(3, 100, (2, 30)), torch.ones(2, 30, dtype=torch.long)
    counts[1, :5] = 0
    with torch.no_grad():
        near(by(model, "cqs", tokens).logits, by(model, "eager", tokens).logits)
        found, expected = (by(model, how, tokens, attention_mask=counts).logits for how in ("cqs", "eager"))
        near(found[counts == 1], expected[counts == 1])


def test_packed_texts() -> None:
    model, tokens = model_of("llama"), torch.randint(3, 100, (1, 30))
    positions = torch.cat([torch.arange(11), torch.arange(19)])[None]
    with torch.no_grad():
        found, expected = (by(model, how, tokens, position_ids=positions).logits for how in ("cqs", "eager"))
        near(found, expected)
        near(found[:, :11], by(model, "eager", tokens[:, :11]).logits)


def test_a_mask_that_a_model_has_changed_is_refused() -> None:
    from transformers.masking_utils import causal_mask_function

    attend = transformers.AttentionInterface()["cqs"]
    q = torch.zeros(1, 2, 4, 8)
    mask = huggingface.mask_of(batch_size=1, q_length=4, kv_length=5, mask_function=causal_mask_function)
    derived = [mask.clone()[..., :4], mask[..., [0, 1, 2, 3]], mask[:, :, :, ::2].expand(1, 1, 4, 3)]
    for changed in [*derived, mask]:  # the last is for five keys
        with pytest.raises(BackendError, match="`attention_mask` must be the one that cqs made"):
            attend(torch.nn.Module(), q, q, q, changed)


@pytest.mark.parametrize("function", ["causal_mask_function", "every second"])
@pytest.mark.parametrize("cuts", [np.s_[:, :, -2:, :], np.s_[..., 1:4, 2:8], np.s_[:, :, :5], np.s_[..., :7]], ids=str)
def test_a_part_of_a_mask_is_the_mask_of_these_tokens(function: str, cuts: tuple) -> None:
    from transformers import masking_utils as masks

    found_by = getattr(masks, function, lambda b, h, q, k: (q - k) % 2 == 0)
    how = {"batch_size": 2, "q_length": 6, "kv_length": 9, "q_offset": 3, "mask_function": found_by}
    how["attention_mask"] = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    part, expected = huggingface.mask_of(**how)[cuts], masks.sdpa_mask(**how)[cuts]
    (q, k, v), (T, S) = torch.randn(3, 2, 2, 9, 8), expected.shape[-2:]
    found, _ = transformers.AttentionInterface()["cqs"](torch.nn.Module(), q[:, :, :T], k[:, :, :S], v[:, :, :S], part)
    own = torch.nn.functional.scaled_dot_product_attention(q[:, :, :T], k[:, :, :S], v[:, :, :S], attn_mask=expected)
    sees = expected.any(-1).transpose(1, 2)[..., None]
    near(torch.where(sees, found, 0), torch.where(sees, own.transpose(1, 2), 0))


def test_masks_that_are_numbers_are_added() -> None:
    attend = transformers.AttentionInterface()["cqs"]
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    added, bias = (
        torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf),
        torch.randn(1, 2, 6, 6),
    )
    found, _ = attend(torch.nn.Module(), q, k, v, added, position_bias=bias, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added + bias, scale=0.5)
    near(found, expected.transpose(1, 2))
    dout = torch.randn_like(found)
    bias.requires_grad_()
    attend(torch.nn.Module(), q, k, v, added, position_bias=bias, scaling=0.5)[0].backward(dout)
    own, bias.grad = bias.grad, None
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added + bias, scale=0.5)
    expected.backward(dout.transpose(1, 2))
    near(own, bias.grad)


def test_what_cqs_does_not_know_is_refused() -> None:
    attend, q = transformers.AttentionInterface()["cqs"], torch.zeros(1, 2, 4, 8)
    attend(torch.nn.Module(), q, q, q, None, position_ids=torch.arange(4)[None], use_cache=True, sliding_window=3)
    with pytest.raises(OptionError, match="`sinks` must be left out"):
        attend(torch.nn.Module(), q, q, q, None, sinks=torch.zeros(1, 2, 4, 1))
    with pytest.raises(DTypeError, match="`attention_mask` must be booleans, or numbers"):
        attend(torch.nn.Module(), q, q, q, torch.ones(1, 1, 4, 4, dtype=torch.long))


def test_a_model_with_attention_of_its_own_fails_and_gives_no_other_result() -> None:
    sizes = {name: n for name, n in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("git", **sizes)).eval()
    tokens = torch.randint(3, 100, (1, 20))
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        by(model, "cqs", tokens)


def test_without_a_mask_the_module_says_whether_it_is_causal() -> None:
    attend, module = transformers.AttentionInterface()["cqs"], torch.nn.Module()
    q, k, v = torch.randn(3, 1, 2, 6, 8)

    def near_to(found, is_causal: bool, rows: int = 6) -> None:
        q_rows = q[:, :, :rows]
        expected = torch.nn.functional.scaled_dot_product_attention(q_rows, k, v, is_causal=is_causal)
        near(found[0], expected.transpose(1, 2))
        assert found[0].is_contiguous()

    near_to(attend(module, q, k, v, None), True)  # by default, as for PyTorch's attention there
    near_to(attend(module, q, k, v, None, is_causal=False, softcap=0.0), False)
    near_to(attend(module, q[:, :, :1], k, v, None), False, 1)  # one query sees what there is
    module.is_causal = False
    near_to(attend(module, q, k, v, None), False)
    near_to(attend(module, q, k, v, None, is_causal=True), True)


def test_gradients_are_recorded_only_where_they_are_wanted() -> None:
    attend, q = transformers.AttentionInterface()["cqs"], torch.randn(1, 2, 4, 8)
    sinks = torch.zeros(2, requires_grad=True)
    assert attend(torch.nn.Module(), q, q, q, None, s_aux=sinks)[0].requires_grad
    with torch.no_grad():
        assert not attend(torch.nn.Module(), q, q, q.clone().requires_grad_(), None, s_aux=sinks)[0].requires_grad


def test_a_cache_that_has_dropped_keys_counts_from_where_it_begins() -> None:
    from transformers.masking_utils import causal_mask_function, sliding_window_overlay

    sizes = {"batch_size": 1, "q_length": 2, "kv_length": 5, "q_offset": 9, "kv_offset": 6}
    counts = torch.tensor([[True] * 7 + [False] + [True] * 3])
    found = huggingface.mask_of(**sizes, mask_function=causal_mask_function, attention_mask=counts).cqs_mask
    rows, columns = np.arange(9, 11)[:, None], np.arange(6, 11)
    assert np.array_equal(
        found.bind((1,), 1, 2, 5).at((0, 0)).visible(np.arange(2)[:, None], np.arange(5)),
        (columns <= rows) & counts[0, 6:].numpy(),
    )
    window = huggingface.mask_of(**sizes, mask_function=sliding_window_overlay(3)).cqs_mask
    assert np.array_equal(window.visible(np.arange(2)[:, None], np.arange(5)), columns > rows - 3)
    other = huggingface.mask_of(
        **sizes, mask_function=lambda b, h, q, k: (q + k) % 3 > 0, attention_mask=counts, allow_is_causal_skip=True
    ).cqs_mask
    assert np.array_equal(other[0, 0].numpy(), ((rows + columns) % 3 > 0) & counts[0, 6:].numpy())
