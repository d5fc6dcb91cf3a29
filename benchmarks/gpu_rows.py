"""Makes model folders of a shape, and rows of exact lengths, for the GPU benchmarks: nothing is fetched.

shape, lengths in tokens -> folder with config.json, weights that take no room on the disk, and a tokenizer of one token
per word; rows of such words
"""

import itertools
import json
import random
from pathlib import Path
from typing import Any

from posttrain.rows.formats import ANSWER_KEYS
from posttrain.weights.tensors import SINGLE

LENGTHS = Path(__file__).with_name("row_lengths.json")  # of examples/function_calling, by the tokenizer of SmolLM2
SHAPES = {
    "Qwen2.5-7B": ("qwen2", {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }),
    "Llama-3.1-8B": ("llama", {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }),
    "Llama-3.2-1B": ("llama", {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    }),
    "tiny": ("llama", {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),
}  # fmt: skip
NUM_WORDS = 2000
WORDS = [f"w{number}" for number in range(NUM_WORDS)]
HEAD = 2  # tokens of the template before a prompt's own words
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
AROUND_PROMPT, AROUND_ANSWER = 5, 1  # tokens of the template


def write_model(folder: Path, shape: str) -> Path:
    """Writes config.json, the tokenizer, and weights of zeros."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    kind, sizes = SHAPES[shape]
    special = [START, END, PAD, "user", "assistant"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # transformers gives a qwen2 its own splitting, whatever the file says: only added tokens stay one token each.
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in vocabulary])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    ids = {"bos_token_id": None, "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[PAD]}
    rope = {"rope_theta": 1e6 if kind == "qwen2" else 5e5, "rope_type": "default"}
    config = AutoConfig.for_model(
        kind, **sizes, **ids, max_position_embeddings=8192, rope_parameters=rope, dtype="bfloat16"
    )
    config.architectures = ["Qwen2ForCausalLM" if kind == "qwen2" else "LlamaForCausalLM"]
    config.save_pretrained(folder)
    _write_zeros(folder / SINGLE, config)
    return folder


def _write_zeros(path: Path, config: Any) -> None:
    """Writes the names and shapes of the model's weights, before a hole in the file, which reads as zeros."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def lengths_of(name: str, max_length: int) -> tuple[int, list[list[int]]]:
    """Returns how many tokens all prompts begin with, and the tokens of each row's prompt and answers.

    `full`: every row or sequence has `max_length` tokens. `real`: those of the function-calling example. `mixed`: pairs
    of any lengths that fit.
    """
    if name == "real":
        kept = json.loads(LENGTHS.read_text(encoding="utf-8"))
        return kept["shared"], kept["rows"]
    if name == "mixed":
        draw = random.Random(0)
        half, least = max_length // 2, max_length // 16
        return HEAD, [[draw.randint(least, half) for _ in range(3)] for _ in range(500)]
    prompt = max_length // 4
    return HEAD, [[prompt, max_length - prompt, max_length - prompt]]


def make_rows(kind: str, lengths: str, num_rows: int, *, max_length: int, seed: int) -> list[dict[str, Any]]:
    """Rows of kind sft or preference; the lengths are taken in their order, again and again."""
    draw = random.Random(seed)
    num_shared, wanted = lengths_of(lengths, max_length)
    shared = WORDS[: max(0, num_shared - HEAD)]
    rows = []
    for number, tokens in zip(range(num_rows), itertools.cycle(wanted), strict=False):
        own = draw.choices(WORDS, k=tokens[0] - AROUND_PROMPT - len(shared))
        row = {"id": f"row-{number}", "prompt": _turn("user", [*shared, *own])}
        for key, length in zip(ANSWER_KEYS[kind], tokens[1:], strict=False):
            row[key] = _turn("assistant", draw.choices(WORDS, k=length - AROUND_ANSWER))
        rows.append(row)
    return rows


def _turn(role: str, words: list[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": " ".join(words)}]
