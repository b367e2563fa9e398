"""What is asked for and not done is named in a header; and every field that an API knows is done, named or harmless."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.compat.kobold import KoboldRequest
from ggufd.api.compat.ollama import GenerateRequest, OllamaChatRequest
from ggufd.api.http.ignored import HEADER, NEUTRAL, header_of, is_ignored
from ggufd.api.llamacpp.completion import NativeRequest
from ggufd.api.request.chat.schemas import ChatRequest, CompletionRequest
from ggufd.api.request.fields import KOBOLD, LLAMACPP, OLLAMA, OLLAMA_CHAT, OPENAI_CHAT, OPENAI_COMPLETION, Aliases
from ggufd.api.request.requests import GenerationFields
from tests.support.contract import exchanges
from tests.support.fakes.api_client import Api, running

HELLO = [{"role": "user", "content": "Hi"}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/completion": {"prompt": "a"},
    "/api/v1/generate": {"prompt": "a"},
    "/api/generate": {"prompt": "a", "raw": True},
    "/api/chat": {"messages": HELLO},
}


async def ignored(api: Api, path: str, body: dict[str, Any]) -> str | None:
    """What the header says."""
    response = await api.post(path, GENERATING[path] | body)
    assert response.status_code == 200, response.text
    return response.headers.get(HEADER)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_is_not_done_is_named_on_every_route(path: str, stream: bool) -> None:
    async with running() as api:
        body = {"stream": stream} if "v1/generate" not in path else {}
        assert await ignored(api, path, body) is None
        assert await ignored(api, path, body | {"smoothing_factor": 0, "negative_prompt": "", "tfs": 1}) is None
        asked = {"smoothing_factor": 0.3, "negative_prompt": "blood", "tfs": 1}
        assert await ignored(api, path, body | asked) == "smoothing_factor, negative_prompt"


async def test_several_prompts_name_a_field_once() -> None:
    async with running() as api:
        assert await ignored(api, "/v1/completions", {"prompt": ["a", "b"], "n": 2, "top_a": 0.2}) == "top_a"


@pytest.mark.parametrize("name", sorted(NEUTRAL))
async def test_a_field_is_named_when_it_asks_for_something(name: str) -> None:
    async with running() as api:
        for value in (None, "", [], {}, *NEUTRAL[name]):
            assert not is_ignored(name, value)
        if name not in names_of(OPENAI_COMPLETION, CompletionRequest):
            assert await ignored(api, "/v1/completions", {name: "something else"}) == name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"logprobs": 1, "echo": True, "add_special_tokens": True}),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 2}),
        ("/completion", {"n_probs": 2, "return_tokens": True}),
        ("/v1/responses", {"store": True}),
    ],
)
async def test_what_a_route_does_is_not_named_there(path: str, body: dict[str, Any]) -> None:
    async with running() as api:
        assert await ignored(api, path, body) is None


async def test_responses_and_messages_name_fields_of_their_own() -> None:
    async with running() as api:
        assert await ignored(api, "/v1/responses", {"text": {"verbosity": "low"}}) == "verbosity"
        assert await ignored(api, "/v1/messages", {"service_tier": "priority"}) == "service_tier"


async def test_a_chats_own_fields_mean_nothing_in_other_apis() -> None:
    async with running() as api:
        assert await ignored(api, "/v1/messages", {"logprobs": True, "n_probs": 5, "n": 3}) is None
        (request,) = api.engine.requests
    assert (request.n, request.n_logprobs) == (1, None)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"samplers": ["top_k", "nonsense"]}, "samplers=nonsense"),
        ({"samplers": "top_k;a b;c"}, "samplers=a?b, samplers=c"),
        ({"samplers": ["top_k", "évil\r\nx-key: 1"]}, "samplers=?vil??x-key??1"),
        ({"samplers": ["x" * 500, "top_k"]}, "samplers=" + "x" * 31),
        ({"sampler_order": [6, 9, 0]}, "sampler_order=9"),
        ({"samplers": ["top_k", "tfs_z", "mirostat"]}, None),
        ({"samplers": "kmt"}, None),
        ({"samplers": []}, None),
    ],
)
async def test_unknown_samplers_are_named(body: dict[str, Any], named: str | None) -> None:
    async with running() as api:
        assert await ignored(api, "/v1/completions", body) == named


async def test_biases_of_a_chat_and_other_fields_stand_together() -> None:
    async with running() as api:
        body = {"logit_bias": {"99999": 1}, "top_a": 1}
        assert await ignored(api, "/v1/chat/completions", body) == "logit_bias, top_a"


@given(st.lists(st.text()))
def test_the_header_is_plain_ascii_of_bounded_length(names: list[str]) -> None:
    header = header_of(names)
    assert header.isascii()
    assert len(header) < 1000
    assert not header or header.replace(", ", "").isprintable()


def names_of(aliases: Aliases, model: type[GenerationFields]) -> set[str]:
    """Every name that a family reads."""
    return {name for names in aliases.values() for name in names} | set(model.model_fields)


READ: dict[str, set[str]] = {
    "completions": names_of(OPENAI_COMPLETION, CompletionRequest),
    "chat": names_of(OPENAI_CHAT, ChatRequest),
    "llamacpp": names_of(LLAMACPP, NativeRequest),
    "kobold": names_of(KOBOLD, KoboldRequest),
    "ollama": names_of(OLLAMA, GenerateRequest) | {"options", "think"},
    "ollama chat": names_of(OLLAMA_CHAT, OllamaChatRequest) | {"options"},
}

DOCUMENTED: dict[str, str] = {
    # OpenAI and vLLM
    "completions": """
        model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
        stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty length_penalty
        stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
        spaces_between_special_tokens truncate_prompt_tokens allowed_token_ids prompt_logprobs add_special_tokens
        response_format structured_outputs guided_json guided_regex guided_choice guided_grammar structural_tag
        guided_decoding_backend guided_whitespace_pattern priority request_id logits_processors
        return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params vllm_xargs bad_words
        prompt_embeds early_stopping
        max_new_tokens truncation_length min_length dynamic_temperature dynatemp_low dynatemp_high dynatemp_exponent
        smoothing_factor smoothing_curve typical_p typical xtc_threshold xtc_probability epsilon_cutoff eta_cutoff tfs
        top_a top_n_sigma dry_multiplier dry_allowed_length dry_base dry_sequence_breakers repetition_penalty_range
        encoder_repetition_penalty no_repeat_ngram_size penalty_alpha guidance_scale negative_prompt mirostat_mode
        mirostat_tau mirostat_eta prompt_lookup_num_tokens max_tokens_second do_sample temperature_last
        sampler_priority custom_token_bans auto_max_new_tokens ban_eos_token add_bos_token static_cache
        grammar_string preset adaptive_target adaptive_decay
        banned_strings banned_tokens allowed_tokens token_healing skew penalty_range repetition_range
        repetition_decay dry_range max_temp min_temp temp_exponent json_schema regex_pattern speculative_ngram
        cfg_scale nsigma dynatemp_min dynatemp_max
    """,
    "chat": """
        model messages audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
        max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key
        prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
        stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
        chat_template chat_template_kwargs add_generation_prompt continue_final_message documents include_reasoning
        echo mm_processor_kwargs thinking_token_budget reasoning_format reasoning_in_content thinking_forced_open
        parse_tool_calls thinking_budget_tokens
        mode instruction_template instruction_template_str character bot_name user_name context greeting user_bio
        chat_template_str chat_instruct_command continue_ prompt_template template_vars response_prefix
        thinking_budget add_bos_token
    """,
    "llamacpp": """
        prompt temperature dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep n_discard
        n_cmpl n_cache_reuse stream stop typical_p repeat_penalty repeat_last_n presence_penalty frequency_penalty
        dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability
        xtc_threshold mirostat mirostat_tau mirostat_eta adaptive_target adaptive_decay grammar json_schema seed
        ignore_eos logit_bias n_probs min_keep t_max_predict_ms id_slot cache_prompt return_tokens samplers
        timings_per_token return_progress post_sampling_probs response_fields lora top_n_sigma backend_sampling
        image_data
    """,
    "kobold": """
        prompt n max_context_length max_length rep_pen rep_pen_range rep_pen_slope sampler_order sampler_seed
        stop_sequence temperature tfs top_a top_k top_p min_p typical use_default_badwordsids bypass_eos
        dynatemp_range dynatemp_exponent smoothing_factor smoothing_curve nsigma mirostat mirostat_tau mirostat_eta
        genkey grammar grammar_retain_state memory images audio trim_stop render_special banned_strings banned_tokens
        logit_bias dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
        xtc_threshold xtc_probability adaptive_target adaptive_decay guidance_scale negative_prompt logprobs
        replace_instruct_placeholders presence_penalty quiet
        singleline frmttriminc frmtrmblln frmtrmspch frmtadsnsp use_story use_memory use_authors_note use_world_info
        soft_prompt disable_input_formatting disable_output_formatting sampler_full_determinism can_abort streaming
    """,
    "ollama": """
        model prompt suffix images format options system template stream raw keep_alive context think logprobs
        top_logprobs num_keep seed num_predict top_k top_p min_p typical_p repeat_last_n temperature repeat_penalty
        presence_penalty frequency_penalty mirostat mirostat_tau mirostat_eta penalize_newline stop tfs_z
        numa num_ctx num_batch num_gpu main_gpu use_mmap num_thread low_vram vocab_only use_mlock shift truncate
    """,
    "ollama chat": "model messages tools format options stream keep_alive think logprobs top_logprobs",
}
"""The fields of each API's own documentation and of those that share its routes."""

REFUSED = frozenset(("image_data", "images", "structural_tag", "modalities", "functions", "function_call"))

_OF_THE_CLIENT = """
    model user request_id metadata safety_identifier api_type api_server legacy_api truncation_length num_ctx
    max_context_length streaming can_abort quiet gui_settings disable_input_formatting disable_output_formatting
"""
_OF_THE_COMPUTATION = """
    n_cache_reuse backend_sampling prediction prompt_cache_key prompt_cache_retention guided_decoding_backend
    speculative_ngram prompt_lookup_num_tokens static_cache kv_transfer_params mm_processor_kwargs keep_alive numa
    num_batch num_gpu main_gpu use_mmap num_thread low_vram vocab_only use_mlock
"""
_OF_ANOTHER_FIELD_THAT_IS_LOOKED_AT = "smoothing_curve user_name bot_name user_bio greeting chat_instruct_command"
HARMLESS = frozenset(f"{_OF_THE_CLIENT} {_OF_THE_COMPUTATION} {_OF_ANOTHER_FIELD_THAT_IS_LOOKED_AT}".split())
"""What asks for nothing that an answer could lack."""


@pytest.mark.parametrize("family", DOCUMENTED)
def test_every_documented_field_is_done_named_refused_or_harmless(family: str) -> None:
    known = READ[family] | NEUTRAL.keys() | REFUSED | HARMLESS
    assert set(DOCUMENTED[family].split()) - known == set()


MODELS = {
    "completions": CompletionRequest,
    "chat": ChatRequest,
    "llamacpp": NativeRequest,
    "kobold": KoboldRequest,
    "ollama": GenerateRequest,
    "ollama chat": OllamaChatRequest,
}
TABLES = {
    "completions": OPENAI_COMPLETION,
    "chat": OPENAI_CHAT,
    "llamacpp": LLAMACPP,
    "kobold": KOBOLD,
    "ollama": OLLAMA,
    "ollama chat": OLLAMA_CHAT,
}


@pytest.mark.parametrize("family", MODELS)
async def test_every_field_in_the_documentation_is_a_name_that_is_read(family: str) -> None:
    async with running() as api:
        document = (await api.http.get("/openapi.json")).json()
    shown = set(document["components"]["schemas"][MODELS[family].__name__]["properties"])
    table = TABLES[family]
    listed = {name for names in table.values() for name in names}
    assert {name for name in shown if name not in listed and name in table} == set()
    assert shown <= listed | set(MODELS[family].model_fields)


def test_no_field_is_harmless_and_named() -> None:
    assert not HARMLESS & NEUTRAL.keys()


ROUTES = {
    "/completions": "completions",
    "/chat/completions": "chat",
    "/completion": "llamacpp",
    "/api/v1/generate": "kobold",
    "/api/extra/generate/stream": "kobold",
    "/api/generate": "ollama",
}


def test_every_field_of_every_contract_is_done_named_refused_or_harmless() -> None:
    seen = set()
    for exchange in exchanges():
        family = ROUTES.get(exchange.path.replace("//", "/").removeprefix("/v1"))
        if family is not None and exchange.body is not None:
            seen.add(family)
            names = exchange.body.keys() | exchange.body.get("options", {}).keys()
            assert names - READ[family] - NEUTRAL.keys() - HARMLESS - REFUSED == set(), exchange
    assert seen == set(ROUTES.values())


KOBOLD_LITE = {
    "n": 1, "max_context_length": 4096, "max_length": 9, "rep_pen": 1.07, "temperature": 0.75, "top_p": 0.92,
    "top_k": 100, "top_a": 0, "typical": 1, "tfs": 1, "rep_pen_range": 360, "rep_pen_slope": 0.7,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5], "memory": "", "trim_stop": True, "genkey": "KCPP1234", "min_p": 0,
    "dynatemp_range": 0, "dynatemp_exponent": 1, "smoothing_factor": 0, "nsigma": 0, "banned_tokens": [],
    "render_special": False, "logprobs": False, "replace_instruct_placeholders": True, "presence_penalty": 0,
    "logit_bias": {}, "adaptive_target": -1, "adaptive_decay": 0.9, "stop_sequence": ["\nUser:"], "quiet": True,
    "use_default_badwordsids": False, "bypass_eos": False,
}  # fmt: skip
"""What KoboldAI Lite sends whose user has set nothing."""


async def test_kobold_lites_default_request_sets_nothing_but_says_two_things_in_vain() -> None:
    async with running() as api:
        body = KOBOLD_LITE
        assert await ignored(api, "/api/v1/generate", body) == "rep_pen_slope, replace_instruct_placeholders"
        (request,) = api.engine.requests
    assert (request.banned_strings, request.sampling.logit_bias, request.sampling.grammar) == ((), (), None)
    assert request.skip_special_tokens
    assert not request.sampling.ignore_eos
