"""Fields of generating requests that other servers give an effect and this one cannot, or that have none anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What a request may say in a field whose effect cannot be given.

    neutral: the values at which it asks for nothing; any other is refused.
    instead: what to do in place of it, for the message.
    """

    neutral: tuple[object, ...]
    instead: str


_BY_GRAMMAR = "say it as a JSON Schema in json_schema, or as GBNF in grammar"
_TOKENS = "forbid tokens by logit_bias, at false; demand a form by a grammar"
_SAMPLER = "leave it out, and use temperature, top_k, top_p, min_p, typical_p or top_n_sigma"
_REPETITION = "leave it out, and use repeat_penalty or DRY (dry_multiplier)"
_LENGTH = "the length of an answer is max_tokens at most; ask for more in the prompt"
_WHOLE_PROMPT = "a prompt is computed whole or refused; shorten it before it is sent"
_ALWAYS_SO = "an answer never has special tokens or its stop string in it; add them to the text where they are wanted"

_OTHER_NAMES = (
    *("adapter", "adapters", "adapter_id", "adapter_name", "adapter_parameters", "adapter_source"),
    *("lora_adapter", "lora_adapters", "lora_id", "lora_name", "lora_names", "lora_path", "lora_request"),
    *("lora_scale", "lora_scales", "lora_weight", "lora_weights"),
)
OTHER_CHOICES: Mapping[str, Unsupported] = dict.fromkeys(
    _OTHER_NAMES, Unsupported(("", [], {}), "adapters are chosen by model, with a name, or by lora, such as {'NAME': 0.8}")
)
"""Fields by which other servers (LoRAX, TGI, SGLang, LMDeploy and others) choose adapters: to ignore one would be to answer by
another model than the one asked for."""

UNSUPPORTED: Mapping[str, Unsupported] = {
    **OTHER_CHOICES,
    # OpenAI
    "echo": Unsupported((False,), "put the prompt before the answer where it is received, or ask /v1/completions"),
    "suffix": Unsupported(("",), "write prefix and suffix into the prompt, in the form that the model was trained on"),
    "modalities": Unsupported((["text"], []), "answers are text; leave it out"),
    "web_search_options": Unsupported((), "nothing is searched here; give what was found as a message"),
    "functions": Unsupported(([],), "this older form is read in chats alone; give tools"),
    "function_call": Unsupported(("none", "auto"), "this older form is read in chats alone; give tools and tool_choice"),
    # vLLM
    "use_beam_search": Unsupported((False,), "answers are sampled; leave it out, and use n for several"),
    "length_penalty": Unsupported((1, 0), "it belongs to beam search, which is not done here; leave it out"),
    "early_stopping": Unsupported((False,), "it belongs to beam search, which is not done here; leave it out"),
    "include_stop_str_in_output": Unsupported((False,), _ALWAYS_SO),
    "skip_special_tokens": Unsupported((True,), _ALWAYS_SO),
    "stop_token_ids": Unsupported(([],), "give the texts of these tokens as stop"),
    "truncate_prompt_tokens": Unsupported((-1,), _WHOLE_PROMPT),
    "prompt_logprobs": Unsupported((0, False), "give echo: true and logprobs to /v1/completions"),
    "allowed_token_ids": Unsupported(([],), _TOKENS),
    "bad_words": Unsupported(([],), _TOKENS),
    "structural_tag": Unsupported((), _BY_GRAMMAR),
    "documents": Unsupported(([],), "give the documents as messages"),
    "chat_template": Unsupported(("",), "the model's own is used; render the messages, and give the prompt to /v1/completions"),
    # llama-server
    "dynatemp_range": Unsupported((0,), "leave it out, and use temperature"),
    "t_max_predict_ms": Unsupported((-1, 0), "the server's --max-time ends long answers; give max_tokens"),
    "n_probs": Unsupported((0,), "give logprobs, in chats with top_logprobs"),
    "post_sampling_probs": Unsupported((False,), "probabilities are the model's own, before sampling; leave it out"),
    "return_tokens": Unsupported((False,), "give logprobs, which names the tokens"),
    "image_data": Unsupported(([],), "only text is read here; leave it out"),
    "n_indent": Unsupported((0,), "hold the form by a grammar"),
    "adaptive_target": Unsupported((-1, -0.01), _SAMPLER),
    "grammar_lazy": Unsupported((False,), "a grammar holds from the first token on; give tools, whose calls are held later"),
    "grammar_triggers": Unsupported(([],), "a grammar holds from the first token on; leave it out"),
    "preserved_tokens": Unsupported(([],), "leave it out, and give tools, whose marks are kept"),
    # KoboldAI and transformers, which mean different things
    "max_length": Unsupported((), "give max_tokens, the most tokens of the answer"),
    # TabbyAPI
    "add_bos_token": Unsupported((True,), "give the prompt as token ids, with or without it"),
    "tfs": Unsupported((1,), _SAMPLER),
    "top_a": Unsupported((0,), _SAMPLER),
    "smoothing_factor": Unsupported((0,), _SAMPLER),
    "skew": Unsupported((0,), _SAMPLER),
    "dynamic_temperature": Unsupported((False,), "leave it out, and use temperature"),
    "temperature_last": Unsupported((False, True), "leave it out; temperature comes last here"),
    "do_sample": Unsupported((True,), "give temperature: 0"),
    "token_healing": Unsupported((False,), "end the prompt where a token ends"),
    "banned_strings": Unsupported(([], ""), _TOKENS),
    "banned_tokens": Unsupported(([], ""), _TOKENS),
    "custom_token_bans": Unsupported(("",), _TOKENS),
    "negative_prompt": Unsupported(("",), "guidance by a second prompt is not done here; leave it out"),
    "guidance_scale": Unsupported((1,), "guidance by a second prompt is not done here; leave it out"),
    "cfg_scale": Unsupported((1,), "guidance by a second prompt is not done here; leave it out"),
    # text-generation-webui
    "tfs_z": Unsupported((1,), _SAMPLER),
    "epsilon_cutoff": Unsupported((0,), _SAMPLER),
    "eta_cutoff": Unsupported((0,), _SAMPLER),
    "num_beams": Unsupported((1,), "answers are sampled; leave it out, and use n for several"),
    "penalty_alpha": Unsupported((0,), "answers are sampled; leave it out"),
    "encoder_repetition_penalty": Unsupported((1,), _REPETITION),
    "no_repeat_ngram_size": Unsupported((0,), _REPETITION),
}
"""By name. One that a later version gives an effect is declared as a field, and then no longer counts here."""

_ABOUT_THE_REQUEST = ("user", "metadata", "store", "safety_identifier", "service_tier", "request_id", "priority")
_ABOUT_CACHES_AND_SPEED = (
    *("prompt_cache_key", "prompt_cache_retention", "prediction", "cache_salt"),
    *("cache_prompt", "id_slot", "n_cache_reuse"),
)
_ABOUT_REPORTS = ("timings_per_token", "return_progress", "sse_ping_interval", "verbose")
_OF_WHAT_IS_OFF = (
    *("smoothing_curve", "dynatemp_exponent", "dynatemp_low", "dynatemp_high", "adaptive_decay"),
    *("n_keep", "n_discard"),  # a full context ends an answer, and is never shifted
    "t_max_prompt_ms",  # llama-server itself only reads it
)
WITHOUT_EFFECT = frozenset({*_ABOUT_THE_REQUEST, *_ABOUT_CACHES_AND_SPEED, *_ABOUT_REPORTS, *_OF_WHAT_IS_OFF})
"""Fields that could not change the text of an answer here: they are about the request, or settings of what is refused above."""
FOREIGN = frozenset({"mode", "models", "num_predict"})
"""Fields of other servers whose names look like misspelled ones of ours."""
