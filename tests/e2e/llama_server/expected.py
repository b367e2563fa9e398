"""llama.cpp's own server tests that are not run here, and those that this server is right to fail, with the reasons.

Names are pytest's; in `NOT_RUN` they may be the beginnings of such names, and `$` is where one ends. Every other test
must pass.
"""

from __future__ import annotations

from collections.abc import Mapping

_CHAT = "unit/test_chat_completion.py::test_"
_COMPLETION = "unit/test_completion.py::test_"
_EMBEDDING = "unit/test_embedding.py::test_"
_SECURITY = "unit/test_security.py::test_"
_SLEEP = "unit/test_sleep.py::test_"
_TEMPLATE = "unit/test_template.py::test_"

NOT_RUN: Mapping[str, tuple[str, ...]] = {
    "a router with several models in memory, all of them downloaded": (
        "unit/test_router.py",
        "unit/test_stream.py",
    ),
    "images": (
        "unit/test_vision_api.py",
        "unit/test_compat_anthropic.py::test_anthropic_vision_base64",
        f"{_SECURITY}local_media_file",
    ),
    "tools and MCP servers that llama-server runs itself": (
        "unit/test_tools_builtin.py",
        "unit/test_mcp_servers.py",
    ),
    "files that would be downloaded: an adapter, a draft model, a page": (
        "unit/test_lora.py",
        "unit/test_speculative.py",
        "unit/test_proxy.py::test_mcp_proxy$",
    ),
    "words, or numbers of tokens, of the tiny model that these tests are written for: llama-server fails them too": (
        "unit/test_basic.py::test_load_split_model",
        f"{_COMPLETION}completion[",
        f"{_COMPLETION}completion_stream[",
        f"{_COMPLETION}completion_with_openai_library",
        f"{_COMPLETION}completion_stream_with_openai_library",
        f"{_COMPLETION}nocache_long_input_prompt",
        f"{_COMPLETION}completion_response_fields[I believe the meaning of life is-32",
        f"{_COMPLETION}completion_prompt_cache",
        f"{_CHAT}chat_completion[",
        f"{_CHAT}chat_completion_cached_tokens",
        f"{_CHAT}chat_completion_stream[",
        f"{_CHAT}chat_completion_with_openai_library",
        f"{_CHAT}chat_template$",
        f"{_CHAT}completion_with_json_schema[True",
        f"{_CHAT}return_progress[64-4-False",
        "unit/test_ctx_shift.py",
        "unit/test_compat_oai_responses.py::test_responses_with_openai_library",
        "unit/test_compat_oai_responses.py::test_responses_stream_with_openai_library",
        "unit/test_compat_anthropic.py::test_anthropic_tool_result$",
        "unit/test_tokenize.py::test_tokenize_with_bos",
        "unit/test_slot_save.py",
    ),
    "infill, which the demo model has no tokens for": ("unit/test_infill.py",),
    "numbers of tokens, or an order, of the models that these tests are written for": (
        "unit/test_embedding.py::test_embedding_pooling_none$",
        "unit/test_embedding.py::test_embedding_usage",
        "unit/test_rerank.py::test_rerank$",
        "unit/test_rerank.py::test_rerank_tei_format",
        "unit/test_rerank.py::test_rerank_usage",
    ),
}
"""Beginnings of tests that are left out, by why."""

FAILS: Mapping[str, tuple[str, ...]] = {
    "names of headers are sent in lower case, as HTTP allows, and these look for them in a plain dict": (
        "unit/test_metrics.py::test_metrics_prometheus_format",
        "unit/test_metrics.py::test_metrics_prompt_processed_and_cached",
        "unit/test_metrics.py::test_metrics_predicted_total_matches_requests",
        f"{_SECURITY}cors_origins_localhost_reflects[http://localhost]",
        f"{_SECURITY}cors_origins_localhost_reflects[http://localhost:8080]",
        f"{_SECURITY}cors_origins_localhost_reflects[http://127.0.0.1]",
        f"{_SECURITY}cors_origins_localhost_reflects[http://127.0.0.1:3000]",
        f"{_SECURITY}cors_origins_localhost_reflects[http://[::1]]",
        f"{_SECURITY}cors_origins_localhost_reflects[http://[::1]:3000]",
        "unit/test_metrics.py::test_metrics_embedding_prompt_is_counted",
    ),
    "no page of another origin may call this server, key or not, until its origin is configured": (
        f"{_SECURITY}cors_options[localhost-Access-Control-Allow-Origin-localhost]",
        f"{_SECURITY}cors_options[web.mydomain.fr-Access-Control-Allow-Origin-web.mydomain.fr]",
        f"{_SECURITY}cors_options[origin-Access-Control-Allow-Credentials-true]",
        f"{_SECURITY}cors_options[web.mydomain.fr-Access-Control-Allow-Methods-GET, POST, DELETE, OPTIONS]",
        f"{_SECURITY}cors_options[web.mydomain.fr-Access-Control-Allow-Headers-*]",
    ),
    "there is no proxy for pages, so there is no route for one, and no flag that opens it": (
        "unit/test_proxy.py::test_mcp_no_proxy",
        "unit/test_proxy.py::test_mcp_proxy_custom_port",
        "unit/test_proxy.py::test_mcp_proxy_no_content",
        f"{_SECURITY}cors_proxy_only_forwards_explicit_proxy_headers",
    ),
    "this server runs no tools, and does not start where it is told to": (
        f"{_SECURITY}cors_origins_defaults_to_localhost_with_tools_enabled",
    ),
    "metrics need no flag; who may read them is a setting": ("unit/test_metrics.py::test_metrics_disabled",),
    "Vertex AI's predict is not offered": (
        "unit/test_compat_gcp.py::test_gcp_predict_camel_case",
        "unit/test_compat_gcp.py::test_gcp_predict_multiple_instances",
    ),
    "an answer that met its limit ends with response.incomplete, as OpenAI's does": (
        "unit/test_compat_oai_responses.py::test_responses_stream_with_llama_telemetry",
    ),
    "counting tokens needs no weights here, so it does not wake a model that sleeps": (
        f"{_SLEEP}server_sleep_metrics_buckets",
        f"{_SLEEP}server_sleep_token_counting_wake",
    ),
    "metrics tell of the process too, whose time goes on while the model sleeps": (
        f"{_SLEEP}server_sleep_read_only_endpoints",
    ),
    "looks for words that llama-server logs for its tests": (
        "unit/test_kv_keep_only_active.py::test_clear_and_restore",
    ),
    "a chat template has a text or a file; of names only chatml is known": (
        f"{_CHAT}chat_template_continue_final_message_mutual_exclusion",
        f"{_CHAT}apply_chat_template",
    ),
    "the first chunk of a chat has an empty text, as OpenAI's has, and not null": (
        f"{_CHAT}chat_completion_with_timings_per_token",
        f"{_CHAT}logprobs_stream",
        "unit/test_tool_call.py::test_completion_without_tool_call_fast[meta-llama-Llama-3.3-70B-Instruct-128-tools0-None-CompletionMode.STREAMED]",
        "unit/test_tool_call.py::test_completion_without_tool_call_fast[meta-llama-Llama-3.3-70B-Instruct-128-tools1-None-CompletionMode.STREAMED]",
        "unit/test_tool_call.py::test_completion_without_tool_call_fast[meta-llama-Llama-3.3-70B-Instruct-128-tools2-none-CompletionMode.STREAMED]",
    ),
    "several messages of the assistant in a row are no error": (f"{_CHAT}invalid_chat_completion_req[messages7]",),
    "what cannot be done is a 400, never a 500": (
        "unit/test_compat_anthropic.py::test_anthropic_tool_result_with_image",
        "unit/test_compat_anthropic.py::test_anthropic_vision_format_accepted",
    ),
    "a conversation without messages is refused, as Anthropic does": (
        "unit/test_compat_anthropic.py::test_anthropic_empty_messages",
    ),
    "text parts of one message are joined by one line end": (
        "unit/test_chat_completion.py::test_chat_template_assistant_prefill[prefill1-Wh\\n\\nill]",
    ),
    "items as a list is of JSON Schema's older drafts, which a schema has to name": (
        f"{_CHAT}completion_with_response_format[response_format1-10-[ -3000 ]]",
    ),
    "a date that a template has itself is not replaced by today's, as in transformers": (
        f"{_TEMPLATE}date_inside_prompt[meta-llama-Llama-3.3-70B-Instruct-%d %b %Y-None]",
        f"{_TEMPLATE}date_inside_prompt[meta-llama-Llama-3.3-70B-Instruct-%d %b %Y-tools1]",
        f"{_TEMPLATE}date_inside_prompt[meta-llama-Llama-3.3-70B-Instruct-%d %b %Y-tools2]",
    ),
    "an input is a text or token ids, not both in one": (
        f"{_EMBEDDING}embedding_mixed_input[input3-False]",
        f"{_EMBEDDING}embedding_mixed_input[input7-True]",
    ),
    "the page at / is for those who ask for HTML; programs, which take anything, get JSON": (
        "unit/test_basic.py::test_no_ui",
    ),
    "where keys are asked for, the page at / needs one too, and it has no files of its own": (
        f"{_SECURITY}access_static_assets_without_api_key",
    ),
}
"""Tests that fail here, by why that is right."""
