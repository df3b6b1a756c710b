"""Families of models by name, as configurations of the library transformers: shapes that were published, without their weights.

GPT-2 (Radford et al. 2019), GPT-Neo (Black et al. 2021), LLaMA 2 (Touvron et al., 2307.09288) and TinyLlama (Zhang et al.,
2401.02385), which is LLaMA at a billion parameters.
"""

from typing import Any


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": 1024,
            "vocab_size": 50257}  # fmt: skip


def _gpt_neo(num_layers: int, num_heads: int, hidden_size: int) -> dict[str, Any]:
    return {"model_type": "gpt_neo", "num_layers": num_layers, "num_heads": num_heads, "hidden_size": hidden_size,
            "attention_types": [[["global", "local"], num_layers // 2]], "window_size": 256, "max_position_embeddings": 2048,
            "vocab_size": 50257}  # fmt: skip


def _llama(n_layer: int, n_head: int, n_kv_head: int, width: int, inner_width: int, context: int) -> dict[str, Any]:
    return {"model_type": "llama", "num_hidden_layers": n_layer, "num_attention_heads": n_head, "num_key_value_heads": n_kv_head,
            "hidden_size": width, "intermediate_size": inner_width, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
            "vocab_size": 32000, "tie_word_embeddings": False}  # fmt: skip


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),  # 124M parameters
    "gpt2-medium": _gpt2(24, 16, 1024),  # 355M
    "gpt2-large": _gpt2(36, 20, 1280),  # 774M
    "gpt2-xl": _gpt2(48, 25, 1600),  # 1.56B
    "gpt-neo-125m": _gpt_neo(12, 12, 768),  # 125M
    "gpt-neo-1.3b": _gpt_neo(24, 16, 2048),  # 1.32B
    "llama-1b": _llama(22, 32, 4, 2048, 5632, 2048),  # 1.10B
    "llama-7b": _llama(32, 32, 32, 4096, 11008, 4096),  # 6.74B
}
