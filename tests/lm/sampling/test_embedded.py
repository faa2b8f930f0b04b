from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from synthboot.errors import SamplingError
from synthboot.lm.sampling import embedded, engines, nucleus
from synthboot.lm.sampling.decoder import Decoder
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampling
from tests.lm.conftest import draw, looked_for, small_model


def requests(count: int, limit: int = 12, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(tuple(rng.integers(2, 280, rng.integers(1, 20)).tolist()), 1_000 + i, limit) for i in range(count)]


def llama(width: int = 32) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=280, intermediate_size=64, max_position_embeddings=64, **sizes)).eval()


MODELS = {
    "gqa": lambda: small_model(1),
    "mha": lambda: small_model(4),
    "llama": llama,
    "gqa, compiled": lambda: small_model(1, width=64),
    "mha, compiled": lambda: small_model(4, width=128),
    "llama, compiled": lambda: llama(128),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_greedy_output_equals_transformers_token_for_token(make: Any) -> None:
    model, asked = make(), requests(30)
    results = EmbeddedSampler(model, 0, Sampling(temperature=0, top_p=1, batch=8)).sample(asked)
    for request, result in zip(asked, results, strict=True):
        prompt = torch.tensor([request.prompt])
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            do_sample=False,
            eos_token_id=0,
            pad_token_id=0,
        )
        expected = found[0, len(request.prompt) :].tolist()
        ended = 0 in expected
        assert list(result.tokens) == (expected[: expected.index(0)] if ended else expected)
        assert result.finish == ("end" if ended else "length")


@pytest.mark.parametrize(("width", "loops"), [(32, True), (64, True), (32, False)])
def test_log_probability_is_the_models_own(width: int, loops: bool, without_kernels: Callable[[], None]) -> None:
    if not loops:
        without_kernels()  # draws are rejected now and then, and rows wait
    model, asked = small_model(width=width), requests(12)
    for temperature, top_p in ((1.0, 0.9), (0.7, 0.9), (1.0, 0.3)):
        found = EmbeddedSampler(model, 0, Sampling(temperature=temperature, top_p=top_p, batch=4)).sample(asked)
        for request, result in zip(asked, found, strict=True):
            output = [*result.tokens, *([0] if result.finish == "end" else [])]
            logits = model(input_ids=torch.tensor([[*request.prompt, *output]])).logits[0].detach().double()
            logits = logits[len(request.prompt) - 1 : -1]
            scores = torch.log_softmax(logits, -1)
            expected = float(scores.gather(1, torch.tensor(output)[:, None]).sum())
            assert result.logprob == pytest.approx(expected, rel=1e-3)
            for step, token in zip(logits, output, strict=True):
                assert exact_distribution(step, temperature, top_p)[token] > 0


def exact_distribution(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The exact distribution: a token counts if the mass of strictly likelier ones is below top_p."""
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    kept = np.array([p[p > x].sum() < top_p for x in p])
    return np.where(kept, p, 0) / p[kept].sum()


@pytest.mark.parametrize("loops", ["compiled where there are", "torch"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (1.0, 1.0), (0.7, 0.5), (1.5, 0.95)])
def test_draws_pass_a_chi_square_test_against_the_exact_distribution(
    temperature: float, top_p: float, loops: str, without_kernels: Callable[[], None]
) -> None:
    from scipy.stats import chisquare

    if loops == "torch":
        without_kernels()
    logits = torch.randn(40, generator=torch.Generator().manual_seed(5)) * 2
    count = 20_000
    drawn, _ = draw(logits.expand(count, -1), torch.arange(count), torch.full((count,), 3), temperature, top_p)
    expected = exact_distribution(logits, temperature, top_p) * count
    observed = np.bincount(drawn, minlength=40)
    assert observed[expected == 0].sum() == 0
    likely = expected >= 5
    f_exp = np.append(expected[likely], expected[~likely].sum() + 1e-9)
    f_obs = np.append(observed[likely], observed[~likely].sum())
    assert chisquare(f_obs, f_exp * f_obs.sum() / f_exp.sum()).pvalue > 1e-4


def test_draws_depend_on_seed_and_step_alone() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    seeds = steps = torch.arange(8)
    together, _ = draw(logits, seeds, steps, 1.0, 0.9)
    alone = [int(draw(logits[i : i + 1], seeds[i : i + 1], steps[i : i + 1], 1.0, 0.9)[0][0]) for i in range(8)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("width", "dtype"), [(32, "float32"), pytest.param(64, "float32", marks=pytest.mark.slow), (64, "bfloat16")]
)
def test_a_request_gets_the_same_tokens_whatever_its_neighbours(width: int, dtype: str) -> None:
    model, asked = small_model(width=width), requests(80)
    sampler = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=48, dtype=dtype))
    together = sampler.sample(asked)
    backwards = sampler.sample(asked[::-1])[::-1]
    alone = [sampler.sample([r])[0] for r in asked[::2]]
    for mine, others in ((together, backwards), (together[::2], alone)):
        agree = np.mean([a.tokens == b.tokens for a, b in zip(mine, others, strict=True)])
        assert agree >= 0.95  # a rounding difference between batch sizes may tip a draw once in a while


class Watched(Decoder):
    """A decoder that remembers how many prompts it read at a time, and how far each step looked into the cache."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.read: list[int] = []
        self.spans: list[int] = []

    def prefill(self, tokens: torch.Tensor, rows: torch.Tensor, cache: Any) -> Any:
        self.read.append(len(tokens))
        return super().prefill(tokens, rows, cache)

    def step(self, tokens: torch.Tensor, position: torch.Tensor, cache: Any, span: int) -> torch.Tensor:
        assert int(position.max()) < span
        self.spans.append(span)
        return super().step(tokens, position, cache, span)


@pytest.mark.parametrize("width", [32, 64])
def test_a_prompt_that_many_share_is_read_once(width: int) -> None:
    model = small_model(width=width)
    prompts = [tuple(range(5, 17)), tuple(range(40, 60)), (9,)]
    asked = [Request(prompts[i % 3], i, 10) for i in range(24)]
    plain = [EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample([r])[0] for r in asked]
    sampler = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24))
    sampler.decoder = decoder = Watched(model)
    together = sampler.sample(asked)
    assert 2 <= sum(decoder.read) <= 6  # of 24: eight rows are filled at a time
    assert np.mean([a.tokens == b.tokens for a, b in zip(together, plain, strict=True)]) >= 0.95


def test_bfloat16_predicts_nearly_the_same() -> None:
    model = small_model(width=64)
    prompt, rows = torch.randint(2, 280, (24, 9)), torch.arange(24)
    predicted = []
    for dtype in ("float32", "bfloat16"):
        decoder = Decoder(model, dtype)
        cache = decoder.cache(24, 32)
        decoder.prefill(prompt[:, :-1], rows, cache)
        first = decoder.step(prompt[:, -1], torch.full((24,), 8), cache, 9)
        second = decoder.step(prompt[:, 0], torch.full((24,), 9), cache, 10)
        predicted.append(torch.log_softmax(torch.cat((first, second)), 1))
    exact, rough = predicted
    assert 0 < float((exact.exp() * (exact - rough)).sum(1).max()) < 2e-3  # nats


class Narrow(Decoder):
    """A decoder on a machine with room for so many rows of 64 positions, if it took all of it."""

    room = 0

    def free_memory(self) -> int:
        return self.room * self.cache_bytes(1, 64)


def test_prompts_of_many_lengths_go_without_the_attention_that_plans_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    prefill = Decoder.prefill

    def watched(self: Decoder, *told: Any) -> None:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        prefill(self, *told)

    monkeypatch.setattr(Decoder, "prefill", watched)
    EmbeddedSampler(small_model(), 0, Sampling(temperature=1.0, top_p=0.9, batch=4)).sample(requests(6))
    assert seen
    assert not any(seen)


class Full(Decoder):
    """A decoder whose device has room for the caches of so many rows."""

    most = 0

    def cache(self, rows: int, max_len: int) -> Any:
        if rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().cache(rows, max_len)


def test_a_batch_that_another_process_left_no_room_for_is_a_smaller_one_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "Decoder", Full)
    monkeypatch.setattr(Full, "most", 64)
    model, asked = small_model(width=64), requests(70)
    sampler = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9))
    assert len(sampler.sample(asked)) == 70
    assert sampler.batch in (32, 64)
    fixed = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=128))
    with pytest.raises(SamplingError, match=r"128 rows at once .* engine.sample_batch=64, or"):
        fixed.sample(requests(200))
    monkeypatch.setattr(Full, "most", 0)
    with pytest.raises(SamplingError, match="70 rows"):
        fixed.sample(asked)
    with pytest.raises(SamplingError, match=r"24 rows at once .* free on cpu: set a smaller"):
        EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9)).sample(asked)


def test_the_batch_is_chosen_from_memory_and_speed() -> None:
    decoder = Decoder(small_model(width=64))
    assert embedded.best_batch(decoder, 64) in (32, 64, 128, 256, 512, 1_024, 2_048)
    narrow = Narrow(small_model(width=64))
    assert embedded.best_batch(narrow, 64) == embedded.LEAST_ROWS
    narrow.room = 4 * 70
    assert embedded.best_batch(narrow, 64) in (32, 64)
    keys, values = decoder.cache(3, 50)[0]
    assert decoder.cache_bytes(3, 50) == len(decoder.layers) * (keys.nbytes + values.nbytes)


def test_a_model_whose_logits_are_not_numbers_is_an_error(without_kernels: Callable[[], None]) -> None:
    without_kernels()
    model = small_model()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="not numbers"):
        EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample(requests(3))


def test_attention_goes_no_further_than_the_rows_have_come(without_kernels: Callable[[], None]) -> None:
    without_kernels()
    model = small_model()
    decoder = Watched(model)
    engine = EmbeddedSampler(model, 300, Sampling(temperature=1.0, top_p=1.0, batch=24))  # no token ends
    engine.decoder = decoder
    results = engine.sample([Request(tuple(range(5, 45)), 1, 2), Request((7, 8), 2, 12)])
    assert [len(r.tokens) for r in results] == [2, 12]
    assert decoder.spans == [40, 41, *range(4, 14)]
    decoder.spans.clear()  # two rows are long done when the last request takes a third
    engine.sample(
        [Request((30 + i if i > 1 else i, 5, 6), i, 20 if i > 1 else 2) for i in range(24)] + [Request((7, 8), 30, 3)]
    )
    assert decoder.spans == [*range(3, 23), 2, 3, 4]


def test_limits_and_empty_prompts() -> None:
    sampler = EmbeddedSampler(small_model(), 0, Sampling(temperature=1.0, top_p=0.9, batch=4))
    results = sampler.sample([Request((5, 6), 1, 1), Request((7,), 2, 5)])
    assert len(results[0].tokens) <= 1
    assert len(results[1].tokens) <= 5
    assert sampler.sample([]) == []
    with pytest.raises(ValueError, match="at least one token"):
        sampler.sample([Request((), 1, 5)])


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]


class Recording(TorchDispatchMode):
    """What torch.cuda.graph and CUDAGraph do, on a CPU: what is called while recording is kept, with the tensors that it was
    called on, and leaves nothing behind; `replay` calls it again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: set[int] = set()
        self.replayed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), "a GPU would wait"
        for storage in _storages(args):
            if storage.data_ptr() not in self.made and storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = (storage, storage.clone())
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        self.made |= {s.data_ptr() for s in _storages(out)} - set(self.before)
        return out

    def __exit__(self, *told: Any) -> None:
        super().__exit__(*told)
        for storage, value in self.before.values():
            storage.copy_(value)

    def replay(self) -> None:
        self.replayed += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.8, 0.3), (0.0, 1.0)])
def test_steps_that_were_recorded_sample_the_same(
    temperature: float, top_p: float, without_kernels: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels()
    model, made = small_model(), []
    asked = requests(90, limit=25) + [Request((5, 6, 7), i, 25) for i in range(10)]
    plain = EmbeddedSampler(model, 0, Sampling(temperature=temperature, top_p=top_p, batch=32))
    expected = plain.sample(asked)

    def recording() -> Recording:
        made.append(Recording())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(embedded, "SPAN", 16)
    far = EmbeddedSampler(model, 0, Sampling(temperature=temperature, top_p=top_p, batch=32))
    far.far = True
    found = far.sample(asked)
    assert np.mean([a.tokens == b.tokens for a, b in zip(found, expected, strict=True)]) >= 0.95
    assert [a.finish for a in found] == [b.finish for b in expected]
    assert np.allclose([a.logprob for a in found], [b.logprob for b in expected], atol=1e-3)
    replayed = [graph.replayed for graph in made]
    assert len(replayed) >= 2  # more than one span, or number of rows
    assert all(n and n % embedded.STRIDE == 0 for n in replayed)


def test_uniforms_are_uniform() -> None:
    from scipy.stats import kstest

    many, none = torch.arange(50_000), torch.zeros(50_000, dtype=torch.int64)
    for varied in ((many, none, none), (none, many, none), (many // 64, none, many % 64)):
        assert kstest(nucleus.uniforms(*varied).numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("loops", ["compiled where there are", "torch"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_what_the_tokenizer_does_not_have_is_never_drawn(
    temperature: float, loops: str, without_kernels: Callable[[], None]
) -> None:
    if loops == "torch":
        without_kernels()
    model, absent = small_model(), [3, 77, *range(250, 280)]
    with torch.no_grad():
        model.lm_head.weight[absent] *= 4  # the model would
    asked = requests(30)
    plain = EmbeddedSampler(model, 0, Sampling(temperature=temperature, top_p=1.0, batch=24)).sample(asked)
    assert {t for r in plain for t in r.tokens} & set(absent)
    found = engines.sampler(model, 0, Sampling(temperature=temperature, top_p=1.0, batch=24, absent=absent)).sample(asked)
    assert not {t for r in found for t in r.tokens} & set(absent)
    for request, result in zip(asked, found, strict=True):
        output = [*result.tokens, *([0] if result.finish == "end" else [])]
        logits = model(input_ids=torch.tensor([[*request.prompt, *output]])).logits[0, len(request.prompt) - 1 : -1]
        expected = torch.log_softmax(logits.detach().double(), -1).gather(1, torch.tensor(output)[:, None]).sum()
        assert result.logprob == pytest.approx(float(expected), rel=1e-3)  # under the whole model, as anyone would score it


def test_a_token_without_mass_is_not_drawn_by_rounding(
    without_kernels: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels()
    logits = torch.randn(64, 3_000, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -torch.inf
    # the sum of what comes before it may round to less than one, and the number drawn to all of it
    monkeypatch.setattr(nucleus, "uniforms", lambda *_: torch.ones(64))
    _, _, accepted = nucleus.sample_top_p(logits, *torch.zeros(3, 64, dtype=torch.int64), 1.0, 1.0)
    assert not accepted.any()


@pytest.mark.parametrize("make", [lambda: small_model(1), lambda: small_model(1, width=64)], ids=["torch", "compiled"])
def test_a_contrast_draws_by_both_prompts_whatever_else_is_decoded_beside(make: Callable[[], Any]) -> None:
    model, weight = make(), 1.5
    asked = [Request(r.prompt, r.seed, 2 + i % 7, (7, r.prompt[-1])) for i, r in enumerate(requests(40))]
    asked[3] = Request((5,), 3, 6, (5,))  # nothing to take off
    asked = [r if len(r.alone) <= len(r.prompt) else Request((9, *r.prompt), r.seed, r.max_tokens, r.alone) for r in asked]
    engine = EmbeddedSampler(model, 0, Sampling(temperature=0, top_p=1, batch=30, contrast=weight))
    for request, result in zip(asked, engine.sample(asked), strict=True):
        expected: list[int] = []
        logprob = 0.0
        while len(expected) < request.max_tokens and 0 not in expected:
            given, alone = (
                model(input_ids=torch.tensor([[*prompt, *expected]])).logits[0, -1].detach().double()
                for prompt in (request.prompt, request.alone)
            )
            mixed = given + weight * (given - alone)
            expected.append(int(mixed.argmax()))
            logprob += float(torch.log_softmax(mixed, -1)[expected[-1]])
        assert list(result.tokens) == [token for token in expected if token]
        assert result.logprob == pytest.approx(logprob, rel=1e-3)


def test_what_is_alone_is_no_longer_than_the_prompt() -> None:
    engine = EmbeddedSampler(small_model(), 0, Sampling(temperature=0, top_p=1, batch=24, contrast=1.0))
    with pytest.raises(ValueError, match="at least as long"):
        engine.sample([Request((5,), 0, 3, (7, 5))])


def test_without_a_contrast_or_what_to_contrast_with_nothing_changes() -> None:
    model, asked = small_model(), requests(6)
    plain = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample(asked)
    also = [Request(r.prompt, r.seed, r.max_tokens, r.prompt[-1:]) for r in asked]
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample(also) == plain
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24, contrast=2.0)).sample(asked) == plain
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24, contrast=2.0)).sample(also) != plain


@pytest.mark.parametrize("make", [lambda: small_model(1), lambda: small_model(1, width=64)], ids=["torch", "compiled"])
def test_a_pointer_draws_from_the_mixture_whatever_else_is_decoded_beside(make: Callable[[], Any]) -> None:
    model = make()
    weights = ((0.9, 0.0, 0.1), *[(0.2, 0.8, 0.0)] * 4)
    rng = np.random.default_rng(0)
    asked = []
    for i, r in enumerate(requests(40)):
        source = tuple(rng.integers(2, 12, i % 9 * 4).tolist())  # of few kinds, so that matches come; some have none
        asked.append(Request(r.prompt, r.seed, 2 + i % 7, source=source))
    engine = EmbeddedSampler(model, 0, Sampling(temperature=0, top_p=1, batch=30, weights=weights))
    copied = 0
    for request, result in zip(asked, engine.sample(asked), strict=True):
        expected: list[int] = []
        logprob = 0.0
        while len(expected) < request.max_tokens and 0 not in expected:
            logits = model(input_ids=torch.tensor([[*request.prompt, *expected]])).logits[0, -1].detach().double()
            chances = torch.softmax(logits, -1).numpy()
            if request.source:
                # the prompt is no part of what was written
                match, following = looked_for(list(request.source), expected)
                parts = [chances, np.bincount(following, minlength=280), np.bincount(request.source, minlength=280)]
                chances = sum(w * part / max(1, part.sum()) for w, part in zip(weights[match], parts, strict=True))
            expected.append(int(chances.argmax()))
            logprob += float(np.log(chances[expected[-1]]))
            copied += expected[-1] in request.source
        assert list(result.tokens) == [token for token in expected if token]
        assert result.logprob == pytest.approx(logprob, rel=1e-3, abs=1e-3)
    assert copied > 10


def test_without_a_source_a_pointer_changes_nothing() -> None:
    model, asked = small_model(), requests(6)
    plain = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample(asked)
    weights = ((0.5, 0.0, 0.5), *[(0.2, 0.8, 0.0)] * 4)
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24, weights=weights)).sample(asked) == plain
    also = [Request(r.prompt, r.seed, r.max_tokens, source=(5, 6, 7)) for r in asked]
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24)).sample(also) == plain
    assert EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=24, weights=weights)).sample(also) != plain
